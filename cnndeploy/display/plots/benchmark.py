"""Plots of a benchmark: latency, throughput, cold start, and accuracy against latency."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

from matplotlib.figure import Figure

from cnndeploy.benchmark.report import BenchmarkReport, Result
from cnndeploy.display.cells import duration
from cnndeploy.display.names import candidate_names
from cnndeploy.display.plots.axes import (
    ROW_IN,
    Bar,
    apart,
    draw_bars,
    log_axis,
    name_points,
    scatter_axes,
    set_ticks,
)
from cnndeploy.display.plots.figure import COLOURS, Plot, machine_context
from cnndeploy.display.rows import candidates, shortened
from cnndeploy.words import counted

_Named = list[tuple[str, str, Result]]
"""Rows of one batch size, each with its candidate's name and colour, which are the same in every plot."""


def benchmark_plots(report: BenchmarkReport) -> dict[str, Plot]:
    """Return plots by name; only those that the report has figures for.

    There is none of accuracy against latency if all accuracies are the same: the bars of latency then say it all.
    """
    report = shortened(report)
    groups = _by_batch_size(report)
    threads = {row.threads for row in report.results}
    alike = (f"{counted(threads.pop() or '?', 'thread')} each",) if len(threads) == 1 else ()
    context = machine_context(report.environment, *alike)
    size, firsts = next(iter(groups.items()), (1, []))
    cold = [row for row in firsts if row[2].cold_start]
    known = [row for row in firsts if row[2].accuracy is not None]
    plots = {}
    if groups:
        plots["latency"] = _latency(groups, context)
    if len(groups) > 1:
        plots["throughput"] = _throughput(groups, context)
    if cold:
        plots["cold_start"] = _cold_start(cold, context)
    if len({row.accuracy for _, _, row in known}) > 1:
        plots["accuracy"] = _accuracy(known, size, context)
    return plots


def _by_batch_size(report: BenchmarkReport) -> dict[int, _Named]:
    """Return the rows that have figures, by batch size."""
    groups: dict[int, list[Result]] = {}
    for row in report.results:
        groups.setdefault(row.batch_size, []).append(row)
    named = {}
    names = candidate_names(candidates(report))
    colours = list(islice(cycle(COLOURS), len(names)))
    for size, rows in groups.items():
        if measured := [row for row in zip(names, colours, rows, strict=False) if not row[2].failure]:
            named[size] = measured
    return named


def _latency(groups: dict[int, _Named], context: str) -> Plot:
    def draw(figure: Figure) -> None:
        heights = list(map(len, groups.values()))
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (size, rows) in zip(panels, groups.items(), strict=True):
            bars = []
            for name, colour, row in rows:
                median = row.p50_s or 0.0
                low, high = row.p50_interval_s or (median, median)
                bar = Bar(name, duration(median), [(1e3 * median, colour)], 1e3 * low, 1e3 * high)
                bars.append(bar)
            draw_bars(axes, bars, "milliseconds a call")
            axes.set_title(f"Batch {size}", loc="left", fontsize=11)

    note = "Median with its 95% interval. Shorter is faster."
    rows = sum(map(len, groups.values()))
    return Plot("Latency", note, draw, height=0.9 * len(groups) + ROW_IN * rows, context=context)


def _throughput(groups: dict[int, _Named], context: str) -> Plot:
    lines: dict[tuple[str, str], list[Result]] = {}
    for rows in groups.values():
        for name, colour, row in rows:
            lines.setdefault((name, colour), []).append(row)
    sizes = sorted(groups)
    speeds = [row.images_per_s or 0.0 for rows in lines.values() for row in rows]

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        for (name, colour), rows in lines.items():
            ordered = sorted(rows, key=lambda row: row.batch_size)
            label = f" {name}" if name.startswith("_") else name  # matplotlib hides what begins so
            points = [row.batch_size for row in ordered], [row.images_per_s for row in ordered]
            axes.plot(*points, marker="o", color=colour, label=label)
        axes.set(xlabel="batch size", ylabel="images per second")
        axes.grid(alpha=0.25)
        log_axis(axes.xaxis, sizes[0] / 1.15, sizes[-1] * 1.15)
        set_ticks(axes.xaxis, apart(sizes, width=300))
        log_axis(axes.yaxis, min(speeds) / 1.4, max(speeds) * 1.4)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.05, -0.2))

    note = "Images per second against batch size. Higher is faster."
    return Plot("Throughput", note, draw, height=3.0 + 0.24 * len(lines), context=context)


def _cold_start(rows: _Named, context: str) -> Plot:
    parts = {"import_s": "start and import", "open_s": "open", "first_run_s": "first run"}

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        bars = []
        for name, _, row in rows:
            lengths = [getattr(row.cold_start, part) for part in parts]
            coloured = list(zip(lengths, COLOURS, strict=False))
            bars.append(Bar(name, duration(sum(lengths)), coloured))
        draw_bars(axes, bars, "seconds until the first result")
        for label, colour in zip(parts.values(), COLOURS, strict=False):
            axes.barh(0, 0, color=colour, label=label)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3)

    starts = rows[0][2].cold_start.starts if rows[0][2].cold_start else 0
    note = f"From the start of a process. Medians of {counted(starts, 'start')} each."
    return Plot("Cold start", note, draw, height=1.1 + ROW_IN * len(rows), context=context)


def _accuracy(rows: _Named, batch_size: int, context: str) -> Plot:
    points = [(1e3 * (row.p50_s or 0.0), row.accuracy or 0.0) for _, _, row in rows]
    names = [name for name, _, _ in rows]

    def draw(figure: Figure) -> None:
        axes = scatter_axes(figure, points, batch_size)
        for (x, y), (_, colour, _) in zip(points, rows, strict=True):
            axes.plot(x, y, "o", color=colour)
        name_points(axes, points, names)

    note = "Test accuracy that each file records, against how fast it runs. Up and to the left is better."
    return Plot("Accuracy against latency", note, draw, height=3.6, context=context)
