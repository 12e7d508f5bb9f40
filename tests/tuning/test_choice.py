"""What tune times, chooses and says, on simulated contenders: no clock is read and no process started."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import Result
from numpy.typing import NDArray

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.deployment import open_deployment, resolve
from cnndeploy.errors import ArtifactError, BenchmarkError, ExportError, Stopped
from cnndeploy.progress import Deadline, silent
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.tuning import choice, contenders as contenders_module, tune as tune_module
from cnndeploy.tuning.choice import Choice, choose
from cnndeploy.tuning.contenders import Contender, Files, Job, _label, _runs, make_files
from cnndeploy.tuning.race import FIRST_ROUNDS, Race
from cnndeploy.tuning.report import Row
from cnndeploy.verification.report import BudgetReport, EquivalenceReport, FileIdentity, Verdict
from helpers import Trained

FILE = FileIdentity("x", "0")
EQUIVALENT = EquivalenceReport(artifact=FILE, against=FILE, images=10)


class FakeTimer:
    """A contender's process; a call takes what ``seconds`` says for its name and the round."""

    seconds: ClassVar[Callable[[str, int], float]] = lambda _name, _round: 0.01
    round: ClassVar = 0
    fails: ClassVar[set[str]] = set()
    opening: ClassVar[list[str]] = []
    alive: ClassVar[list[str]] = []
    most: ClassVar[list[int]] = []  # how many were alive at each call

    def __init__(self, candidate: Any, timeout_s: float, should_stop: object) -> None:
        assert not self.opening, "another one is being opened"
        self.name = candidate.artifact.sha256
        self.opening.append(self.name)
        self.alive.append(self.name)
        self.facts = {"clock_s": 1e-9}
        self._random = random.Random(self.name)  # noqa: S311 - jitter, not a secret

    def wait_until_open(self) -> None:
        self.opening.clear()
        if self.name in self.fails:
            raise ArtifactError("it does not open")

    def call(self, _batch_size: int, samples: int, _repeats: int) -> dict[str, Any]:
        self.most.append(len(self.alive))
        seconds = type(self).seconds(self.name, FakeTimer.round) * self._random.uniform(0.99, 1.01)
        return {"seconds": [seconds] * samples, "peak_memory_bytes": 0}

    def __enter__(self) -> FakeTimer:
        return self

    def __exit__(self, *_: object) -> None:
        self.alive.remove(self.name)


@pytest.fixture(autouse=True)
def _fake_timer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (("round", 0), ("fails", set()), ("opening", []), ("alive", []), ("most", [])):
        monkeypatch.setattr(FakeTimer, name, value)
    monkeypatch.setattr(choice, "Timer", FakeTimer)
    monkeypatch.setattr(choice, "verify", lambda *_, **__: EQUIVALENT)
    yield
    assert FakeTimer.alive == []


def _contender(name: str, *, lossy: bool = False, verdict: Verdict | None = None) -> Contender:
    artifact = SimpleNamespace(sha256=name, path=Path(f"{name}.onnx"))
    candidate: Any = SimpleNamespace(artifact=artifact, run=Run("onnxruntime", "cpu", 1), lossy=lossy)
    return Contender(name, candidate, verdict)


def _job(deadline: Deadline | None = None, **more: Any) -> Job:
    def progress(_done: int, _total: int, text: str) -> None:
        if text.startswith("Timing"):
            FakeTimer.round = int(text.rpartition(" ")[2])

    artifact = SimpleNamespace(path=Path("x.pt"))
    reference: Any = SimpleNamespace(test=range(10_000), artifact=artifact, release=lambda: None)
    values = {"budget": 1.0, "batch_size": 1, "threads": 1, "device": "cpu", "max_minutes": 5.0}
    values |= {"reference": reference, "calibration": 8, "deadline": deadline or Deadline.after(300)}
    return Job(**{**values, "progress": progress, **more})


def _chosen(
    contenders: list[Contender], seconds: Callable[[str, int], float], monkeypatch: pytest.MonkeyPatch
) -> tuple[Choice, dict[str, Row]]:
    """Return the choice, and the rows in order by name."""
    monkeypatch.setattr(FakeTimer, "seconds", staticmethod(seconds))
    chosen = choose(_job(), Files({}, eager_image_s=0.0), contenders)
    return chosen, {row.variant: row for row in chosen.rows(contenders, 0.9)}


def test_rows_are_in_the_order_that_was_measured_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program is at work in the first rounds, and slows eager PyTorch most."""

    def seconds(name: str, done: int) -> float:
        early, later = {"eager": (0.3, 0.1), "early": (0.0063, 0.0045)}.get(name, (0.0058, 0.0036))
        return early if done < FIRST_ROUNDS else later

    names = ("eager", "early", "one", "other")
    choice_, rows = _chosen([_contender(name) for name in names], seconds, monkeypatch)
    early, chosen, other = rows["early"], *(row for row in rows.values() if row.variant in ("one", "other"))
    assert [row.outcome for row in rows.values()] == ["chosen", "as fast", "slower", "slower"]
    assert list(rows)[2:] == ["early", "eager"]
    assert choice_.race.decided
    ratios = [row.ratio or 0 for row in rows.values()]
    assert ratios == sorted(ratios, reverse=True)
    assert (rows["eager"].ratio, rows["eager"].ratio_interval) == (1.0, (1.0, 1.0))
    assert rows["eager"].p50_s == pytest.approx((chosen.p50_s or 0) * (chosen.ratio or 0))
    assert early.ratio == pytest.approx((0.1 / 0.0036) * (0.0058 / 0.0063), rel=0.03)
    assert None not in (chosen.p50_s, other.p50_s, early.p50_s)
    assert (chosen.p50_s or 0) < (early.p50_s or 0) == pytest.approx(0.0036 * 0.0063 / 0.0058, rel=0.03)
    assert early.ratio_interval is not None
    assert early.ratio_interval[0] <= (early.ratio or 0) <= early.ratio_interval[1]


def test_only_rejected_ones_stand_above_the_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lossy one is faster by a percent; then the lossless one is taken, and shown first."""
    beyond = BudgetReport(artifact=FILE, against=FILE, images=10, reasons=("beyond the budget",))
    within = BudgetReport(artifact=FILE, against=FILE, images=10)
    contenders = [
        _contender("eager"),
        _contender("lossless"),
        _contender("lossy", lossy=True, verdict=within),
        _contender("rejected", lossy=True, verdict=beyond),
        _contender("broken"),
    ]
    FakeTimer.fails = {"broken"}
    times = {"eager": 0.1, "lossless": 0.0101, "lossy": 0.01, "rejected": 0.005}
    _, rows = _chosen(contenders, lambda name, _: times[name], monkeypatch)
    # what was rejected before the race does not take part in it
    assert {name: row.outcome for name, row in rows.items()} == {
        "lossless": "chosen",
        "lossy": "as fast",
        "eager": "slower",
        "broken": "failed",
        "rejected": "rejected",
    }
    assert next(iter(rows)) == "lossless"


def test_a_rejected_winner_stands_above_the_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(artifact: Any, *_: object, **__: object) -> EquivalenceReport:
        return replace(EQUIVALENT, reasons=("it is not",) if artifact.sha256 == "wrong" else ())

    monkeypatch.setattr(choice, "verify", verify)
    times = {"eager": 0.1, "wrong": 0.005, "next": 0.01, "slow": 0.02}
    _, rows = _chosen([_contender(name) for name in times], lambda name, _: times[name], monkeypatch)
    assert list(rows) == ["wrong", "next", "slow", "eager"]
    assert [row.outcome for row in rows.values()] == ["rejected", "chosen", "slower", "slower"]
    assert [row.accuracy for row in rows.values()] == [None, 0.9, 0.9, 0.9]


def test_after_enough_lossy_ones_a_lossless_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third lossy winner is not measured any more, and the search ends all the same."""
    measured: list[str] = []

    def beyond(artifact: Any, *_: object, **__: object) -> BudgetReport:
        measured.append(artifact.sha256)
        return BudgetReport(artifact=FILE, against=FILE, images=10, reasons=("beyond the budget",))

    monkeypatch.setattr(choice, "verify_budget", beyond)
    times = {"eager": 0.1, "lossless": 0.05, "first": 0.01, "second": 0.014, "third": 0.02, "fourth": 0.028}
    contenders = [_contender(name, lossy=name not in ("eager", "lossless")) for name in times]
    _, rows = _chosen(contenders, lambda name, _: times[name], monkeypatch)
    assert measured == ["first", "second"]
    assert rows["lossless"].outcome == "chosen"
    assert {rows[name].outcome for name in ("third", "fourth")} == {"rejected"}
    assert "measured 2 lossy candidates already" in rows["third"].reason


def test_processes_start_one_after_the_other_and_end_when_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"eager": 0.1, "slow": 0.02, "slower": 0.04, "one": 0.01, "other": 0.01}
    _chosen([_contender(name) for name in times], lambda name, _: times[name], monkeypatch)
    assert FakeTimer.most[0] == 1, "the first is timed before the next is opened"
    assert max(FakeTimer.most) == 5
    assert FakeTimer.most[-1] == 3, "eager PyTorch and those that nothing tells apart"


def test_the_first_round_is_finished_once_the_race_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is over when the second is opened; the third is opened and timed all the same, once."""
    clock = SimpleNamespace(monotonic=lambda: 10.0 * len(FakeTimer.alive))
    monkeypatch.setattr("cnndeploy.progress.time", clock)
    times = {"eager": 0.1, "slow": 0.02, "fast": 0.01}
    monkeypatch.setattr(FakeTimer, "seconds", staticmethod(lambda name, _: times[name]))
    contenders = [_contender(name) for name in times]
    chosen = choose(_job(Deadline(15.0)), Files({}, eager_image_s=0.0), contenders)
    assert chosen.chosen is contenders[2]
    assert [chosen.race.rounds(contender) for contender in contenders] == [1, 1, 1]
    assert not chosen.race.decided
    row, second, *_ = chosen.rows(contenders, 0.9)
    assert second.outcome == "undecided"
    assert second.reason == "1 round does not tell whether it is slower than the chosen one"
    assert row.ratio == pytest.approx(10, rel=0.03)
    assert row.ratio_interval is None, "one round has no interval"


def test_one_that_does_not_open_is_out_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTimer.fails = {"broken"}
    times = {"eager": 0.1, "broken": 0.02, "fast": 0.01}
    chosen, rows = _chosen([_contender(name) for name in times], lambda name, _: times[name], monkeypatch)
    assert str(chosen.chosen).startswith("fast")
    assert (rows["broken"].outcome, rows["broken"].reason) == ("failed", "it does not open")
    assert rows["broken"].accuracy is None
    FakeTimer.fails = {"eager"}
    with pytest.raises(BenchmarkError, match="does not run: it does not open"):
        _chosen([_contender(name) for name in times], lambda name, _: times[name], monkeypatch)


def test_a_stop_is_no_failure_of_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is ended when the caller asks for the end, and says so."""
    FakeTimer.fails = {"eager"}
    asked = iter([False])
    job = _job(Deadline(should_stop=lambda: next(asked, True)))
    with pytest.raises(Stopped):
        choose(job, Files({}, eager_image_s=0.0), [_contender("eager"), _contender("fast")])


@pytest.mark.parametrize(("ends", "images"), [(-1.0, 256), (3.0, 2000), (60.0, None)])
def test_a_lossless_file_is_verified_on_as_many_images_as_there_is_time_for(
    ends: float, images: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnndeploy.progress.time", SimpleNamespace(monotonic=lambda: 0.0))
    asked: list[int | None] = []

    def verify(*_: object, images: int | None, **__: object) -> EquivalenceReport:
        asked.append(images)
        return EQUIVALENT

    monkeypatch.setattr(choice, "verify", verify)
    assert choice._verify(_job(Deadline(ends)), _contender("fast"), 0.0005, 0.0005).passed
    assert asked == [images]


def test_a_lossy_file_that_there_is_no_time_to_check_is_told_in_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cnndeploy.progress.time", SimpleNamespace(monotonic=lambda: 0.0))
    verdict = choice._verify(_job(Deadline(20.0)), _contender("int8", lossy=True), 0.006, 0.0)
    assert "10,000 test images would take about 60 seconds" in verdict.summary
    assert "max_minutes=6 would do" in verdict.summary
    assert "--" not in verdict.summary


@pytest.mark.parametrize(("ends", "is_checked"), [(25.0, True), (-5.0, True), (-10.0, False)])
def test_a_lossy_file_is_checked_if_that_takes_a_tenth_longer_at_most(
    ends: float, is_checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is five minutes; the fastest file must not be lost for want of seconds."""
    monkeypatch.setattr("cnndeploy.progress.time", SimpleNamespace(monotonic=lambda: 0.0))
    asked = []

    def verify_budget(*_: object, **__: object) -> BudgetReport:
        asked.append(True)
        return BudgetReport.undecided(Path("a"), Path("b"), "")

    monkeypatch.setattr(choice, "verify_budget", verify_budget)
    choice._verify(_job(Deadline(ends)), _contender("int8", lossy=True), 0.0025, 0.0)
    assert bool(asked) == is_checked


# The checkpoint's labels.


class FakeReference:
    """Labels images at so many seconds a batch; the first ones take longer, as the first runs of a process do."""

    def __init__(self, first_s: float, second_s: float, batch_s: float) -> None:
        self.now, self.known, self.test = 0.0, 0, range(10_000)
        self._seconds = {0: first_s, 64: second_s}
        self._batch_s = batch_s

    def labels(self, count: int, *, deadline: Deadline, progress: Any) -> NDArray[np.intp]:
        while self.known < count:
            self.now += self._seconds.get(self.known, self._batch_s)
            self.known = min(count, self.known + 64)
            progress(self.known, count, "Running the checkpoint")
        return np.zeros(count, np.intp)


def _labelled(reference: FakeReference, monkeypatch: pytest.MonkeyPatch, minutes: float) -> Files:
    clock = SimpleNamespace(monotonic=lambda: reference.now)
    monkeypatch.setattr(contenders_module, "time", clock)
    monkeypatch.setattr("cnndeploy.progress.time", clock)
    files, bars = Files({}), []
    job = _job(
        Deadline(60 * minutes),
        reference=reference,
        max_minutes=minutes,
        started=0.0,
        progress=lambda done, total, _: bars.append((done, total)),
    )
    _label(job, files)
    assert {total for _, total in bars} == {10_000}
    return files


def test_a_cold_start_says_nothing_of_how_long_the_labels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batches suggest a minute for 10,000 images, half a minute is allowed, and they take four seconds."""
    files = _labelled(FakeReference(3.0, 0.5, 0.02), monkeypatch, minutes=1.5)
    assert files.labelled
    assert files.notes == []


def test_labels_that_take_too_long_are_given_up_early_and_in_plain_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = FakeReference(6.0, 4.0, 4.0)
    files = _labelled(reference, monkeypatch, minutes=5)
    assert not files.labelled
    assert reference.known < 500
    assert files.eager_image_s == pytest.approx(4 / 64)
    (note,) = files.notes
    assert "10,000 test images would take about 625 seconds, and 90 seconds are left for that" in note
    assert "max_minutes=42 would do" in note
    assert "--" not in note


# What tune says of it.


def test_formats_that_cannot_be_written_are_rows(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(_: Path, name: str, path: Path, **__: bool) -> Artifact:
        if (name, path.parent.name) == ("torchscript", "float"):
            raise ExportError("torch cannot script or trace this network")
        return Artifact.open(shutil.copy(trained.onnx, path))

    monkeypatch.setattr(contenders_module, "export", export)
    monkeypatch.setattr(contenders_module, "missing_package", lambda name: name * (name == "executorch"))
    reference: Any = SimpleNamespace(artifact=Artifact.open(trained.checkpoint), release=lambda: None)
    files = make_files(Job(reference, 0.0, 1, 1, "cpu", 1.0, None, Deadline(), silent), tmp_path)
    formats = {variant: len(made) for variant, made in files.by_variant.items()}
    assert formats == {"checkpoint": 1, "float": 1, "simplified": 2}
    missing, failed = files.rows
    assert (missing.runtime, missing.outcome) == ("executorch", "not tried")
    assert "pip install 'cnndeploy[executorch]'" in missing.reason
    assert (failed.runtime, failed.outcome) == ("torchscript", "failed")
    assert "cannot script or trace" in failed.reason


@pytest.fixture
def tried(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Files that were made before; nothing is exported."""
    artifacts = (Artifact.open(trained.checkpoint), Artifact.open(trained.onnx))
    files = Files({"checkpoint": [artifacts[0]], "simplified": [artifacts[1]]})
    monkeypatch.setattr(tune_module, "make_files", lambda *_: files)
    return files


def test_when_one_is_left_the_race_is_complete_whatever_was_not_tried(
    tried: Files,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Callable[..., Result],
) -> None:
    tried.notes.append("int8 and bfloat16 were not tried; max_minutes=7 would do.")
    race: Any = SimpleNamespace(
        reference=None,
        decided=True,
        failures={},
        slower={},
        rounds=lambda _: 6,
        ranked=list,
        comparable=lambda *_: (1.0, (1.0, 1.0)),
        ratio=lambda _: 9.0,
        interval=lambda _: (8.0, 10.0),
        median_s=lambda _: 1e-3,
    )
    verdict = cnndeploy.verify(trained.onnx, trained.checkpoint, images=8)
    chosen = Contender("simplified", resolve(trained.onnx, Run("onnxruntime", "cpu", 1)), verdict)
    monkeypatch.setattr(tune_module, "choose", lambda _job, _files, entrants: Choice(race, chosen))
    monkeypatch.setattr(Choice, "rows", lambda self, *_: [self.row(chosen, chosen, 0.9)])
    monkeypatch.chdir(tmp_path)
    shown: Result = cli("tune", trained.checkpoint, "--output", "d", "--threads", 1)
    assert shown.exit_code == 0, shown.output
    assert "The time was over" not in shown.output
    assert "int8 and bfloat16 were not tried; --max-minutes 7 would do." in shown.output
    assert "Wrote d after" in shown.output
    assert "cnndeploy.load('d')" in shown.output
    assert str(tmp_path) not in shown.output.replace(str(trained.checkpoint.parent), "")
    assert open_deployment(tmp_path / "d")[1].figures["complete"] is True


def test_if_the_files_took_all_the_time_the_simplest_are_raced_and_one_is_written(
    tried: Files,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Callable[..., Result],
) -> None:
    verdict = cnndeploy.verify(trained.onnx, trained.checkpoint, images=8)
    monkeypatch.setattr(choice, "verify", lambda *_, **__: verdict)
    monkeypatch.setattr(
        FakeTimer, "seconds", lambda name, _: 0.01 if name == verdict.artifact.sha256 else 0.02
    )
    shown: Result = cli(
        *("tune", trained.checkpoint, "--output", tmp_path / "d", "--budget", 0),
        *("--max-minutes", 1e-6, "--threads", 2),
    )
    assert shown.exit_code == 0, shown.output
    assert "The time was over: this is the best so far. --max-minutes gives it more." in shown.output
    tuning = json.loads((tmp_path / "d" / "tuning.json").read_text())
    timed = [(row["runtime"], row["threads"], row["options"]) for row in tuning["rows"] if row["ratio"]]
    assert timed == [("onnxruntime", 2, {}), ("eager", 2, {})], "no single thread, no other runtime"
    assert {
        row["reason"] for row in tuning["rows"] if not row["ratio"] and row["runtime"] == "onnxruntime"
    } == {"the time was over before it could be timed"}
    assert tuning["rows"][0]["outcome"] == "chosen"
    assert not tuning["complete"]
    assert len(FakeTimer.most) > 2


def test_if_nothing_simple_is_left_to_race_it_is_not_complete() -> None:
    """An imported file is its own export, so nothing else races with the reference."""
    first = _contender("imported")
    made = choose(_job(Deadline.after(0)), Files({}, eager_image_s=0.0), [first])
    assert made.chosen is first
    assert made.race.decided
    assert not made.complete


def test_the_best_so_far_is_written_if_the_time_was_over_in_the_race(
    tried: Files,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Callable[..., Result],
) -> None:
    """After two rounds nothing is sure; the fastest until then is taken."""

    def over() -> bool:
        return FakeTimer.round >= 2

    def note(done: int, _running: int) -> None:
        FakeTimer.round = done

    def cut(blocks: Any, **settings: Any) -> Race[Contender]:
        return Race(blocks, **{**settings, "should_stop": over, "on_round": note})

    monkeypatch.setattr(choice, "Race", cut)
    verdict = cnndeploy.verify(trained.onnx, trained.checkpoint, images=8)
    fastest = verdict.artifact.sha256
    monkeypatch.setattr(
        FakeTimer, "seconds", staticmethod(lambda name, _: 0.01 if name == fastest else 0.011)
    )
    monkeypatch.setattr(choice, "verify", lambda *_, **__: verdict)
    shown: Result = cli("tune", trained.checkpoint, "--output", tmp_path / "d", "--threads", 1, "--budget", 0)
    assert shown.exit_code == 0, shown.output
    assert "The time was over: this is the best so far" in " ".join(shown.output.split())
    artifact, plan = open_deployment(tmp_path / "d")
    assert plan.figures["complete"] is False
    assert {one.name for one in (tmp_path / "d").iterdir()} == {
        *("plan.json", "tuning.json", "frontier.png"),
        *(artifact.path.name, f"{artifact.path.name}.verified.json"),
    }
    FakeTimer.round = 0
    again: Result = cli("tune", trained.checkpoint, "--output", tmp_path / "d", "--threads", 1, "--budget", 0)
    assert again.exit_code == 0, "an earlier deployment is replaced"


def test_on_a_gpu_there_are_no_doubles_and_tf32_and_float16_are_tried(trained: Trained) -> None:
    artifact = Artifact.open(trained.onnx)
    on_gpu = list(_runs("onnxruntime", artifact, 1, "cuda", lossy=True))
    assert on_gpu == [
        Run("onnxruntime", "cuda", 1, RuntimeOptions(precision=precision, cuda_graph=graph))
        for precision in ("float32", "tf32")
        for graph in (False, True)
    ]
    assert len(list(_runs("eager", Artifact.open(trained.checkpoint), 1, "cuda", lossy=True))) == 1
    assert {run.choices.precision for run in _runs("onnxruntime", artifact, 2, "cpu", lossy=True)} == {
        "float32"
    }
    assert (_job(device="cuda").stored, _job().stored) == ("float16", "int8")
