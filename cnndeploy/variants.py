"""Mistakes of preprocessing that apps make: what they are, and which one explains what a file computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.preprocessing import Interpolation, Preprocessing

Prepare = Callable[[NDArray[np.uint8]], NDArray[Any]]
# In grey levels, on average: a mistake that explains a file leaves less than this, and less than half of its error.
_EXPLAINED = 0.5


def variants(own: Preprocessing) -> dict[str, Prepare]:
    """Return preprocessings that differ from a network's own in one respect each, under the name of the difference.

    Each maps images as :class:`Preprocessing` does, uint8 (batch, height, width) or (batch, height, width, 3).
    """
    other: Interpolation = "bicubic" if own.interpolation == "bilinear" else "bilinear"
    found: dict[str, Prepare] = {}
    if own.antialias:
        found["bilinear without antialias, as OpenCV"] = lambda images: _without_antialias(own, images)
        if own.interpolation == "bicubic":
            found["bicubic without antialias"] = lambda images: _cubic(own, images)
    else:
        found["antialias, as Pillow"] = replace(own, antialias=True)
    found["nearest neighbours"] = lambda images: _nearest(own, images)
    found[f"{other} for {own.interpolation}"] = replace(own, antialias=True, interpolation=other)
    if own.channels == 3:
        found["BGR for RGB"] = lambda images: own(images[..., ::-1])
    if own.resize is not None:
        found["squashed, no centre crop"] = replace(own, resize=None)
    found["cropped, not resized"] = lambda images: replace(own, resize=images.shape[1:3])(images)
    if any(own.means) or set(own.stds) != {1.0}:
        found["no mean and std"] = replace(own, mean=0.0, std=1.0)
    return found


def explained(own: Preprocessing, images: NDArray[np.uint8], prepared: NDArray[Any]) -> str:
    """Say which known mistake makes ``prepared`` (batch, channels, *size) of raw images; empty if none does."""
    expected = own(images)
    errors = {name: _error(own, prepare(images), prepared) for name, prepare in variants(own).items()}
    name = min(errors, key=errors.__getitem__)
    if errors[name] < min(_EXPLAINED, _error(own, expected, prepared) / 2):
        return f"this mistake explains it: {name}"
    fits = [np.polyfit(expected[:, c].ravel(), prepared[:, c].ravel(), 1) for c in range(own.channels)]
    slopes, shifts = (np.array(values)[:, None, None] for values in zip(*fits, strict=True))
    if _error(own, expected * slopes + shifts, prepared) > _EXPLAINED / 2:
        return ""
    stds = [std / slope for std, slope in zip(own.stds, slopes.ravel(), strict=True)]
    means = [mean - shift * std for mean, shift, std in zip(own.means, shifts.ravel(), stds, strict=True)]
    pairs = (("mean", _listed(means), _listed(own.means)), ("std", _listed(stds), _listed(own.stds)))
    return " and ".join(
        f"its {name} is {given}, not {wanted}" for name, given, wanted in pairs if given != wanted
    )


def _listed(values: Sequence[float]) -> str:
    """Show three digits: a fit shows no more if some values are off by a level."""
    return ", ".join(f"{value:.3g}" for value in values)


def _error(own: Preprocessing, expected: NDArray[Any], prepared: NDArray[Any]) -> float:
    return float(np.abs(in_levels(own, prepared - expected)).mean())


def in_levels(own: Preprocessing, differences: NDArray[Any]) -> NDArray[Any]:
    """Return differences of prepared values (batch, channels, height, width) in grey levels, of 256."""
    levels: NDArray[Any] = differences * (np.array(own.stds, np.float32)[:, None, None] / own.scale)
    return levels


def _without_antialias(own: Preprocessing, images: NDArray[np.uint8]) -> NDArray[Any]:
    raw = replace(own, antialias=False, interpolation="bilinear", scale=1.0, mean=0.0, std=1.0)
    return _normalised(own, np.rint(raw(images)))


def _cubic(own: Preprocessing, images: NDArray[np.uint8]) -> NDArray[Any]:
    """Resize by Keys' cubic convolution of the four nearest pixels, a = -0.5, with the image's edge repeated."""
    target = own.resized_size(*images.shape[1:3])
    pixels = images.reshape(*images.shape[:3], own.channels).astype(np.float32)
    for axis, new in ((1, target[0]), (2, target[1])):
        old = images.shape[axis]
        centres = (np.arange(new) + 0.5) * old / new - 0.5
        low = np.floor(centres).astype(np.intp)
        weights = np.zeros((new, old), np.float32)
        for place in range(-1, 3):
            x = np.abs(low + place - centres)
            near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
            np.add.at(weights, (np.arange(new), np.clip(low + place, 0, old - 1)), np.where(x < 1, near, far))
        pixels = np.moveaxis(np.tensordot(pixels, weights, (axis, 1)), -1, axis)
    levels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return replace(own, resize=target)(levels[..., 0] if own.channels == 1 else levels)


def _nearest(own: Preprocessing, images: NDArray[np.uint8]) -> NDArray[Any]:
    target = own.resized_size(*images.shape[1:3])
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(target, images.shape[1:3], strict=True)
    )
    return replace(own, resize=target)(images[:, rows[:, None], columns])  # nothing is left to resize


def _normalised(own: Preprocessing, levels: NDArray[np.float32]) -> NDArray[Any]:
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (own.means, own.stds))
    normalised: NDArray[Any] = (levels * np.float32(own.scale) - mean) / std
    return normalised
