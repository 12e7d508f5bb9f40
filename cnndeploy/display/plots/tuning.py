"""The plot of a tuning: what was tried, how fast it is, and how accurate."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from cnndeploy.display.benchmark_tables import variant_words
from cnndeploy.display.cells import duration, settings_line
from cnndeploy.display.plots.axes import ROW_IN, Bar, draw_bars, name_points, scatter_axes
from cnndeploy.display.plots.figure import COLOURS, INK, Plot, machine_context
from cnndeploy.tuning.report import Row, TuneReport

_SLOWEST = 25.0  # times the latency of the fastest; a bar chart shows no slower ones
_ALIKE = 0.001  # accuracies; points that are closer would lie on a line
_COLOURS_OF = {
    "PyTorch": COLOURS[6],
    "TorchScript plain": COLOURS[1],
    "TorchScript simplified": COLOURS[5],
    "ONNX plain": COLOURS[0],
    "ONNX simplified": COLOURS[2],
    "ONNX int8": COLOURS[3],
}


def tuning_plot(report: TuneReport) -> Plot:
    """Return accuracy against latency of what was tried, or its latencies if all are about equally accurate."""
    timed = sorted((row for row in report.rows if row.p50_s), key=lambda row: row.p50_s or 0.0)
    known = [row for row in timed if row.accuracy is not None]
    accuracies = [row.accuracy or 0.0 for row in known]
    context = machine_context(report.environment)
    if known and max(accuracies) - min(accuracies) > _ALIKE:
        return _scatter(report, known, context)
    return _latencies(timed, report.batch_size, context)


def _colour(row: Row) -> str:
    return _COLOURS_OF.get(variant_words(row), COLOURS[4])


def _name(row: Row) -> str:
    """Return what was run, on what, with how many threads and which options."""
    file = variant_words(row)
    on = "" if file.startswith("TorchScript") else row.runtime
    return ", ".join(filter(None, (file, on, settings_line({"threads": row.threads, **row.options}))))


def _latencies(timed: list[Row], batch_size: int, context: str) -> Plot:
    """Draw a bar for each row, fastest first, but for those that would leave the others no length."""
    rows = [row for row in timed if (row.p50_s or 0.0) <= _SLOWEST * (timed[0].p50_s or 0.0)]
    accuracies = {row.accuracy for row in rows}

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        bars = []
        for row in rows:
            p50_s, chosen = row.p50_s or 0.0, row.outcome == "chosen"
            name = f"{_name(row)}{' (chosen)' if chosen else ''}"
            accuracy = "accuracy unknown" if row.accuracy is None else f"{row.accuracy:.2%}"
            figures = duration(p50_s) if len(accuracies) == 1 else f"{duration(p50_s)}, {accuracy}"
            bars.append(Bar(name, figures, [(1e3 * p50_s, _colour(row))], bold=chosen))
        draw_bars(axes, bars, f"median milliseconds a call, batch {batch_size}")

    same = (
        f" All have the test accuracy {rows[0].accuracy:.2%}."
        if accuracies - {None} and len(accuracies) == 1
        else ""
    )
    beyond = timed[len(rows) :]
    left_out = (
        f" Not shown: {len(beyond)} that took up to {duration(beyond[-1].p50_s or 0.0)}." if beyond else ""
    )
    height = 0.7 + ROW_IN * max(1, len(rows))
    return Plot(
        "Latency of what was tried",
        f"Shorter is faster.{same}{left_out}",
        draw,
        height=height,
        context=context,
    )


def _scatter(report: TuneReport, rows: list[Row], context: str) -> Plot:
    """Draw all points, and name what was chosen, what nothing beats, and the fastest of each kind."""
    best = list(report.frontier)
    fastest = {variant_words(row): row for row in reversed(rows)}
    named = [row for row in rows if row.outcome == "chosen"]
    for row in (*best, *fastest.values()):
        if row not in named:
            named.append(row)
    rows = [*named, *(row for row in rows if row not in named)]
    points = [_point(row) for row in rows]

    def draw(figure: Figure) -> None:
        axes = scatter_axes(figure, points, report.batch_size)
        for row, point in zip(rows, points, strict=True):
            axes.plot(*point, "o", color=_colour(row))
            if row.outcome == "chosen":
                axes.plot(*point, "o", markersize=13, markerfacecolor="none", color=INK)
        if len(best) > 1:
            axes.plot(*zip(*map(_point, best), strict=True), "-", color=INK, linewidth=1, zorder=1)
        name_points(axes, points, list(map(_name, named)))
        for kind, colour in {variant_words(row): _colour(row) for row in rows}.items():
            axes.plot([], [], "o", color=colour, label=kind)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=3, fontsize=10)

    note = (
        "What was tried and whose accuracy is known. Up and to the left is better. The ring is what was chosen; the "
        "line joins what nothing beats in both."
    )
    return Plot("Accuracy against latency", note, draw, height=4.6, context=context)


def _point(row: Row) -> tuple[float, float]:
    return 1e3 * (row.p50_s or 0.0), row.accuracy or 0.0
