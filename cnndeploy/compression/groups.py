"""Groups of channels, which a network can lose only together, and the network without some of them.

What a network adds must have the same channels. Torch-Pruning finds these groups, and all layers that lose something
with them. Source: Fang, Ma, Song, Mi, Wang: DepGraph: towards any structural pruning, 2023.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from cnndeploy.architectures._widths import Resizable, can_be_resized, is_depthwise, resized, width_of
from cnndeploy.compression.layers import merged_layers, sole_layers
from cnndeploy.errors import CompressionError, missing_dependency

Kept = tuple[torch.Tensor, torch.Tensor]  # which inputs and outputs of a layer stay, (channels,)
_SAME = 1e-3  # of the largest logit: rounding moves less, channels in the wrong place more


@dataclass(frozen=True, slots=True)
class Places:
    """Channels of a group among the inputs or outputs of a layer.

    ``places`` (n,) are channels of the layer, and ``channels`` (n,) of which channel of the group each is.
    """

    places: torch.Tensor
    channels: torch.Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that must go together: ``count`` outputs of the layer ``root``, and what other layers have of them.

    By path: ``writers`` lose outputs, ``readers`` inputs, and layers that channels go ``through`` one by one lose both.
    """

    root: str
    count: int
    writers: Mapping[str, Places]
    readers: Mapping[str, Places]
    through: Mapping[str, Places]

    def sides(self) -> Iterator[tuple[str, int, Places]]:
        """Yield the path of a layer, 0 for its inputs or 1 for its outputs, and the places."""
        for side, layers in ((0, self.readers), (1, self.writers), (0, self.through), (1, self.through)):
            for path, places in layers.items():
                yield path, side, places


@contextlib.contextmanager
def silent_inputs(layer: nn.Module, gone: torch.Tensor, offset: torch.Tensor | None = None) -> Iterator[None]:
    """Have a layer read 0 in some of its inputs, and add an offset (outputs,) to what it computes."""
    axis = 1 if isinstance(layer, nn.Conv2d) else -1

    def silence(_: Any, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return inputs[0].index_fill(axis, gone, 0.0)

    def shift(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        assert offset is not None  # noqa: S101 - else there is no hook
        return output + (offset if axis == -1 else offset[:, None, None])

    handles: list[RemovableHandle] = [layer.register_forward_pre_hook(silence)]
    handles += [] if offset is None else [layer.register_forward_hook(shift)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def groups_of(network: nn.Module, image: torch.Tensor) -> list[Group]:
    """Return the groups of channels that a network can lose.

    Raise MissingDependencyError without Torch-Pruning, and CompressionError if it cannot follow the network.
    """
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error
    layers, merged = sole_layers(network, image, can_be_resized), merged_layers(network)
    paths, own = {layer: path for path, layer in layers.items()}, set(network.modules())
    # it follows the gradient, though no weight may have one
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            # in a tuple, because Torch-Pruning would pass the images of a bare tensor one by one
            inputs = (image.clone().requires_grad_(),)
            graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=inputs)
            found = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
        except Exception as error:  # it may fail in any way on a network that it does not know
            raise CompressionError(f"Torch-Pruning cannot follow the network: {error}") from error
    groups = []
    for items in found:
        group = _group(items, graph, own, paths)
        if group is None or not group.readers or (group.root in merged and merged & group.readers.keys()):
            continue
        halves = _halves(group.count)
        if group.count > 1 and all(_is_sound(network, group, alive, image) for alive in halves):
            groups.append(group)
    return groups


def _group(items: Any, graph: Any, own: set[nn.Module], paths: Mapping[nn.Module, str]) -> Group | None:
    """Return what Torch-Pruning found as a group; None if a layer in it cannot be resized."""
    writers, readers, through = dict[str, Places](), dict[str, Places](), dict[str, Places]()
    for item in items:
        module, handler = item.dep.target.module, item.dep.handler
        if isinstance(module, nn.Module) and module not in own:
            continue  # an operation without weights, as Torch-Pruning notes it
        path = paths.get(module)
        if path is None:
            return None
        if isinstance(module, nn.BatchNorm2d) or is_depthwise(module):
            side = through
        else:
            side = writers if graph.is_out_channel_pruning_fn(handler) else readers
        side.setdefault(path, Places(torch.tensor(list(item.idxs)), torch.tensor(list(item.root_idxs))))
    root = paths[items[0].dep.target.module]
    return Group(root, len(items[0].idxs), writers, readers, through)


def kept_of(network: nn.Module, group: Group, alive: torch.Tensor) -> dict[str, Kept]:
    """Return what layers keep if a group keeps the channels that are True in ``alive``, (count,)."""
    kept = dict[str, Kept]()
    for path, side, places in group.sides():
        if path not in kept:
            layer = network.get_submodule(path)
            assert can_be_resized(layer)  # noqa: S101 - groups_of() looked
            inputs, outputs = width_of(layer)
            kept[path] = torch.ones(inputs, dtype=torch.bool), torch.ones(outputs, dtype=torch.bool)
        kept[path][side][places.places] = alive[places.channels]
    return kept


def _halves(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which channels stay, (count,), in two ways: every second one, and those of the first half.

    A network that cuts its channels into equal parts computes the same with every second one.
    """
    places = torch.arange(count)
    return places % 2 == 0, places < (count + 1) // 2


def _is_sound(network: nn.Module, group: Group, alive: torch.Tensor, image: torch.Tensor) -> bool:
    """Return whether a network without some of a group computes what it does if nothing reads these.

    It does not if it counts its channels, or mixes them between writers and readers.
    """
    before = {path: network.get_submodule(path) for path, _, _ in group.sides()}
    try:
        kept = kept_of(network, group, alive)  # which fails if channels are not where Torch-Pruning says
        with torch.no_grad(), contextlib.ExitStack() as silenced:
            for path, places in group.readers.items():
                silenced.enter_context(silent_inputs(before[path], places.places[~alive[places.channels]]))
            expected = network(image)
            silenced.close()
            for path, (inputs, outputs) in kept.items():
                network.set_submodule(path, without(before[path], inputs, outputs))
            found = network(image)
            near = _SAME * float(expected.abs().max())
            return bool(found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=near))
    except Exception:  # noqa: BLE001 - a forward() may do anything
        return False
    finally:
        for path, layer in before.items():
            network.set_submodule(path, layer)


def without(layer: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor) -> Resizable:
    """Return a layer that has only those of its inputs (channels,) and outputs (channels,) that are True."""
    assert can_be_resized(layer)  # noqa: S101 - groups_of() looked
    with torch.device("meta"):
        smaller = resized(layer, (int(inputs.sum()), int(outputs.sum()))).train(layer.training)
    state = {}
    for name, value in layer.state_dict().items():
        kept = value[outputs] if value.dim() else value  # a batch norm also counts its batches
        state[name] = kept[:, inputs] if kept.dim() > 1 and not is_depthwise(layer) else kept
    smaller.load_state_dict(state, assign=True)
    return smaller
