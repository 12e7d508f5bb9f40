"""Pages: what they say first, how they look in words, and in a browser on a narrow and on a wide screen."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from display import page_reports
from display.page_reports import result

from cnndeploy.benchmark.report import BenchmarkReport
from cnndeploy.display.headline import headline
from cnndeploy.display.page import render, render_benchmark
from cnndeploy.display.samples import Sample, render_samples

SNAPSHOTS = Path(__file__).with_name("snapshots")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (420, 1280)
REFERENCE = result("lenet.onnx", "onnxruntime", 21.4e-6, 1.0, "REFERENCE", accuracy=None)
EAGER = result("lenet.pt", "eager", 344e-6, 1.0, "REFERENCE")
FASTER = result("lenet.onnx", "onnxruntime", 21.4e-6, 10.46, "FASTER")
RIVAL = result("lenet.torchscript", "torchscript", 22e-6, 10.3, "FASTER")
SLOWER = result("other.onnx", "onnxruntime", 40e-6, 0.5, "SLOWER", accuracy=None)
AMBIGUOUS = replace(SLOWER, artifact="third.onnx", ratio=1.01, verdict="AMBIGUOUS")
SAME = replace(SLOWER, artifact="third.onnx", ratio=1.0, verdict="SAME")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Both kinds of page, with what may go wrong and without."""
    artifacts = page_reports.artifacts(tmp_path_factory.mktemp("artifacts"))
    equivalent, samples = page_reports.equivalence(), page_reports.samples()
    unsure = page_reports.lenets(p99_s=0.001)
    return {
        "demo": render(artifacts, equivalent, unsure, "cnndeploy bench lenet.pt", samples),
        "bench": render_benchmark(page_reports.lossy(), "cnndeploy bench 'a b.onnx'"),
    }


@pytest.mark.parametrize(
    ("rows", "equivalent", "said"),
    [
        (
            (EAGER, FASTER),
            {"lenet.onnx"},
            "lenet.onnx is 10.5 times as fast as eager PyTorch (batch 1) and equivalent; accuracy 87.96%",
        ),
        ((EAGER, FASTER), set(), "No equivalent file is faster than eager PyTorch (batch 1)"),
        (
            (EAGER, FASTER),
            None,
            "lenet.onnx is 10.5 times as fast as eager PyTorch (batch 1); accuracy 87.96%",
        ),
        (
            (EAGER, FASTER, RIVAL),
            None,
            "lenet.onnx is 10.5 times as fast as eager PyTorch (batch 1), and no winner is known between it and "
            "lenet.torchscript; accuracy 87.96%",
        ),
        (
            page_reports.lossy().results,
            None,
            "lenet.int8.onnx is 1.290 times as fast as lenet.onnx (batch 1); accuracy 87.21%, 0.75 points less",
        ),
        (
            (EAGER, replace(FASTER, ratio=819.0, ratio_low=20.9, ratio_high=2444.0)),
            None,
            "lenet.onnx is at least 20.9 times as fast as eager PyTorch (batch 1); accuracy 87.96%",
        ),
        ((REFERENCE, SLOWER), None, "lenet.onnx is the fastest (batch 1)"),
        ((EAGER, replace(RIVAL, verdict="SLOWER")), None, "Eager PyTorch is the fastest (batch 1)"),
        ((REFERENCE, SLOWER, AMBIGUOUS), None, "No file is known to be faster than lenet.onnx (batch 1)"),
        ((REFERENCE, SLOWER, SAME), None, "No file is faster than lenet.onnx (batch 1)"),
        ((REFERENCE,), None, "lenet.onnx takes 21.4 µs a call (batch 1)"),
        ((replace(REFERENCE, failure="it crashed"),), None, "Nothing could be measured"),
        ((), None, "Nothing could be measured"),
    ],
)
def test_the_headline_is_the_answer(rows: Any, equivalent: set[str] | None, said: str) -> None:
    assert headline(BenchmarkReport(tuple(rows), page_reports.ENVIRONMENT), equivalent) == said


@pytest.mark.parametrize("rows", [(EAGER, FASTER), (EAGER, replace(FASTER, verdict=None)), (EAGER,)])
def test_no_headline_claims_a_speed_that_a_busy_machine_gave(rows: tuple[Any, ...]) -> None:
    report = BenchmarkReport(rows, {**page_reports.ENVIRONMENT, "busy_cpus": 1.5})
    said = headline(report, {"lenet.onnx"})
    assert said == (
        "The machine was busy with other programs, so no speed is claimed: measure again when it is idle"
    )
    assert said in render_benchmark(report)


def test_files_are_told_apart_by_how_they_ran() -> None:
    other = replace(REFERENCE, runtime="openvino", ratio=1.4, ratio_low=1.3, verdict="FASTER")
    said = headline(page_reports.benchmark(REFERENCE, other))
    assert said == "lenet.onnx, openvino is 1.400 times as fast as lenet.onnx, onnxruntime (batch 1)"


@pytest.mark.parametrize("name", ["demo", "bench"])
def test_the_page_reads_as_it_did(name: str, pages: dict[str, str]) -> None:
    """Plots, pictures, script and style are left out. UPDATE_SNAPSHOTS=1 writes down what is new."""
    text = re.sub(r"<(svg|style|script)\b.*?</\1>", r"<\1/>", pages[name], flags=re.DOTALL)
    text = re.sub(r"base64,[\w+/=]+", "base64", text)
    text = re.sub(r"(?=<(?:h\d|p|tr|figure|div|section|tbody)\b)", "\n", text)
    snapshot = SNAPSHOTS / f"{name}.html"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        snapshot.write_text(text)
    assert text.splitlines() == snapshot.read_text().splitlines()


def test_only_what_is_wrong_is_red(tmp_path: Path, pages: dict[str, str]) -> None:
    assert '<p class="warn">The machine became 6% faster.</p>' in pages["demo"]
    assert 'class="bad"' not in pages["demo"]
    assert re.findall('class="bad">([^<]*)', pages["bench"]) == [
        "broken.onnx on onnxruntime: it ended with status -9"
    ]
    failed = page_reports.equivalence("9,871 of 10,000 images are beyond the <tolerance>")
    page = render(page_reports.artifacts(tmp_path), failed, page_reports.lenets(), "")
    assert page.count('class="bad"') == 2
    assert "beyond the &lt;tolerance&gt;" in page
    assert "<h1>lenet.torchscript is" in page, "a file that is not equivalent is no answer"


def test_images_that_are_labelled_right_and_wrong_are_shown(pages: dict[str, str]) -> None:
    right, _, wrong = pages["demo"].partition("Labelled wrong")
    assert right.count("<img") == 2, "one of each label"
    assert wrong.count("<img") == 1
    assert "Shirt<br>taken for Coat" in wrong
    (only,) = (sample for sample in page_reports.samples() if sample.label == "Coat")
    shown = render_samples([only])
    assert "Labelled wrong" not in shown
    assert "&lt;i&gt;" in render_samples([Sample(only.image, "<i>", "<i>")])


def test_hashes_are_whole_and_can_be_shortened(pages: dict[str, str]) -> None:
    sha256 = "0b36b90d" * 8
    assert f'{sha256[:12]}<span class="rest">{sha256[12:]}</span>' in pages["demo"]


# Runs in the page that frames the others. Texts may be turned, so that they are compared along their own direction.
_MEASURE = """
const reports = [...document.querySelectorAll('iframe')].map(frame => {
  const page = frame.contentDocument, width = frame.clientWidth;
  const right = element => element.getBoundingClientRect().right;
  const tables = [...page.querySelectorAll('table')].filter(table => !table.closest('details')).map(table =>
    [...table.tHead.rows[0].cells].map((head, at) => [head.textContent, Math.max(right(head),
      ...[...table.querySelectorAll('tr:not(.group)')].map(row => right(row.cells[at])))]));
  const overlaps = [], sizes = [];
  for (const svg of page.querySelectorAll('svg')) {
    const texts = [...svg.querySelectorAll('text')].map(text => {
      const box = text.getBBox(), m = text.getScreenCTM(), scale = Math.hypot(m.a, m.b);
      sizes.push(parseFloat(page.defaultView.getComputedStyle(text).fontSize) * scale);
      const point = new page.defaultView.DOMPoint(box.x + box.width / 2, box.y + box.height / 2).matrixTransform(m);
      return {name: text.textContent, x: point.x, y: point.y, width: box.width * scale,
        height: box.height * scale * 0.75, angle: Math.atan2(m.b, m.a)};
    });
    for (const [at, one] of texts.entries()) for (const other of texts.slice(at + 1)) {
      if (Math.abs(one.angle - other.angle) > 0.1) continue;
      const [dx, dy] = [other.x - one.x, other.y - one.y], [c, s] = [Math.cos(one.angle), Math.sin(one.angle)];
      if (Math.abs(dx * c + dy * s) < (one.width + other.width) / 2
        && Math.abs(dy * c - dx * s) < (one.height + other.height) / 2) overlaps.push([one.name, other.name]);
    }
  }
  const rows = [...(page.querySelector('table.sortable')?.querySelectorAll('tbody tr:not(.group)') ?? [])];
  return {page: frame.title, files: rows.map(row => row.cells[0].textContent),
    sorted: page.querySelector('[aria-sort]')?.getAttribute('aria-sort'), width,
    scrolled: page.documentElement.scrollWidth, tables, overlaps,
    smallest: Math.min(...sizes), texts: sizes.length};
});
const told = document.createElement('pre');
told.id = 'told';
told.textContent = JSON.stringify(reports);
document.body.append(told);
"""
# Of two texts that cover each other, so that the measurement is seen to tell.
_COVERED = '<svg viewBox="0 0 100 50" width="100"><text x="9" y="20">0.02</text><text x="12" y="22">0.05</text></svg>'


def _in_a_browser(page: Path) -> subprocess.CompletedProcess[str]:
    """Return the page's elements, once its scripts have run, and what the console said."""
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=3000",
    )
    return subprocess.run(
        [str(CHROMIUM), *options, f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def _sorted_page() -> str:
    """Return a page on whose column p50 a reader clicked; the first file of each batch size failed."""
    failed = page_reports.lossy().results[-1]
    rows = page_reports.lenets(cold_start=None).results
    report = page_reports.benchmark(failed, *rows[:3], replace(failed, batch_size=64), *rows[3:])
    click = "<script>document.querySelectorAll('th button')[3].click()</script></body>"
    return render_benchmark(report).replace("</body>", click)


@pytest.fixture(scope="module")
def measured(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Any]:
    """What a browser tells of each page at each width; all of them are frames of one page."""
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    covered = f"<!doctype html><body>{_COVERED}<script>undefined_name()</script>"
    framed = {**pages, "sorted": _sorted_page(), "covered": covered}
    frames = (
        f'<iframe title="{name}" width="{width}" height="900" style="border: 0" srcdoc="{html.escape(page)}"></iframe>'
        for name, page in framed.items()
        for width in WIDTHS
    )
    page = tmp_path_factory.mktemp("browser") / "frames.html"
    body, script = "".join(frames), f"<script>addEventListener('load', () => {{{_MEASURE}}})</script>"
    page.write_text(f"<!doctype html><meta charset='utf-8'><body>{body}{script}")
    done = _in_a_browser(page)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len(complaints) == len(WIDTHS), complaints
    assert all("undefined_name" in line for line in complaints)
    (told,) = re.findall(r'<pre id="told">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    reports = json.loads(html.unescape(told))
    return {(report["page"], report["width"]): report for report in reports}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["demo", "bench"])
def test_what_matters_is_seen_without_scrolling(
    name: str, width: int, measured: dict[tuple[str, int], Any]
) -> None:
    report = measured[name, width]
    assert report["scrolled"] <= width
    speed, *others = report["tables"]
    assert [heading for heading, _ in speed[:4]] == ["file", "speed-up", "verdict", "p50"]
    assert {heading for heading, _ in speed[4:]} >= {"runtime", "threads", "p90", "p99", "images/s"}
    seen = speed if width == max(WIDTHS) else speed[:4]
    assert max(right for _, right in seen) <= width
    assert speed[-1][1] > 420, "so much is not seen without scrolling on the narrow screen"
    for table in others:
        if table[1][0] in ("verdict", "size"):
            assert max(right for _, right in table[:2]) <= width


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["demo", "bench"])
def test_no_text_of_a_plot_covers_another(
    name: str, width: int, measured: dict[tuple[str, int], Any]
) -> None:
    report = measured[name, width]
    assert report["texts"] > 30
    assert report["overlaps"] == []
    assert report["smallest"] > 9
    assert measured["covered", width]["overlaps"] == [["0.02", "0.05"]]


def test_a_click_sorts_within_each_batch_size(measured: dict[tuple[str, int], Any]) -> None:
    report = measured["sorted", max(WIDTHS)]
    assert report["sorted"] == "ascending"
    assert report["files"] == ["lenet.onnx", "lenet.torchscript", "lenet.pt", "broken.onnx"] * 2
