"""First divergence: which module of the network is the first whose output departs, and how.

Both sides run a few images once more and give what each module computed. A module departs by the same rule as
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
from cnndeploy.verification.oracle import FLOOR, LIMIT

IMAGES = 2
Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ModuleError:
    """Largest errors of one module's output against float64, relative to its largest value.

    The artifact's is None where it cannot be told: another shape, or NaN or infinite values.
    """

    module: str
    kind: str
    artifact_error: float | None
    eager_error: float

    @property
    def departs(self) -> bool:
        """Whether the artifact's error is more than rounding explains."""
        allowed = LIMIT * max(self.eager_error, FLOOR)
        return self.artifact_error is None or self.artifact_error > allowed


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the artifact departs from its checkpoint on ``images``, numbers in the test set.

    ``modules`` are those that were compared, in the order computed, so that they show how the error grows.
    ``first`` is the path of the first that departs, None where none does; ``description`` says so in words.
    """

    images: tuple[int, ...]
    modules: tuple[ModuleError, ...]
    first: str | None
    description: str

    def reasons(self) -> list[str]:
        """What to tell beside the verdict; empty where no module is to blame."""
        return [self.description] if self.first is not None else []


def find_divergence(
    images: Sequence[int],
    artifact: Sequence[Activation],
    eager: Sequence[Activation],
    exact: Sequence[Activation],
) -> Divergence:
    """Compare what each module gave for the same images: the artifact, eager float32 and float64.

    The latter two are of the same checkpoint and so name the same modules in the same order.
    """
    if not artifact:
        nothing = "which module departs first is not known: the file names none, or the runtime gives no inner outputs"
        return Divergence(tuple(images), (), None, nothing)
    counterparts = _counterparts(exact, artifact)
    errors = [_module_error(*values) for values in zip(counterparts, eager, exact, strict=True)]
    compared = tuple(error for error in errors if error is not None)
    index = next((index for index, error in enumerate(errors) if error is not None and error.departs), None)
    absent = _first_absent(counterparts, exact, len(exact) if index is None else index)
    if index is None:
        lacking = "" if absent is None else f" (but {absent.module}, {absent.kind}: {_LACKING})"
        agree = f"run once more on images {', '.join(map(str, images))}, all modules agree{lacking}"
        return Divergence(tuple(images), compared, None, agree)
    blamed = absent or exact[index]
    counterpart, error = counterparts[index], errors[index]
    assert counterpart is not None and error is not None  # noqa: S101 PT018 - it departs
    how = _LACKING if absent is not None else _how(counterpart.values, exact[index].values, error)
    description = f"it departs first in {blamed.module} ({blamed.kind}): {how}"
    return Divergence(tuple(images), compared, blamed.module, description)


def _module_error(counterpart: Activation | None, eager: Activation, exact: Activation) -> ModuleError | None:
    """Compare one module's output; None if the artifact has no counterpart of it."""
    if counterpart is None:
        return None
    eager_error = _error(eager.values, exact.values) or 0.0
    return ModuleError(exact.module, exact.kind, _error(counterpart.values, exact.values), eager_error)


def _first_absent(
    counterparts: Sequence[Activation | None], exact: Sequence[Activation], end: int
) -> Activation | None:
    """Return the first module, since the last that was compared before ``end``, that the file lacks.

    A module that passes on what the one before it gave, as dropout does when inactive, is not missed.
    """
    start = max((index for index in range(end) if counterparts[index] is not None), default=-1)
    before = exact[start].values if start >= 0 else None
    for module in exact[start + 1 : end]:
        if before is None or not np.array_equal(module.values, before):
            return module
    return None


_LACKING = "the file computes nothing of that kind and shape there"


def _counterparts(exact: Sequence[Activation], artifact: Sequence[Activation]) -> list[Activation | None]:
    """For each module of the checkpoint its output in the artifact, by name or, without names, by order.

    Without names the longest common runs of kinds and shapes are matched; a kind that only one side knows is
    matched by its shape alone.
    """
    if any(each.module for each in artifact):
        named = {each.module: each for each in artifact}
        return [named.get(each.module) for each in exact]
    shared = {each.kind for each in exact} & {each.kind for each in artifact}
    theirs, ours = (
        [(each.kind if each.kind in shared else "", each.values.shape) for each in side]
        for side in (exact, artifact)
    )
    found: list[Activation | None] = [None] * len(exact)
    for block in difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_matching_blocks():
        found[block.a : block.a + block.size] = artifact[block.b : block.b + block.size]
    return found


def _error(values: Values, exact: Values) -> float | None:
    """The largest error relative to the largest exact value; None where it cannot be told."""
    if values.shape != exact.shape or not np.isfinite(values).all():
        return None
    return float(np.abs(values - exact).max() / max(np.abs(exact).max(), np.finfo(np.float32).tiny))


def _how(values: Values, exact: Values, error: ModuleError) -> str:
    """What is wrong with one module's output, (batch, channels, ...), whose inputs are right."""
    if values.shape != exact.shape:
        return f"its output is {values.shape}, not {exact.shape}"
    if error.artifact_error is None:
        return "it gives NaN or infinite values"
    allowed = LIMIT * max(error.eager_error, FLOOR) * float(np.abs(exact).max())
    ours, theirs = (_by_channel(each) for each in (values, exact))
    off = np.flatnonzero(np.abs(ours - theirs).max(axis=1) > allowed).tolist()
    named = (
        f"{len(off)} of its {len(ours)} output channels" if len(off) > 4 else f"output channel {_listed(off)}"
    )
    size = (
        f"{named} off by up to {error.artifact_error:.2g} of the largest value, "
        f"where eager's rounding is {error.eager_error:.1g}"
    )
    if len(off) > 1 and all(_is_another(ours[each], theirs, off, allowed) for each in off):
        return f"output channels {_listed(off)} are in another order"
    if all(np.ptp(ours[each] - theirs[each]) <= 2 * allowed for each in off):
        return f"{size}, each by a constant, as by another bias"
    if values.ndim == 4 and np.abs((values - exact)[:, :, 1:-1, 1:-1]).max(initial=0) <= allowed:
        return f"{size}, at the border alone, as by another padding"
    return size


def _by_channel(values: Values) -> Values:
    """float64 (channels, all else); what has no channels is one."""
    channels = values.reshape(*values.shape, *(1,) * (2 - values.ndim)).swapaxes(0, 1)
    return channels.reshape(len(channels), -1).astype(np.float64)


def _is_another(channel: Values, theirs: Values, among: Sequence[int], allowed: float) -> bool:
    return any(np.abs(channel - theirs[other]).max() <= allowed for other in among)


def _listed(channels: Sequence[int]) -> str:
    return ", ".join(map(str, channels[:4])) + (", ..." if len(channels) > 4 else "")
