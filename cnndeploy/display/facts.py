"""The table of ``cnndeploy inspect``: what a model file is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from cnndeploy.display.cells import add_row, pairs, size
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.run import Run
from cnndeploy.specs import Manifest, TensorSpec


def facts_table(facts: Mapping[str, Any], manifest: Manifest | None) -> Group:
    """Show what is known of a file, and what its manifest says of where it came from."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in facts.items():
        if key != "manifest" and (key != "operators" or value):  # a checkpoint has weights and no graph
            add_row(table, "size" if key == "bytes" else key, _CELLS.get(key, _cell)(value))
    if manifest is None:
        add_row(table, "manifest", "none: cnndeploy did not write this file")
        return Group(table)
    table.add_section()
    for label, text in _manifest_rows(manifest):
        add_row(table, label, text)
    return Group(table)


def _manifest_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    training = manifest.training
    accuracy = training.get("test_accuracy")
    yield "architecture", manifest.architecture
    yield "preprocessing", "in the file: " * manifest.takes_images + _steps(manifest.preprocessing)
    if manifest.checkpoint_sha256 is not None:  # an exported file
        yield "simplified", ", ".join(manifest.rewrites) or "no"
    yield "labels", ", ".join(manifest.labels)
    known = accuracy is not None
    yield "test accuracy", f"{accuracy:.4f} on {training['test_images']:,} images" if known else "untrained"
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
    where = f"on {certificate['images']:,} images, {run}, {certificate['date']}"
    if certificate["verdict"] == "equivalent":
        return f"equivalent to {against} {where}"
    low, high = certificate["loss_low_points"], certificate["loss_high_points"]
    loss = f"loses {certificate['loss_points']:.2f} points of accuracy ({low:.2f} to {high:.2f})"
    return f"within its budget of {certificate['budget_points']:g} percentage points against {against}: {loss} {where}"


_CELLS: dict[str, Callable[[Any], str]] = {
    "bytes": lambda count: f"{count:,} bytes ({size(count)})",
    "inputs": _specs_cell,
    "outputs": _specs_cell,
    "plan": lambda plan: (
        f"{Run.from_dict(plan)}; {pairs(plan['figures'])}; {plan['date']}; {plan['command']}"
    ),
    "certificate": _certificate_cell,
}
