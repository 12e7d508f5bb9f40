"""Checks of benchmarks/gpu.py that no command of cnndeploy makes: a line each, OK or FAIL; exit 1 if one failed.

python benchmarks/_gpu_checks.py machine
python benchmarks/_gpu_checks.py sessions cuda         # in a folder with lenet.pt and lenet.onnx
python benchmarks/_gpu_checks.py training cuda [--dry]
python benchmarks/_gpu_checks.py variants cuda lenet googlenet
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

_FAILED: list[str] = []


def report(name: str, good: bool, seen: object = "") -> None:
    """Print a line, and remember a failure."""
    said = " ".join(str(seen).split())[:220]
    print(f"{'OK  ' if good else 'FAIL'} {name}{f': {said}' if said else ''}", flush=True)
    if not good:
        _FAILED.append(name)


def attempt(name: str, work: Callable[[], object]) -> None:
    """Report what ``work`` returns, or as a failure what it raises."""
    try:
        seen = work()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        report(name, good=False, seen=f"{type(error).__name__} {error}")
    else:
        report(name, good=True, seen=seen)


def asked_of_gpu(query: str) -> str:
    """Return what nvidia-smi says; empty without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, f"--query-gpu={query}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)  # noqa: S603
    return "" if done.returncode else done.stdout.strip()


def machine() -> None:
    """Say what there is."""
    report("python", good=True, seen=platform.python_version())
    for package in ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy", "cnndeploy"):
        attempt(package, partial(_version, package))
    if told := asked_of_gpu("name,driver_version,memory.total,clocks.sm,mig.mode.current"):
        report("GPU", good=True, seen=told)


def _version(package: str) -> str:
    return str(getattr(importlib.import_module(package), "__version__", "there"))


def sessions(device: str) -> None:
    """Check how sessions are placed, and that they leave alone what they do not need."""
    import numpy as np

    import cnndeploy

    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    before = asked_of_gpu("memory.used")
    with cnndeploy.load("lenet.onnx", threads=1) as model:
        right = model.logits(images)
        now = asked_of_gpu("memory.used")
        alone = now == before and (bool(before) or device == "cpu")
        report("a CPU session leaves the GPU alone", alone, f"{before} -> {now}")
    attempt("onnxruntime on the device", partial(_on_device, device, images, right))
    attempt("eager on the device", partial(_eager, device))
    if device == "cuda":
        attempt("a session in a forked child is refused", _forked)
        for file, runtime in (("lenet.onnx", "onnxruntime"), ("lenet.pt", "eager"), ("lenet.pt", "compiled")):
            attempt(f"CUDA graphs of {runtime}", partial(_graphs, device, file, runtime))
        attempt("arrays that stay on the GPU", partial(_on_the_gpu, device))


def _on_device(device: str, images: Any, right: Any) -> str:
    import numpy as np

    import cnndeploy

    with cnndeploy.load("lenet.onnx", device=device) as model:
        given = model.logits(images)
        agrees = bool(np.allclose(given, right, rtol=1e-4, atol=1e-4))
        report("onnxruntime computes what it does on the CPU", agrees)
        report("torch was not loaded", "torch" not in sys.modules)
        report("the device is named", model.session.device.startswith(device), model.session.device)
        times = [_seconds(partial(model.logits, images[:size])) for size in (1, 2, 1, 2)]
        return f"batches of 1 and 2 in turn: {', '.join(f'{1e6 * one:.0f} us' for one in times)}"


def _graphs(device: str, file: str, runtime: str) -> str:
    """Compare calls with CUDA graphs on a runtime with calls without them on the file's default runtime.

    Each call has a new input, because a stale replay would return an earlier result.
    """
    import numpy as np

    from cnndeploy.artifact import Artifact
    from cnndeploy.run import Run, RuntimeOptions
    from cnndeploy.runtimes import open_session

    drawn = np.random.default_rng(0)
    artifact, graph = Artifact.open(file), RuntimeOptions(cuda_graph=True)
    plain_run, graph_run = Run(device=device), Run(runtime, device, options=graph)
    with open_session(artifact, plain_run) as plain, open_session(artifact, graph_run) as graphs:
        for size in (1, 2, 1, 64, 2, 1, 64):
            x = {"image": drawn.random((size, 1, 28, 28), np.float32)}
            right, given = (session.run(x)["logits"] for session in (plain, graphs))
            agrees = bool(np.allclose(given, right, rtol=1e-4, atol=1e-4))
            report(
                f"{runtime}: batch {size} gives the same logits with a CUDA graph as without",
                agrees,
                float(np.abs(given - right).max()),
            )
        x = {"image": drawn.random((1, 1, 28, 28), np.float32)}
        took = [_median(partial(session.run, x)) for session in (plain, graphs)]
    return f"a call takes {1e6 * took[1]:.1f} us, without {1e6 * took[0]:.1f} us"


def _on_the_gpu(device: str) -> str:
    """Compare the logits of torch's tensors with those of numpy's arrays.

    A busy stream still writes the tensors when they are handed over.
    """
    import numpy as np
    import torch
    from torch.utils.dlpack import from_dlpack

    from cnndeploy.artifact import Artifact
    from cnndeploy.run import Run
    from cnndeploy.runtimes import open_session

    busy = torch.rand(4096, 4096, device=device)
    with open_session(Artifact.open("lenet.onnx"), Run(device=device)) as session:
        for size in (1, 64, 2):
            x, stream = torch.zeros(size, 1, 28, 28, device=device), torch.cuda.Stream()
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                for _ in range(20):
                    torch.mm(busy, busy)
                x += torch.rand(size, 1, 28, 28, device=device)
                given = from_dlpack(session.run_on_device({"image": x})["logits"]).cpu().numpy()
            right = session.run({"image": x.cpu().numpy()})["logits"]
            agrees = bool(np.allclose(given, right, rtol=1e-4, atol=1e-4))
            report(
                f"batch {size} gives the same logits from the GPU's memory",
                agrees,
                np.abs(given - right).max(),
            )
        calls = (lambda: session.run_on_device({"image": x}), lambda: session.run({"image": x.cpu().numpy()}))
        took = [_median(call) for call in calls]
    return f"a call takes {1e6 * took[0]:.1f} us, with the copies {1e6 * took[1]:.1f} us"


def _eager(device: str) -> str:
    import numpy as np

    from cnndeploy.artifact import Artifact
    from cnndeploy.run import Run
    from cnndeploy.runtimes import open_session

    x = {"image": np.random.default_rng(0).random((2, 1, 28, 28), np.float32)}
    with open_session(Artifact.open("lenet.pt"), Run(device=device)) as eager:
        places = set(eager.placement().values())
        report("eager is on the device", all(place.startswith(device) for place in places), places)
        logits = eager.run(x)["logits"]
        report("the same bits ten times", all((eager.run(x)["logits"] == logits).all() for _ in range(10)))
        return str(eager.settings())


def _forked() -> str:
    from cnndeploy.artifact import Artifact
    from cnndeploy.errors import CnndeployError
    from cnndeploy.run import Run
    from cnndeploy.runtimes import open_session

    child = os.fork()
    if child == 0:
        code = 1
        try:
            open_session(Artifact.open("lenet.onnx"), Run(device="cuda"))
        except CnndeployError:
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError("it was opened, or ended otherwise")
    return "by an error of ours"


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def training(device: str, dry: str = "") -> None:
    """Check that training repeats itself, also if it was stopped, and say how long it takes."""
    import cnndeploy

    few: dict[str, Any] = {"epochs": 1, "device": device, **({"images": 512} if dry else {})}
    made = []
    for number in range(2):
        seconds = _seconds(lambda number=number: cnndeploy.train("lenet", f"t{number}.pt", **few))  # type: ignore[misc]
        made.append((_weights(f"t{number}.pt"), f"{seconds:.1f} s"))
    report("the same training makes the same bits", made[0][0] == made[1][0], made)
    steps = iter(range(10**6))
    try:
        cnndeploy.train("lenet", "t2.pt", should_stop=lambda: next(steps) == 1, **few)
    except (KeyboardInterrupt, cnndeploy.CnndeployError) as error:
        report("it stops", good=True, seen=type(error).__name__)
    else:
        report("it stops", good=False, seen="it went on to its end")
    attempt("it goes on", lambda: cnndeploy.train("lenet", "t2.pt", resume=True))
    report("a resumed training makes the same bits", _weights("t2.pt") == made[0][0])


def _weights(path: str) -> str:
    import torch

    content = torch.load(path, weights_only=True)
    tensors = content["weights"].values()
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:12]


def variants(device: str, *names: str) -> None:
    """Time ONNX Runtime with options, most of which cnndeploy does not use, each held against the CPU's float32."""
    import onnx

    from cnndeploy.quantization.graph import in_float16

    if device == "cuda":
        from cnndeploy.runtimes._cuda import load_libraries

        load_libraries()
    rows: list[dict[str, Any]] = []
    for name in names:
        onnx.save(in_float16(onnx.load(f"{name}.onnx")), f"{name}.half.onnx")
        for batch in (1, 64):
            for what, file, options, bound in _variants(name, device):
                rows.append(_variant(name, batch, what, file, options, bound, device))
                _write_variants(rows)


def _write_variants(rows: Sequence[dict[str, Any]]) -> None:
    Path("variants.json").write_text(json.dumps(rows, indent=1))
    lines = ["| network | variant | batch | a call | largest error |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        took = "-" if row["seconds"] is None else f"{1e6 * row['seconds']:.1f} µs"
        lines.append(f"| {row['network']} | {row['variant']} | {row['batch']} | {took} | {row['error']} |")
    Path("variants.md").write_text("\n".join(lines) + "\n")


def _variants(name: str, device: str) -> Iterator[tuple[str, str, dict[str, int], bool]]:
    """Yield variants: what it is, the file, options of the CUDA provider, and whether inputs and outputs are bound."""
    single, half = f"{name}.onnx", f"{name}.half.onnx"
    yield "float32", single, {}, False
    yield "float32, bound", single, {}, True
    if device == "cpu":
        return
    yield "float32, fused biases", single, {"fuse_conv_bias": 1}, False
    yield "float32, CUDA graph", single, {"enable_cuda_graph": 1}, True
    yield "float32, CUDA graph, fused biases", single, {"enable_cuda_graph": 1, "fuse_conv_bias": 1}, True
    yield "tf32", single, {"use_tf32": 1}, False
    yield (
        "tf32, CUDA graph, fused biases",
        single,
        {"use_tf32": 1, "enable_cuda_graph": 1, "fuse_conv_bias": 1},
        True,
    )
    yield "float16", half, {"use_tf32": 1}, False
    yield "float16, NHWC", half, {"use_tf32": 1, "prefer_nhwc": 1}, False
    graph = {"use_tf32": 1, "enable_cuda_graph": 1}
    yield "float16, CUDA graph", half, graph, True
    yield (
        "float16, CUDA graph, NHWC, fused biases",
        half,
        {**graph, "prefer_nhwc": 1, "fuse_conv_bias": 1},
        True,
    )


def _variant(
    name: str, batch: int, what: str, file: str, options: dict[str, int], bound: bool, device: str
) -> dict[str, Any]:
    """Time one variant, from host to host, and hold its logits against the CPU's.

    There are two inputs, because a replay of a graph might compute the first one again.
    """
    import numpy as np

    row: dict[str, Any] = {"network": name, "variant": what, "batch": batch, "seconds": None, "error": ""}
    try:
        plain = _session(f"{name}.onnx", "cpu", {})
        (given,) = plain.get_inputs()
        drawn = np.random.default_rng(batch)
        first = drawn.random((batch, *given.shape[1:]), np.float32)
        inputs = [first, 1 - first]
        right = [plain.run(["logits"], {given.name: one})[0].astype(np.float64) for one in inputs]
        session = _session(file, device, options)
        call = _bound(session, inputs[0], right[0].shape, device) if bound else _plain(session)
        errors = [
            float((np.abs(call(one).astype(np.float64) - exact).max(1) / np.abs(exact).max(1)).max())
            for one, exact in zip(inputs, right, strict=True)
        ]
        worst = float(np.max(errors))  # NaN if one is
        row |= {"error": f"{worst:.1e}", "seconds": _median(lambda: call(inputs[0]))}
        limit = 1e-4 if what.startswith("float32") else 0.05
        apart = float(np.abs(right[0] - right[1]).max() / np.abs(right).max())
        good = worst < limit < apart
        report(f"{name}, {what}, batch {batch}", good, f"{1e6 * row['seconds']:.1f} us, error {row['error']}")
    except Exception as error:  # noqa: BLE001 - other variants go on
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        report(f"{name}, {what}, batch {batch}", good=False, seen=row["error"])
    return row


def _session(file: str, device: str, options: dict[str, int]) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    if device == "cpu":
        return ort.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    chosen = {"use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC", **options}
    provider = ("CUDAExecutionProvider", {key: str(value) for key, value in chosen.items()})
    return ort.InferenceSession(file, settings, providers=[provider], enable_fallback=0)


def _plain(session: Any) -> Callable[[Any], Any]:
    (given,) = session.get_inputs()
    return lambda images: session.run(["logits"], {given.name: images})[0]


def _bound(session: Any, images: Any, shape: tuple[int, ...], device: str) -> Callable[[Any], Any]:
    """Bind addresses once; each call copies images there, runs, and copies logits back."""
    import numpy as np
    import onnxruntime as ort

    (given,) = session.get_inputs()
    # the wrapper of ONNX Runtime takes the kind and the number by themselves
    source = ort.OrtValue.ortvalue_from_numpy(images, device, 0)
    target = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, device, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(given.name, source)
    binding.bind_ortvalue_output("logits", target)
    for other in session.get_outputs()[1:]:
        spare = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, device, 0)
        binding.bind_ortvalue_output(other.name, spare)
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "1")

    def call(images: Any) -> Any:
        source.update_inplace(images)
        session.run_with_iobinding(binding, options)
        return target.numpy().copy()

    return call


def _median(call: Callable[[], object], seconds: float = 0.25) -> float:
    for _ in range(5):
        call()
    taken, ends = list[float](), time.perf_counter() + seconds
    while len(taken) < 10 or time.perf_counter() < ends:
        taken.append(_seconds(call))
    return statistics.median(taken)


def main() -> None:
    name, *arguments = sys.argv[1:]
    {"machine": machine, "sessions": sessions, "training": training, "variants": variants}[name](*arguments)  # type: ignore[operator]
    sys.exit(1 if _FAILED else 0)


if __name__ == "__main__":
    main()
