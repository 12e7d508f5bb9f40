"""OpenVINO, on the CPU, for ONNX files.

By default OpenVINO computes in bfloat16 if the processor can; here it does so only if it is asked to.

Source: OpenVINO's properties inference_precision, inference_num_threads and performance_mode.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.devices import DeviceStatus, installed
from cnndeploy.errors import ArtifactError, DeviceUnavailableError
from cnndeploy.run import Run
from cnndeploy.runtimes._session import Arrays, Session
from cnndeploy.specs import TensorSpec

if TYPE_CHECKING:
    import openvino


_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
# Of raw images, in colour with a last axis of 3; OpenVINO keeps no names of axes.
_RAW_AXES = ("batch", "height", "width", "channels")


class OpenVinoSession(Session):
    """A compiled model, and a request for each thread, because threads may not share one."""

    _library = "OpenVINO"

    def __init__(
        self, artifact: Artifact, run: Run, model: openvino.CompiledModel, names: Iterable[str]
    ) -> None:
        inputs = map(tensor_spec, model.inputs)
        # once compiled, a value may go by the name of another that it was merged with
        outputs = (
            replace(tensor_spec(port), name=name) for port, name in zip(model.outputs, names, strict=True)
        )
        super().__init__(artifact, run, inputs, outputs, "CPU")
        self._model: Any = model
        self._requests = threading.local()
        self._holds_more = False

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        if not hasattr(self._requests, "own"):
            self._requests.own = self._model.create_infer_request()
        model = self._model
        outputs = self._requests.own.infer(dict(feeds), share_inputs=True)
        self._holds_more = self._holds_more or self._is_large(feeds)
        if self._holds_more:
            with contextlib.suppress(RuntimeError):  # another thread runs the model; the next run tries again
                model.release_memory()
                self._holds_more = False
        return {spec.name: outputs[place] for place, spec in enumerate(self.outputs)}

    def placement(self) -> dict[str, str]:
        """Return the device that the model was compiled for, for each node's name."""
        if self._model is None:
            return {}
        (device,) = self._model.get_property("EXECUTION_DEVICES")
        return {node.friendly_name: device for node in self._model.get_runtime_model().get_ops()}

    def settings(self) -> dict[str, Any]:
        """Return what every session does, and the precision that is computed in."""
        precision = self._model.get_property("INFERENCE_PRECISION_HINT")
        return {**super().settings(), "precision": precision.to_string()}

    def _release(self) -> None:
        self._model = None
        self._requests = threading.local()


class OpenVinoRuntime:
    """The runtime OpenVINO."""

    formats = ("onnx",)
    package = "openvino"
    options: ClassVar = {"precision": ("bfloat16",)}

    def devices(self) -> dict[str, DeviceStatus]:
        """Return the CPU."""
        return {"cpu": installed("openvino")}

    def open(self, artifact: Artifact, run: Run) -> OpenVinoSession:
        """Compile the file for the CPU, in the precision asked for, so that one request takes the shortest time.

        Raises:
            ArtifactError: OpenVINO cannot open the file.
            DeviceUnavailableError: The processor does not compute in that precision.
        """
        import openvino

        precision = _PRECISIONS[run.choices.precision]
        settings = {"INFERENCE_NUM_THREADS": run.thread_count, "INFERENCE_PRECISION_HINT": precision}
        settings["PERFORMANCE_HINT"] = "LATENCY"
        try:
            core = openvino.Core()
            source = core.read_model(artifact.path)
            names = [port.any_name for port in source.outputs]
            model = core.compile_model(source, "CPU", settings)
        except RuntimeError as error:
            raise ArtifactError(f"OpenVINO cannot open {artifact.path}: {error}") from error
        session = OpenVinoSession(artifact, run, model, names)
        if session.settings()["precision"] != precision:
            session.close()
            raise DeviceUnavailableError(
                f"OpenVINO does not compute in {run.choices.precision} on this processor; leave the precision out"
            )
        return session


def tensor_spec(port: Any) -> TensorSpec:
    """Describe an input or output of a compiled model."""
    rank = len(port.partial_shape)
    dtype = str(port.element_type.to_dtype())
    others = ("batch", *(f"axis{number}" for number in range(1, rank)))
    names = _RAW_AXES if rank == 3 or (rank, dtype) == (4, "uint8") else others
    axes = zip(port.partial_shape, names, strict=False)  # a model's scalar has no axis at all
    shape = tuple(axis.get_length() if axis.is_static else name for axis, name in axes)
    return TensorSpec(port.any_name, dtype, shape)


RUNTIME = OpenVinoRuntime()
