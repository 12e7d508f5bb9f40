"""What the plots have in common: ticks that can be read, bars with their figures, and names beside points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from cnndeploy.display.plots.figure import FONT_SIZE, INK

_PLAIN = FuncFormatter(lambda value, _: f"{value:,g}")
_BAR, _ABOVE_BAR = 0.34, 0.23  # of the height of a row
ROW_IN = 0.5
_GAP = 4.0  # points between a point's name and whatever else there is


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return few round numbers within the range of a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps, stride in (((1, 1.5, 2, 3, 5, 7), 1), ((1, 2, 5), 1), ((1,), 1), ((1,), 2), ((1,), 4)):
        numbers = (float(f"{step}e{decade}") for decade in decades[::stride] for step in steps)
        ticks = [number for number in numbers if low <= number <= high]
        if 2 <= len(ticks) <= most:
            return ticks
    return [float(tick) for tick in MaxNLocator(3).tick_values(low, high) if low <= tick <= high]


def log_axis(axis: Any, low: float, high: float) -> None:
    """Make an x or y axis logarithmic, from ``low`` to ``high``, with 0.02 and 10,000 at its few ticks."""
    name = axis.axis_name
    axis.axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    set_ticks(axis, log_ticks(low, high, 5 if name == "x" else 6))


def set_ticks(axis: Any, ticks: Sequence[float]) -> None:
    """Set the ticks of an axis, which shows no others, as plain numbers."""
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(_PLAIN)
    axis.set_minor_locator(FixedLocator([]))
    axis.set_minor_formatter(NullFormatter())


def linear_axis(axis: Any) -> None:
    """Show few plain numbers at the ticks of an axis."""
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(_PLAIN)


def apart(sizes: Sequence[int], width: float) -> list[int]:
    """Leave out the sizes whose labels would touch the one before, on a logarithmic axis ``width`` points long."""
    scale = width / max(1e-9, math.log(sizes[-1] / sizes[0]))
    kept = [sizes[0]]
    for size in sizes[1:]:
        letters = (len(f"{kept[-1]:,}") + len(f"{size:,}")) / 2
        if scale * math.log(size / kept[-1]) > 0.7 * FONT_SIZE * letters + _GAP:
            kept.append(size)
    return kept


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a bar chart: ``parts`` lie end to end from 0, each in its colour; ``figure`` stands beside them.

    ``low`` and ``high`` are the ends of a whisker. A ``bold`` row is the one to look at.
    """

    name: str
    figure: str
    parts: Sequence[tuple[float, str]]
    low: float | None = None
    high: float | None = None
    bold: bool = False

    @property
    def end(self) -> float:
        """The end of the bar on the axis, the whisker included."""
        return max(self.high or 0.0, sum(length for length, _ in self.parts))


def draw_bars(axes: Any, bars: Sequence[Bar], unit: str) -> None:
    """Draw a row for each bar, with its name above it and its figure at its end."""
    room = 1 / (0.97 - 0.017 * max(len(bar.figure) for bar in bars))  # a bold letter is 1.7% of the axis wide
    axes.set(xlim=(0, room * max(bar.end for bar in bars)), ylim=(0.55 - len(bars), 0.75), xlabel=unit)
    for row, bar in enumerate(bars):
        weight = "bold" if bar.bold else "normal"
        left = 0.0
        for length, colour in bar.parts:
            axes.barh(-row, length, left=left, height=_BAR, color=colour)
            left += length
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [-row, -row], color=INK, linewidth=1)
            axes.plot([bar.low, bar.high], [-row, -row], "|", color=INK, markersize=6)
        _text(axes, bar.name, (0, _ABOVE_BAR - row), (3, 0), ha="left", va="bottom", fontweight=weight)
        _text(axes, bar.figure, (bar.end, -row), (5, 0), ha="left", va="center", fontweight="bold")
    axes.set_yticks([])
    linear_axis(axes.xaxis)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def name_points(axes: Any, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Write names beside the first points, if there is room that neither a point nor another name takes.

    The limits of the axes must be final. A name far from its point has a line to it.
    """
    axes.figure.draw_without_rendering()  # lays the figure out
    pixels = axes.figure.dpi / 72
    frame = axes.get_window_extent()
    taken = [_box(x, y, x, y, _GAP * pixels) for x, y in axes.transData.transform(points)]
    for point, name in zip(points, names, strict=False):
        for sideways, up in _offsets():
            side = "center" if sideways == 0 else "left" if sideways > 0 else "right"
            text = _text(axes, name, point, (sideways, up), ha=side, va="center", fontsize=FONT_SIZE - 1)
            extent = text.get_window_extent()
            box = _box(extent.x0, extent.y0, extent.x1, extent.y1, pixels)
            fits = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
            if fits and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                if abs(up) > 20:
                    arrow = {"arrowstyle": "-", "color": INK, "linewidth": 0.6, "alpha": 0.5}
                    axes.annotate(
                        "", point, (sideways, up), textcoords="offset points", arrowprops=arrow
                    ).set_in_layout(False)
                break
            text.remove()


def _offsets() -> list[tuple[float, float]]:
    """Return where a name may stand, in points from its point: beside it, above, below, then farther away."""
    rows = sorted(range(-7, 8), key=lambda row: (abs(row), -row))
    beside = [(8.0, 0.0), (-8.0, 0.0)]
    return beside + [(side, 14.0 * row) for row, side in itertools.product(rows, (0.0, 6.0, -6.0)) if row]


def _text(axes: Any, text: str, point: tuple[float, float], offset: tuple[float, float], **look: Any) -> Any:
    """Write a text at a distance, in points, from a point; it does not change how the figure is laid out."""
    note = axes.annotate(text, point, offset, textcoords="offset points", **look)
    note.set_in_layout(False)
    return note


def scatter_axes(figure: Figure, points: Sequence[tuple[float, float]], batch_size: int) -> Any:
    """Return axes of accuracy against milliseconds, with room around the points for their names."""
    axes: Any = figure.subplots()
    times, accuracies = zip(*points, strict=True)
    margin = 0.3 * (max(accuracies) - min(accuracies))
    axes.set(xlabel=f"median milliseconds a call, batch {batch_size}", ylabel="test accuracy")
    axes.set_ylim(min(accuracies) - margin, max(accuracies) + margin)
    log_axis(axes.xaxis, min(times) / 1.6, max(times) * 1.6)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.25)
    return axes


_Box = tuple[float, float, float, float]


def _box(left: float, bottom: float, right: float, top: float, margin: float) -> _Box:
    return left - margin, bottom - margin, right + margin, top + margin


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
