from __future__ import annotations

import importlib.machinery
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from cnndeploy import devices
from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, DeviceUnavailableError
from cnndeploy.machine import CudaDriver
from cnndeploy.run import Precision, Run, RuntimeOptions
from cnndeploy.runtimes import onnxruntime as runtime, open_session
from cnndeploy.runtimes._cuda import PROBE, PROVIDER, load_libraries, provider_options
from cnndeploy.runtimes.eager import EagerSession
from helpers import Trained


def test_the_probe_is_the_model_that_its_comment_says() -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1, 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model.ClearField("producer_name")
    assert model.SerializeToString() == PROBE


def test_a_gpu_that_the_provider_cannot_use_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver shows a GPU, but CUDA's libraries are missing."""
    monkeypatch.setattr(devices, "cuda_driver", lambda: CudaDriver(("A GPU",), "13.0"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDER])
    monkeypatch.setattr(runtime, "load_libraries", lambda: "libcudart.so.13")
    monkeypatch.setattr(runtime, "_probe", runtime._probe.__wrapped__)
    status = runtime.RUNTIME.devices()["cuda:0"]
    assert not status.usable
    assert "does not start: libcudart.so.13 cannot be loaded; pip install 'cnndeploy[gpu]'" in status.reason


def test_the_probe_leaves_the_log_level_of_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []
    monkeypatch.setattr(devices, "cuda_driver", lambda: CudaDriver(("A GPU",), "13.0"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDER])
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", levels.append)
    monkeypatch.setattr(runtime, "load_libraries", lambda: "")
    monkeypatch.setattr(runtime, "_session", lambda model, run: _Broken())
    monkeypatch.setattr(runtime, "_probe", runtime._probe.__wrapped__)
    status = runtime.RUNTIME.status("cuda:0")
    assert levels == []
    assert "(CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED)" in status.reason


class _Broken:
    """A session whose GPU does not compute."""

    def get_providers(self) -> list[str]:
        return [PROVIDER]

    def run(self, *_: object) -> None:
        raise RuntimeError("cuda_call.cc:146 CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED")


def test_libraries_are_loaded_from_wherever_nvidia_packages_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[bool, bool, str | None]] = []

    def preload(cuda: bool = True, cudnn: bool = True, directory: str | None = None) -> None:
        loaded.append((cuda, cudnn, directory))
        print("Failed to load /other/libcublas.so.13: it is of another version")  # noqa: T201
        if directory is None:
            print("Failed to load libcurand.so.10: no such file")  # noqa: T201

    folders = [tmp_path / "nvidia" / f"cu{onnxruntime.cuda_version.partition('.')[0]}" / "lib"]
    folders.append(tmp_path / "nvidia" / "cudnn" / "lib")
    for folder in folders:
        folder.mkdir(parents=True)
    nvidia = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    nvidia.submodule_search_locations = [str(tmp_path / "nvidia"), str(tmp_path / "nowhere")]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: nvidia)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    assert load_libraries() == "libcurand.so.10"
    expected = [(True, False, str(folders[0])), (False, True, str(folders[1])), (True, True, None)]
    assert loaded == expected


def test_the_number_of_the_first_gpu_is_not_said_for_that_makes_a_warning() -> None:
    first, third = (provider_options(Run(device=name), is_float16=False) for name in ("cuda:0", "cuda:2"))
    assert third == {**first, "device_id": "2"}
    assert "device_id" not in first


def test_one_node_on_another_provider_is_an_error(
    trained: object, edited: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = edited(lambda model: None)
    monkeypatch.setattr(
        runtime, "_placement", lambda session: {"conv": "CPUExecutionProvider", "relu": "Other"}
    )
    with pytest.raises(DeviceUnavailableError, match=r"put 1 of 2 parts of .* elsewhere than on cpu: relu"):
        open_session(Artifact.open(path))


def test_an_operator_it_does_not_know_is_a_clear_error(edited: Callable[..., Path]) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "Convolution"

    with pytest.raises(ArtifactError, match="ONNX Runtime cannot open"):
        open_session(Artifact.open(edited(rename)))


@pytest.mark.parametrize(("precision", "use_tf32"), [("float32", "0"), ("tf32", "1")])
def test_tf32_is_used_only_if_it_is_asked_for(
    precision: Precision, use_tf32: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, str]] = []
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, options, providers, enable_fallback: given.append(providers[0][1]),
    )
    runtime._session(b"", Run("onnxruntime", "cuda:0", 1, RuntimeOptions(precision=precision)))
    runtime._session(b"", Run("onnxruntime", "cuda:0", 1), is_float16=True)
    assert [options["use_tf32"] for options in given] == [use_tf32, "1"]


def test_a_cpu_has_no_tf32(trained: Trained) -> None:
    with pytest.raises(DeviceUnavailableError, match="TF32 is a format of CUDA GPUs"):
        open_session(Artifact.open(trained.onnx), Run(options=RuntimeOptions(precision="tf32")))


def test_modules_are_named_as_in_the_simplified_network(trained: Trained) -> None:
    image = np.random.default_rng(0).random((2, 1, 28, 28), dtype=np.float32)
    with open_session(Artifact.open(trained.onnx)) as session:
        found = session.activations({"image": image})
        assert np.array_equal(found[-1].values, session.run({"image": image})["logits"])
    with open_session(Artifact.open(trained.checkpoint), Run(threads=1)) as eager:
        assert isinstance(eager, EagerSession)
        with eager.computed(simplified=True) as simplified:
            expected = simplified.activations({"image": image})
    assert [(each.module, each.kind, each.values.shape) for each in found] == [
        (each.module, each.kind, each.values.shape) for each in expected
    ]


def test_arrays_on_a_device_are_for_sessions_of_onnx_runtime_on_a_gpu(trained: Trained) -> None:
    for path in (trained.onnx, trained.torchscript):
        session = open_session(Artifact.open(path))
        with pytest.raises(DeviceUnavailableError, match=r"takes numpy arrays only.*by onnxruntime on cuda"):
            session.run_on_device({"image": np.zeros((1, 1, 28, 28), np.float32)})
        session.close()
        with pytest.raises(ArtifactError, match="is closed; open it again"):
            session.run_on_device({})
