"""Plots of a benchmark, as SVG that takes on a page's colours, and as PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from cnndeploy.benchmark.report import BenchmarkReport, Result
from cnndeploy.display.rows import candidates, shortened
from cnndeploy.tuning.report import TuneReport

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
            self._figure.savefig(
                content, format=kind, metadata={"Date": None} if kind == "svg" else None, **settings
            )
        return content.getvalue()


def benchmark_plots(report: BenchmarkReport) -> dict[str, Plot]:
    """Return plots by name; only those that the report has figures for."""
    report = shortened(report)
    rows = [row for row in report.results if not row.failure]
    plots: dict[str, Plot] = {}
    if rows:
        plots["latency"] = _latency(rows)
    if len({row.batch_size for row in rows}) > 1:
        plots["throughput"] = _throughput(rows)
    firsts = [row for row in candidates(report) if not row.failure]
    if started := [row for row in firsts if row.cold_start]:
        plots["cold_start"] = _cold_start(started)
    if known := [row for row in firsts if row.accuracy is not None]:
        plots["accuracy"] = _accuracy(known)
    return plots


def tuning_plot(report: TuneReport) -> Plot:
    """Accuracy against latency of what was tried, with the frontier of those that none beats in both."""
    known = [row for row in report.rows if row.p50_s is not None and row.accuracy is not None]
    frontier = report.frontier

    def draw(axes: Any) -> None:
        for at, (variant, marker) in enumerate(_MARKERS.items()):
            rows = [row for row in known if row.variant == variant]
            if rows:
                axes.plot(
                    [1e3 * (row.p50_s or 0) for row in rows],
                    [row.accuracy for row in rows],
                    marker,
                    color=_COLOURS[at],
                    alpha=0.7,
                    label=variant,
                )
        line = [(1e3 * (row.p50_s or 0), row.accuracy) for row in frontier]
        if line:
            axes.plot(*zip(*line, strict=True), "-", color=_INK, linewidth=1, label="frontier")
        chosen = report.chosen
        if chosen in known:
            place = (1e3 * (chosen.p50_s or 0), chosen.accuracy or 0)
            axes.plot(*place, "o", markersize=14, markerfacecolor="none", color=_INK)
            name = f"{chosen.variant}, {chosen.runtime}"
            axes.annotate(name, place, xytext=(8, 10), textcoords="offset points", fontsize=9)
        axes.set_xscale("log")
        _plain(axes.xaxis)
        axes.margins(0.12)
        axes.set(xlabel=f"median milliseconds a call, batch {report.batch_size}", ylabel="test accuracy")
        axes.grid(alpha=0.25)
        if known:
            axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=5)

    note = "What was tried and whose accuracy is known; up and to the left is better; the ring is what was chosen."
    return Plot("Accuracy against latency", note, draw, height=4.0)


def _plain(axis: Any) -> None:
    """10000 and 0.1 instead of powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _name(row: Result, batch: bool = False) -> str:
    file = (
        f" {row.artifact}" if row.artifact.startswith("_") else row.artifact
    )  # matplotlib hides what begins so
    device = "" if row.device == "cpu" else f" on {row.device}"
    name = f"{file}, {row.runtime}{device}, {row.threads} thr."
    return f"{name}, batch {row.batch_size}" if batch else name


def _latency(rows: list[Result]) -> Plot:
    def draw(axes: Any) -> None:
        boxes = [
            {
                "label": _name(row, batch=True),
                "whislo": 1e3 * row.quantiles_s[1],
                "q1": 1e3 * row.quantiles_s[25],
                "med": 1e3 * row.quantiles_s[50],
                "q3": 1e3 * row.quantiles_s[75],
                "whishi": 1e3 * row.quantiles_s[99],
            }
            for row in reversed(rows)
        ]
        line = {"color": _INK}
        axes.bxp(
            boxes,
            orientation="horizontal",
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": _COLOURS[0], "edgecolor": _COLOURS[0]},
            whiskerprops=line,
            capprops=line,
            medianprops={"color": _COLOURS[1], "linewidth": 2},
        )
        axes.set_xscale("log")
        _plain(axes.xaxis)
        axes.set_xlabel("milliseconds a call")
        axes.grid(axis="x", alpha=0.25)

    note = "Median, quartiles, and 1st to 99th percentile of all calls; further left is faster."
    return Plot("Latency", note, draw, height=1.2 + 0.42 * len(rows))


def _throughput(rows: list[Result]) -> Plot:
    sizes = [row.batch_size for row in rows]
    # if a file is measured twice, its first row of a batch size belongs to the first of another
    lines: dict[tuple[str, int], list[Result]] = {}
    for at, row in enumerate(rows):
        same = [_name(each) for each in rows[:at] if each.batch_size == row.batch_size]
        lines.setdefault((_name(row), same.count(_name(row))), []).append(row)

    def draw(axes: Any) -> None:
        for at, ((name, _), of_candidate) in enumerate(lines.items()):
            ordered = sorted(of_candidate, key=lambda row: row.batch_size)
            speeds = [row.images_per_s for row in ordered]
            axes.plot(
                [row.batch_size for row in ordered],
                speeds,
                marker="o",
                color=_COLOURS[at % len(_COLOURS)],
                label=name,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        _plain(axes.yaxis)
        ticks = sorted(set(sizes))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="batch size", ylabel="images per second")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18))

    note = "Images per second against batch size; higher is faster."
    return Plot("Throughput", note, draw, height=3.4 + 0.22 * len(lines))


def _cold_start(rows: list[Result]) -> Plot:
    parts = {"import_s": "start and import", "open_s": "open", "first_run_s": "first run"}

    def draw(axes: Any) -> None:
        names = [_name(row) for row in reversed(rows)]
        lefts = [0.0] * len(rows)
        for at, (part, label) in enumerate(parts.items()):
            widths = [getattr(row.cold_start, part) for row in reversed(rows)]
            axes.barh(range(len(rows)), widths, left=lefts, color=_COLOURS[at], label=label, height=0.6)
            lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
        axes.set_yticks(range(len(rows)), names)
        axes.set_xlabel("seconds until the first result")
        axes.legend(frameon=False, fontsize=9)

    starts = rows[0].cold_start.starts if rows[0].cold_start else 0
    note = f"From the start of a process; medians over {starts} {'process' if starts == 1 else 'processes'} each."
    return Plot("Cold start", note, draw, height=1.4 + 0.42 * len(rows))


def _accuracy(rows: list[Result]) -> Plot:
    def draw(axes: Any) -> None:
        for at, row in enumerate(rows):
            at_ms = 1e3 * (row.p50_s or 0)
            axes.plot(at_ms, row.accuracy, "o", color=_COLOURS[at % len(_COLOURS)], label=_name(row))
        axes.set_xscale("log")
        _plain(axes.xaxis)
        axes.set(xlabel=f"median milliseconds a call, batch {rows[0].batch_size}", ylabel="test accuracy")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2))

    note = "What each file says of its own test accuracy, against how fast it runs; up and to the left is better."
    return Plot("Accuracy against latency", note, draw, height=3.2 + 0.22 * len(rows))
