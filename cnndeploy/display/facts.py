"""The table of ``cnndeploy inspect``: what a model file is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group

from cnndeploy.display.cells import counted, duration, pairs, run_line, size
from cnndeploy.display.rows import times
from cnndeploy.display.tables import facts_of
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.run import Run
from cnndeploy.specs import Manifest, TensorSpec


def facts_table(facts: Mapping[str, Any], manifest: Manifest | None) -> Group:
    """Show what is known of a file, and what its manifest says of where it came from."""
    rows = [
        ("size" if key == "bytes" else key.replace("_", " "), _CELLS.get(key, _cell)(value))
        for key, value in facts.items()
        if key != "manifest" and (key != "operators" or value)  # a checkpoint has weights and no graph
    ]
    if manifest is None:
        return Group(facts_of("", [""], [*rows, ("manifest", "none: cnndeploy did not write this file")]))
    return Group(facts_of("", [""], [*rows, *_manifest_rows(manifest)], section=len(rows)))


def _manifest_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    training = manifest.training
    accuracy = training.get("test_accuracy")
    yield "architecture", manifest.architecture
    yield "preprocessing", "in the file: " * manifest.takes_images + _steps(manifest.preprocessing)
    if manifest.checkpoint_sha256 is not None:  # an exported file
        yield "simplified", ", ".join(manifest.rewrites) or "no"
    yield "labels", ", ".join(manifest.labels)
    known = accuracy is not None
    yield (
        "test accuracy",
        f"{accuracy:.4f} on {counted(training['test_images'], 'image')}" if known else "untrained",
    )
    if recipe := training.get("recipe"):
        yield "recipe", pairs({name: value for name, value in recipe.items() if value is not None})
    yield "checkpoint", manifest.checkpoint_sha256 or "this file"
    yield "versions", pairs(manifest.versions)


def _steps(preprocessing: Preprocessing) -> str:
    height, width = preprocessing.size
    resized = f"resized to {height} x {width} (bilinear, half-pixel centres, no antialiasing)"
    steps = f"uint8 times {preprocessing.scale:.6g}, {resized}"
    if preprocessing.mean or preprocessing.std != 1:
        steps += f", minus {preprocessing.mean:g}, divided by {preprocessing.std:g}"
    return steps


def _cell(value: Any) -> str:
    return (pairs(value) or "none") if isinstance(value, Mapping) else str(value)


def _specs_cell(specs: Sequence[TensorSpec | Mapping[str, Any]]) -> str:
    known = (spec if isinstance(spec, TensorSpec) else TensorSpec(**spec) for spec in specs)
    return "\n".join(f"{spec.name}: {spec}" for spec in known)


def _certificate_cell(certificate: Mapping[str, Any] | None) -> str:
    if certificate is None:
        return "none for this file; make one with: cnndeploy verify"
    against = certificate["against"]["sha256"][:16]
    run = f"{certificate['runtime']} on {certificate['device']}"
    where = f"on {counted(certificate['images'], 'image')}, {run}, {certificate['date']}"
    if certificate["verdict"] == "equivalent":
        return f"equivalent to {against} {where}"
    low, high = certificate["loss_low_points"], certificate["loss_high_points"]
    loss = f"loses {certificate['loss_points']:.2f} points of accuracy ({low:.2f} to {high:.2f})"
    return f"within its budget of {certificate['budget_points']:g} percentage points against {against}: {loss} {where}"


def _plan_cell(plan: Mapping[str, Any]) -> str:
    """Show how a deployment runs, what was measured of it, and when; a paragraph each."""
    run = Run.from_dict(plan)
    how = run_line(run.runtime, run.device, run.threads, run.choices.changed)
    figures = ", ".join(_figure(name, value) for name, value in plan["figures"].items() if value is not None)
    return "\n".join(filter(None, (how, figures, f"{plan['date']}; {plan['command']}")))


def _figure(name: str, value: Any) -> str:
    """Show a figure of a plan with its unit; one that another program wrote, as it is."""
    try:
        return _FIGURES[name](value)
    except (KeyError, TypeError, ValueError):
        return f"{name.replace('_', ' ')} {value}"


_FIGURES: dict[str, Callable[[Any], str]] = {
    "objective": lambda objective: f"for {objective}",
    "batch_size": lambda size: f"batch {size}",
    "budget_points": lambda points: f"budget {points:g} percentage points",
    "complete": lambda complete: "all contenders timed" if complete else "stopped before all was tried",
    "times_as_fast_as_eager": lambda ratio: f"{times(ratio)} times as fast as eager PyTorch",
    "interval": lambda interval: "95% interval {} to {}".format(*map(times, interval)),
    "p50_s": lambda seconds: f"{duration(seconds)} a call",
    "accuracy": lambda accuracy: f"test accuracy {accuracy:.4f}",
    "verdict": str,
    "tried": lambda count: f"{count} tried",
}
_CELLS: dict[str, Callable[[Any], str]] = {
    "bytes": lambda count: f"{count:,} bytes ({size(count)})",
    "inputs": _specs_cell,
    "outputs": _specs_cell,
    "plan": _plan_cell,
    "certificate": _certificate_cell,
}
