"""What ONNX Runtime's CUDA provider does on GPUs that are not there; see cuda_stub."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cuda_stub
import onnx
import pytest
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from cnndeploy.artifact import Artifact
from cnndeploy.quantization.graph import in_float16, with_manifest
from helpers import Trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The libraries, compiled once."""
    folder = tmp_path_factory.mktemp("cuda")
    cuda_stub.build(folder)
    return folder


def test_a_cpu_session_calls_nothing_of_cuda(stub: Path, trained: Trained) -> None:
    code = f"""
import cnndeploy
with cnndeploy.load({str(trained.onnx)!r}, device="cpu") as model:
    model.warmup()
    print(model)
"""
    output, calls = cuda_stub.python(stub, code, gpus=4)
    assert "device='cpu'" in output
    assert calls == []


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    """LeNet in float16."""
    manifest = replace(Artifact.open(trained.onnx).require_manifest(), quantization={"precision": "float16"})
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    path.write_bytes(with_manifest(in_float16(onnx.load(trained.onnx)), manifest.to_json()))
    return path


def test_only_the_gpu_asked_for_is_used_and_float16_may_use_its_tensor_cores(
    stub: Path, trained: Trained, half: Path
) -> None:
    code = f"""
import cnndeploy
for path in {str(trained.onnx)!r}, {str(half)!r}:
    with cnndeploy.load(path, device="cuda") as model:
        model.warmup()
        settings = model._session.settings()
        print(model, settings["tf32"], settings["provider_options"]["use_tf32"])
"""
    output, calls = cuda_stub.python(stub, code, gpus=3)
    assert "lenet.onnx', device='cuda:0', threads=2) False 0\n" in output.replace("threads=1", "threads=2")
    assert "half.onnx', device='cuda:0', threads=2) False 1\n" in output.replace("threads=1", "threads=2")
    assert "No registered plugin EP" not in output
    assert {call for call in calls if call.startswith("GPU")} == {"GPU 0"}
    computed = [call.removeprefix("convolution on ") for call in calls if call.startswith("conv")]
    probed, *lenet = computed
    assert (probed, set(lenet[:2]), set(lenet[2:])) == ("plain cores", {"plain cores"}, {"tensor cores"})


def test_the_driver_is_asked_for_its_version_without_cuda(stub: Path) -> None:
    code = """
from cnndeploy import nvml
print(nvml.driver_version(), nvml.utilization("0000:10:00.0"))
from cnndeploy.machine import environment
print(environment()["nvidia_driver"], environment()["cuda_driver"])
"""
    output, calls = cuda_stub.python(stub, code)
    assert output == "580.95.05 0.0\n580.95.05 13.0\n"
    assert calls == ["NVML", "NVML 0000:10:00.0", "cuInit"]
    output, calls = cuda_stub.python(stub, code, gpus=0, nvml="no-driver")
    assert output == "None None\nNone None\n"


def test_a_benchmark_says_what_went_on_at_its_gpu(stub: Path, trained: Trained) -> None:
    code = f"""
import json
from cnndeploy import bench
from cnndeploy.benchmark import conditions, engine
engine.PAUSE_S, conditions._GPU_LISTEN_S = 0.0, 0.1
how = {{"runtimes": ["raw-onnxruntime", "onnxruntime"], "threads": [1], "seconds": 0.01, "cold_starts": 0}}
report = bench([{str(trained.onnx)!r}], device="cuda:1", **how)
for row in report.to_dict()["results"]:
    print(row["device"], row["options"], row["rounds"] > 0, row["gpu_memory_bytes"])
print(report.environment["busy_gpu"], report.environment["gpu_slowed"])
print(*report.warnings, sep="\\n")
"""
    output, calls = cuda_stub.python(stub, code, gpus=2, nvml="busy hot capped")
    assert f"cuda:1 {{'precision': 'tf32'}} True {300 << 20}\n" in output, "as plain scripts leave it"
    assert f"cuda:1 {{}} True {300 << 20}\n0.4 ['heat', 'its power limit']\n" in output
    assert {call for call in calls if call.startswith("GPU")} == {"GPU 1"}
    assert "Other programs kept the GPU busy for 40% of the time" in output
    assert "The GPU lowered its clock because of heat and its power limit." in output
    assert {call for call in calls if call.startswith("NVML ")} == {"NVML 0000:11:00.0"}
    on_cpu = code.replace("cuda:1", "cpu").replace('["busy_gpu"], report.environment["gpu_slowed"]', "")
    output, calls = cuda_stub.python(stub, on_cpu, gpus=2, nvml="busy hot")
    assert output.count(" True None\n") == 2, "rows have no GPU memory"
    assert "kept the GPU" not in output
    assert not any(call.startswith("NVML ") for call in calls)


def test_what_a_plain_script_would_run_on_the_cpu_is_refused(
    stub: Path, trained: Trained, tmp_path: Path
) -> None:
    """The session's list of providers does not tell: that of a file with a CPU's operator begins with CUDA."""
    matrices = make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3, 3])
    nodes = [make_node("Relu", ["x"], ["y"]), make_node("Det", ["y"], ["z"])]
    graph = make_graph(nodes, "g", [matrices], [make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2])])
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), tmp_path / "half.onnx")
    code = f"""
import onnxruntime as ort
from cnndeploy.benchmark.worker import _open
from cnndeploy.errors import DeviceUnavailableError
from cnndeploy.run import Run
def attempt(path, device):
    try:
        print(_open(path, Run("raw-onnxruntime", device, 1), False, None).device)
    except DeviceUnavailableError as error:
        print("refused:", *str(error).split())
mixed, lenet = {str(tmp_path / "half.onnx")!r}, {str(trained.onnx)!r}
print(ort.InferenceSession(mixed, providers=["CUDAExecutionProvider"]).get_providers())
for path, device in (mixed, "cuda"), (lenet, "cuda:0"), (lenet, "cuda:7"):
    attempt(path, device)
"""

    def told(missing: str = "") -> list[str]:
        output, _ = cuda_stub.python(stub, code, missing=missing)
        return [line for line in output.splitlines() if line.startswith(("['C", "refused", "cuda"))]

    plain, mixed, lenet, unknown = told()
    assert plain == "['CUDAExecutionProvider', 'CPUExecutionProvider']"
    assert "nodes that are assigned to the default CPU EP" in mixed
    assert lenet == "cuda:0"
    assert "'cuda:7' is not available to raw-onnxruntime: this machine has no such GPU" in unknown
    assert "Available: cpu, cuda:0" in unknown
    plain, _, lenet, _ = told(missing="libcudart.so.13")
    assert plain == "['CPUExecutionProvider']"
    assert "lenet.onnx on cuda:0: " in lenet
    assert "Nothing was run on the CPU instead" in lenet


def test_float16_has_channels_last_on_the_gpu_and_channels_first_outside(
    stub: Path, trained: Trained, half: Path
) -> None:
    code = f"""
import numpy as np
from cnndeploy.artifact import Artifact
from cnndeploy.run import Run
from cnndeploy.runtimes import open_session
images = {{"image": np.zeros((2, 1, 28, 28), np.float32)}}
for path in {str(trained.onnx)!r}, {str(half)!r}:
    with open_session(Artifact.open(path), Run(device="cuda")) as session:
        placed = session.placement()
        print(set(placed.values()), sum("Transpose" in part for part in placed))
        print(session.run(images)["logits"].shape, [one.values.shape for one in session.activations(images)][:2])
"""
    output, calls = cuda_stub.python(stub, code)
    shapes = "(2, 10) [(2, 6, 24, 24), (2, 6, 12, 12)]"
    on_the_gpu = "{'CUDAExecutionProvider'}"
    assert output.splitlines() == [f"{on_the_gpu} 0", shapes, f"{on_the_gpu} 2", shapes]
    layouts = [call for call in calls if call.startswith(("convolution", "channels"))]
    start = layouts.index("channels last")
    assert set(layouts[:start]) == {"convolution on plain cores"}
    assert set(layouts[start:]) == {"channels last", "convolution on tensor cores"}


def test_a_gpu_without_cudnn_is_not_usable_and_no_fault_of_the_file(stub: Path, trained: Trained) -> None:
    code = f"""
import cnndeploy
from cnndeploy.devices import DeviceStatus
from cnndeploy.errors import DeviceUnavailableError
for known in False, True:  # as if cuDNN went away afterwards
    try:
        if known:
            runtime._probe = lambda device: DeviceStatus(True)
        cnndeploy.load({str(trained.onnx)!r}, device="cuda").warmup()
    except DeviceUnavailableError as error:
        print(known, error)
"""
    output, calls = cuda_stub.python(stub, code, missing=cuda_stub.CUDNN)
    assert "False The device 'cuda' is not available to onnxruntime" in output
    assert "cuDNN is unavailable" in output
    assert "brings them all" in output
    assert "True ONNX Runtime could not run" in output
    assert "GPU 0" in calls


def test_a_graph_is_recorded_for_each_shape_and_replayed_on_new_inputs(stub: Path, trained: Trained) -> None:
    code = f"""
import threading, weakref
import numpy as np
from cnndeploy.artifact import Artifact
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.runtimes import open_session
run = Run(device="cuda", options=RuntimeOptions(cuda_graph=True))
with open_session(Artifact.open({str(trained.onnx)!r}), run) as session:
    print(session.settings()["provider_options"]["enable_cuda_graph"])
    for size in 1, 2, 1, 2, 2:
        logits = session.run({{"image": np.ones((size, 1, 28, 28), np.float32)}})["logits"]
        print(logits.shape, logits.flags.owndata)
    for size in range(3, 12):
        work = lambda: session.run({{"image": np.ones((size, 1, 28, 28), np.float32)}})
        threads = [threading.Thread(target=work) for _ in range(2)]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
    held = weakref.ref(session._session)
print(held())
"""
    output, calls = cuda_stub.python(stub, code)
    assert output.splitlines() == ["1", *(f"({size}, 10) True" for size in (1, 2, 1, 2, 2)), "None"]
    assert calls.count("recorded") == 8, "whatever thread it was"
    replays = [number for number, call in enumerate(calls) if call == "replayed"]
    inputs = {f"copied to the GPU: {size * 28 * 28 * 4}" for size in range(1, 9)}
    for before, number in pairwise(replays):
        assert inputs & set(calls[before:number]), "the input is copied before each"
    planned = [number for number, call in enumerate(calls) if call == "plan"]
    last = max(number for number, call in enumerate(calls) if call == "recorded")
    assert len(replays) == (8 + 3) + 6
    assert planned[-1] > last, "shapes beyond the eighth are computed without a graph"


_ON_THE_GPU = """
import os
import threading
import numpy as np
import onnxruntime as ort
from cnndeploy.artifact import Artifact
from cnndeploy.errors import CnndeployError
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.runtimes import open_session

def mark(text):
    with open(os.environ["CUDA_STUB_LOG"], "a") as log:
        log.write(text + "\\n")

class Foreign:  # an array of another library
    def __init__(self, array, gpu=0):
        self.value = ort.OrtValue.ortvalue_from_numpy(array, "cuda", gpu)
    def __dlpack__(self, *, stream=None):
        thread = threading.current_thread().name.partition("_")[0]
        mark(f"asked for on stream {stream} by {thread}")
        return self.value.__dlpack__(stream=stream)
    def __dlpack_device__(self):
        return self.value.__dlpack_device__()
"""


@pytest.mark.parametrize("graph", [False, True])
def test_arrays_on_the_gpu_are_used_where_they_lie(stub: Path, trained: Trained, graph: bool) -> None:
    thread = "cuda-graphs" if graph else "MainThread"
    code = f"""{_ON_THE_GPU}
artifact, options = Artifact.open({str(trained.onnx)!r}), RuntimeOptions(cuda_graph={graph})
sessions = [open_session(artifact, Run(device=f"cuda:{{gpu}}", options=options)) for gpu in range(2)]
for gpu in 1, 0, 1, 0:
    given = Foreign(np.zeros((2, 1, 28, 28), np.float32), gpu)
    mark("call")
    logits = sessions[gpu].run_on_device({{"image": given}})["logits"]
    mark("end")
    print("logits on", logits.__dlpack_device__())
sessions[0].close()
again = ort.OrtValue.from_dlpack(logits.__dlpack__(stream=1))
print("the same" if again.data_ptr() == logits.data_ptr() else "a copy", again.numpy().shape)
"""
    output, calls = cuda_stub.python(stub, code, gpus=2)
    said = [line for line in output.splitlines() if line.startswith(("logits on", "the same"))]
    assert said == [*("logits on (2, 1)", "logits on (2, 0)") * 2, "the same (2, 10)"], output
    starts, ends = ([number for number, call in enumerate(calls) if call == mark] for mark in ("call", "end"))
    for gpu, start, end in zip((1, 0, 1, 0), starts, ends, strict=True):
        made = calls[start + 1 : end]
        asked = f"asked for on stream 1 by {thread}"
        assert made[:2] == [asked, f"waited for GPU {gpu}"], "before anything is computed"
        assert made.count("convolution on plain cores") == 2
        assert f"GPU {1 - gpu}" not in made
        assert not [call for call in made if call.startswith(("copied", "recorded", "replayed"))]


def test_arrays_that_do_not_fit_or_lie_elsewhere_are_refused(stub: Path, trained: Trained) -> None:
    code = f"""{_ON_THE_GPU}
class Turned(Foreign):
    def __dlpack__(self, *, stream=None):
        return np.zeros((28, 28, 1, 1), np.float32).T.__dlpack__()

image = np.zeros((1, 1, 28, 28), np.float32)
session = open_session(Artifact.open({str(trained.onnx)!r}), Run(device="cuda"))
def refused(**feeds):
    try:
        session.run_on_device(feeds)
    except CnndeployError as error:
        print(type(error).__name__, error)
refused(image=image)
refused(image=Foreign(image, 1))
refused(image=[[0.0]])
refused(image=Foreign(image.astype(np.uint8)))
refused(image=Foreign(image[:, :, :27]))
refused(image=Turned(image))
refused(picture=Foreign(image))
session.close()
refused(image=Foreign(image))
"""
    output, _ = cuda_stub.python(stub, code, gpus=2)
    said = [line for line in output.splitlines() if "Error " in line]
    expected = [
        "InputMismatchError input 'image' lies on the CPU, but the session runs on cuda:0. Move it there first",
        "InputMismatchError input 'image' lies on cuda:1, but the session runs on cuda:0",
        "InputMismatchError input 'image' is a list, which does not support DLPack",
        "InputMismatchError input 'image': expected float32 (batch, 1, 28, 28), got uint8 (1, 1, 28, 28)",
        "InputMismatchError input 'image': expected float32 (batch, 1, 28, 28), got float32 (1, 1, 27, 28)",
        "InputMismatchError input 'image' cannot be used where it lies: ORT only supports contiguous tensor for now. ",
        "InputMismatchError expected the inputs ['image'], got ['picture']",
        "ArtifactError the session of",
    ]
    assert len(said) == len(expected), output
    for line, start in zip(said, expected, strict=True):
        assert line.startswith(start)
