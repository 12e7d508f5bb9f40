"""Tracing: a network as a graph of calls, which rewrites search and change, and the layers that they make."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import fx, nn

from cnndeploy.devices import torch_threads

M = TypeVar("M", bound=nn.Module)
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A change that was made: the rewrite's name, and the paths of the modules that it changed.

    >>> from cnndeploy.simplification._trace import Rewrite
    >>> print(Rewrite("merge_linear", ("classifier.1", "classifier.3")))
    merge_linear(classifier.1, classifier.3)
    """

    name: str
    modules: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self.modules)})"


@dataclass(frozen=True, slots=True)
class Call(Generic[M]):
    """A node of a graph, and the module that it calls."""

    node: fx.Node
    module: M

    @property
    def path(self) -> str:
        """The module's path in its network."""
        return str(self.node.target)


@dataclass(frozen=True, slots=True)
class Traced:
    """A network's graph, and the modules that it calls, by path. Rewrites change both.

    ``tensors`` are the parameters and buffers that it uses other than by calling their module, by path.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    tensors: dict[str, torch.Tensor]

    def call(self, node: object, *kinds: type[M]) -> Call[M] | None:
        """Return a node's call of a module whose class is one of these kinds, on one value; else None.

        A module does not match if it is called elsewhere too, if its weights are used elsewhere, or if it has hooks,
        which may change its output.
        """
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return None
        module = self.modules[str(node.target)]
        found = next((Call(node, module) for kind in kinds if type(module) is kind), None)
        if found is None or module._forward_hooks or module._forward_pre_hooks:
            return None
        if any(path.startswith(f"{found.path}.") for path in self.tensors):
            return None
        calls = sum(other.op == "call_module" and other.target == node.target for other in self.graph.nodes)
        return found if calls == 1 else None

    def pairs(
        self, first: tuple[type[M], ...], last: tuple[type[N], ...]
    ) -> Iterator[tuple[Call[M], Call[N]]]:
        """Yield pairs of calls, of a ``first`` and a ``last`` kind, if only the last takes the first one's output.

        Modules that do nothing may stand between the two.
        """
        for node in self.graph.nodes:
            after = self.call(node, *last)
            if after is not None and (before := self.call(self._source(node), *first)) is not None:
                yield before, after

    def _source(self, node: fx.Node) -> fx.Node | None:
        """Return the node whose output a node takes, past modules that do nothing; None if other nodes take it too."""
        before = node.args[0]
        while isinstance(before, fx.Node) and len(before.users) == 1:
            call = self.call(before, nn.Identity, nn.Dropout, nn.Dropout2d)
            if call is None or (call.module.training and type(call.module) is not nn.Identity):
                return before
            before = before.args[0]
        return None

    def merge(self, name: str, calls: Sequence[Call[Any]], module: nn.Module) -> Rewrite:
        """Replace a chain of calls by one call of ``module``, with the last one's name, which computes the same.

        It stands where the first one stood, because the value that it takes may be changed in place after that.
        """
        last, taken = calls[-1], calls[0].node.args[0]
        between, last.node.args = last.node.args[0], (taken,)
        calls[0].node.append(last.node)
        self.modules[last.path] = module.eval()
        while isinstance(between, fx.Node) and between is not taken:
            before = between.args[0]
            self.graph.erase_node(between)
            between = before
        return Rewrite(name, tuple(call.path for call in calls))

    def built(self) -> fx.GraphModule:
        """Build the network, in eval mode and float32; it shares nothing with the one that was traced."""
        used = {str(node.target): node for node in self.graph.nodes if node.op == "call_module"}
        modules = {path: copied(self.modules[path]).float() for path in used}
        tensors = {path: copy.deepcopy(tensor) for path, tensor in self.tensors.items()}
        network = fx.GraphModule({**modules, **tensors}, self.graph)
        network.training = False
        return network.requires_grad_(False)


def trace(network: nn.Module) -> Traced | None:
    """Trace a network; return None if that fails, it is not in eval mode, or a weight is not float32."""
    has_hooks = network._forward_hooks or network._forward_pre_hooks  # of which the graph would know nothing
    if network.training or has_hooks or any(weight.dtype != torch.float32 for weight in network.parameters()):
        return None
    own: dict[str, torch.Tensor] = dict(network.named_parameters(remove_duplicate=False))
    own |= network.named_buffers(remove_duplicate=False)
    attributes = set(vars(network))
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # noqa: BLE001 - a forward() may do anything with the tracer's stand-in for a value
        return None
    finally:
        for name in vars(network).keys() - attributes:
            delattr(network, name)  # where the tracer keeps tensors that were made while tracing
    direct = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    if not direct <= own.keys():
        return None  # the network uses a tensor that was made only once, while tracing
    for node in graph.nodes:
        node.type = None  # which TorchScript cannot read
        node.meta.clear()  # torch.onnx would use the names that the modules had before
    paths = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    modules = {path: network.get_submodule(path) for path in sorted(paths)}
    return Traced(graph, modules, {path: own[path] for path in sorted(direct)})


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy, also of a module whose weight is computed from others, as torch's ``weight_norm`` does.

    Such a weight is computed again at every call. It has a history, and torch refuses to copy that.
    """
    tensors = (value for part in module.modules() for value in vars(part).values() if torch.is_tensor(value))
    return copy.deepcopy(module, {id(tensor): tensor.detach() for tensor in tensors if not tensor.is_leaf})


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, and without gradients."""
    with torch_threads(1), torch.no_grad():
        yield


def exact(layer: nn.Conv2d | nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias in float64; a layer without bias has one of zeros."""
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    return weight, bias


def linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """Make a linear layer of these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # which draws no random weights
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def convolution(like: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """Make a convolution of these weights, with the strides, padding and groups of ``like``."""
    layer = copy.deepcopy(like)
    layer.in_channels, layer.out_channels = weight.shape[1] * like.groups, weight.shape[0]
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def pads(layer: nn.Conv2d) -> bool:
    """Return whether a convolution pads its input."""
    return layer.padding not in ("valid", (0, 0))
