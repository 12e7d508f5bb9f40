"""Plots: that their ticks and names can be read, and that a file says what it shows and what it was measured on."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import cache

import pytest
from display import page_reports
from matplotlib.figure import Figure

from cnndeploy.display.names import candidate_names
from cnndeploy.display.plots import Plot, benchmark_plots, training_plots, tuning_plot
from cnndeploy.display.plots.axes import apart, log_ticks, name_points, scatter_axes

TEXT = "{http://www.w3.org/2000/svg}text"


def _plots() -> dict[str, Plot]:
    """Return every kind of plot there is."""
    drawn = training_plots(page_reports.manifest(), page_reports.ENVIRONMENT)
    drawn |= benchmark_plots(page_reports.lenets())
    drawn["accuracy"] = benchmark_plots(page_reports.lossy())["accuracy"]
    drawn["frontier"] = tuning_plot(page_reports.tuning(0.8721))
    return drawn | {"tried": tuning_plot(page_reports.tuning(0.8796))}


PLOTS = _plots()


@cache
def _drawn(plot: Plot) -> ET.Element:
    return ET.fromstring(plot.svg())  # noqa: S314 - our own


def _texts(plot: Plot) -> list[str]:
    return [text.text or "" for text in _drawn(plot).iter(TEXT)]


def _tick_labels(plot: Plot) -> list[str]:
    groups = (element for element in _drawn(plot).iter() if re.match(r"[xy]tick_", element.get("id", "")))
    return [text.text or "" for group in groups for text in group.iter(TEXT)]


def test_there_is_a_plot_of_every_kind() -> None:
    kinds = ("curves", "confusion", "latency", "throughput", "cold_start", "accuracy", "frontier", "tried")
    assert tuple(PLOTS) == kinds


@pytest.mark.parametrize("name", [name for name in PLOTS if name != "confusion"])
def test_ticks_are_few_plain_numbers(name: str) -> None:
    labels = _tick_labels(PLOTS[name])
    assert 2 <= len(labels) <= 20
    assert all(re.fullmatch(r"[\d,]+(\.\d+)?%?", label) for label in labels), labels


@pytest.mark.parametrize("name", PLOTS)
def test_a_file_says_what_it_shows_and_of_what_and_a_page_says_that_itself(name: str) -> None:
    plot = PLOTS[name]
    alone, inline = " ".join(_texts(plot)), plot.inline()
    for part in (plot.title, "Some Processor", "2 CPUs", "torch 2.14.1"):
        assert part in alone
        assert part not in inline
    assert "currentColor" in inline
    assert "http" not in inline


def test_a_plot_is_a_png_too() -> None:
    assert PLOTS["confusion"].png().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.015, 0.3, [0.02, 0.05, 0.1, 0.2]),
        (0.018, 0.055, [0.02, 0.03, 0.05]),
        (2000, 100_000, [2000, 5000, 10_000, 20_000, 50_000, 100_000]),
        (1.02, 1.4, [1.05, 1.2, 1.35]),
        (1, 1e6, [1, 100, 1e4, 1e6]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high, 6) == pytest.approx(ticks)


def test_every_range_has_ticks_that_do_not_touch() -> None:
    """On an axis of 300 points, the least that there is, seven letters need 50."""
    for low, span in itertools.product((0.003, 0.0171, 0.5, 7.7, 1234), (1.3, 2, 4.9, 17, 123, 4321, 1e6)):
        ticks = log_ticks(low, low * span, 5)
        assert len(ticks) >= 2, (low, span)
        places = [300 * math.log(tick / low) / math.log(span) for tick in ticks]
        half = [7 * len(f"{tick:,g}") / 2 for tick in ticks]
        gaps = [places[n] - half[n] - places[n - 1] - half[n - 1] for n in range(1, len(ticks))]
        assert min(gaps) > 0, (low, span, ticks)


def test_batch_sizes_that_would_touch_are_left_out() -> None:
    assert apart([1, 2, 4, 8, 64], 300) == [1, 2, 4, 8, 64]
    assert apart([1, 255, 256], 300) == [1, 255]
    assert apart([8], 300) == [8]


def test_names_beside_points_cover_neither_each_other_nor_points() -> None:
    points = [(0.02 * 1.1**n, 0.88) for n in range(9)] + [(0.02, 0.87), (0.3, 0.87)]
    names = [f"candidate{n}.onnx, onnxruntime" for n in range(len(points))]
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = scatter_axes(figure, points, 1)
    name_points(axes, points, names)
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}
    assert list(boxes) == names
    frame = axes.get_window_extent()
    for box in boxes.values():
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert not any(box.contains(x, y) for x, y in axes.transData.transform(points))
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes.values(), 2))


def test_bars_of_latency_have_their_figures_and_one_axis_for_each_batch_size() -> None:
    texts = _texts(PLOTS["latency"])
    for text in ("lenet.onnx, onnxruntime", "21.4 µs", "344 µs", "171 µs", "Batch 1", "Batch 64"):
        assert text in texts
    assert "2 threads each" in " ".join(texts)


def test_accuracy_is_drawn_if_it_differs_and_named_without_a_legend() -> None:
    assert "accuracy" not in benchmark_plots(page_reports.lenets())
    assert "accuracy" not in benchmark_plots(page_reports.lenets(accuracy=None))
    texts = _texts(PLOTS["accuracy"])
    assert texts.count("lenet.int8.onnx, onnxruntime") == 1
    assert not any("broken" in text for text in texts)


def test_what_tuning_tried_is_named_in_the_fields_terms() -> None:
    tried = _texts(PLOTS["tried"])
    for text in (
        "ONNX simplified, onnxruntime, 1 thread (chosen)",
        "ONNX simplified, onnxruntime, 2 threads, threads sleep when idle",
        "ONNX int8, onnxruntime, 1 thread",
        "TorchScript plain, 1 thread",
        "PyTorch, eager, 1 thread",
        "20.1 µs",
    ):
        assert text in tried
    assert "All have the test accuracy 87.96%" in " ".join(tried)
    frontier = _texts(PLOTS["frontier"])
    assert {"ONNX int8, onnxruntime, 1 thread", "ONNX simplified, onnxruntime, 1 thread"} <= set(frontier)
    assert "87.00%" in frontier
    close = _texts(tuning_plot(page_reports.tuning(0.8789)))
    assert "16.6 µs, 87.89%" in close


def test_a_training_is_drawn_as_far_as_it_is_recorded() -> None:
    untrained = replace(page_reports.manifest(), training={})
    assert training_plots(untrained, {}) == {}
    older = page_reports.manifest(confusion=None)
    assert list(training_plots(older, {})) == ["curves"]
    texts = _texts(PLOTS["confusion"])
    assert {"80", "94", "Shirt 80.0%", "Bag 94.0%"} <= set(texts)
    assert "0" not in texts


def test_candidates_have_different_names() -> None:
    rows = page_reports.lossy().results
    assert candidate_names(rows[:2], brief=True) == ["models/lenet.onnx", "models/lenet.int8.onnx"]
    assert candidate_names(rows[:1]) == ["models/lenet.onnx, onnxruntime"]
    twice = (rows[0], replace(rows[0], threads=1), rows[0])
    assert candidate_names(twice, brief=True) == [
        "models/lenet.onnx, onnxruntime, 2 threads",
        "models/lenet.onnx, onnxruntime, 1 thread",
        "models/lenet.onnx, onnxruntime, 2 threads (2)",
    ]
    assert candidate_names([replace(rows[0], device="cuda:0")]) == [
        "models/lenet.onnx, onnxruntime on cuda:0"
    ]


def test_bars_leave_out_what_is_so_slow_that_the_others_have_no_length() -> None:
    report = page_reports.tuning(0.8796)
    fast = replace(report.rows[0], p50_s=20e-6, accuracy=0.9)
    rows = (fast, replace(fast, threads=2, p50_s=119e-6), replace(fast, threads=3, p50_s=48.8e-3))
    plot = tuning_plot(replace(report, rows=rows))
    assert "Not shown: 1 that took up to 48.8 ms." in plot.note
    drawn = " ".join(_texts(plot))
    assert "119 µs" in drawn
    assert "3 threads" not in drawn
