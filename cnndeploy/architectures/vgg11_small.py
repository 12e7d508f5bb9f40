"""VGG-11 with every width and the hidden units divided by 16: trains in minutes on a CPU."""

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
        "tuned": Recipe(
            epochs=10,
            batch_size=128,
            learning_rate=0.004,
            initialisation="he",
            schedule="one-cycle",
            label_smoothing=0.05,
            flip=True,
        ),
    },
)
