"""TorchScript: an exported archive run by torch, without the Python code of its network.

A TorchScript archive is a program: open only what you trust. torch.jit is deprecated as a whole and
unsupported from Python 3.14; prefer ONNX for new deployments.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from cnndeploy.artifact import Artifact
from cnndeploy.devices import last_line
from cnndeploy.errors import ArtifactError
from cnndeploy.files import is_utf8
from cnndeploy.runtimes._session import Activation, Arrays
from cnndeploy.runtimes._torch import TorchRuntime, TorchSession

if TYPE_CHECKING:
    import torch


# A frozen archive keeps no names of modules, only the operators that they became.
_KINDS = {
    "_convolution": "Conv2d",
    "addmm": "Linear",
    "adaptive_avg_pool2d": "AdaptiveAvgPool2d",
    "avg_pool2d": "AvgPool2d",
    "batch_norm": "BatchNorm2d",
    "conv2d": "Conv2d",
    "dropout": "Dropout",
    "flatten": "Flatten",
    "gelu": "GELU",
    "hardsigmoid": "Hardsigmoid",
    "hardswish": "Hardswish",
    "hardtanh": "ReLU6",
    "layer_norm": "LayerNorm",
    "linear": "Linear",
    "max_pool2d": "MaxPool2d",
    "relu": "ReLU",
    "sigmoid": "Sigmoid",
    "silu": "SiLU",
}


class TorchScriptSession(TorchSession):
    """An archive; those that we write are frozen, so that the weights are constants of the graph."""

    def placement(self) -> dict[str, str]:
        """Return the device of each constant tensor, parameter and buffer, by name."""
        import torch

        module: Any = self._module
        if module is None:
            return {}
        graph = module.inlined_graph  # its nodes live as long as it is held
        constants = (node.output() for node in graph.findAllNodes("prim::Constant"))
        tensors = (value for value in constants if value.type().isSubtypeOf(torch.TensorType.get()))
        placed = {value.debugName(): str(value.node().t("value").device) for value in tensors}
        return placed | {name: str(value.device) for name, value in module.state_dict().items()}

    def activations(self, feeds: Arrays) -> list[Activation]:
        """Run a copy of the graph that returns the output of every operator outside branches and loops."""
        try:
            return self._operators(feeds)
        except Exception as error:  # an archive is a program, and torch promises nothing about its graphs
            what = f"the inner outputs of {self.artifact.path}"
            raise ArtifactError(f"torch cannot return {what}: {last_line(error)}") from error

    def _operators(self, feeds: Arrays) -> list[Activation]:
        import torch

        module: Any = self._module
        graph = module.inlined_graph.copy()
        # the output of an operator in a branch or loop cannot be kept
        if any(
            len(graph.findAllNodes(f"aten::{kind}", recurse=True))
            != len(graph.findAllNodes(f"aten::{kind}", recurse=False))
            for name in _KINDS
            for kind in (name, f"{name}_")
        ):
            return []
        operators = [node for node in graph.nodes() if node.kind().startswith("aten::")]
        outputs = [output for node in operators for output in node.outputs()]
        values = [output for output in outputs if output.type().isSubtypeOf(torch.TensorType.get())]
        kinds = [value.node().kind().removeprefix("aten::").removesuffix("_") for value in values]
        copies = [_copied(graph, value) for value in values]
        everything = graph.create("prim::TupleConstruct", copies, 1)
        everything.output().setType(torch._C.TupleType([value.type() for value in values]))
        graph.appendNode(everything)
        graph.eraseOutput(0)
        graph.registerOutput(everything.output())
        function = torch._C._create_function_from_graph("activations", graph)
        (image,) = feeds.values()
        with torch.inference_mode():
            tensors = function(module._c, torch.from_numpy(image).to(self._torch_device))
        return [
            Activation("", _KINDS.get(kind, kind), tensor.float().cpu().numpy())  # numpy has no bfloat16
            for kind, tensor in zip(kinds, tensors, strict=True)
            if tensor.dtype.is_floating_point
        ]


def _copied(graph: Any, value: Any) -> Any:
    """Copy a value right behind the node that computes it, because a later one may change it in place."""
    import torch

    nothing = graph.create("prim::Constant", 1)
    nothing.output().setType(torch._C.NoneType.get())
    copy = graph.create("aten::clone", [value, nothing.output()], 1)
    nothing.insertAfter(value.node())
    copy.insertAfter(nothing)
    return copy.output()


def _load(artifact: Artifact, device: torch.device) -> torch.nn.Module:
    """Load the archive straight onto ``device``."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch.jit")
            # the binding takes no name that is not UTF-8
            source = str(artifact.path) if is_utf8(artifact.path) else io.BytesIO(artifact.path.read_bytes())
            module: torch.nn.Module = torch.jit.load(source, map_location=device)
            return module
    except RuntimeError as error:
        reason = f"it is damaged, or from a newer torch ({last_line(error)})"
        raise ArtifactError(f"torch cannot open {artifact.path}; {reason}") from error


RUNTIME = TorchRuntime("torchscript", ("torchscript",), _load, TorchScriptSession)
