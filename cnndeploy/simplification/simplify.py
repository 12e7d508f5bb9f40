"""Simplification: a network that computes the same function with less work, by rewrites that are exact in real numbers.

Every rewrite is a function that makes one change to a traced network, or none, and has its proof in its docstring.
New weights are computed in float64 by one thread, so that they depend on no number of threads, and rounded once, at
the end. A layer that takes over the work of several has the name of the last of them, whose output it gives.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import fx, nn

from cnndeploy.preprocessing import Preprocessing

M = TypeVar("M", bound=nn.Module)
Activation = nn.Sigmoid | nn.Tanh | nn.ReLU


@dataclass(frozen=True, slots=True)
class Traced:
    """A network's graph, and by path the modules that it calls. Rewrites change both."""

    graph: fx.Graph
    modules: dict[str, nn.Module]

    def called(self, node: object, kind: type[M]) -> M | None:
        """The module of this very kind that a node calls on one value; None where it is another thing.

        None too where the module is called elsewhere as well, or has hooks, which may change what it gives.
        """
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return None
        module = self.modules[str(node.target)]
        if type(module) is not kind or module._forward_hooks or module._forward_pre_hooks:
            return None
        calls = sum(each.op == "call_module" and each.target == node.target for each in self.graph.nodes)
        return module if calls == 1 else None

    def giver(self, node: fx.Node) -> fx.Node | None:
        """The node whose output a node takes, past modules that do nothing; None where more nodes take it."""
        before = node.args[0]
        while isinstance(before, fx.Node) and len(before.users) == 1:
            if not self._does_nothing(before):
                return before
            before = before.args[0]
        return None

    def _does_nothing(self, node: fx.Node) -> bool:
        dropouts = (self.called(node, nn.Dropout), self.called(node, nn.Dropout2d))
        return self.called(node, nn.Identity) is not None or any(
            each is not None and not each.training for each in dropouts
        )

    def merge(self, first: fx.Node, last: fx.Node, module: nn.Module) -> None:
        """Let ``module`` compute at ``last`` what the nodes from ``first`` to it computed one after the other."""
        between, taken = last.args[0], first.args[0]
        last.args = (taken,)
        self.modules[str(last.target)] = module.eval()
        while isinstance(between, fx.Node) and between is not taken:
            before = between.args[0]
            self.graph.erase_node(between)
            between = before

    def built(self) -> fx.GraphModule:
        """The network, in eval mode, in float32; it shares nothing with the one that was traced."""
        used = {str(node.target): node for node in self.graph.nodes if node.op == "call_module"}
        modules = copy.deepcopy({path: self.modules[path] for path in used})
        network = fx.GraphModule({path: module.float() for path, module in modules.items()}, self.graph)
        network.training = False
        return network.requires_grad_(False)


def simplify(network: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Apply every rewrite for as long as one applies.

    Args:
        network: In eval mode, with float32 weights; it is not changed.

    Returns:
        The simplified network and what was done, as ``"merge_linear(classifier.1, classifier.3)"``; ``network`` itself
        and nothing where no rewrite applies, or where torch.fx cannot trace it.
    """
    traced = _trace(network)
    applied: list[str] = []
    if traced is not None:
        with torch.no_grad(), _one_thread():
            while done := next(filter(None, (rewrite(traced) for rewrite in REWRITES)), None):
                applied.append(done)
    return (traced.built(), tuple(applied)) if traced is not None and applied else (network, ())


def merge_linear(traced: Traced) -> str | None:
    """Linear layers with nothing between them become one, where that takes fewer multiplications.

    Proof: B (A x + a) + b = (B A) x + (B a + b). Of a longer chain those runs are merged that leave the fewest
    multiplications per image, the sum of inputs times outputs.
    """
    for node in traced.graph.nodes:
        chain = _linear_chain(traced, node)
        layers = [layer for each in chain if (layer := traced.called(each, nn.Linear)) is not None]
        if len(layers) < 2:
            continue
        cuts = _fewest_multiplications([layers[0].in_features, *(layer.out_features for layer in layers)])
        for start, end in itertools.pairwise(cuts):
            if end - start > 1:
                traced.merge(chain[start], chain[end - 1], _product(layers[start:end]))
                return f"merge_linear({', '.join(str(each.target) for each in chain[start:end])})"
    return None


def _linear_chain(traced: Traced, last: fx.Node) -> list[fx.Node]:
    """The linear layers of a chain that ends with a node, in the order computed; none where it goes on behind that."""
    after = [
        each for each in traced.graph.nodes if traced.called(each, nn.Linear) and traced.giver(each) is last
    ]
    chain: list[fx.Node] = []
    at: fx.Node | None = None if after else last
    while at is not None and traced.called(at, nn.Linear) is not None:
        chain.insert(0, at)
        at = traced.giver(at)
    return chain


def _fewest_multiplications(sizes: Sequence[int]) -> tuple[int, ...]:
    """Where to cut a chain of layers with these sizes so that one layer for each piece multiplies least.

    >>> _fewest_multiplications([25088, 4096, 4096, 10])
    (0, 3)
    """
    best: list[tuple[int, tuple[int, ...]]] = [(0, (0,))]  # to each size: multiplications, cuts
    for end in range(1, len(sizes)):
        ways = [
            (best[start][0] + sizes[start] * sizes[end], (*best[start][1], end))
            for start in reversed(range(end))  # of equals the first is taken, which merges least
        ]
        best.append(min(ways, key=lambda way: way[0]))
    return best[-1][1]


def _product(layers: Sequence[nn.Linear]) -> nn.Linear:
    """From the last to the first, because what a network gives is small."""
    weight, bias = _exact(layers[-1])
    for layer in reversed(layers[:-1]):
        own_weight, own_bias = _exact(layer)
        weight, bias = weight @ own_weight, bias + weight @ own_bias
    return _linear(weight, bias)


def merge_convolutions(traced: Traced) -> str | None:
    """A convolution and one of 1 x 1 with nothing between them become one, where that takes fewer multiplications.

    Proof, 1 x 1 last: it maps the channels of each position, y = B (A * x + a) + b = (B A) * x + (B a + b), whatever
    stride and padding A has; positions are the same, so multiplications are counted per position.
    Proof, 1 x 1 first: B * (A x + a) + b = (B A) * x + (sum of B) a + b, where every weight of B meets a value of
    A x + a. Padding puts zeros there instead, which is the same only if a is zero. Fewer channels in than between take
    fewer multiplications, whatever the positions.
    """
    for last in traced.graph.nodes:
        second = traced.called(last, nn.Conv2d)
        first = None if second is None else traced.giver(last)
        before = traced.called(first, nn.Conv2d)
        if first is None or before is None or second is None or before.groups != 1 or second.groups != 1:
            continue
        if (merged := _merged(before, second)) is not None:
            traced.merge(first, last, merged)
            return f"merge_convolutions({first.target}, {last.target})"
    return None


def _merged(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d | None:
    channels, between, out = first.in_channels, first.out_channels, second.out_channels
    (first_weight, first_bias), (weight, bias) = _exact(first), _exact(second)
    taps = first.kernel_size[0] * first.kernel_size[1]
    if _is_pointwise(second) and out * channels * taps < between * channels * taps + out * between:
        across = weight[:, :, 0, 0]  # (out, between)
        product = torch.einsum("om,mikl->oikl", across, first_weight)
        return _convolution(first, product, bias + across @ first_bias)
    keeps_borders = not _pads(second) or (second.padding_mode == "zeros" and not first_bias.any())
    if _is_pointwise(first) and keeps_borders and channels <= between:
        product = torch.einsum("omkl,mi->oikl", weight, first_weight[:, :, 0, 0])
        return _convolution(second, product, bias + weight.sum((2, 3)) @ first_bias)
    return None


def fold_batch_norm(traced: Traced) -> str | None:
    """Batch normalisation by running statistics goes into the convolution or linear layer before it.

    Proof: g (W x + c - m) / s + b = (g / s) W x + (g / s) (c - m) + b with s = sqrt(variance + eps), all by output
    channel. Behind a linear layer normalisation is by the second axis, which is the features' only where there are
    two: where the layer takes what was flattened.
    """
    for last in traced.graph.nodes:
        norm = traced.called(last, nn.BatchNorm2d) or traced.called(last, nn.BatchNorm1d)
        if norm is None or norm.training or norm.running_mean is None or norm.running_var is None:
            continue
        node = traced.giver(last)
        convolution, linear = traced.called(node, nn.Conv2d), traced.called(node, nn.Linear)
        if node is None or type(norm) is not (nn.BatchNorm2d if convolution is not None else nn.BatchNorm1d):
            continue
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -scale * norm.running_mean.double()
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        if convolution is not None:
            weight, bias = _exact(convolution)
            scaled = weight * scale[:, None, None, None]
            traced.merge(node, last, _convolution(convolution, scaled, bias * scale + shift))
        elif linear is not None and _is_flat(traced, node.args[0]):
            weight, bias = _exact(linear)
            traced.merge(node, last, _linear(weight * scale[:, None], bias * scale + shift))
        else:
            continue
        return f"fold_batch_norm({node.target}, {last.target})"
    return None


def _is_flat(traced: Traced, value: object) -> bool:
    """Whether a value is known to be (batch, features)."""
    passing = (nn.Linear, nn.Dropout, nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.BatchNorm1d)
    while isinstance(value, fx.Node):
        if value.op == "call_function" and value.target is torch.flatten:
            return value.args[1:] == (1,) and not value.kwargs
        if value.op != "call_module":
            return False
        module = traced.modules[str(value.target)]
        if type(module) is nn.Flatten:
            return (module.start_dim, module.end_dim) == (1, -1)
        if type(module) not in passing or not value.args:
            return False
        value = value.args[0]
    return False


def pool_before_activation(traced: Traced) -> str | None:
    """A sigmoid, tanh or ReLU moves behind the max pooling that alone takes its output, where pooling leaves less.

    Proof: none of them ever falls, so the largest of the results is the result of the largest value. That holds bit
    for bit where the activation as it is computed never falls either. Every window holds at least one value, and
    padding, minus infinity, is never the largest: pooling that both pads and dilates is left alone, for which that
    need not hold. ReLU stays right behind a convolution, where runtimes compute it within that.

    The activation takes the pooling's name, as it gives what that gave; the pooling takes a new one.
    """
    for last in traced.graph.nodes:
        pool = traced.called(last, nn.MaxPool2d)
        first = last.args[0] if pool is not None else None
        if pool is None or not isinstance(first, fx.Node) or len(first.users) != 1:
            continue
        if not _may_follow(traced, first) or not _pools_exactly(pool):
            continue
        name, before = str(last.target), str(first.target)
        pooling = f"{name}_pool"
        while pooling in traced.modules:
            pooling += "_"
        traced.modules[pooling] = pool
        traced.modules[name] = traced.modules[before]
        first.target, last.target = pooling, name
        return f"pool_before_activation({before}, {name})"
    return None


def _may_follow(traced: Traced, node: fx.Node) -> bool:
    """Whether a node is an activation that may move, and is worth it."""
    if traced.called(node, nn.Sigmoid) is not None or traced.called(node, nn.Tanh) is not None:
        return True
    relu = traced.called(node, nn.ReLU)
    if relu is None or relu.inplace:  # in place it changes what others take
        return False
    before = node.args[0]
    if not isinstance(before, fx.Node):
        return False
    module = traced.modules[str(before.target)] if before.op == "call_module" else None
    return not isinstance(module, nn.Conv2d)


def _pools_exactly(pool: nn.MaxPool2d) -> bool:
    padding, dilation, stride = (_pair(each) for each in (pool.padding, pool.dilation, pool.stride))
    return not pool.return_indices and (padding == (0, 0) or dilation == (1, 1)) and stride != (1, 1)


REWRITES = (fold_batch_norm, merge_convolutions, merge_linear, pool_before_activation)


def fold_preprocessing(
    network: nn.Module, preprocessing: Preprocessing
) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    """Let a network's first convolution do what preprocessing does beside resizing.

    Proof: with scale s, mean m and standard deviation d, and r the resized raw image, prepared is (s r - m) / d =
    (s / d) (r - m / s), because resizing is linear and its weights sum to 1. A convolution with weights W s / d gives
    for r - m / s what W gives for prepared, and its padding, zero, is zero in both. Where it pads nothing, every weight
    meets a pixel, and m / s goes into its bias too: W ((s / d) r - m / d) + b = (W s / d) r + b - (sum of W) m / d.

    Returns:
        A network that takes what the new preprocessing gives, that preprocessing, and what was done; as they came
        where the input goes elsewhere than into one convolution that pads with zeros.
    """
    unchanged = network, preprocessing, ()
    if (traced := _trace(network)) is None or preprocessing.scale == 0:
        return unchanged
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    users = list(inputs[0].users)
    convolution = traced.called(users[0], nn.Conv2d) if len(inputs) == len(users) == 1 else None
    if convolution is None or convolution.padding_mode != "zeros":
        return unchanged
    scale, mean, std = preprocessing.scale, preprocessing.mean, preprocessing.std
    shift = mean / scale
    with torch.no_grad(), _one_thread():
        weight, bias = _exact(convolution)
        if not _pads(convolution):
            bias, shift = bias - weight.sum((1, 2, 3)) * (mean / std), 0.0
        folded = _convolution(convolution, weight * (scale / std), bias).float()
    network = copy.deepcopy(network)
    path = str(users[0].target)
    network.set_submodule(path, folded)
    remaining = replace(preprocessing, scale=1.0, mean=shift, std=1.0)
    return network, remaining, (f"fold_preprocessing({path})",)


def _trace(network: nn.Module) -> Traced | None:
    """None where a network cannot be traced, is not in eval mode, or has weights that are not float32."""
    if network.training or any(each.dtype != torch.float32 for each in network.parameters()):
        return None
    if network._forward_hooks or network._forward_pre_hooks:  # of which the graph would know nothing
        return None
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # noqa: BLE001 - a forward() may do anything with a value that stands for all values
        return None
    for node in graph.nodes:
        if node.op == "get_attr":
            return (
                None  # a tensor of the network's own, or one made while it was traced and so made only once
            )
        node.type = None  # which TorchScript cannot read
        node.meta.clear()  # torch.onnx would name the modules by what they were before
    paths = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return Traced(graph, {path: network.get_submodule(path) for path in sorted(paths)})


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _exact(layer: nn.Conv2d | nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias in float64; a layer without bias has one of zeros."""
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    return weight, bias


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # which draws no random weights
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def _convolution(like: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """With other weights, and strides, padding and groups as another's."""
    layer = nn.Conv2d(
        weight.shape[1] * like.groups,
        weight.shape[0],
        like.kernel_size,  # type: ignore[arg-type]
        like.stride,  # type: ignore[arg-type]
        like.padding,  # type: ignore[arg-type]
        like.dilation,  # type: ignore[arg-type]
        like.groups,
        padding_mode=like.padding_mode,
        device="meta",
    )
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer.eval()


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and not _pads(layer)


def _pads(layer: nn.Conv2d) -> bool:
    return layer.padding not in ("valid", (0, 0))


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
