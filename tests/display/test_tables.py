"""What a terminal shows: snapshots of every table, and that none splits a word or a number at any width.

After a change that is wanted, write the snapshots again, and look at them:
UPDATE_SNAPSHOTS=1 pytest tests/display
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from rich.cells import cell_len
from rich.console import Console, Group
from rich.text import Text

import cnndeploy
import sample_reports as sample
from cnndeploy import registry
from cnndeploy.benchmark.report import unjudged
from cnndeploy.classifier import Prediction
from cnndeploy.cli._common import console_for
from cnndeploy.devices import DeviceStatus
from cnndeploy.display.benchmark_tables import (
    benchmark_markdown,
    benchmark_table,
    comparison_table,
    tuning_table,
)
from cnndeploy.display.facts import facts_table
from cnndeploy.display.rows import UNSURE_NOTE
from cnndeploy.display.tables import TableColumn, fitted, shortened, table_of
from cnndeploy.display.verdict_tables import (
    budget_table,
    equivalence_table,
    evaluation_table,
    quantized_table,
    verdict_table,
)

SNAPSHOTS = Path(__file__).parent / "snapshots"
WIDTHS = (80, 100, 160)
_PASSES = [sample.equivalence(name) for name in ("lenet.onnx", "lenet.torchscript", "lenet.image.onnx")]
TABLES: dict[str, Callable[[Path], Group]] = {
    "bench": lambda _: benchmark_table(sample.benchmark(1, 64)),
    "bench_one_batch_size": lambda _: benchmark_table(sample.benchmark(1)),
    "bench_mixed": lambda _: benchmark_table(sample.mixed_benchmark()),
    "comparison": lambda _: comparison_table(sample.comparison()),
    "tune": lambda _: tuning_table(sample.tuning()),
    "verify": lambda _: equivalence_table(_PASSES[:1]),
    "verify_three": lambda _: equivalence_table(_PASSES),
    "verify_failed": lambda _: verdict_table(sample.divergent()),
    "verify_three_failed": lambda _: equivalence_table(
        [_PASSES[0], sample.divergent(), sample.incomparable()]
    ),
    "verify_budget": lambda _: budget_table(sample.budget()),
    "quantize": lambda folder: quantized_table(sample.quantized(folder)),
    "evaluate": lambda _: evaluation_table(sample.evaluation()),
    "evaluate_many": lambda _: evaluation_table(sample.evaluation_of_many_classes()),
    "inspect_checkpoint": lambda _: facts_table(*sample.facts("checkpoint")),
    "inspect_onnx": lambda _: facts_table(*sample.facts("onnx")),
    "inspect_folder": lambda _: facts_table(*sample.facts("folder")),
    "inspect_foreign": lambda _: facts_table(*sample.facts("foreign")),
}
# How a table says in a sentence, or in its title, what else is a column.
_PHRASES = {
    "times",
    "as",
    "fast",
    "batch",
    "thread",
    "threads",
    "by",
    "a",
    "call",
    "right",
    "images",
    "image",
    *("Left", "out", "because", "they", "do", "not", "fit"),
    *("A", "wider", "terminal", "shows", "them", "and", "so", "does", "COLUMNS=160"),
}


def _shown(table: object, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(table)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def _words(text: str) -> list[str]:
    """Return words and numbers, without the frame and the punctuation around them."""
    return [
        word for word in (one.strip(".,:;()") for one in re.split(r"[\s│┃─━┏┳┓┡╇┩└┴┘┌┬┐├┼┤]+", text)) if word
    ]


def _compare(name: str, text: str) -> None:
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text)
    assert text == path.read_text(), (
        f"{path} is no longer what is shown; its module's docstring says what to do"
    )


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_as_its_snapshot(name: str, tmp_path: Path) -> None:
    table = TABLES[name](tmp_path)
    _compare(name, "\n".join(f"{width} columns:\n{_shown(table, width)}" for width in WIDTHS))


@pytest.mark.parametrize("name", TABLES)
def test_no_width_splits_a_word_or_a_number(name: str, tmp_path: Path) -> None:
    """Only a file's name or hash is shortened, by an ellipsis, and only a path is broken, after a slash."""
    table = TABLES[name](tmp_path)
    whole = {*_words(_shown(table, 1000)), *_PHRASES}
    for path in [word for word in whole if "/" in word]:
        parts = re.findall("[^/]*/|[^/]+", path)
        whole |= {"".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1)}
    long = [word for word in whole if re.fullmatch(r"[0-9a-f]{64}|.+\.(onnx|pt|torchscript)", word)]

    def is_short_for_any(word: str) -> bool:
        head, mark, tail = word.partition("…")
        return bool(mark) and any(one.startswith(head) and one.endswith(tail) for one in long)

    for width in range(60 + list(TABLES).index(name) % 4, 161, 4):  # all widths, but not of all tables
        shown = _shown(table, width)
        assert max(map(cell_len, shown.splitlines())) <= width
        assert not {word for word in _words(shown) if word not in whole and not is_short_for_any(word)}, width


def test_every_outcome_of_a_tuning_is_shown_with_its_whole_reason() -> None:
    report = sample.tuning()
    table = tuning_table(report)
    for width in range(60, 161, 10):
        words = Counter(_words(_shown(table, width)))
        for row in report.rows:
            assert Counter(_words(f"{row.outcome} {row.reason}")) <= words
    eighty = _shown(table, 80)
    assert "chosen: equivalent on 10,000 images" in eighty
    assert "not tried: the time was over before it could be timed" in eighty


@pytest.mark.parametrize("count", [3, 4, 26])
def test_many_undecided_contenders_are_one_line(count: int) -> None:
    chosen = next(row for row in sample.tuning().rows if row.outcome == "chosen")
    undecided = tuple(
        replace(chosen, outcome="undecided", reason="2 rounds do not tell", threads=2 + number)
        for number in range(count)
    )
    report = replace(sample.tuning(), rows=(chosen, *undecided))
    shown = _shown(tuning_table(report), 100)
    assert shown.count("undecided: 2 rounds do not tell") == (count if count <= 3 else 0)
    assert (f"{count} candidates are undecided" in shown) is (count > 3)
    assert "chosen: equivalent" in shown
    assert len(report.to_dict()["rows"]) == 1 + count


def test_file_ratio_verdict_and_median_are_shown_at_any_width() -> None:
    report = sample.benchmark(1, 64)
    for width in range(60, 161, 10):
        words = _words(_shown(benchmark_table(report), width))
        needed = (
            "lenet.pt",
            "lenet.onnx",
            "lenet.torchscript",
            "9.27",
            "9.08",
            "9.55",
            "FASTER",
            "45.3",
            "2.51",
        )
        assert all(word in words for word in needed), width


def test_what_tells_rows_apart_is_never_left_out_and_what_does_not_is_in_the_title() -> None:
    one_batch_size, mixed = benchmark_table(sample.benchmark(1)), benchmark_table(sample.mixed_benchmark())
    assert _shown(one_batch_size, 80).startswith("Latency, 2 threads, batch 1\n")
    assert "runtime" not in _words(_shown(one_batch_size, 80))  # every file's suffix implies it
    for width in (60, 80, 100):
        words = _words(_shown(mixed, width))
        assert (words.count("onnxruntime"), words.count("openvino")) >= (2, 2)
    assert "threads" in _words(_shown(mixed, 80).partition("\n")[2].splitlines()[0])


def test_the_title_names_what_is_shown_and_what_is_left_out_is_said() -> None:
    report = sample.benchmark(1)
    for width in range(60, 161, 4):
        latency, start = _shown(benchmark_table(report), width).split("\nCold start", 1)
        assert ("images/s" in latency.partition("Left out")[0]) is latency.startswith(
            "Latency and throughput"
        )
        for table, columns in (
            (latency, ("p50", "p90", "p99", "images/s")),
            (start, ("import", "open", "first", "second", "memory", "size", "accuracy")),
        ):
            shown, _, left_out = table.partition("Left out, because they do not fit: ")
            assert all((column in _words(shown)) is not (column in _words(left_out)) for column in columns)
    assert "Left out" not in _shown(benchmark_table(report), 160)


def test_a_quantile_whose_interval_is_not_known_is_marked_and_the_mark_explained() -> None:
    report = sample.benchmark(1)
    wide, narrow = (_shown(benchmark_table(report), width) for width in (160, 80))
    assert "72.5 µs?" in wide
    assert "550 µs " in wide
    assert UNSURE_NOTE in wide
    assert "?" not in narrow  # p99 is left out, and so is the note
    assert UNSURE_NOTE in benchmark_markdown(report)
    assert UNSURE_NOTE not in benchmark_markdown(sample.mixed_benchmark())
    assert "calls |" not in benchmark_markdown(sample.mixed_benchmark())


def test_a_ratio_that_a_busy_machine_gave_is_marked_and_not_judged(tmp_path: Path) -> None:
    report = sample.benchmark(1)
    rows = tuple(map(unjudged, report.results))
    busy = replace(report, results=rows)
    for shown in (_shown(benchmark_table(busy), 100), benchmark_markdown(busy)):
        assert "[9.27 (9.08 to 9.55)]" in shown
        assert "FASTER" not in shown
        assert (shown.count("BUSY"), shown.count("REFERENCE")) == (2, 1)
    quantized = replace(sample.quantized(tmp_path), speed=rows[1])
    said = " ".join(_shown(quantized_table(quantized), 120).split())
    assert "not judged, because other programs kept the machine busy. It measured 9.27 times" in said
    assert "FASTER" not in said


def test_two_deployments_with_files_of_one_name_are_told_apart() -> None:
    reports = [sample.equivalence().moved_to(f"{folder}.deploy/lenet.onnx") for folder in ("here", "there")]
    both = _shown(equivalence_table(reports), 160)
    assert all(report.artifact.path in both for report in reports)
    alone = _shown(budget_table(sample.budget().moved_to("here.deploy/lenet.int8.onnx")), 80)
    assert alone.startswith("Loss of here.deploy/lenet.int8.onnx\n")
    evaluation = replace(sample.evaluation(), artifact="here.deploy/lenet.onnx")
    assert _shown(evaluation_table(evaluation), 80).startswith("Accuracy of here.deploy/lenet.onnx\n")


def test_rows_that_were_not_compared_are_left_out() -> None:
    alone = _shown(equivalence_table([sample.incomparable()]), 80)
    assert [line.split()[1] for line in alone.splitlines() if line.startswith("│")] == [
        *("equivalent", "against", "runtime"),
    ]
    assert "0 threads" not in alone
    assert "first divergence" not in _shown(equivalence_table(_PASSES), 120)


def test_words_for_one_thing() -> None:
    shown = "".join(_shown(make(Path()), 120) for name, make in TABLES.items() if name != "quantize")
    assert not re.search(r"\b1 (threads|images|parts)\b", shown)
    assert "spinning" not in shown


def test_shortened_names_differ_if_the_names_do() -> None:
    names = [f"a_network_with_a_long_name_{number}_and_a_long_end.onnx" for number in range(3)]
    table = table_of("", (TableColumn("file", "name"), TableColumn("p50")), [(name, "1 s") for name in names])
    shown = [line.split("│")[1] for line in _shown(table, 55).splitlines() if "1 s" in line]
    assert len({*shown}) == 3
    assert all("…" in name for name in shown)


def test_what_is_too_long_is_never_cut_without_a_trace() -> None:
    assert shortened("lenet.torchscript", 17) == "lenet.torchscript"
    assert shortened("lenet.torchscript", 10) == "lene…cript"
    assert shortened("服装分类网络.onnx", 10) == "服装….onnx"
    assert fitted(Text("see models/production/lenet.onnx"), 20).plain == "see models/production/\nlenet.onnx"
    assert fitted(Text("0123456789" * 3), 11).plain == "01234…56789"


@pytest.mark.parametrize("width", [1, 20, 40])
def test_a_terminal_too_narrow_for_anything_is_no_error(width: int, tmp_path: Path) -> None:
    for make in TABLES.values():
        assert _shown(make(tmp_path), width)


def test_columns_sets_the_width_of_what_is_piped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = benchmark_table(sample.benchmark(1))
    for told, width in (("80", 80), ("", 120), ("0", 120), ("wide", 120)):
        monkeypatch.setenv("COLUMNS", told)
        console_for().print(table)
        shown = capsys.readouterr().out
        assert "".join(f"{line.rstrip()}\n" for line in shown.splitlines()) == _shown(table, width)
        assert shown.splitlines()[0] == shown.splitlines()[0].rstrip()  # no title is padded
    monkeypatch.setenv("COLUMNS", "60")
    console_for("-").print(table)
    assert capsys.readouterr().err.startswith("Latency")


class _Classifier:
    session = SimpleNamespace(options=cnndeploy.RuntimeOptions())
    manifest = SimpleNamespace(preprocessing=SimpleNamespace(channels=1))
    labels = sample.LABELS

    def classify(self, images: list[Any], top: int) -> list[Prediction]:
        others = tuple(Prediction(label, 0.01 / n) for n, label in enumerate(self.labels[1:top], 1))
        return [Prediction(self.labels[0], 0.9876, others) for _ in images]


def test_list_and_predict_are_as_their_snapshots(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(registry, "names", lambda kind: [f"one of {kind}", f"another of {kind}"])
    devices = {"cpu": DeviceStatus(True), "cuda": DeviceStatus(False, "this machine has no CUDA GPU")}
    monkeypatch.setattr("cnndeploy.cli.list._devices", lambda runtime: devices)
    _compare("list", cli("list").output)
    monkeypatch.setattr("cnndeploy.classifier.load", lambda *_, **__: nullcontext(_Classifier()))
    image = tmp_path / "shirt.pgm"
    image.write_bytes(b"P5 2 2 255\n" + np.zeros(4, np.uint8).tobytes())
    shown = cli("predict", "lenet.onnx", image, image, "--top", 3)
    assert shown.exit_code == 0, shown.output
    _compare("predict", shown.output.replace(str(tmp_path), "photos"))
