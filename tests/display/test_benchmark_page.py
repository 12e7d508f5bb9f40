from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest

from cnndeploy.benchmark.engine import Measurement
from cnndeploy.benchmark.report import BenchmarkReport, ColdStart, Result, compared, summarise
from cnndeploy.display.benchmark_tables import benchmark_markdown
from cnndeploy.display.page import render_benchmark
from cnndeploy.display.plots import benchmark_plots
from cnndeploy.display.rows import as_csv
from cnndeploy.machine import environment
from cnndeploy.serial import dumps


@pytest.fixture(scope="module")
def report() -> BenchmarkReport:
    """Three candidates at two batch sizes, one of which failed."""
    random = np.random.default_rng(0)
    rows = []
    for batch_size in (1, 8):
        group = [
            summarise(
                Result(
                    artifact=f"some/<b>{name}.onnx",
                    runtime="onnxruntime",
                    device="cpu",
                    threads=2,
                    batch_size=batch_size,
                    accuracy=0.9,
                    file_bytes=1000,
                    peak_memory_bytes=10**8,
                    cold_start=ColdStart(0.2, 0.1, 0.05, 0.01, starts=3),
                ),
                Measurement(rounds=[(seconds * (1 + 0.1 * random.random(50))).tolist() for _ in range(20)]),
            )
            for name, seconds in (("slow", 0.003), ("quick", 0.001), ("middling", 0.002))
        ]
        group.append(replace(group[0], artifact="broken.onnx", failure="it <i>broke</i>", p50_s=None))
        rows += compared(group, 6)
    facts = {**environment(), "busy_cpus": 0.0, "load_average": 0.1, "steal": 0.0, "throttled": 0}
    return BenchmarkReport(tuple(rows), facts, warnings=("mind the <gap>",))


def test_memory_of_a_gpu_is_shown_if_a_row_has_it(report: BenchmarkReport) -> None:
    first, *others = report.results
    on_gpu = replace(report, results=(replace(first, gpu_memory_bytes=312_000_000), *others))
    for show in (render_benchmark, benchmark_markdown):
        assert "GPU memory" in show(on_gpu)
        assert "312.0 MB" in show(on_gpu)
        assert "GPU memory" not in show(report)
    assert "312000000" in as_csv(on_gpu)
    assert BenchmarkReport.from_json(dumps(on_gpu.to_dict())) == on_gpu


def test_the_page_stands_alone_and_shows_every_row(report: BenchmarkReport) -> None:
    page = render_benchmark(report, "cnndeploy bench 'a b.onnx'")
    assert not re.search(r"https?:|src=|@import|<link|url\((?!#)", page)
    for word in (
        "quick.onnx",
        "FASTER",
        "REFERENCE",
        "FAILED",
        "mind the &lt;gap&gt;",
        "it &lt;i&gt;broke",
        "a b.onnx",
    ):
        assert word in page
    assert "<b>quick" not in page
    assert page.count("<svg") == 3
    assert "currentColor" in page


def test_there_is_a_plot_of_what_was_measured_and_no_other(report: BenchmarkReport) -> None:
    plots = benchmark_plots(report)
    assert list(plots) == ["latency", "throughput", "cold_start"], "all are equally accurate"
    bare = [replace(row, cold_start=None, accuracy=None) for row in report.results if row.batch_size == 1]
    assert list(benchmark_plots(replace(report, results=tuple(bare)))) == ["latency"]
    failed = replace(report, results=report.failures)
    assert benchmark_plots(failed) == {}
    assert "FAILED" in render_benchmark(failed)


def test_csv_has_every_figure_and_markdown_every_row(report: BenchmarkReport) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(report))))
    assert len(rows) == 8
    second = report.results[1]
    assert float(rows[1]["p50_s"]) == second.p50_s
    assert second.p90_interval_s is not None
    assert float(rows[1]["p90_high_s"]) == second.p90_interval_s[1]
    assert float(rows[1]["cold_import_s"]) == 0.2
    assert rows[1]["artifact"] == rows[1]["target"] == second.artifact
    assert rows[3]["failure"] == "it <i>broke</i>"
    lines = [line for line in benchmark_markdown(report).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 8 + 2 + 4
    assert {line.count("|") for line in lines} == {11}
