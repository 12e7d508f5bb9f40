"""Plots: of a benchmark and a tuning, as SVG that takes on a page's colours and as PNG, and of a training."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from cnndeploy.benchmark.report import BenchmarkReport, Result
from cnndeploy.display.rows import candidates, shortened
from cnndeploy.files import write_file
from cnndeploy.tuning.report import Row, TuneReport

_INK = "#010203"  # stands for the page's text colour
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}
_MARKERS = {"checkpoint": "s", "float": "o", "simplified": "D", "int8": "^"}
_COLOURS = ("#3b6fd4", "#d9822b", "#2f9e6e", "#b0509c", "#8a7a2f", "#4aa3b5", "#c4473d", "#7d6bd1")


class Plot:
    """A drawn figure; ``title`` and ``note`` say in words what it shows."""

    def __init__(self, title: str, note: str, draw: Callable[[Any], None], height: float) -> None:
        self.title = title
        self.note = note
        with mpl.rc_context(_STYLE):
            self._figure = Figure(figsize=(6.6, height), layout="constrained")
            draw(self._figure.subplots())

    def png(self) -> bytes:
        """On white."""
        return self._saved("png", dpi=150)

    def svg(self) -> bytes:
        """A file of its own, on white."""
        return self._saved("svg")

    def inline(self) -> str:
        """SVG to stand in a page, in its colours; it names nothing outside the page."""
        text = self._saved("svg", transparent=True).decode()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        head, _, rest = text.partition(">")
        head = re.sub(r' (xmlns(:\w+)?|width|height)="[^"]*"', "", head)
        return f"{head}>{rest}".replace(_INK, "currentColor").replace("xlink:href", "href")

    def _saved(self, kind: str, **settings: Any) -> bytes:
        content = io.BytesIO()
        # the salt makes the names of clip paths differ between the plots of a page
        with mpl.rc_context({**_STYLE, "svg.hashsalt": self.title}):
            metadata = {"Date": None} if kind == "svg" else None
            self._figure.savefig(content, format=kind, metadata=metadata, **settings)
        return content.getvalue()


def benchmark_plots(report: BenchmarkReport) -> dict[str, Plot]:
    """Return plots by name; only those that the report has figures for."""
    report = shortened(report)
    rows = [row for row in report.results if not row.failure]
    firsts = [row for row in candidates(report) if not row.failure]
    shown = {
        "latency": (_latency, rows),
        "throughput": (_throughput, rows if len({row.batch_size for row in rows}) > 1 else []),
        "cold_start": (_cold_start, [row for row in firsts if row.cold_start]),
        "accuracy": (_accuracy, [row for row in firsts if row.accuracy is not None]),
    }
    return {name: plot(plotted) for name, (plot, plotted) in shown.items() if plotted}


def tuning_plot(report: TuneReport) -> Plot:
    """Accuracy against latency of what was tried, with the frontier of those that none beats in both."""
    known = [row for row in report.rows if row.p50_s is not None and row.accuracy is not None]

    def points(rows: Iterable[Row]) -> tuple[list[float], list[float]]:
        rows = list(rows)
        return [1e3 * (row.p50_s or 0) for row in rows], [row.accuracy or 0 for row in rows]

    def draw(axes: Any) -> None:
        for colour, (variant, marker) in zip(_COLOURS, _MARKERS.items(), strict=False):
            if rows := [row for row in known if row.variant == variant]:
                axes.plot(*points(rows), marker, color=colour, alpha=0.7, label=variant)
        if report.frontier:
            axes.plot(*points(report.frontier), "-", color=_INK, linewidth=1, label="frontier")
        chosen = report.chosen
        if chosen in known:
            axes.plot(*points([chosen]), "o", markersize=14, markerfacecolor="none", color=_INK)
            ((x,), (y,)), name = points([chosen]), f"{chosen.variant}, {chosen.runtime}"
            axes.annotate(name, (x, y), xytext=(8, 10), textcoords="offset points", fontsize=9)
        _label(axes, f"median milliseconds a call, batch {report.batch_size}", "test accuracy", log="x")
        axes.margins(0.12)
        if known:
            _legend_below(axes, 0.18, ncols=5)

    note = "What was tried and whose accuracy is known; up and to the left is better; the ring is what was chosen."
    return Plot("Accuracy against latency", note, draw, height=4.0)


def _label(axes: Any, x: str, y: str, *, log: Literal["x", "y"], grid: str = "both") -> None:
    """Name both axes; one is logarithmic, with 10000 and 0.1 at its ticks instead of powers of ten."""
    axes.set(xlabel=x, ylabel=y, **{f"{log}scale": "log"})
    getattr(axes, f"{log}axis").set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(axis=grid, alpha=0.25)


def _legend_below(axes: Any, distance: float, ncols: int = 1) -> None:
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -distance), ncols=ncols)


def _name(row: Result) -> str:
    hidden = row.artifact.startswith("_")  # matplotlib hides what begins so
    device = "" if row.device == "cpu" else f" on {row.device}"
    return f"{' ' * hidden}{row.artifact}, {row.runtime}{device}, {row.threads} thr."


def _latency(rows: list[Result]) -> Plot:
    percentiles = {"whislo": 1, "q1": 25, "med": 50, "q3": 75, "whishi": 99}

    def draw(axes: Any) -> None:
        boxes: list[dict[str, Any]] = []
        for row in reversed(rows):
            box = {name: 1e3 * row.quantiles_s[percent] for name, percent in percentiles.items()}
            boxes.append({"label": f"{_name(row)}, batch {row.batch_size}", **box})
        axes.bxp(
            boxes,
            orientation="horizontal",
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": _COLOURS[0], "edgecolor": _COLOURS[0]},
            whiskerprops={"color": _INK},
            capprops={"color": _INK},
            medianprops={"color": _COLOURS[1], "linewidth": 2},
        )
        _label(axes, "milliseconds a call", "", log="x", grid="x")

    note = "Median, quartiles, and 1st to 99th percentile of all calls; further left is faster."
    return Plot("Latency", note, draw, height=1.2 + 0.42 * len(rows))


def _throughput(rows: list[Result]) -> Plot:
    sizes = sorted({row.batch_size for row in rows})
    # if a file is measured twice, its first row of a batch size belongs to the first of another
    lines: dict[tuple[str, int], list[Result]] = {}
    seen = Counter[tuple[str, int]]()
    for row in rows:
        name = _name(row)
        lines.setdefault((name, seen[name, row.batch_size]), []).append(row)
        seen[name, row.batch_size] += 1

    def draw(axes: Any) -> None:
        for colour, ((name, _), of_candidate) in zip(cycle(_COLOURS), lines.items(), strict=False):
            ordered = sorted(of_candidate, key=lambda row: row.batch_size)
            speeds = [row.images_per_s for row in ordered]
            axes.plot([row.batch_size for row in ordered], speeds, marker="o", color=colour, label=name)
        _label(axes, "batch size", "images per second", log="y")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, list(map(str, sizes)))
        _legend_below(axes, 0.18)

    note = "Images per second against batch size; higher is faster."
    return Plot("Throughput", note, draw, height=3.4 + 0.22 * len(lines))


def _cold_start(rows: list[Result]) -> Plot:
    parts = {"import_s": "start and import", "open_s": "open", "first_run_s": "first run"}

    def draw(axes: Any) -> None:
        places, lefts = range(len(rows)), np.zeros(len(rows))
        for colour, (part, label) in zip(_COLOURS, parts.items(), strict=False):
            widths = [getattr(row.cold_start, part) for row in reversed(rows)]
            axes.barh(places, widths, left=lefts, color=colour, label=label, height=0.6)
            lefts += widths
        axes.set_yticks(places, [_name(row) for row in reversed(rows)])
        axes.set_xlabel("seconds until the first result")
        axes.legend(frameon=False, fontsize=9)

    starts = rows[0].cold_start.starts if rows[0].cold_start else 0
    note = f"From the start of a process; medians over {starts} {'process' if starts == 1 else 'processes'} each."
    return Plot("Cold start", note, draw, height=1.4 + 0.42 * len(rows))


def _accuracy(rows: list[Result]) -> Plot:
    def draw(axes: Any) -> None:
        for colour, row in zip(cycle(_COLOURS), rows, strict=False):
            axes.plot(1e3 * (row.p50_s or 0), row.accuracy, "o", color=colour, label=_name(row))
        _label(axes, f"median milliseconds a call, batch {rows[0].batch_size}", "test accuracy", log="x")
        _legend_below(axes, 0.2)

    note = "What each file says of its own test accuracy, against how fast it runs; up and to the left is better."
    return Plot("Accuracy against latency", note, draw, height=3.2 + 0.22 * len(rows))


def plot_curves(log: Path, target: Path) -> None:
    """Draw the epochs of a training's JSON-lines log into a PNG."""
    epochs = [json.loads(line) for line in log.read_text().splitlines()]
    numbers = [epoch["epoch"] for epoch in epochs]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(numbers, [epoch["train_loss"] for epoch in epochs], marker=".")
    loss.set(title="Training loss", xlabel="epoch", ylabel="cross-entropy")
    accuracy.plot(numbers, [epoch["train_accuracy"] for epoch in epochs], marker=".", label="training")
    accuracy.plot(numbers, [epoch["test_accuracy"] for epoch in epochs], marker=".", label="test")
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="share right")
    accuracy.legend()
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, target)


def plot_confusion(confusion: Sequence[Sequence[int]], labels: Sequence[str], target: Path) -> None:
    """Draw a confusion matrix, rows what is shown, columns what was said, into a PNG."""
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, counts in enumerate(confusion):
        for column, count in enumerate(counts):
            if count:
                color = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    places = range(len(labels))
    axes.set_xticks(places, labels, rotation=45, ha="right")
    axes.set_yticks(places, [f"{label} ({shares[at][at]:.1%})" for at, label in enumerate(labels)])
    axes.set(xlabel="label given", ylabel="shown (share right)")
    images, right = sum(map(sum, confusion)), sum(confusion[at][at] for at in places)
    axes.set_title(f"Accuracy {right / images:.4f} on {images:,} test images")
    _save(figure, target)


def _save(figure: Figure, target: Path) -> None:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_file(target, image.getvalue())
