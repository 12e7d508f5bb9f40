"""First divergence: which module of the network is the first whose output departs, and how.

Both sides run a few images once more and return what each module computed. A module departs by the same rule as
the logits: its error against float64 is more than four times eager float32's own.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.runtimes import Activation
from cnndeploy.verification.checks import FLOOR, LIMIT

IMAGES = 2
_LACKING = "the file computes nothing of that kind and shape there"
Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ModuleError:
    """Largest errors of one module's output against float64, relative to its largest value.

    The artifact's is None if it is not known: another shape, or NaN or infinite values.
    """

    module: str
    kind: str
    artifact_error: float | None
    eager_error: float

    @property
    def allowed(self) -> float:
        """The largest error that rounding explains."""
        return LIMIT * max(self.eager_error, FLOOR)

    @property
    def departs(self) -> bool:
        """Whether the artifact's error is more than rounding explains."""
        return self.artifact_error is None or self.artifact_error > self.allowed


@dataclass(frozen=True, slots=True)
class Divergence:
    """The module where the artifact departs from its checkpoint on ``images``, which are numbers in the test set.

    ``modules`` are those that were compared, in the order computed, so that they show how the error grows.
    ``first`` is the path of the first that departs, None if none does; ``description`` says so in words.
    """

    images: tuple[int, ...]
    modules: tuple[ModuleError, ...]
    first: str | None
    description: str

    def reasons(self) -> list[str]:
        """Return what to tell beside the verdict; nothing if no module is to blame."""
        return [self.description] if self.first is not None else []


def find_divergence(
    images: Sequence[int],
    artifact: Sequence[Activation],
    eager: Sequence[Activation],
    exact: Sequence[Activation],
) -> Divergence:
    """Compare what each module returned for the same images: the artifact, eager float32 and float64.

    The latter two are of the same checkpoint and so name the same modules in the same order.
    """
    if not artifact:
        nothing = "which module departs first is not known: the file names none, or the runtime gives no inner outputs"
        return Divergence(tuple(images), (), None, nothing)
    counterparts = _counterparts(exact, artifact)
    errors = {}
    for index in counterparts:
        errors[index] = _module_error(counterparts[index], eager[index], exact[index])
        if errors[index].departs and not counterparts[index].module:
            for other in _alike(artifact, counterparts[index]):
                error = _module_error(other, eager[index], exact[index])
                if not error.departs:
                    counterparts[index], errors[index] = other, error
                    break
    index = next((index for index, error in errors.items() if error.departs), len(exact))
    start = max((number for number in errors if number < index), default=-1)
    computed = {exact[number].module for number in errors}  # at another call, if at several
    between = (number for number in range(start + 1, index) if exact[number].module not in computed)
    absent = next((exact[number] for number in between if _is_missed(exact, number, start)), None)
    if index == len(exact):
        but = "" if absent is None else f" (but {absent.module}, {absent.kind}: {_LACKING})"
        agree = f"run once more on images {', '.join(map(str, images))}, all modules agree{but}"
        return Divergence(tuple(images), tuple(errors.values()), None, agree)
    blamed = absent or exact[index]
    how = _LACKING if absent else _how(counterparts[index].values, exact[index].values, errors[index])
    description = f"it departs first in {blamed.module} ({blamed.kind}): {how}"
    return Divergence(tuple(images), tuple(errors.values()), blamed.module, description)


def _module_error(counterpart: Activation, eager: Activation, exact: Activation) -> ModuleError:
    errors = _error(counterpart.values, exact.values), _error(eager.values, exact.values) or 0.0
    return ModuleError(exact.module, exact.kind, *errors)


def _alike(artifact: Sequence[Activation], counterpart: Activation) -> list[Activation]:
    """Return the artifact's values of the same kind and shape.

    Without names, layers of one kind and shape may be taken for each other, if the two sides' orders differ.
    """
    shape = counterpart.values.shape
    return [one for one in artifact if one.kind == counterpart.kind and one.values.shape == shape]


def _is_missed(exact: Sequence[Activation], number: int, start: int) -> bool:
    """Return whether a file should have computed a module; ``start`` is the last before it that it did compute.

    A module that passes on what the one before it gave is not missed, such as inactive dropout. Nor is a layer with
    normalisation behind it, because exporters make one layer of the two.
    """
    behind = exact[number + 1].kind if number + 1 < len(exact) else ""
    if behind.startswith("BatchNorm"):
        return False
    return start < 0 or not np.array_equal(exact[number].values.ravel(), exact[start].values.ravel())


def _counterparts(exact: Sequence[Activation], artifact: Sequence[Activation]) -> dict[int, Activation]:
    """Return what the artifact computes for the checkpoint's modules, by their numbers in order.

    They are matched by name. Without names the longest common runs of kinds and shapes are; a kind that only one side
    knows has no counterpart, because a shape alone says little: most values of a residual network have the same.
    """
    if any(activation.module for activation in artifact):
        named = {activation.module: activation for activation in artifact}
        last = {module.module: index for index, module in enumerate(exact)}  # a file's is of the last call
        return {
            index: named[name] for name, index in sorted(last.items(), key=lambda e: e[1]) if name in named
        }
    shared = {activation.kind for activation in exact} & {activation.kind for activation in artifact}
    wanted, given = (
        [(one.kind if one.kind in shared else own, one.values.shape) for one in side]
        for own, side in (("exact", exact), ("artifact", artifact))
    )
    blocks = difflib.SequenceMatcher(None, wanted, given, autojunk=False).get_matching_blocks()
    return {a + offset: artifact[b + offset] for a, b, size in blocks for offset in range(size)}


def _error(values: Values, exact: Values) -> float | None:
    """Return the largest error relative to the largest exact value; None if it cannot be told."""
    if values.shape != exact.shape or not np.isfinite(values).all():
        return None
    return float(np.abs(values - exact).max() / max(np.abs(exact).max(), np.finfo(np.float32).tiny))


def _how(values: Values, exact: Values, error: ModuleError) -> str:
    """Say what is wrong with one module's output, (batch, channels, ...), whose inputs are right."""
    if values.shape != exact.shape:
        return f"its output is {values.shape}, not {exact.shape}"
    if error.artifact_error is None:
        return "it gives NaN or infinite values"
    allowed = error.allowed * float(np.abs(exact).max())
    given, wanted = _by_channel(values), _by_channel(exact)
    off = np.flatnonzero(np.abs(given - wanted).max(axis=1) > allowed).tolist()
    many = len(off) > 4
    listed = ", ".join(map(str, off[:4])) + (", ..." if many else "")
    which = f"{len(off)} of its {len(given)} output channels" if many else f"output channel {listed}"
    size = (
        f"{which} off by up to {error.artifact_error:.2g} of the largest value, "
        f"where eager's rounding is {error.eager_error:.1g}"
    )

    def is_another(channel: int) -> bool:
        return any(np.abs(given[channel] - wanted[other]).max() <= allowed for other in off)

    if len(off) > 1 and all(map(is_another, off)):
        return f"output channels {listed} are in another order"
    if all(np.ptp(given[channel] - wanted[channel]) <= 2 * allowed for channel in off):
        return f"{size}, each by a constant, as by another bias"
    if values.ndim == 4 and np.abs((values - exact)[:, :, 1:-1, 1:-1]).max(initial=0) <= allowed:
        return f"{size}, at the border alone, as by another padding"
    return size


def _by_channel(values: Values) -> Values:
    """Return values as float64 (channels, all else); what has no channels is one."""
    channels = values.reshape(*values.shape, *(1,) * (2 - values.ndim)).swapaxes(0, 1)
    return channels.reshape(len(channels), -1).astype(np.float64)
