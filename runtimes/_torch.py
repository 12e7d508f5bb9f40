"""Torch: the code that the runtimes that need torch share, and a session around a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.devices import TorchDevices, allow_tf32, last_line, open_device
from cnndeploy.errors import ArtifactError
from cnndeploy.run import Run
from cnndeploy.runtimes._graphs import Call, Recorded
from cnndeploy.runtimes._session import Arrays, Session

if TYPE_CHECKING:
    import torch

_WARM_UPS = 3  # as torch's notes on CUDA graphs have it


@dataclass(frozen=True)
class TorchRuntime(TorchDevices):
    """A runtime of torch: ``load`` puts an artifact's module on a device that works, ``session`` wraps it.

    ``graphs`` says whether its modules can be recorded as CUDA graphs.
    """

    name: str
    formats: tuple[str, ...]
    load: Callable[[Artifact, torch.device], torch.nn.Module]
    session: type[TorchSession]
    graphs: bool = False
    package: ClassVar = "torch"

    @property
    def options(self) -> Mapping[str, tuple[Any, ...]]:
        """Return the options that this runtime's sessions have."""
        return {"precision": ("tf32",)} | ({"cuda_graph": (True,)} if self.graphs else {})

    def open(self, artifact: Artifact, run: Run) -> Session:
        """Open the artifact on the device that ``run`` names."""
        device = open_device(run.device, self.name, run.thread_count, run.choices.precision == "tf32")
        return self.session(artifact, run, device, self.load(artifact, device))


class TorchSession(Session):
    """A module that maps one tensor to a tensor or a tuple of tensors, on one device."""

    _library = "torch"
    _words = staticmethod(last_line)

    def __init__(self, artifact: Artifact, run: Run, device: torch.device, module: torch.nn.Module) -> None:
        manifest = artifact.require_manifest()
        super().__init__(artifact, run, [manifest.input], manifest.outputs, str(device))
        self._module: torch.nn.Module | None = module
        self._torch_device = device
        self._graphs = Recorded() if run.choices.cuda_graph else None

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        (image,) = feeds.values()
        graphs = self._graphs
        values = (
            self._computed(image) if graphs is None else graphs.run(image, self._recording, self._computed)
        )
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    def _prepare(self) -> None:
        """Set torch's global settings again, because another session may have changed them."""
        import torch

        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        if self._torch_device.type == "cuda":
            allow_tf32(self.options.precision == "tf32")

    def _computed(self, image: NDArray[Any]) -> list[NDArray[Any]]:
        import torch

        module: Any = self._module
        self._prepare()
        with torch.inference_mode():
            outputs = _outputs(module(_tensor(image).to(self._torch_device)))
            return [output.cpu().numpy() for output in outputs]

    def _recording(self, image: NDArray[Any]) -> Call:
        """Record a CUDA graph for inputs of this shape; return a call that replays it.

        Source: torch's notes on CUDA semantics, "CUDA Graphs"; for compiled modules cudagraphify_impl() in
        torch/_inductor/compile_fx.py, which does the same.
        """
        import torch

        module: Any = self._module
        cuda, device = torch.cuda, self._torch_device
        self._prepare()
        with torch.inference_mode(), cuda.device(device):
            still = _tensor(image).to(device, copy=True)  # its address is recorded
            stream = cuda.Stream(device)
            stream.wait_stream(cuda.current_stream(device))
            with cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    module(still)
            cuda.current_stream(device).wait_stream(stream)
            graph = cuda.CUDAGraph()
            try:
                # Other threads, such as an app's own, may use the GPU meanwhile. If recording fails, ending it
                # fails too, and torch does not restore the stream; the outer block does.
                with (
                    cuda.stream(stream),
                    cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
                ):
                    outputs = _outputs(module(still))
            except RuntimeError as error:
                before = error.__context__  # the recording's own error, which came before that at its end
                cause = before if isinstance(before, Exception) else error
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
                raise ArtifactError(
                    f"torch cannot record {self.artifact.path} as a CUDA graph: {last_line(cause)}. A network that "
                    "waits for the GPU, for example in item(), cannot use CUDA graphs; leave them out."
                ) from error

        def call(images: NDArray[Any]) -> list[NDArray[Any]]:  # without self, which holds it
            with torch.inference_mode():
                still.copy_(_tensor(images))
                graph.replay()
                return [output.to("cpu", copy=True).numpy() for output in outputs]

        return call

    def synchronize(self) -> None:
        """Wait for the GPU; a CPU has nothing to wait for."""
        import torch

        if self._torch_device.type == "cuda":
            torch.cuda.synchronize(self._torch_device)

    def _release(self) -> None:
        self._module = self._graphs = None


def _tensor(image: NDArray[Any]) -> torch.Tensor:
    """Return an array as a tensor; torch refuses negative strides, and warns of arrays that are read-only."""
    import torch

    return torch.from_numpy(np.require(image, requirements=("C", "W")))


def _outputs(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
