"""Networks that are not ours, in a checkpoint without a file, with weights and statistics as training leaves them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnndeploy.checkpoint import Checkpoint
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.specs import Manifest, TensorSpec


@dataclass(frozen=True)
class InHand(Checkpoint):
    """A checkpoint of a network that no registry names."""

    made: nn.Module | None = None

    def network(self) -> nn.Module:
        assert self.made is not None
        return self.made


def in_hand(network: nn.Module, side: int = 32, classes: int = 5) -> InHand:
    """A network for colour images of ``side`` pixels, in eval mode."""
    manifest = Manifest(
        architecture="stranger",
        input=TensorSpec("image", "float32", ("batch", 3, side, side)),
        output=TensorSpec("logits", "float32", ("batch", classes)),
        preprocessing=Preprocessing(size=(side, side), channels=3, antialias=True),
        labels=tuple(f"class {number}" for number in range(classes)),
    )
    return InHand({}, manifest, "0" * 64, made=network.eval().requires_grad_(False))


def images(count: int, side: int = 32, seed: int = 1) -> torch.Tensor:
    """Prepared images, smooth with some noise."""
    draw = torch.Generator().manual_seed(seed)
    smooth = nn.functional.interpolate(
        torch.randn(count, 3, 5, 5, generator=draw), (side, side), mode="bilinear"
    )
    return smooth + 0.3 * torch.randn(count, 3, side, side, generator=draw)


def as_trained(network: nn.Module, side: int = 32, seen: torch.Tensor | None = None) -> nn.Module:
    """Make what a fresh network has at 0 and 1 random; the running statistics are near those of some images, ``seen``.

    On images of another kind than these, noise for example, the logits of a deep network may grow without limit, and
    its rounding errors with them.
    """
    draw = torch.Generator().manual_seed(0)

    def normalise(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        assert isinstance(module, _BatchNorm)
        axes = [axis for axis in range(inputs[0].dim()) if axis != 1]
        variance, mean = torch.var_mean(inputs[0], axes, correction=0)
        off = torch.randn(2, len(mean), generator=draw) * 0.1
        module.running_mean = mean + off[0] * variance.sqrt()
        module.running_var = variance * (1 + off[1].clamp(-0.5, 0.5)) + 1e-4

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 1:  # biases, and the scales of normalisation
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
            elif name.endswith("layer_scale"):
                parameter.fill_(0.3)
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        hooks = [module.register_forward_pre_hook(normalise) for module in norms]
        network.eval()(images(8, side, seed=2) if seen is None else seen)
        for hook in hooks:
            hook.remove()
    return network


def with_a_head(network: nn.Module) -> nn.Module:
    """Make weights random that a fresh network has at 0, as a vision transformer's head, else all images are alike."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network
