from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from cnndeploy.benchmark.report import BenchmarkReport
from cnndeploy.serial import dumps
from helpers import Trained

Cli = Callable[..., Result]


QUICK = ("--seconds", 0.02, "--cold-start", 0, "--threads", 1)


@pytest.fixture(scope="module")
def measured(cli: Cli, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("measured") / "baseline.json"
    assert (
        cli("bench", trained.checkpoint, trained.onnx, *QUICK, "--seconds", 0.2, "--json", path).exit_code
        == 0
    )
    return path.read_text()


@pytest.fixture
def baseline(measured: str, tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    path.write_text(measured)
    return path


def _edited(baseline: Path, edit: Callable[[BenchmarkReport], BenchmarkReport]) -> Path:
    report = edit(BenchmarkReport.from_json(baseline.read_text()))
    baseline.write_text(dumps(report.to_dict()))
    return baseline


@pytest.mark.slow
def test_every_kind_of_report_is_written(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("b.json", "b.html", "b.csv", "b.md")]
    json_file, page, csv, markdown = files
    result = cli(
        *(
            "bench",
            trained.onnx,
            "--runtime",
            "onnxruntime",
            "--runtime",
            "raw-onnxruntime",
            "--batch-size",
            "1,2",
        ),
        *(*QUICK, "--json", json_file, "--html", page, "--csv", csv, "--markdown", markdown),
        *("--plots", tmp_path / "plots"),
    )
    assert result.exit_code == 0, result.output
    rows = BenchmarkReport.from_json(json_file.read_text()).results
    assert [(row.runtime, row.batch_size) for row in rows] == [
        (runtime, size) for size in (1, 2) for runtime in ("onnxruntime", "raw-onnxruntime")
    ]
    assert "<svg" in page.read_text()
    assert len(csv.read_text().splitlines()) == 5
    assert "| speed-up |" in markdown.read_text()
    assert {path.suffix for path in (tmp_path / "plots").iterdir()} == {".svg", ".png"}


@pytest.mark.usefixtures("raw_onnxruntime_crashes")
def test_a_file_that_fails_is_named_and_the_exit_is_1(cli: Cli, trained: Trained) -> None:
    result = cli("bench", trained.onnx, "--runtime", "onnxruntime", "--runtime", "raw-onnxruntime", *QUICK)
    assert result.exit_code == 1
    assert "FAILED" in result.output
    assert "REFERENCE" in result.output
    assert "ended with status -9" in " ".join(result.output.split())  # wherever the line is broken


@pytest.mark.slow
def test_nothing_slower_is_exit_0_or_4_with_the_line_named(
    cli: Cli, trained: Trained, baseline: Path
) -> None:
    def once_faster(report: BenchmarkReport) -> BenchmarkReport:
        first, second = report.results
        ten_times = tuple(seconds / 10 for seconds in second.round_p50_s)
        return replace(report, results=(first, replace(second, round_p50_s=ten_times)))

    def all_once_slower(report: BenchmarkReport) -> BenchmarkReport:
        """The second by more than the first, so that its ratio rose and no line is slower however busy it is here."""
        times = (100, 10_000)
        rows = (
            replace(row, round_p50_s=tuple(seconds * factor for seconds in row.round_p50_s))
            for row, factor in zip(report.results, times, strict=True)
        )
        return replace(report, results=tuple(rows))

    again = ("bench", trained.checkpoint, trained.onnx, *QUICK, "--seconds", 0.2, "--compare")
    slower = cli(*again, _edited(baseline, once_faster))
    assert slower.exit_code == 4, slower.output
    assert "SLOWER" in slower.output
    assert "ratio to the reference" in slower.output
    faster = cli(*again, _edited(baseline, all_once_slower))
    assert faster.exit_code == 0, faster.output
    assert "FASTER" in faster.output


@pytest.mark.slow
def test_one_file_alone_is_not_called_slower(cli: Cli, trained: Trained, baseline: Path) -> None:
    """The machine may be slower than it was; only another file beside it would tell."""

    def once_faster(report: BenchmarkReport) -> BenchmarkReport:
        rows = (
            replace(row, round_p50_s=tuple(seconds / 10 for seconds in row.round_p50_s))
            for row in report.results
        )
        return replace(report, results=tuple(rows))

    result = cli("bench", trained.onnx, *QUICK, "--compare", _edited(baseline, once_faster))
    assert result.exit_code == 0, result.output
    assert "SLOWER" not in result.output
    assert "not judged: lenet.onnx" in " ".join(result.output.split())


@pytest.mark.slow
def test_a_baseline_that_is_none_of_this_machine_or_in_the_way(
    cli: Cli, trained: Trained, baseline: Path
) -> None:
    again = ("bench", trained.checkpoint, trained.onnx, *QUICK, "--compare", baseline)
    overwriting = cli(*again, "--json", baseline)
    assert overwriting.exit_code == 1
    assert "is also an input" in overwriting.stderr
    elsewhere = _edited(
        baseline, lambda report: replace(report, environment={**report.environment, "cpu": "Z80"})
    )
    started = time.monotonic()
    refused = cli("bench", trained.onnx, *QUICK, "--seconds", 600, "--compare", elsewhere)
    assert time.monotonic() - started < 300  # before the work, not after it
    assert refused.exit_code == 1
    assert "--any-machine" in refused.stderr
    assert cli(*again, "--any-machine").exit_code in (0, 4)
    baseline.write_text("{}")
    assert "no report" in cli(*again).stderr


@pytest.mark.slow
def test_a_gate_that_cannot_decide_is_no_pass(cli: Cli, trained: Trained, baseline: Path) -> None:
    def cut(report: BenchmarkReport) -> BenchmarkReport:
        return replace(
            report, results=tuple(replace(row, round_p50_s=row.round_p50_s[:3]) for row in report.results)
        )

    result = cli("bench", trained.checkpoint, trained.onnx, *QUICK, "--compare", _edited(baseline, cut))
    assert result.exit_code == 1
    assert "Not judged" in result.output


@pytest.mark.slow
def test_what_was_measured_is_kept_where_it_does_not_compare(
    cli: Cli, trained: Trained, baseline: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    result = cli("bench", trained.torchscript, *QUICK, "--compare", baseline, "--json", kept)
    assert result.exit_code == 1
    assert "no line in common" in result.stderr
    assert BenchmarkReport.from_json(kept.read_text()).results


def test_a_baseline_of_nonsense_is_refused_before_the_work(
    cli: Cli, trained: Trained, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = json.loads(baseline.read_text())
    monkeypatch.setattr("cnndeploy.benchmark.bench.bench", lambda *_, **__: pytest.fail("it was measured"))
    for edit in (
        {"results": [{**sound["results"][0], "round_p50_s": ["a", "b"]}]},
        {"results": [{**sound["results"][0], "round_p50_s": None}]},
        {"results": [{**sound["results"][0], "round_p50_s": [0.0, 1.0]}]},
        {"results": [{**sound["results"][0], "artifact": 5}]},
        {"environment": {**sound["environment"], "versions": "x"}},
        {"environment": None},
    ):
        baseline.write_text(json.dumps(sound | edit))
        result = cli("bench", trained.onnx, *QUICK, "--compare", baseline)
        assert result.exit_code == 1
        assert "cannot be compared with" in result.stderr
    baseline.write_text("[" * 100_000)
    assert "cannot be compared with" in cli("bench", trained.onnx, *QUICK, "--compare", baseline).stderr


@pytest.mark.parametrize(
    ("broken", "option"),
    [
        ("cnndeploy.display.page.render_benchmark", "--html"),
        ("cnndeploy.display.plots.benchmark_plots", "--plots"),
        ("cnndeploy.display.benchmark_tables.benchmark_table", "--html"),
    ],
)
def test_what_was_measured_is_kept_if_a_page_or_a_plot_fails(
    broken: str, option: str, cli: Cli, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("it cannot be drawn")

    monkeypatch.setattr(broken, fails)
    kept = tmp_path / "kept.json"
    result = cli("bench", trained.onnx, *QUICK, "--json", kept, option, tmp_path / "drawn")
    assert isinstance(result.exception, RuntimeError)
    assert BenchmarkReport.from_json(kept.read_text()).results[0].p50_s


def test_a_file_that_cannot_be_written_takes_nothing_from_the_others(
    cli: Cli, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cnndeploy.display.rows.as_csv", full)
    files = [tmp_path / name for name in ("b.json", "b.csv", "b.html")]
    result = cli(
        *("bench", trained.onnx, *QUICK), *("--json", files[0], "--csv", files[1], "--html", files[2])
    )
    assert result.exit_code == 1
    assert "No space left" in result.stderr
    assert "REFERENCE" in result.stdout
    assert [file.exists() for file in files] == [True, False, True]


@pytest.mark.slow
def test_a_baseline_in_the_old_words_compares(cli: Cli, trained: Trained, baseline: Path) -> None:
    values = json.loads(baseline.read_text())
    for row in values["results"]:
        del row["artifact"]
    del values["settings"]["seconds"], values["settings"]["until"]
    baseline.write_text(json.dumps(values))
    result = cli("bench", trained.checkpoint, trained.onnx, *QUICK, "--json", "-", "--compare", baseline)
    assert result.exit_code in (0, 4), result.output
    changes = json.loads(result.stdout)["comparison"]["changes"]
    assert [Path(change["target"]).name for change in changes] == ["lenet.pt", "lenet.onnx"]


def test_two_reports_in_one_file_are_refused(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    same = tmp_path / "same"
    assert cli("bench", trained.onnx, *QUICK, "--csv", same, "--html", same).exit_code == 2


def test_a_strange_file_name_is_shown_as_well_as_can_be(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    strange = tmp_path / "_a$x_$\x1b.onnx"
    strange.write_bytes(trained.onnx.read_bytes())
    page, csv = tmp_path / "b.html", tmp_path / "b.csv"
    result = cli("bench", strange, *QUICK, "--batch-size", "1,2", "--html", page, "--csv", csv)
    assert result.exit_code == 0, result.output
    assert "_a$x_$?.onnx" in page.read_text()
    assert csv.exists()


@pytest.mark.slow
def test_a_module_of_the_current_folder_does_not_get_into_a_worker(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(99)")
    (tmp_path / "json.py").write_text("print('x')")
    command = [sys.executable, "-P", "-m", "cnndeploy", "bench", str(trained.onnx), *map(str, QUICK)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_self_test_fails_where_a_file_beats_itself(
    cli: Cli, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    for said, code, words in (
        ("SAME", 0, "Self-test passed"),
        ("AMBIGUOUS", 0, "Self-test undecided: no winner"),
        ("SLOWER", 1, "SLOWER than itself"),
    ):
        monkeypatch.setattr("cnndeploy.benchmark.report.verdict", lambda *_, said=said: said)
        result = cli("bench", trained.onnx, "--self-test", *QUICK)
        assert result.exit_code == code
        assert words in result.stderr
        assert ("passed" in result.stderr) is (said == "SAME")
    monkeypatch.setattr("cnndeploy.benchmark.conditions.busy_cpus", lambda _: 1.5)
    busy = cli("bench", trained.onnx, "--self-test", *QUICK)
    assert (busy.exit_code, "was busy" in busy.stderr) == (1, True)
    for more in (
        [trained.checkpoint],
        ["--threads", "1,2"],
        ["--runtime", "onnxruntime", "--runtime", "openvino"],
    ):
        assert cli("bench", trained.onnx, *more, "--self-test").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "0"], "range"),
        (["--threads", "1,many"], "many"),
        (["--batch-size", "1,,2"], "''"),
        (["--runtime", "onnxrt"], "Did you mean 'onnxruntime'"),
        (["--seconds", "nan"], "not a finite number"),
        (["--cold-start", "-1"], "range"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: list[str], said: str, cli: Cli, trained: Trained) -> None:
    result = cli("bench", trained.onnx, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_page_needs_matplotlib_and_says_so_before_the_work(trained: Trained, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import cnndeploy.benchmark.bench\n"
        "cnndeploy.benchmark.bench.bench = lambda *_, **__: sys.exit(77)\n"
        "from cnndeploy.cli import main\n"
        f"main(['bench', {str(trained.onnx)!r}, '--seconds', '600', '--html', {str(tmp_path / 'b.html')!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "matplotlib is not installed" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_prints_what_there_is_and_leaves_no_worker(number: int, code: int, trained: Trained) -> None:
    command = [sys.executable, "-m", "cnndeploy", "bench", str(trained.onnx), "--seconds", "600"]
    command += ["--until", "0.000001"]  # it must not come to an end by itself
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 60
        while not (workers := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert workers
        time.sleep(2)  # some rounds
        os.killpg(process.pid, number)  # as a terminal does
        out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Interrupted" in out
    assert "lenet.onnx" in out
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
