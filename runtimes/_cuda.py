"""CUDA, as ONNX Runtime needs it: its libraries, the provider's options, and a model that shows whether it computes."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import re
from functools import cache
from pathlib import Path

from cnndeploy.run import Run

PROVIDER = "CUDAExecutionProvider"
INSTALL = "pip install 'cnndeploy[gpu]' brings them all"
# The smallest model that needs cuDNN, y = Conv(x, x) with x float32 (1, 1, 1, 1), opset 13: ONNX Runtime loads cuDNN
# only when a convolution runs.
PROBE = (
    b'\x08\x08:N\n\x0f\n\x01x\n\x01x\x12\x01y"\x04Conv\x12\x01g'
    b"Z\x1b\n\x01x\x12\x16\n\x14\x08\x01\x12\x10\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01"
    b"b\x1b\n\x01y\x12\x16\n\x14\x08\x01\x12\x10\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01B\x04\n\x00\x10\r"
)


def provider_options(run: Run, *, is_float16: bool) -> dict[str, str]:
    """Return the options of the CUDA provider for a run on ``cuda:N``.

    Without TF32 no convolution may use tensor cores, not even in float16, where they lose nothing: so a file in
    float16 always may. Tensor cores need channels last, NHWC. With channels first, cuDNN would transpose before and
    after each convolution. So for a file in float16, ONNX Runtime transposes only at both ends of the network.
    HEURISTIC is cuDNN's quick search; the default takes its fallback, which can be many times as slow.

    ``fuse_conv_bias`` is left out, because ONNX Runtime 1.31.1 then returns wrong results. With channels first, cuDNN
    also adds what lies in the output's memory, which is set to zero before the first run only. If cuDNN finds no way to
    fuse, the run fails, or ONNX Runtime adds the convolution's result to itself and lets cuDNN round to TF32.

    Source: ONNX Runtime, core/providers/cuda/nn/conv.cc.
    """
    options = {
        "use_tf32": str(int(is_float16 or run.choices.precision == "tf32")),
        "cudnn_conv_algo_search": "HEURISTIC",
        **({"prefer_nhwc": "1"} if is_float16 else {}),
        **({"enable_cuda_graph": "1"} if run.choices.cuda_graph else {}),
    }
    # It logs a warning, as if nothing ran on the GPU, if a number is given; the default is 0.
    index = run.device.removeprefix("cuda:")
    return options if index == "0" else {**options, "device_id": index}


def load_libraries() -> str:
    """Load the CUDA libraries that nvidia's packages brought, wherever they are; return what cannot be loaded.

    ONNX Runtime looks for these packages beside its own folder alone, and then where the system's loader looks.
    """
    import onnxruntime as ort

    major = str(ort.cuda_version).partition(".")[0]
    nvidia = importlib.util.find_spec("nvidia")
    for base in () if nvidia is None else nvidia.submodule_search_locations or ():
        _preload(Path(base, f"cu{major}", "lib"), cudnn=False)
        _preload(Path(base, "cudnn", "lib"), cudnn=True)
    # of a path that failed it goes on to try the name alone
    return ", ".join(re.findall(r"^Failed to load ([^/\\\s]+):", _preload(None), re.MULTILINE))


def wait_for(device: str) -> None:
    """Wait until a GPU, ``cuda:N``, has done all that any library of this process asked of it.

    ``IOBinding.synchronize_inputs`` waits for the GPU that the thread used last, which may be another.

    Source: CUDA Driver API, cuDevicePrimaryCtxRetain, cuCtxPushCurrent, cuCtxSynchronize.
    """
    driver = _driver()
    index, context, pushed = int(device.removeprefix("cuda:")), ctypes.c_void_p(), ctypes.c_void_p()
    _succeeds(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), index))
    try:
        _succeeds(driver.cuCtxPushCurrent_v2(context))
        try:
            _succeeds(driver.cuCtxSynchronize())
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(pushed))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(index)


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def _succeeds(status: int) -> None:
    if status:
        raise RuntimeError(f"CUDA error {status}")


def _preload(folder: Path | None, *, cudnn: bool = True) -> str:
    """Load libraries from one folder, or from where ONNX Runtime looks by itself; return what it prints."""
    import onnxruntime as ort

    if folder is not None and not folder.is_dir():
        return ""
    printed = io.StringIO()
    with contextlib.suppress(Exception), contextlib.redirect_stdout(printed):
        if folder is None:
            ort.preload_dlls()
        else:
            ort.preload_dlls(cuda=not cudnn, cudnn=cudnn, directory=str(folder))
    return printed.getvalue()
