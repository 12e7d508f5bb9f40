from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.baseline import compare
from cnndeploy.benchmark.bench import bench, candidates_of
from cnndeploy.benchmark.conditions import DOUBTS, Facts, doubts
from cnndeploy.benchmark.engine import Measurement
from cnndeploy.benchmark.report import BenchmarkReport, ColdStart, Result, compared, summarise
from cnndeploy.benchmark.timer import Timer, cold_start
from cnndeploy.deployment import Plan, resolve
from cnndeploy.errors import ArtifactError, BenchmarkError, DeviceUnavailableError
from cnndeploy.machine import busy_cpus, environment, usable_cpus
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.runtimes import open_session
from cnndeploy.serial import dumps
from edits import fix_batch
from helpers import Trained

ROW = Result(artifact="a", runtime="eager", device="cpu", threads=1, batch_size=3)


def _children() -> set[int]:
    own = Path(f"/proc/{os.getpid()}/task")
    return {int(pid) for task in own.iterdir() for pid in (task / "children").read_text().split()}


def _quick(sources: list[Any], **settings: Any) -> BenchmarkReport:
    return bench(sources, **{"threads": [1], "seconds": 0.02, "cold_starts": 0, **settings})


def test_summary_known_answer() -> None:
    rounds = [[[4.0, 4.0, 6.0], [8.0, 8.0, 8.0], [4.0]], [[1.0, 2.0], [2.0, 2.0], [1.0]]]
    rows = [summarise(ROW, Measurement(rounds=each, calls_per_sample=2)) for each in rounds]
    first, second = compared(rows, 1)
    assert (first.ratio, first.verdict, first.calls, first.rounds, first.p50_s) == (
        1.0,
        "REFERENCE",
        14,
        3,
        6.0,
    )
    assert first.round_p50_s == (4.0, 8.0, 4.0)
    assert second.ratio == 4.0  # per round 4 / 1.5, 8 / 2, 4 / 1
    assert second.verdict == "AMBIGUOUS"  # of three rounds
    assert second.images_per_s == 1.5
    assert (second.p90_s, second.p99_s) == (None, None)
    assert second.more_calls_needed is not None
    assert all(second.more_calls_needed[name] > 0 for name in ("p90", "p99"))


def test_a_quick_candidates_p90_is_told_though_its_interval_is_not() -> None:
    """Twenty rounds of two thousand calls, alike within a round: forty thousand calls that count as twenty."""
    random = np.random.default_rng(0)
    rounds = [
        (speed * (1 + 0.01 * random.random(2000))).tolist() for speed in np.exp(0.3 * random.normal(size=20))
    ]
    row = summarise(ROW, Measurement(rounds=rounds, calls_per_sample=2))
    samples = sorted(itertools.chain(*rounds))
    assert row.calls == 80_000
    assert (row.p90_s, row.p99_s) == (samples[35_999], samples[39_599])
    assert (row.p90_interval_s, row.p99_interval_s) == (None, None)
    assert row.more_calls_needed is not None
    assert row.more_calls_needed["p90"] > 10_000


@pytest.mark.parametrize(("samples", "known"), [(9, []), (10, ["p90"]), (99, ["p90"]), (100, ["p90", "p99"])])
def test_a_quantile_takes_one_sample_beyond_it(samples: int, known: list[str]) -> None:
    row = summarise(ROW, Measurement(rounds=[[float(n) for n in range(1, samples + 1)]]))
    assert [name for name in ("p90", "p99") if getattr(row, f"{name}_s") is not None] == known


def test_quantiles_come_with_intervals_where_there_are_calls_enough() -> None:
    seconds = np.random.default_rng(0).permutation(np.arange(1.0, 1001.0)).tolist()
    row = summarise(ROW, Measurement(rounds=[seconds]))
    assert (row.p50_s, row.p90_s, row.p99_s) == (500.5, 900.0, 990.0)
    for value, interval in (
        (500.5, row.p50_interval_s),
        (900, row.p90_interval_s),
        (990, row.p99_interval_s),
    ):
        assert interval is not None
        assert interval[0] < value < interval[1]
    assert row.more_calls_needed == {}
    assert row.quantiles_s[::50] == (1.0, 500.5, 1000.0)


@pytest.mark.slow
@pytest.mark.usefixtures("real_workers")
def test_every_candidate_is_measured_at_every_batch_size(trained: Trained) -> None:
    before = _children()
    targets = [trained.checkpoint, trained.onnx, trained.torchscript]
    calls: list[tuple[int, int, str]] = []
    report = _quick(targets, batch_sizes=[1, 3], progress=lambda *call: calls.append(call), cold_starts=1)
    rows = [(Path(r.artifact), r.runtime, r.device, r.threads, r.batch_size) for r in report.results]
    runtimes = ["eager", "onnxruntime", "torchscript"]
    assert rows == [
        (target, runtime, "cpu", 1, size)
        for size in (1, 3)
        for target, runtime in zip(targets, runtimes, strict=True)
    ]
    for result in report.results:
        assert result.failure == ""
        assert result.p50_s is not None
        assert result.ratio is not None
        assert result.ratio_low is not None
        assert result.ratio_high is not None
        assert result.peak_memory_bytes is not None
        assert 0 < result.p50_s <= result.quantiles_s[99]
        assert result.images_per_s == pytest.approx(result.batch_size / result.p50_s)
        assert result.ratio_low <= result.ratio <= result.ratio_high
        assert result.peak_memory_bytes > 10_000_000
        assert result.file_bytes == Path(result.artifact).stat().st_size
        assert (
            result.accuracy == Artifact.open(trained.checkpoint).require_manifest().training["test_accuracy"]
        )
        start = result.cold_start
        assert start is not None
        assert min(start.import_s, start.open_s, start.first_run_s, start.second_run_s) > 0
    assert [r.verdict for r in report.results if r.runtime == "eager"] == ["REFERENCE"] * 2
    assert {text.partition(",")[0] for _, _, text in calls} == {
        "Timing batch 1",
        "Timing batch 3",
        "Cold starts",
    }
    assert "torch" in report.environment["versions"]
    assert all(0 <= done <= total for done, total, _ in calls)
    assert BenchmarkReport.from_json(dumps(report.to_dict())) == report
    assert _children() == before


@pytest.mark.slow
def test_every_runtime_and_number_of_threads_is_a_candidate(trained: Trained) -> None:
    report = _quick(
        [trained.checkpoint, trained.onnx],
        runtimes=["eager", "onnxruntime", "raw-onnxruntime"],
        threads=[1, 2],
    )
    assert [(r.runtime, r.threads) for r in report.results] == [
        (runtime, threads) for threads in (1, 2) for runtime in ("eager", "onnxruntime", "raw-onnxruntime")
    ]
    assert not report.failures


@pytest.mark.parametrize(
    ("one_s", "all_s", "chosen"), [(2e-3, 1e-3, 4), (1e-3, 2e-3, 1), (1e-3, 1e-3, 1), (1e-1, 9e-2, 4)]
)
def test_auto_takes_one_thread_unless_all_are_faster_or_the_model_is_large(
    one_s: float, all_s: float, chosen: int, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnndeploy.runtimes._open.usable_cpus", lambda: 4)
    seconds = {1: one_s, 4: all_s}
    monkeypatch.setattr(
        "cnndeploy.runtimes._open._median_seconds", lambda session, _: seconds[session.threads]
    )
    with open_session(Artifact.open(trained.onnx), Run(threads="auto")) as session:
        assert session.threads == chosen


def test_auto_chooses_the_number_of_threads_and_shows_it(trained: Trained) -> None:
    (row,) = _quick([trained.onnx], threads=["auto"]).results
    assert row.auto_threads
    assert row.threads in (1, usable_cpus())
    assert row.settings is not None
    assert row.settings["threads"] == row.threads


def test_the_whole_way_from_bytes_to_labels(trained: Trained) -> None:
    report = _quick([trained.onnx], end_to_end=True, batch_sizes=[2])
    assert [(row.end_to_end, row.failure) for row in report.results] == [(True, "")]


def test_one_that_gives_nan_is_reported_and_the_others_go_on(
    trained: Trained, edited: Callable[[Callable[[onnx.ModelProto], None]], Path]
) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        bias = next(each for each in model.graph.initializer if list(each.dims) == [10])
        bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.nan, np.float32), bias.name))

    broken, sound = _quick([edited(spoil), trained.onnx]).results
    assert "NaN" in broken.failure
    assert broken.p50_s is broken.ratio is None
    assert (sound.failure, sound.verdict) == ("", "REFERENCE")


@pytest.mark.slow
def test_one_that_hangs_is_ended_and_the_others_go_on(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _children()
    slow = tmp_path / "slow.onnx"
    slow.write_bytes(trained.onnx.read_bytes())
    call = Timer.call

    def hang(self: Timer, *request: int) -> dict[str, Any]:
        if self.candidate.artifact.path == slow:
            os.kill(self._process.pid, signal.SIGSTOP)
        return call(self, *request)

    monkeypatch.setattr(Timer, "call", hang)
    hung, sound = _quick([slow, trained.onnx], timeout_s=3).results
    assert "no answer within 3 seconds" in hung.failure
    assert sound.failure == ""
    assert _children() == before


@pytest.mark.slow
def test_one_that_fails_at_one_batch_size_runs_at_the_next(
    trained: Trained, edited: Callable[[Callable[[onnx.ModelProto], None]], Path]
) -> None:
    fixed = edited(lambda model: fix_batch(model, 4))
    at_1, _, at_4, sound = _quick([fixed, trained.onnx], batch_sizes=[4, 1], cold_starts=1).results
    assert "cannot be fed a batch of 1" in at_1.failure
    assert (at_4.failure, at_4.verdict, sound.failure) == ("", "REFERENCE", "")


@pytest.mark.slow
def test_what_keeps_a_candidate_from_starting_afresh_is_said(
    trained: Trained, edited: Callable[[Callable[[onnx.ModelProto], None]], Path]
) -> None:
    report = _quick(
        [edited(lambda model: fix_batch(model, 4)), trained.onnx], batch_sizes=[1, 4], cold_starts=1
    )
    assert any("did not start afresh" in warning for warning in report.warnings)


@pytest.mark.slow
@pytest.mark.usefixtures("raw_onnxruntime_crashes")
def test_one_that_crashes_is_reported_at_every_batch_size(trained: Trained) -> None:
    report = _quick(
        [trained.onnx], runtimes=["raw-onnxruntime", "onnxruntime"], batch_sizes=[1, 2], cold_starts=1
    )
    assert [bool(row.failure) for row in report.results] == [True, False, True, False]
    assert "status -9" in report.results[0].failure
    assert [row.verdict for row in report.results] == [None, "REFERENCE"] * 2
    assert [row.cold_start is None for row in report.results] == [True, False] * 2


def test_stopping_gives_what_there_is(trained: Trained) -> None:
    before = _children()
    rounds: list[str] = []
    report = _quick(
        [trained.onnx, trained.onnx],
        seconds=600,
        batch_sizes=[1, 2],
        progress=lambda done, total, text: rounds.append(text),
        should_stop=lambda: len(rounds) >= 5,
    )
    assert report.interrupted
    assert {row.rounds for row in report.results if row.batch_size == 1} == {5}
    assert _children() == before


def test_a_load_that_begins_after_the_first_round_is_noticed(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = iter([0.0, 1.5, 0.0])  # before, between and after the two batch sizes
    monkeypatch.setattr("cnndeploy.benchmark.conditions.busy_cpus", lambda _: next(heard))
    report = _quick([trained.onnx], batch_sizes=[1, 2])
    assert list(heard) == []
    assert report.environment["busy_cpus"] == 1.5
    assert report.was_busy
    assert any("no speed-up is claimed" in warning for warning in report.warnings)


@pytest.mark.slow
def test_beside_other_programs_nothing_is_judged(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnndeploy.benchmark.report.verdict", lambda *_: "FASTER")
    for busy, judged in ((0.25, "FASTER"), (1.5, None), (None, "FASTER")):
        monkeypatch.setattr("cnndeploy.benchmark.conditions.busy_cpus", lambda seconds, busy=busy: busy)
        report = _quick([trained.onnx, trained.onnx])
        assert any("no speed-up is claimed" in warning for warning in report.warnings) is (judged is None)
        assert report.environment["busy_cpus"] == busy
        assert [row.verdict for row in report.results] == ["REFERENCE", judged]
        assert report.results[1].ratio is not None


def test_more_threads_than_cpus_are_warned_of(trained: Trained) -> None:
    report = _quick([trained.onnx], threads=[usable_cpus() + 1])
    assert any(f"may use {usable_cpus()} CPUs" in warning for warning in report.warnings)


def _doubted(report: BenchmarkReport, **environment: Any) -> str:
    quiet = {"busy_cpus": 0.0, "steal": 0.0, "throttled": 0}
    return "\n".join(doubts(replace(report, environment={**report.environment, **quiet, **environment})))


def test_what_is_to_be_doubted_is_said_and_nothing_else() -> None:
    report = _report(1.0, 2.0)
    assert _doubted(report) == ""
    assert "to other machines" in _doubted(report, steal=0.1)
    assert "throttled itself 3 times" in _doubted(report, throttled=3)
    drifting = [summarise(ROW, Measurement(rounds=[[1 + at / 40] * 9 for at in range(40)]))]
    assert "slower while it was measured" in _doubted(replace(report, results=tuple(drifting)))
    first, second = report.results
    slow = replace(report, results=(first, replace(second, first_call_s=100.0)))
    assert "the first call took 100.00 s" in _doubted(slow)
    unclear = replace(second, verdict="AMBIGUOUS", ratio=1.03, ratio_low=0.9, ratio_high=1.2)
    assert "take 600 seconds" in _doubted(replace(report, results=(first, unclear)))
    narrow = replace(unclear, ratio_low=1.0194, ratio_high=1.0207)
    assert "until 0.01" in _doubted(replace(report, results=(first, narrow)))
    few = replace(second, more_calls_needed={"p90": 5})
    assert "how far off the p90 may be" in _doubted(replace(report, results=(first, few)))
    for calls, averages in ((2, "averages of 2 calls"), (4, "averages of up to 4 calls")):
        grouped = replace(second, calls_per_sample=calls)
        assert averages in _doubted(replace(report, results=(first, grouped)))


def test_a_busy_cpu_is_counted() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            assert (busy_cpus(1.0) or 0) > 0.5
        finally:
            process.kill()


def test_a_device_that_does_not_work_is_an_error(trained: Trained) -> None:
    before = _children()
    with pytest.raises(DeviceUnavailableError, match="'cuda:99' is not available"):
        _quick([trained.onnx], device="cuda:99")
    assert _children() == before


def test_a_worker_that_is_killed_is_an_error(trained: Trained) -> None:
    with Timer(resolve(trained.onnx, Run(threads=1)), timeout_s=60) as timer:
        timer.wait_until_open()
        os.kill(timer._process.pid, signal.SIGKILL)
        with pytest.raises(ArtifactError, match="ended with status -9"):
            timer.call(1, 1, 1)


def test_a_worker_ends_with_its_parent_even_in_the_middle_of_a_call(trained: Trained) -> None:
    script = (
        "import time; from cnndeploy.deployment import Plan, resolve\n"
        "from cnndeploy.benchmark.timer import Timer\n"
        f"timer = Timer(resolve({str(trained.onnx)!r}), timeout_s=60)\n"
        "timer.wait_until_open()\n"
        "timer.send({'batch_size': 1, 'samples': 10**9, 'repeats': 1})\n"
        "print(timer._process.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = Path(f"/proc/{int(parent.stdout.readline())}")
        assert worker.exists()
        parent.kill()
    deadline = time.monotonic() + 30
    while worker.exists() and "zombie" not in (worker / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.exists() or "zombie" in (worker / "status").read_text()


def test_a_worker_that_waits_for_its_turn_does_not_spin(trained: Trained) -> None:
    """Its threads spin for a moment after their work, and must then sleep, or they would slow the others."""
    with Timer(resolve(trained.onnx, Run(threads=2)), timeout_s=60) as timer:
        timer.wait_until_open()
        timer.call(64, 3, 1)
        tasks = Path(f"/proc/{timer._process.pid}/task")

        def running() -> list[str]:
            states = [path.read_text().rpartition(")")[2].split()[0] for path in tasks.glob("*/stat")]
            assert len(states) >= 2, "one of them waits for work"
            return [state for state in states if state != "S"]

        deadline = time.monotonic() + 30
        while running() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert running() == []


def test_cold_starts_are_of_fresh_processes(trained: Trained) -> None:
    start = cold_start(Timer(resolve(trained.onnx, Run(threads=1)), timeout_s=60), 2)
    assert start.import_s > start.second_run_s
    median = ColdStart.median([start, replace(start, open_s=start.open_s + 2), replace(start, open_s=9.0)])
    assert (median.open_s, median.starts) == (start.open_s + 2, 3)


def test_what_cannot_be_measured_is_an_error(tmp_path: Path, trained: Trained) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        _quick([trained.onnx, tmp_path / "none.onnx"])
    with pytest.raises(BenchmarkError, match="at least one"):
        _quick([])
    with pytest.raises(BenchmarkError, match="at least 1"):
        _quick([trained.onnx], batch_sizes=[0])
    with pytest.raises(BenchmarkError, match="none of"):
        _quick([trained.onnx], runtimes=["eager"])
    with pytest.raises(BenchmarkError, match="none of"):
        _quick([trained.onnx], runtimes=["onnxruntime", "eager"])
    for wrong in (
        {"threads": [0]},
        {"seconds": 0},
        {"timeout_s": -1},
        {"cold_starts": -1},
        {"until": math.nan},
    ):
        with pytest.raises(BenchmarkError):
            _quick([trained.onnx], **wrong)
    with pytest.raises(BenchmarkError, match="lists of files"):
        bench(str(trained.onnx))
    with pytest.raises(BenchmarkError, match="times the model alone"):
        _quick([trained.onnx], runtimes=["raw-onnxruntime"], end_to_end=True)


def test_a_plain_script_computes_in_tf32_on_cuda_and_openvinos_runs_on_the_cpu(trained: Trained) -> None:
    def precisions(runtime: str, **settings: Any) -> list[str]:
        found = candidates_of([trained.onnx], runtimes=[runtime, "onnxruntime"], **settings)
        return [one.run.choices.precision for one in found if one.run.runtime == runtime]

    assert precisions("raw-onnxruntime") == ["float32"]
    assert precisions("raw-onnxruntime", precisions=["float32"]) == ["float32"]
    assert precisions("raw-onnxruntime", device="cuda") == ["tf32"]
    assert precisions("raw-onnxruntime", device="cuda", precisions=["float32", "tf32"]) == ["tf32"]
    assert precisions("raw-onnxruntime", device="cuda", precisions=["float32"]) == []
    with pytest.raises(BenchmarkError, match="computes in float32; add tf32"):
        candidates_of([trained.onnx], ["raw-onnxruntime"], device="cuda", precisions=["float32"])
    with pytest.raises(
        BenchmarkError, match="raw-openvino runs on the CPU alone, not on cuda:1; leave it out"
    ):
        precisions("raw-openvino", device="cuda:1")


def test_a_folder_runs_as_planned_unless_told_otherwise(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "lenet.deploy"
    folder.mkdir()
    shutil.copy(trained.onnx, folder)
    sha256 = Artifact.open(trained.onnx).sha256
    run = Run("openvino", "cpu", 1, RuntimeOptions(precision="bfloat16"))
    (folder / "plan.json").write_text(Plan("lenet.onnx", sha256, run, environment()).to_json())
    opened = Artifact.open(trained.onnx)
    planned, plain = candidates_of([folder, opened])
    assert (planned.run, planned.is_planned, planned.folder) == (run, True, folder)
    assert plain.artifact is opened
    assert (plain.run.runtime, plain.run.device, plain.run.threads) == ("onnxruntime", "cpu", usable_cpus())
    told = candidates_of([folder], runtimes=["onnxruntime", "openvino"], threads=[2, "auto"], device="cuda")
    assert [(candidate.run.runtime, candidate.run.threads) for candidate in told] == [
        (runtime, threads) for threads in (2, "auto") for runtime in ("onnxruntime", "openvino")
    ]
    assert {candidate.run.device for candidate in told} == {"cuda"}
    assert not any(candidate.run.choices.lossy for candidate in told)
    here = candidates_of([folder], runtimes=["onnxruntime", "openvino"], threads=[2], device="cpu")
    lossy = [candidate.run.choices.lossy for candidate in here]
    assert lossy == [False, True], "options are of the plan's runtime and kind of device only"
    with pytest.raises(BenchmarkError, match="times the model alone"):
        candidates_of([folder], runtimes=["raw-openvino"], threads=["auto"])
    with pytest.raises(BenchmarkError, match="lists of files"):
        candidates_of(opened)  # type: ignore[arg-type]


# Doubts, one by one.

QUIET = Facts(
    busy_cpus=0.0,
    steal=0.0,
    throttled=0,
    busy_gpu=0.0,
    gpu_slowed="",
    drift=0.0,
    threads=1,
    cpus=2,
    slow_starts="",
    rows=3,
    grouped=0,
    calls=1,
    few=0,
    unclear=0,
    width=0.0,
    seconds=20.0,
    until=0.02,
    cold_starts=3,
    interrupted=False,
)


@pytest.mark.parametrize(
    ("number", "facts", "limit"),
    [
        (0, {"busy_cpus": 0.3}, {"busy_cpus": 0.25}),
        (1, {"steal": 0.03}, {"steal": 0.02}),
        (2, {"throttled": 1}, {"throttled": 0}),
        (3, {"busy_gpu": 0.06}, {"busy_gpu": 0.05}),
        (4, {"gpu_slowed": "heat"}, {"gpu_slowed": ""}),
        (5, {"drift": -0.06}, {"drift": 0.05}),
        (6, {"threads": 3}, {"threads": 2}),
        (7, {"slow_starts": "x"}, {"slow_starts": ""}),
        (8, {"slow_starts": "x", "cold_starts": 0}, {"slow_starts": "x"}),
        (9, {"grouped": 1, "calls": 2}, {"grouped": 0}),
        (10, {"few": 1}, {"few": 1, "interrupted": True}),
        (11, {"unclear": 1, "width": 0.03}, {"unclear": 1, "width": 0.02}),
        (12, {"unclear": 1, "width": 0.01}, {"unclear": 1, "width": 0.01, "interrupted": True}),
    ],
)
def test_each_doubt_is_said_beyond_its_limit_and_not_at_it(
    number: int, facts: dict[str, Any], limit: dict[str, Any]
) -> None:
    assert not any(doubt.applies(QUIET) for doubt in DOUBTS)
    assert DOUBTS[number].applies(replace(QUIET, **facts))
    assert not DOUBTS[number].applies(replace(QUIET, **limit))
    assert len(DOUBTS) == 13


def test_no_doubt_names_an_option_of_the_command_line() -> None:
    assert not any("--" in doubt.sentence for doubt in DOUBTS)


# Reports as JSON.


def test_a_report_in_the_old_words_reads_and_old_keys_stay() -> None:
    report = replace(_report(1.0, 2.0), settings={"until": 0.02, "seconds": 20.0, "seed": 0})
    values = report.to_dict()
    assert [row["target"] for row in values["results"]] == ["a.onnx", "b.onnx"]
    assert (values["settings"]["budget_s"], values["settings"]["precision"]) == (20.0, 0.02)
    (change, _) = compare(report, report).to_dict()["changes"]
    assert change["target"] == change["artifact"] == "a.onnx"
    for row in values["results"]:
        del row["artifact"]
    del values["settings"]["seconds"], values["settings"]["until"]
    old = BenchmarkReport.from_json(json.dumps(values))
    assert old == report
    assert [change.verdict for change in compare(report, old).changes] == ["SAME", "SAME"]


def test_a_row_keeps_a_precision_of_its_own() -> None:
    row = replace(_report(1.0).results[0], settings={"precision": "bf16"})
    report = replace(_report(1.0), results=(row,))
    assert BenchmarkReport.from_json(dumps(report.to_dict())) == report


def test_no_json_holds_what_is_no_number() -> None:
    rows = tuple(replace(row, first_call_s=math.nan, ratio_high=math.inf) for row in _report(1.0).results)
    text = dumps(replace(_report(1.0), results=rows).to_dict())
    assert "NaN" not in text
    assert "Infinity" not in text
    assert BenchmarkReport.from_json(text).results[0].ratio_high is None


# Against a baseline.


def _report(*seconds: float, spread: float = 0.01, **environment: Any) -> BenchmarkReport:
    """Candidates whose rounds take about so long."""
    random = np.random.default_rng(0)
    rows = [
        summarise(
            replace(ROW, artifact=f"{name}.onnx"),
            Measurement(rounds=[[s * (1 + spread * random.random())] for _ in range(40)]),
        )
        for name, s in zip("abcdef", seconds, strict=False)
    ]
    machine = {"cpu": "x", "usable_cpus": 2, "gpus": [], "versions": {"torch": "2"}, **environment}
    return BenchmarkReport(tuple(compared(rows, 1)), machine)


def test_a_slower_machine_is_no_regression_but_a_slower_file_is() -> None:
    before = _report(4.0, 1.0, 2.0)
    first, same, other = compare(_report(8.0, 2.0, 4.0), before).changes
    assert (first.by, first.verdict) == ("time", "AMBIGUOUS")
    assert (same.by, same.verdict, other.verdict) == ("ratio", "SAME", "SAME")
    slower = compare(_report(4.0, 1.1, 2.0), before)
    assert [(change.artifact, change.verdict) for change in slower.changes] == [
        ("a.onnx", "SAME"),
        ("b.onnx", "SLOWER"),
        ("c.onnx", "SAME"),
    ]
    assert [change.artifact for change in slower.slower] == ["b.onnx"]
    assert slower.changes[1].ratio == pytest.approx(1 / 1.1, rel=0.01)


def test_a_reference_that_became_slower_by_itself_is_a_regression() -> None:
    found = compare(_report(8.0, 1.0, 2.0), _report(4.0, 1.0, 2.0))
    assert [(change.artifact, change.verdict) for change in found.changes] == [
        ("a.onnx", "SLOWER"),
        ("b.onnx", "FASTER"),
        ("c.onnx", "FASTER"),
    ]


def test_lines_that_cannot_be_told_apart_or_have_no_rounds_are_an_error() -> None:
    report = _report(1.0, 2.0)
    twice = replace(report, results=(report.results[0], *report.results))
    with pytest.raises(BenchmarkError, match="same file name"):
        compare(twice, report)
    bare = replace(report, results=tuple(replace(row, round_p50_s=()) for row in report.results))
    with pytest.raises(BenchmarkError, match="measure the baseline again"):
        compare(report, bare)


@pytest.mark.parametrize("seconds", [0.5, 1.2, 10.0])
def test_a_line_alone_is_not_told_from_the_machine(seconds: float) -> None:
    found = compare(_report(seconds), _report(1.0))
    (change,) = found.changes
    assert (change.by, change.verdict) == ("time", "AMBIGUOUS")
    assert change.ratio_low <= change.ratio <= change.ratio_high
    assert change.ratio == pytest.approx(1 / seconds, rel=0.01)
    assert any("not judged: a.onnx" in note and "beside its checkpoint" in note for note in found.notes)
    assert (found.slower, found.undecided) == ((), ())
    assert [change.verdict for change in compare(_report(1.0), _report(1.0)).changes] == ["SAME"]


def test_any_line_of_both_reports_will_do_to_take_ratios_to() -> None:
    """The earlier report's reference is not measured any more, or is not the first."""
    before, now = _report(4.0, 1.0, 2.0), _report(4.0, 2.0, 8.0)
    without = compare(replace(now, results=now.results[1:]), before)
    assert [(change.artifact, change.by, change.verdict) for change in without.changes] == [
        ("b.onnx", "time", "AMBIGUOUS"),
        ("c.onnx", "ratio", "SLOWER"),
    ]
    first, second, _ = now.results
    turned = replace(now, results=tuple(compared([second, first], 1)))
    assert [(change.artifact, change.by, change.verdict) for change in compare(turned, before).changes] == [
        ("b.onnx", "time", "SLOWER"),
        ("a.onnx", "ratio", "FASTER"),
    ]


def test_a_baseline_of_another_machine_is_refused_unless_told() -> None:
    before = _report(1.0, 2.0, cpu="y")
    with pytest.raises(BenchmarkError, match="another machine: cpu was y, is x"):
        compare(_report(1.0, 2.0), before)
    assert compare(_report(1.0, 2.0), before, any_machine=True).changes


def test_a_baseline_with_nothing_in_common_is_an_error_and_less_is_said() -> None:
    before = _report(1.0, 2.0, 3.0)
    with pytest.raises(BenchmarkError, match="no line in common"):
        compare(replace(before, results=before.results[:1]), replace(before, results=before.results[1:]))
    notes = compare(_report(1.0, 2.0, versions={"torch": "3"}), before).notes
    assert any("only in the baseline" in note and "c.onnx" in note for note in notes)
    assert "torch was 2, is 3" in notes
    few = _report(1.0, 2.0)
    few = replace(few, results=tuple(replace(row, round_p50_s=row.round_p50_s[:4]) for row in few.results))
    assert len(compare(_report(1.0, 2.0), few).undecided) == 2
    assert compare(_report(1.0, 2.0), _report(1.0, 2.0)).undecided == ()


@pytest.mark.parametrize("which", ["baseline", "this"])
def test_nothing_is_judged_if_the_machine_was_busy_then_or_now(which: str) -> None:
    before, now = _report(4.0, 1.0), _report(4.0, 2.0)
    assert [change.artifact for change in compare(now, before).slower] == ["b.onnx"]
    busy = _report(4.0, 1.0, busy_cpus=1.5), _report(4.0, 2.0, busy_cpus=1.5)
    found = compare(now, busy[0]) if which == "baseline" else compare(busy[1], before)
    assert {change.verdict for change in found.changes} == {"AMBIGUOUS"}
    (why,) = found.undecided
    assert which in why
    assert "1.5 CPUs busy" in why


def test_what_is_no_report_is_an_error() -> None:
    for text in ("", "[]", "{}", '{"results": [{}], "warnings": []}'):
        with pytest.raises(BenchmarkError, match="no report"):
            BenchmarkReport.from_json(text)


def test_what_has_ended_is_not_killed_again(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be another process's by then."""
    with Timer(resolve(trained.onnx, Run(threads=1)), timeout_s=60) as timer:
        timer.wait_until_open()
        os.kill(timer._process.pid, signal.SIGKILL)
        with pytest.raises(ArtifactError, match="ended with status -9"):
            timer.call(1, 1, 1)
        monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("killed again"))
