"""The table of ``cnndeploy inspect``: what a model file is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group

from cnndeploy.certificate import Accuracy
from cnndeploy.display.cells import duration, pairs, ranks, run_line, size, widths
from cnndeploy.display.rows import times
from cnndeploy.display.tables import facts_of
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.run import Run
from cnndeploy.specs import Manifest, TensorSpec
from cnndeploy.words import counted


def facts_table(facts: Mapping[str, Any], manifest: Manifest | None, accuracy: Accuracy | None) -> Group:
    """Show what is known of a file, and what its manifest says of where it came from."""
    rows = list[tuple[str, str]]()
    for key, value in facts.items():
        if key in _BELOW or (key == "operators" and not value):  # a checkpoint has weights and no graph
            continue
        no_certificate = key == "certificate" and value is None
        cell = _no_certificate(facts, manifest) if no_certificate else _CELLS.get(key, _cell)(value)
        if key == "certificate" and (others := facts.get("certificates", [])[1:]):  # by other runtimes
            cell = "\n".join([cell, *map(_certificate_cell, others)])
        rows.append(("size" if key == "bytes" else key.replace("_", " "), cell))
    if manifest is None:
        return Group(facts_of("", [""], [*rows, ("manifest", "none: cnndeploy did not write this file")]))
    return Group(facts_of("", [""], [*rows, *_manifest_rows(manifest, accuracy)], section=len(rows)))


def _manifest_rows(manifest: Manifest, accuracy: Accuracy | None) -> Iterator[tuple[str, str]]:
    training = manifest.training
    yield "architecture", manifest.architecture
    if manifest.source.arguments:
        yield "arguments", pairs(manifest.source.arguments)
    if manifest.data is not None:
        yield "data", manifest.data
    form = f" ({manifest.resizing} resizing)" if manifest.resizing else ""
    inside = f"in the file{form}: " if manifest.takes_images else ""
    yield "preprocessing", inside + _steps(manifest.preprocessing)
    if manifest.checkpoint_sha256 is not None:  # an exported file
        yield "simplified", ", ".join(manifest.rewrites) or "no"
    if manifest.compression is not None:
        yield "compressed", _compression(manifest)
    yield "labels", ", ".join(manifest.labels)
    yield (
        "test accuracy",
        _accuracy_cell(accuracy, training.get("test_accuracy"), "not measured" if training else "untrained"),
    )
    if recipe := training.get("recipe"):
        yield "recipe", pairs({name: value for name, value in recipe.items() if value is not None})
    yield "checkpoint", manifest.checkpoint_sha256 or "this file"
    yield "versions", pairs(manifest.versions)


def _compression(manifest: Manifest) -> str:
    """Say which layers are of low rank or have fewer channels, and of what the network was made."""
    small, fewer = manifest.source.ranks, manifest.source.widths
    parts = [f"{counted(len(small), 'layer')} of low rank: {ranks(small)}"] if small else []
    parts += [f"{counted(len(fewer), 'layer')} of fewer channels: {widths(fewer)}"] if fewer else []
    return "; ".join([*parts, f"made of {manifest.held_against}"])


def _steps(preprocessing: Preprocessing) -> str:
    height, width = preprocessing.size
    target = f"{height} x {width}" if preprocessing.resize is None else _target(preprocessing.resize)
    way = "antialiased, width first" if preprocessing.antialias else "half-pixel centres, no antialiasing"
    steps = "RGB, " if preprocessing.channels == 3 else ""
    steps += (
        f"uint8 times {preprocessing.scale:.6g}, resized to {target} ({preprocessing.interpolation}, {way})"
    )
    if preprocessing.resize is not None:
        steps += f", cropped to {height} x {width}"
    if any(preprocessing.means) or set(preprocessing.stds) != {1.0}:
        mean, std = (
            ", ".join(f"{one:g}" for one in dict.fromkeys(values)) for values in _normalised(preprocessing)
        )
        steps += f", minus {mean}, divided by {std}"
    return steps


def _target(resize: int | tuple[int, int]) -> str:
    return f"a shorter side of {resize}" if isinstance(resize, int) else "{} x {}".format(*resize)


def _normalised(preprocessing: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means and standard deviations, one for all channels if they are alike."""
    same = len(set(preprocessing.means)) == len(set(preprocessing.stds)) == 1
    kept = slice(1) if same else slice(None)
    return preprocessing.means[kept], preprocessing.stds[kept]


def _cell(value: Any) -> str:
    return (pairs(value) or "none") if isinstance(value, Mapping) else str(value)


def _specs_cell(specs: Sequence[TensorSpec | Mapping[str, Any]]) -> str:
    known = (spec if isinstance(spec, TensorSpec) else TensorSpec(**spec) for spec in specs)
    return "\n".join(f"{spec.name}: {spec}" for spec in known)


def _accuracy_cell(known: Accuracy | None, checkpoint: float | None, unknown: str) -> str:
    """Show the file's own accuracy, and if it is lossy its checkpoint's beside it; ``unknown`` if neither is known."""
    if known is None:
        return unknown if checkpoint is None else f"not measured (checkpoint {checkpoint:.4f})"
    beside = "" if known.checkpoint is None else f" (checkpoint {known.checkpoint:.4f})"
    return f"{known.accuracy:.4f}{beside} on {counted(known.images, 'image')}"


def _no_certificate(facts: Mapping[str, Any], manifest: Manifest | None) -> str:
    """Say why there is none, and how to make one if the file can have one."""
    if facts["format"] == "checkpoint":
        return "none: exported files are verified against it"
    if manifest is None:
        return "none: only files that cnndeploy wrote can be verified"
    return "none for this file; make one with: cnndeploy verify"


def _certificate_cell(certificate: Mapping[str, Any]) -> str:
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
    "complete": lambda complete: "the race was complete" if complete else "the race was cut short",
    "times_as_fast_as_eager": lambda ratio: f"{times(ratio)} times as fast as eager PyTorch",
    "times_as_fast_as_onnxruntime": lambda ratio: f"{times(ratio)} times as fast as the file on ONNX Runtime",
    "interval": lambda interval: "95% interval {} to {}".format(*map(times, interval)),
    "p50_s": lambda seconds: f"{duration(seconds)} a call",
    "accuracy": lambda accuracy: f"test accuracy {accuracy:.4f}",
    "verdict": str,
    "tried": lambda count: f"{count} tried",
}
_BELOW = ("manifest", "accuracy", "accuracy_images", "certificates")
"""The facts that have no row of their own."""
_CELLS: dict[str, Callable[[Any], str]] = {
    "constants": ", ".join,
    "probabilities": ", ".join,
    "in_training_mode": ", ".join,
    "bytes": lambda count: f"{count:,} bytes ({size(count)})",
    "inputs": _specs_cell,
    "outputs": _specs_cell,
    "plan": _plan_cell,
    "certificate": _certificate_cell,
}
