"""Tables of what was found of a file: equivalence, a loss of accuracy against its budget, accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from rich.console import Group
from rich.text import Text

from cnndeploy.benchmark.report import Result
from cnndeploy.display.cells import NOTHING, ranks, run_line, settings_line, size, widths, yes_or_no
from cnndeploy.display.rows import times
from cnndeploy.display.tables import TableColumn, facts_of, safe, table_of
from cnndeploy.evaluation import Evaluation, wilson
from cnndeploy.verification.checks import Decisions
from cnndeploy.verification.divergence import ModuleError
from cnndeploy.verification.prepared import PreparedCheck
from cnndeploy.verification.report import BudgetReport, EquivalenceReport, SideFacts, Verdict
from cnndeploy.verification.verify import BATCH_SIZES
from cnndeploy.words import counted

if TYPE_CHECKING:
    from cnndeploy.compression.report import Compressed, Step
    from cnndeploy.quantization.quantize import Quantized
    from cnndeploy.what_if import WhatIf

T = TypeVar("T")
# Classes in a table of accuracies; of more only the best and the worst are shown.
_MOST_SHOWN, _SHOWN = 20, 5
_Cell = Callable[[EquivalenceReport], str | Text]


def verdict_table(verdict: Verdict) -> Group:
    """Show a verdict of either kind with its figures; first of all the main reason if it is no pass."""
    if isinstance(verdict, BudgetReport):
        table = budget_table(verdict)
    else:
        table = equivalence_table([cast(EquivalenceReport, verdict)])
    if verdict.passed:
        return table
    reason = next(iter(verdict.reasons), "nothing was compared")
    return Group(safe(Text(f"{verdict.artifact.path} is {verdict.verdict}: {reason}", "bold red")), table)


def _against(verdict: Verdict) -> str:
    """Return the checkpoint's name if it lies beside the artifact, else its path: another may have the same name."""
    artifact, against = (Path(one.path) for one in (verdict.artifact, verdict.against))
    return against.name if against.absolute().parent == artifact.absolute().parent else str(against)


def _flipped(flipped: Sequence[int]) -> str:
    first = ", ".join(map(str, flipped[:5])) + " ..." * (len(flipped) > 5)
    return f"{len(flipped)}: image{'s' * (len(flipped) > 1)} {first}" if flipped else "0"


def _batch_sizes(sizes: Sequence[int]) -> str:
    """List the sizes that verification takes in turn, and then that of the images that were left over."""
    turns, left = ([size for size in sizes if (size in BATCH_SIZES) is known] for known in (True, False))
    return "; the last ".join(", ".join(map(str, part)) for part in (turns, left) if part)


def _oracle(report: EquivalenceReport) -> str:
    if (oracle := report.oracle) is None:
        return NOTHING
    owner = "PyTorch" if report.against_runtime == "eager" else report.against_runtime
    error = f"{oracle.ratio:,.2f} x {owner}'s own (at most {oracle.limit:g} x)"
    return error if oracle.images == report.images else f"{error}, {counted(oracle.images, 'image')}"


def _side(side: SideFacts) -> str:
    """Count the parts on each place, and list the settings."""
    placed = (
        f"{counted(count, 'part')} on {place}" for place, count in Counter(side.placement.values()).items()
    )
    return f"{', '.join(placed)}\n{settings_line(side.settings)}"


def _growth(modules: Sequence[ModuleError]) -> str:
    """Show the errors of the modules around the first that departs, and of the last one."""
    last = len(modules) - 1
    first = next((index for index, module in enumerate(modules) if module.departs), last)
    lines: list[str] = []
    for index, module in enumerate(modules):
        if abs(index - first) <= 2 or index == last:
            error = module.artifact_error
            shown = "not finite, or of another shape" if error is None else f"{error:.1e}"
            lines.append(f"{module.module} ({module.kind}): {shown}, eager {module.eager_error:.1e}")
        elif lines and lines[-1] != "...":
            lines.append("...")
    return "\n".join(lines) or NOTHING


def _accuracies(decisions: Decisions) -> str:
    if decisions.artifact_accuracy is None:
        return f"{NOTHING} (images without labels)"
    both = f"{decisions.artifact_accuracy:.4f}, checkpoint {decisions.checkpoint_accuracy:.4f}"
    return f"{both} (p = {decisions.mcnemar_p:.2g})"


def _prepared(check: PreparedCheck) -> str:
    if not check.moved:
        return "as Pillow's, bit for bit"
    change = "" if check.probability_change is None else f"; probabilities by {check.probability_change:.1g}"
    return (
        f"{100 * check.share:.2g}% of values off, by {counted(check.levels, 'grey level')} at most "
        f"(limit {check.most_levels}){change}"
    )


def _part(part: Callable[[EquivalenceReport], T | None], show: Callable[[T], str]) -> _Cell:
    return lambda report: NOTHING if (value := part(report)) is None else show(value)


def _compared(cell: _Cell) -> _Cell:
    """Show a figure only if something was compared."""
    return lambda report: cell(report) if report.images else NOTHING


_ROWS: dict[str, _Cell] = {
    "equivalent": lambda r: yes_or_no(r.passed),
    "against": _against,
    "runtime": lambda r: run_line(r.runtime, r.device, r.threads) if r.threads else r.runtime or NOTHING,
    "images": _compared(lambda r: f"{r.images:,}"),
    "batch sizes": _compared(lambda r: _batch_sizes(r.batch_sizes)),
    "max absolute error": _part(lambda r: r.max_abs_error, "{:.3g}".format),
    "max relative error": lambda r: (
        NOTHING if r.max_rel_error is None else f"{r.max_rel_error:.3g} (tolerance {r.tolerance.relative:g})"
    ),
    "top-1 agreement": _compared(lambda r: f"{r.top1_agreement:.2%}"),
    "error against float64": _oracle,
    "same result alone and in a batch": _part(
        lambda r: r.batch_invariance, lambda i: f"difference {i.max_rel_spread:.3g} (limit {i.limit:g})"
    ),
    "labels that flipped": _part(lambda r: r.decisions, lambda d: _flipped(d.flipped)),
    "label provably safe": lambda r: (
        f"{r.decisions.certified:,} of {counted(r.images, 'image')}" if r.decisions else NOTHING
    ),
    "test accuracy": _part(lambda r: r.decisions, _accuracies),
    "ran on": _part(lambda r: r.artifact_side, _side),
    "checkpoint ran on": _part(lambda r: r.against_side, _side),
    "preprocessing": _part(lambda r: r.prepared, _prepared),
    "images of other sizes": lambda r: ", ".join(f"{h} x {w}" for h, w in r.other_image_sizes) or NOTHING,
    "first divergence": _part(lambda r: r.divergence, lambda d: d.description),
    "error growth": _part(lambda r: r.divergence, lambda d: _growth(d.modules)),
}


def equivalence_table(reports: Sequence[EquivalenceReport]) -> Group:
    """Show verdicts and figures, a column for each artifact, with its folder if its name alone does not tell it."""
    cells = ((label, *map(cell, reports)) for label, cell in _ROWS.items())
    paths = [report.artifact.path for report in reports]
    names = [Path(path).name for path in paths]
    if len(paths) == 1 or len(set(names)) < len(paths):
        names = paths
    against = {report.against_runtime for report in reports} - {"eager"}
    return Group(facts_of(f"Equivalence with {', '.join(sorted(against)) or 'eager PyTorch'}", names, cells))


def budget_table(report: BudgetReport) -> Group:
    """Show a lossy file's verdict and figures."""
    rows: dict[str, str | Text] = {
        "within budget": yes_or_no(report.passed),
        "budget": f"{report.budget_points:g} percentage points",
        "against": _against(report),
    }
    if report.threads:
        rows["runtime"] = run_line(report.runtime, report.device, report.threads)
    if report.options:
        rows["options"] = settings_line(report.options)
    if report.images:
        rows |= {
            "images": f"{report.images:,}",
            "test accuracy": f"{report.artifact_accuracy:.4f}, checkpoint {report.checkpoint_accuracy:.4f}",
            "loss": f"{report.loss_points:.2f} points",
            "paired 95% interval": f"{report.loss_low_points:.2f} to {report.loss_high_points:.2f} points",
            "right before, wrong now": counted(report.lost, "image"),
            "wrong before, right now": counted(report.gained, "image"),
            "top-1 agreement": f"{report.top1_agreement:.2%}",
        }
    if report.files_measured > 1:
        rows["files measured"] = f"{report.files_measured:,} on these images, this one last"
    return Group(facts_of(f"Loss of {report.artifact.path}", [""], rows.items()))


def quantized_table(quantized: Quantized) -> Group:
    """Show the settings that were tried, and what became of the one that was chosen."""
    columns = (
        TableColumn("method", "text", least=12),
        TableColumn("layers in float", right=True, phrase="{} layers in float".format),
        TableColumn("logit error", right=True, phrase="logit error {}".format),
        TableColumn("labels changed", right=True, phrase="{} labels changed".format),
        TableColumn("loss expected on test images", right=True, phrase="loss expected {}".format),
    )
    cells = [
        (
            trial.method,
            f"{len(trial.float_layers)}",
            f"{trial.logit_error:.2%}",
            f"{trial.changed:.2%}",
            f"up to {trial.predicted_high_points:.2f} points",
        )
        for trial in quantized.trials
    ]
    trials = []
    if cells:
        images = counted(quantized.trials[0].images, "training image")
        trials.append(table_of(f"Settings tried on {images}", columns, cells))
    return Group(*trials, budget_table(quantized.report), *map(Text, _outcome(quantized)))


def _outcome(quantized: Quantized) -> Iterator[str]:
    settings = quantized.settings
    precision = str(settings["precision"])
    bytes_now = quantized.artifact.path.stat().st_size
    yield f"Size: {size(bytes_now)}, float32 {size(quantized.float_bytes)}"
    if precision == "int8":
        left = ", ".join(quantized.float_layers) or "none"
        yield f"Layers left in float: {len(quantized.float_layers)} of {settings['layers']}: {left}"
    yield from _speed(quantized.speed, precision, "float32", "the float file")
    yield from (f"Warning: {warning}" for warning in quantized.speed_warnings)
    if precision == "float16" and quantized.report.device == "cpu":
        yield "float16 is meant for CUDA; on the CPU most of it is cast to float32 and back."


def _speed(row: Result | None, what: str, than: str, else_ship: str) -> Iterator[str]:
    """Say how fast a file is beside another, and what to ship if it is not faster."""
    if row is None:
        return
    interval = f"({row.ratio_low:.2f} to {row.ratio_high:.2f})"
    start = f"Speed here, {row.runtime} on {row.device}"
    if row.verdict is None:
        measured = f"It measured {row.ratio:.2f} times as fast as {than} {interval}."
        yield f"{start}: not judged, because other programs kept the machine busy. {measured}"
        return
    yield f"{start}: {row.ratio:.2f} times as fast as {than} {interval}: {row.verdict}"
    if row.verdict == "SLOWER":
        yield f"{what} is slower than {than} here: ship {else_ship}."
    elif row.verdict != "FASTER":
        yield f"{what} is not seen to be faster than {than} here: ship {else_ship}, unless size counts."


def compressed_table(compressed: Compressed) -> Group:
    """Show what each method gave, what the file loses, and how much smaller and faster it is."""
    columns = (
        TableColumn("method", "text"),
        TableColumn("kept", "text"),
        TableColumn("what", "text", least=24),
        TableColumn("size", right=True),
        TableColumn("speed-up over the step before", right=True, phrase="speed-up {}".format),
    )
    cells = [
        (
            step.method,
            "yes" if step.kept else "no",
            step.reason,
            NOTHING if step.bytes is None else size(step.bytes),
            _step_ratio(step),
        )
        for step in compressed.steps
    ]
    smaller = compressed.float_bytes / compressed.bytes
    as_onnx = " as ONNX" if compressed.artifact.format == "checkpoint" else ""
    notes = [
        f"Size{as_onnx}: {size(compressed.bytes)}, float32 {size(compressed.float_bytes)}: {smaller:.1f} times smaller"
    ]
    notes += _speed(compressed.speed, "The smaller network", "the float export", "the float export")
    notes += [f"Warning: {warning}" for warning in compressed.speed_warnings]
    if compressed.ranks:
        notes.append(f"Ranks: {ranks(compressed.ranks)}")
    if compressed.widths:
        notes.append(f"Channels: {widths(compressed.widths)}")
    return Group(
        table_of("What was tried", columns, cells), budget_table(compressed.report), *map(Text, notes)
    )


def _step_ratio(step: Step) -> str:
    if step.ratio is None or step.ratio_interval is None:
        return NOTHING
    low, high = map(times, step.ratio_interval)
    return f"{times(step.ratio)} ({low} to {high})"


def evaluation_table(evaluation: Evaluation) -> Group:
    """Show the accuracy on all images and for each class."""
    title = f"Accuracy of {evaluation.artifact}"
    columns = (
        TableColumn("class", "text"),
        TableColumn("images", right=True, phrase=lambda images: counted(images, "image")),
        TableColumn("right", right=True, drop=1, phrase="{} right".format),
        TableColumn("accuracy", right=True, phrase="accuracy {}".format),
        TableColumn("95% interval", right=True, phrase="95% interval {}".format),
    )
    classes = [one for one in evaluation.per_class if one.images]
    notes = [run_line(evaluation.runtime, evaluation.device, evaluation.threads, evaluation.options)]
    if (left_out := len(classes) - 2 * _SHOWN) > 0 and len(classes) > _MOST_SHOWN:
        ranked = sorted(classes, key=lambda one: -one.accuracy)
        notes.insert(
            0, f"The {_SHOWN} best and the {_SHOWN} worst classes are shown, and {left_out:,} are not."
        )
        classes = [*ranked[:_SHOWN], *ranked[-_SHOWN:]]
    rows = [_accuracy(one.label, one.correct, one.images) for one in classes]
    rows.append(_accuracy("all", evaluation.correct, evaluation.images))
    if (top5 := evaluation.top5_correct) is not None:
        rows.append(_accuracy("all, among the first 5", top5, evaluation.images))
    return Group(table_of(title, columns, rows, section=len(classes)), *map(Text, notes))


def what_if_table(result: WhatIf) -> Group:
    """Show the accuracy with each mistake of preprocessing, and what it loses."""
    columns = (
        TableColumn("preprocessing", "text"),
        TableColumn("accuracy", right=True, phrase="accuracy {}".format),
        TableColumn("points lost", right=True, phrase="{} points lost".format),
        TableColumn("95% interval", right=True, phrase="95% interval {}".format),
    )
    rows = [("as the manifest says", f"{result.accuracy:.4f}", NOTHING, NOTHING)]
    rows += [
        (
            one.name,
            f"{one.accuracy:.4f}",
            f"{one.loss_points:.2f}",
            f"{one.loss_low_points:.2f} to {one.loss_high_points:.2f}",
        )
        for one in result.mistakes
    ]
    title = f"What other preprocessing would cost {result.artifact}, on {counted(result.images, 'image')}"
    return Group(table_of(title, columns, rows))


def _accuracy(label: str, correct: int, images: int) -> tuple[str, ...]:
    low, high = wilson(correct, images)
    return label, f"{images:,}", f"{correct:,}", f"{correct / images:.4f}", f"{low:.4f} to {high:.4f}"
