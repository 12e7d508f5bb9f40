"""VGG-11 with all widths divided by 16, which trains in minutes an epoch on a CPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from cnndeploy.architectures import vgg11
from cnndeploy.architectures._recipe import Recipe

ARCHITECTURE = replace(
    vgg11.ARCHITECTURE,
    build=partial(vgg11.VGG11, divisor=16),
    recipes={
        "original": vgg11.ARCHITECTURE.recipes["original"],
        "tuned": Recipe(10, 128, 0.004, "he", "one-cycle", label_smoothing=0.05, flip=True),
    },
)
