"""What to raise if no smaller network was made: what was tried, and what may help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cnndeploy.compression.report import Method, Step
from cnndeploy.errors import BudgetError, CnndeployError, CompressionError
from cnndeploy.verification.report import BudgetReport

BEYOND = "no layer can be smaller within the budget, by training images"
NO_SETTING = "no setting tried keeps the budget"
FAILED = "it failed: "


def nothing_made(
    path: Path,
    budget: float,
    steps: Mapping[Method, Step],
    failed: Sequence[BudgetReport],
    *,
    all_images: int,
    late: bool,
    more_minutes: float | None,
    trouble: str,
) -> CnndeployError:
    """Return the error that says why nothing was made of a checkpoint.

    Args:
        path: The checkpoint.
        budget: In percentage points.
        steps: What came of each method.
        failed: The files that test images measured.
        all_images: How many test images there are.
        late: Whether the time was over before a method was tried to its end.
        more_minutes: What to allow then; None if that is not known here.
        trouble: Why a repair failed, empty if none did.
    """
    reasons: dict[str, str] = {step.method: step.reason for step in steps.values()}
    tried = [*(f"{method}: {reason}" for method, reason in reasons.items()), *filter(None, [trouble])]
    allow = "Allow more time" + ("" if more_minutes is None else f": max_minutes={more_minutes:g}")
    alone = ", or try int8 alone, which takes the least time" if "int8" in steps and len(steps) > 1 else ""
    more = [f"{allow}{alone}"] if late else []
    within = f"nothing tried keeps {path} within {budget:g} percentage points of accuracy"
    if failed:
        best = min(failed, key=_most_lost)
        what = f"{within}: {'; '.join(best.reasons)}"
        return BudgetError(_text(what, *tried, *_advice(best, all_images), *more), best, reasons)
    if BEYOND in reasons.values() or NO_SETTING in reasons.values():
        return BudgetError(_text(within, *tried, "Allow a larger budget", *more), None, reasons)
    if late:
        over = f"the time was over before anything smaller than {path} was found"
        return CompressionError(_text(over, *tried, *more), late=True)
    if any(reason.startswith(FAILED) for reason in reasons.values()):
        return CompressionError(_text(f"nothing smaller could be made of {path}", *tried), reasons)
    what = f"nothing tried makes {path} faster here"
    return CompressionError(_text(what, *tried, "Use its export as it is"), reasons)


def _most_lost(report: BudgetReport) -> float:
    return 100.0 if report.loss_high_points is None else report.loss_high_points


def _advice(best: BudgetReport, all_images: int) -> list[str]:
    """Return what to do if this file came nearest to the budget; its own reasons may say to measure on more images."""
    low, high = best.loss_low_points, best.loss_high_points
    if low is None or high is None or high <= best.budget_points:  # something else is wrong with it
        return []
    if low <= best.budget_points and best.images < all_images:
        return []
    return [f"Allow a larger budget: {math.ceil(100 * high) / 100:g} would do"]


def _text(*sentences: str) -> str:
    return ". ".join([*sentences, "Nothing was written."])
