"""The table and the plot that benchmarks/peers.py makes of its results, for docs/BENCHMARKS.md."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cnndeploy.display.cells import duration, machine_line, size
from cnndeploy.display.plots.axes import log_axis, name_points
from cnndeploy.display.plots.figure import COLOURS

Results = dict[str, dict[str, Any]]
NAMES = {
    "lenet": "LeNet",
    "googlenet": "GoogLeNet",
    "nin": "NiN",
    "alexnet": "AlexNet",
    "vgg11": "VGG-11",
    "vgg11_small": "VGG-11 of a sixteenth of the width",
    "resnet18": "ResNet-18",
    "mobilenet_v3_small": "MobileNetV3-Small",
}
START, END = "<!-- what benchmarks/peers.py wrote -->", "<!-- the end of it -->"
_PANEL_IN = (6.4, 3.9)


def into_page(page: str, results: Results) -> str:
    """Return a page with the table of the results between its two marks."""
    before, rest = page.split(START)  # an error if a mark is missing
    _, after = rest.split(END)
    return f"{before}{START}\n\n{_table(results)}\n\n{END}{after}"


def _known(results: Results) -> dict[str, dict[str, Any]]:
    """Return results by the title of their network, in the order of ``NAMES``."""
    names = [*(name for name in NAMES if name in results), *(name for name in results if name not in NAMES)]
    return {NAMES.get(name, name): results[name] for name in names}


def _table(results: Results) -> str:
    lines = [
        "| network | way | speed-up over eager | speed-up of tuned over it | a call | file | test accuracy |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    machines: dict[str, list[str]] = {}
    for title, one in _known(results).items():
        for row in one["rows"]:
            ours = row is one["rows"][-1]
            way = f"**{row['way']}**" if ours else row["way"]
            if row["failure"]:
                # the rest are a library's internals
                what = row["failure"].partition(": ")[0].rpartition("/")[2]
                lines.append(f"| {title} | {way} | failed: {what} | | | | |")
                continue
            accuracy = f"{row['accuracy']:.4f}"
            if (on := f" on {one['images']:,} images") not in one["verdict"]:
                accuracy += on
            accuracy += (
                f": {one['verdict']}" if ours else ", the checkpoint's" if row["as_checkpoint"] else ""
            )
            over = _interval(row["tuned_over"]) if "tuned_over" in row else ""
            lines.append(
                f"| {title} | {way} | {_interval(row['ratio'])} | {over} | {duration(row['p50_s'])} | "
                f"{size(row['bytes'])} | {accuracy} |"
            )
        how = f"{one['date']}, `--seconds {one['seconds']:g} --max-minutes {one['max_minutes']:g}`"
        machines.setdefault(f"{machine_line(one['environment'])}; {how}", []).append(title)
        if "raced" in one:
            times = ", ".join(f"{variant} {duration(p50_s)}" for variant, p50_s in one["raced"].items())
            machines[f"the fastest run of each file in the tuning's own race: {times}"] = [title]
        for warning in one["warnings"]:
            machines.setdefault(f"bench warned: {warning}", []).append(title)
    notes = [f"- {', '.join(titles)}: {machine}" for machine, titles in machines.items()]
    return "\n".join([*lines, "", *notes])


def _interval(values: list[float]) -> str:
    middle, low, high = values
    return "1" if low == high == 1 else f"{middle:.3g} ({low:.3g} to {high:.3g})"


def plot(results: Results) -> bytes:
    """Return a picture of accuracy against latency, a panel for each network."""
    known = _known(results)
    width, height = _PANEL_IN
    columns = min(2, len(known))
    lines = -(-len(known) // columns)
    figure = Figure(figsize=(columns * width, height * lines), layout="constrained")
    named: list[tuple[Any, list[tuple[float, float]], list[str]]] = []
    for number, (title, one) in enumerate(known.items(), start=1):
        axes: Any = figure.add_subplot(lines, columns, number)
        rows = [row for row in one["rows"] if not row["failure"]]
        points = [(1000 * row["p50_s"], row["accuracy"]) for row in rows]
        times, accuracies = zip(*points, strict=True)
        margin = max(0.5 * (max(accuracies) - min(accuracies)), 0.002)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set(xlabel="median milliseconds a call, batch 1", ylabel="test accuracy")
        axes.set_ylim(min(accuracies) - margin, max(accuracies) + margin)
        log_axis(axes.xaxis, min(times) / 2, max(times) * 2)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.25)
        order = sorted(
            range(len(rows)), key=lambda place: rows[place] is not one["rows"][-1]
        )  # ours is named first
        for place in order:
            ours = rows[place] is one["rows"][-1]
            axes.scatter(*points[place], color=COLOURS[1 if ours else 0], s=60 if ours else 28)
        names = [rows[place]["way"].partition(": ")[0] for place in order]  # how ours runs is in the table
        named.append((axes, [points[place] for place in order], names))
    for panel in named:  # once all are there, for each panel changes the others' sizes
        name_points(*panel)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
