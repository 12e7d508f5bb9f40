"""Tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cnndeploy.deployment import Plan
from cnndeploy.display.cells import add_row
from cnndeploy.display.units import duration, machine_line, size
from cnndeploy.evaluation import Evaluation, wilson
from cnndeploy.specs import Manifest
from cnndeploy.tuning.report import TuneReport
from cnndeploy.verification.report import EquivalenceReport, SideFacts


def equivalence_table(reports: Sequence[EquivalenceReport]) -> Group:
    """Verdict and figures, a column for each artifact."""
    table = Table(title="Equivalence with eager PyTorch", title_justify="left")
    table.add_column("")
    for report in reports:
        table.add_column(Text(Path(report.artifact.path).name), overflow="fold")
    rows: dict[str, Callable[[EquivalenceReport], str | Text]] = {
        "equivalent": lambda r: Text("yes", "green") if r.equivalent else Text("NO", "bold red"),
        "against": lambda r: Path(r.against.path).name,
        "runtime": lambda r: f"{r.runtime} on {r.device}, {r.threads} threads",
        "images": lambda r: f"{r.images:,}",
        "batch sizes": lambda r: ", ".join(map(str, r.batch_sizes)),
        "max absolute error": lambda r: f"{r.max_abs_error:.3g}" if r.images else "not compared",
        "max relative error": _relative_cell,
        "top-1 agreement": lambda r: f"{r.top1_agreement:.2%}" if r.images else "not compared",
        "against float64": _oracle_cell,
        "alone or in a batch": _invariance_cell,
        "labels that flipped": _flipped_cell,
        "no flip was possible": lambda r: f"{r.decisions.certified:,} images" if r.decisions else "-",
        "test accuracy": _accuracy_cell,
        "artifact was run": lambda r: _side_cell(r.artifact_side),
        "checkpoint was run": lambda r: _side_cell(r.against_side),
    }
    if any(report.other_image_sizes for report in reports):
        rows["images of other sizes"] = _sizes_cell
    if any(report.divergence for report in reports):
        rows["first divergence"] = _divergence_cell
        rows["error growth"] = _growth_cell
    for label, value in rows.items():
        add_row(table, label, *(value(report) for report in reports))
    return Group(table)


def evaluation_table(evaluation: Evaluation) -> Group:
    """Accuracy in all and for each class."""
    table = Table(title=f"Accuracy of {Path(evaluation.artifact).name}", title_justify="left")
    table.add_column("class")
    for heading in ("images", "right", "accuracy", "95% interval"):
        table.add_column(heading, justify="right")
    for each in evaluation.per_class:
        if each.images:
            low, high = wilson(each.correct, each.images)
            add_row(
                table,
                each.label,
                f"{each.images:,}",
                f"{each.correct:,}",
                f"{each.accuracy:.4f}",
                f"{low:.4f} to {high:.4f}",
            )
    table.add_section()
    low, high = evaluation.interval
    add_row(
        table,
        "all",
        f"{evaluation.images:,}",
        f"{evaluation.correct:,}",
        f"{evaluation.accuracy:.4f}",
        f"{low:.4f} to {high:.4f}",
    )
    run = f"{evaluation.runtime} on {evaluation.device}, {evaluation.threads} threads"
    return Group(table, Text(run))


def _fact_cell(key: str, value: Any) -> str:
    if key == "certificate":
        return _certificate_cell(value)
    if key == "plan":
        figures = ", ".join(f"{name} {found}" for name, found in value["figures"].items())
        return f"{Plan.of(value)}; {figures}; {value['date']}; {value['command']}"
    if key == "bytes":
        return f"{value:,} bytes ({size(value)})"
    if key in ("inputs", "outputs"):
        specs = (f"{spec['name']}: {spec['dtype']} ({', '.join(map(str, spec['shape']))})" for spec in value)
        return "\n".join(specs)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
    return str(value)


def _certificate_cell(certificate: Mapping[str, Any] | None) -> str:
    if certificate is None:
        return "none for this file; make one with: cnndeploy verify"
    if certificate["verdict"] != "equivalent":
        return (
            f"within its budget of {certificate['budget_points']:g} percentage points against "
            f"{certificate['against']['sha256'][:16]}: {_loss(certificate)} on {certificate['images']:,} images, "
            f"{certificate['runtime']} on {certificate['device']}, {certificate['date']}"
        )
    return (
        f"equivalent to {certificate['against']['sha256'][:16]} on {certificate['images']:,} images, "
        f"{certificate['runtime']} on {certificate['device']}, {certificate['date']}"
    )


def _loss(figures: Mapping[str, Any]) -> str:
    low, high = figures["loss_low_points"], figures["loss_high_points"]
    return f"loses {figures['loss_points']:.2f} points of accuracy ({low:.2f} to {high:.2f})"


def _relative_cell(report: EquivalenceReport) -> str:
    found = f"{report.max_rel_error:.3g}" if report.images else "not compared"
    return f"{found} (tolerance {report.tolerance.relative:g})"


def _oracle_cell(report: EquivalenceReport) -> str:
    if (found := report.oracle) is None:
        return "-"
    return f"{found.ratio:.2f} times eager's own error (limit {found.limit:g}), {found.images:,} images"


def _invariance_cell(report: EquivalenceReport) -> str:
    if (found := report.batch_invariance) is None:
        return "-"
    return f"spread {found.max_rel_spread:.3g} (limit {found.limit:g})"


def _sizes_cell(report: EquivalenceReport) -> str:
    return ", ".join(f"{height} x {width}" for height, width in report.other_image_sizes) or "-"


def _side_cell(side: SideFacts | None) -> str:
    """How many nodes, or parameters, were where, and under which settings."""
    if side is None:
        return "-"
    places = Counter(side.placement.values())
    placed = ", ".join(f"{count} parts on {place}" for place, count in places.items())
    settings = ", ".join(
        f"{name} {('off', 'on')[value] if isinstance(value, bool) else value}"
        for name, value in side.settings.items()
    )
    return f"{placed}; {settings}"


def _divergence_cell(report: EquivalenceReport) -> str:
    return report.divergence.description if report.divergence else "-"


def _growth_cell(report: EquivalenceReport) -> str:
    """The modules' errors around the first that departs, and the last one's."""
    if report.divergence is None or not report.divergence.modules:
        return "-"
    modules = report.divergence.modules
    first = next((at for at, module in enumerate(modules) if module.departs), len(modules) - 1)
    shown = [at for at in range(len(modules)) if first - 2 <= at <= first + 2 or at == len(modules) - 1]
    lines: list[str] = []
    for at in shown:
        module = modules[at]
        error = (
            "not finite, or of another shape"
            if module.artifact_error is None
            else f"{module.artifact_error:.1e}"
        )
        gap = "...\n" if lines and at - 1 not in shown else ""
        lines.append(f"{gap}{module.module} ({module.kind}): {error}, eager {module.eager_error:.1e}")
    return "\n".join(lines)


def _flipped_cell(report: EquivalenceReport) -> str:
    if report.decisions is None:
        return "-"
    flipped = report.decisions.flipped
    named = (
        f": images {', '.join(map(str, flipped[:5]))}{' ...' if len(flipped) > 5 else ''}" if flipped else ""
    )
    return f"{len(flipped)}{named}"


def _accuracy_cell(report: EquivalenceReport) -> str:
    if (found := report.decisions) is None:
        return "-"
    return f"{found.artifact_accuracy:.4f}, checkpoint {found.checkpoint_accuracy:.4f} (p = {found.mcnemar_p:.2g})"


def tuning_table(report: TuneReport) -> Group:
    """A row for each contender, fastest first, with what became of it and why."""
    table = Table(title=f"Tuned for {report.objective}, batch {report.batch_size}", title_justify="left")
    for heading in ("file", "runtime"):
        table.add_column(heading)
    for heading in ("threads", "times as fast as eager", "a call", "accuracy"):
        table.add_column(heading, justify="right")
    table.add_column("outcome", overflow="fold", min_width=40)
    for row in report.rows:
        low, high = row.ratio_interval or (0, 0)
        add_row(
            table,
            row.variant,
            ", ".join([row.runtime, *(f"{name} {value}" for name, value in row.options.items())]),
            str(row.threads),
            "-" if row.ratio is None else f"{row.ratio:.3g} ({low:.3g} to {high:.3g})",
            "-" if row.p50_s is None else duration(row.p50_s),
            "unknown" if row.accuracy is None else f"{row.accuracy:.4f}",
            Text(f"{row.outcome}: {row.reason}", "bold green" if row.outcome == "chosen" else ""),
        )
    notes = [Text(note, "yellow") for note in report.notes]
    if not report.complete:
        notes.append(
            Text("The time was over: this is the best so far. --max-minutes gives it more.", "yellow")
        )
    wrote = f"Wrote {report.folder} in {report.seconds / 60:.1f} minutes. Open it with: "
    opened = f"cnndeploy.load({report.folder!r})"
    return Group(table, Text(machine_line(report.environment)), *notes, Text(wrote + opened))


def facts_table(facts: Mapping[str, Any], manifest: Manifest | None) -> Group:
    """What ``cnndeploy inspect`` prints."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in facts.items():
        if key != "manifest" and (key != "operators" or value):  # a checkpoint has weights and no graph
            add_row(table, "size" if key == "bytes" else key, _fact_cell(key, value))
    if manifest is None:
        add_row(table, "manifest", "none: cnndeploy did not write this file")
        return Group(table)
    table.add_section()
    training, preprocessing = manifest.training, manifest.preprocessing
    accuracy = training.get("test_accuracy")
    add_row(table, "architecture", manifest.architecture)
    height, width = preprocessing.size
    steps = (
        f"uint8 times {preprocessing.scale:.6g}, resized to {height} x {width} (bilinear, half-pixel centres, no "
        "antialiasing)"
    )
    if preprocessing.mean or preprocessing.std != 1:
        steps += f", minus {preprocessing.mean:g}, divided by {preprocessing.std:g}"
    add_row(table, "preprocessing", f"in the file: {steps}" if manifest.takes_images else steps)
    if manifest.checkpoint_sha256 is not None:  # an exported file
        add_row(table, "simplified", ", ".join(manifest.rewrites) or "no")
    add_row(table, "labels", ", ".join(manifest.labels))
    add_row(
        table,
        "test accuracy",
        "untrained" if accuracy is None else f"{accuracy:.4f} on {training['test_images']:,} images",
    )
    if recipe := training.get("recipe"):
        add_row(
            table,
            "recipe",
            ", ".join(f"{name} {value}" for name, value in recipe.items() if value is not None),
        )
    add_row(table, "checkpoint", manifest.checkpoint_sha256 or "this file")
    add_row(table, "versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    return Group(table)
