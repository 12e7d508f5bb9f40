"""Calls of ONNX Runtime on arrays that lie on its GPU, which DLPack hands over: nothing is copied, in or out.

Source: the DLPack protocol for Python, and ONNX Runtime's OrtValue and IOBinding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cnndeploy.errors import InputMismatchError
from cnndeploy.runtimes._session import DeviceArray
from cnndeploy.specs import TensorSpec

# DLPack's numbers of kinds of devices, and of CUDA's default stream
_PLACES = {1: "the CPU", 2: "cuda:{}", 3: "the CPU, in pinned memory"}
_DEFAULT_STREAM = 1
_DTYPES = {"float": "float32", "double": "float64"}  # the others have numpy's names


def dtype_of(kind: str) -> str:
    """Return numpy's name of a type of ONNX Runtime, such as float32 for ``tensor(float)``."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return _DTYPES.get(name, name)


def taken(feeds: Mapping[str, DeviceArray], specs: Sequence[TensorSpec], device: str) -> dict[str, Any]:
    """Return an OrtValue on the memory of each array; raise InputMismatchError if one does not fit its input."""
    expected = [spec.name for spec in specs]
    if feeds.keys() != set(expected):
        raise InputMismatchError(f"expected the inputs {expected}, got {sorted(feeds)}")
    return {spec.name: _taken(feeds[spec.name], spec, device) for spec in specs}


def _taken(array: DeviceArray, spec: TensorSpec, device: str) -> Any:
    import onnxruntime as ort

    if (place := _place_of(array, spec)) != device:
        raise InputMismatchError(
            f"input {spec.name!r} lies on {place}, but the session runs on {device}. Move it there first, "
            "or pass numpy arrays to run()"
        )
    try:
        # without a stream the array's library would take it that there is nothing to wait for
        value = ort.OrtValue.from_dlpack(array.__dlpack__(stream=_DEFAULT_STREAM))
    except Exception as error:  # whatever the array's library raises
        reason = str(error).rpartition("was false. ")[2].strip(" .\n")
        raise InputMismatchError(
            f"input {spec.name!r} cannot be used where it lies: {reason}. Pass a contiguous array without a gradient; "
            f"with torch, tensor.detach().contiguous() within torch.cuda.device({device!r})"
        ) from error
    given = TensorSpec("", dtype_of(value.data_type()), tuple(value.shape()))
    if not spec.fits(given.dtype, value.shape()):
        raise InputMismatchError(f"input {spec.name!r}: expected {spec}, got {given}")
    return value


def _place_of(array: DeviceArray, spec: TensorSpec) -> str:
    """Return where an array lies, as we name devices, such as ``cuda:0``."""
    try:
        kind, number = array.__dlpack_device__()
    except AttributeError as error:
        raise InputMismatchError(
            f"input {spec.name!r} is a {type(array).__name__}, which does not support DLPack; "
            "pass an array of a library that does, such as torch or CuPy"
        ) from error
    return _PLACES.get(int(kind), f"a device of DLPack's kind {int(kind)}").format(number)


def run_bound(
    session: Any, inputs: Mapping[str, Any], outputs: Sequence[str], device: str, options: Any = None
) -> list[Any]:
    """Run a session of ONNX Runtime on OrtValues of its GPU; return the outputs, which lie there too and are complete.

    The caller must wait for the GPU first: ONNX Runtime computes on a stream of its own, which knows nothing of the
    streams of others. At the end of a run it waits for that stream itself.
    """
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name in outputs:
        binding.bind_output(name, "cuda", int(device.removeprefix("cuda:")))
    session.run_with_iobinding(binding, options)
    return list(binding.get_outputs())
