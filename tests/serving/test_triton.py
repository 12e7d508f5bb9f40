"""Model repositories for Triton; its own schema reads the configuration."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from google.protobuf import text_format

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.certificate import certify
from cnndeploy.deployment import Plan
from cnndeploy.errors import ServingError
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.serving.triton import write_repository
from helpers import Trained

model_config: Any = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="the extra serve is not installed; it would run this"
)


def read(target: Path) -> Any:
    return text_format.Parse((target / "config.pbtxt").read_text(), model_config.ModelConfig())


def test_the_configuration_says_what_the_file_is(trained: Trained, tmp_path: Path) -> None:
    target = write_repository(trained.onnx, tmp_path, max_batch=32, run=Run(threads=3))
    config = read(target)
    assert target == tmp_path / "lenet"
    assert (config.name, config.backend, config.max_batch_size) == ("lenet", "onnxruntime", 32)
    (given,), (output,) = config.input, config.output
    assert (given.name, given.data_type, list(given.dims)) == ("image", model_config.TYPE_FP32, [1, 28, 28])
    assert (output.name, output.data_type, list(output.dims)) == ("logits", model_config.TYPE_FP32, [10])
    assert (target / output.label_filename).read_text().splitlines()[9] == "Ankle boot"
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, model_config.ModelInstanceGroup.KIND_CPU)
    assert not config.HasField("dynamic_batching")
    with cnndeploy.load(target / "1" / "model.onnx") as model:
        assert len(model.classify(np.zeros((2, 28, 28), np.uint8))) == 2


def test_a_file_of_raw_images_has_free_sides_and_probabilities(trained: Trained, tmp_path: Path) -> None:
    config = read(write_repository(trained.onnx_image, tmp_path, name="raw"))
    assert (config.input[0].data_type, list(config.input[0].dims)) == (model_config.TYPE_UINT8, [-1, -1])
    assert [output.name for output in config.output] == ["logits", "probabilities"]
    assert all(output.label_filename == "labels.txt" for output in config.output)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_gpu_computes_as_it_was_verified(trained: Trained, tmp_path: Path, precision: Any) -> None:
    run = Run("onnxruntime", "cuda:1", 1, RuntimeOptions(precision=precision))
    config = read(write_repository(trained.onnx, tmp_path, run=run))
    (group,) = config.instance_group
    assert (group.kind, list(group.gpus)) == (model_config.ModelInstanceGroup.KIND_GPU, [1])
    assert "intra_op_thread_count" not in config.parameters
    assert config.HasField("dynamic_batching")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, accelerator.parameters) == ("cuda", {"use_tf32": str(int(precision == "tf32"))})


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_deployment_keeps_its_threads_and_certificate(
    trained: Trained, tmp_path: Path, cli: Callable[..., Result], runtime: str
) -> None:
    folder = tmp_path / "shoes.deploy"
    folder.mkdir()
    file = shutil.copyfile(trained.onnx, folder / "lenet.onnx")
    verdict = cnndeploy.verify(file, trained.checkpoint, images=64)
    certify(verdict, file, "cnndeploy verify")
    plan = Plan("lenet.onnx", Artifact.open(trained.onnx).sha256, Run(runtime, "cpu", 1), {})
    (folder / "plan.json").write_text(plan.to_json())
    shown: Result = cli("export", folder, "--format", "triton", "--output-dir", tmp_path / "models")
    assert shown.exit_code == 0, shown.output
    assert "with its certificate" in shown.output
    config = read(tmp_path / "models" / "shoes")
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert not config.HasField("optimization")
    with cnndeploy.load(tmp_path / "models" / "shoes" / "1" / "model.onnx", require_verified=True) as model:
        assert model.labels


def test_a_file_without_certificate_is_warned_of(
    trained: Trained, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    file = shutil.copyfile(trained.onnx, tmp_path / "shoes.v2.onnx")
    shown: Result = cli("export", file, "--format", "triton", "--output-dir", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "Warning:" in shown.output
    assert "no certificate" in shown.output
    assert read(tmp_path / "shoes.v2").name == "shoes.v2"


def test_a_checkpoint_is_exported_and_can_be_verified_where_it_lies(
    trained: Trained, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    options = ("--format", "triton", "--output-dir", tmp_path)
    for _ in range(2):  # the second time it is replaced
        shown: Result = cli("export", trained.checkpoint, *options, "--input", "image")
        assert shown.exit_code == 0, shown.output
    model = tmp_path / "lenet" / "1" / "model.onnx"
    assert f"verify {model} --against" in shown.output.replace("\n", " ")
    verified: Result = cli("verify", model, "--against", trained.checkpoint, "--images", 64)
    assert verified.exit_code == 0, verified.output
    assert model.with_name("model.onnx.verified.json").exists()
    assert read(tmp_path / "lenet").input[0].data_type == model_config.TYPE_UINT8


def test_what_makes_no_sense_is_refused(trained: Trained, tmp_path: Path, cli: Callable[..., Result]) -> None:
    with pytest.raises(ServingError, match="Triton gets ONNX files"):
        write_repository(trained.torchscript, tmp_path)
    with pytest.raises(ServingError, match="no name"):
        write_repository(trained.onnx, tmp_path, name="..")
    with pytest.raises(ServingError, match="at least one image"):
        write_repository(trained.onnx, tmp_path, max_batch=0)
    (tmp_path / "lenet").mkdir()
    (tmp_path / "lenet" / "mine.txt").touch()
    with pytest.raises(ServingError, match=r"holds mine\.txt"):
        write_repository(trained.onnx, tmp_path)
    for arguments, message in (
        ((trained.checkpoint, "--format", "triton"), "--output-dir"),
        ((trained.checkpoint, "--format", "triton", "--format", "onnx"), "by itself"),
        ((trained.onnx, "--format", "triton", "--output-dir", tmp_path, "--opset", 19), "for checkpoints"),
    ):
        shown: Result = cli("export", *arguments)
        assert shown.exit_code == 2
        assert message in shown.output
    assert [path.name for path in tmp_path.rglob("*")] == ["lenet", "mine.txt"]
