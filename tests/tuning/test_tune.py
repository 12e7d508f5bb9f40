"""cnndeploy tune on a real checkpoint; how fast anything is, no test asks."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.certificate import read_certificate
from cnndeploy.deployment import open_deployment, resolve
from cnndeploy.errors import (
    ArtifactError,
    BenchmarkError,
    BudgetError,
    CnndeployError,
    CompressionError,
    DataError,
    QuantizationError,
    Stopped,
)
from cnndeploy.exporters import export
from cnndeploy.progress import Deadline, never, silent
from cnndeploy.quantization import quantize
from cnndeploy.quantization.quantize import Quantized
from cnndeploy.run import RuntimeOptions
from cnndeploy.runtimes import RUNTIMES
from cnndeploy.serial import dumps, structure
from cnndeploy.tuning import choice, contenders as contenders_module, race as race_module
from cnndeploy.tuning.contenders import Contender, contenders
from cnndeploy.tuning.folder import check_folder, replacing_folder
from cnndeploy.tuning.race import Race
from cnndeploy.tuning.report import Row, TuneReport
from cnndeploy.verification.report import EquivalenceReport
from cnndeploy.verification.verify import verify
from helpers import Trained

IMAGES = np.zeros((3, 28, 28), np.uint8)


@pytest.fixture(scope="module", autouse=True)
def quick_tuning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The race is short, nothing is repaired, and the same export is made once."""
    folder = tmp_path_factory.mktemp("exports")
    write = export

    def export_once(checkpoint: Path, name: str, path: Path, **options: Any) -> Artifact:
        known = folder / f"{Artifact.open(checkpoint).sha256}-{name}-{sorted(options.items())}{path.suffix}"
        if not known.exists():
            write(checkpoint, name, known, **options)
        return Artifact.open(shutil.copyfile(known, path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race_module, "MOST_ROUNDS", race_module.FIRST_ROUNDS)
        patch.setattr(contenders_module, "_TO_COMPARE_S", 0)
        patch.setattr("cnndeploy.compression.job._BEFORE_REPAIR", ())  # tests of compress repair
        for module in (contenders_module, quantize):
            patch.setattr(module, "export", export_once)
        yield


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No contender needs it, so that few processes are started."""
    _hide(monkeypatch, "torch")


def _hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )


@pytest.fixture(scope="module")
def tuned(trained: Trained, quick_tuning: None, tmp_path_factory: pytest.TempPathFactory) -> TuneReport:
    """With a budget so wide that int8 and bfloat16 are tried too; on one thread, so that contenders are few."""
    folder = tmp_path_factory.mktemp("tuned") / "lenet.deploy"
    return cnndeploy.tune(trained.checkpoint, folder, budget=20, calibration=64, threads=1, max_minutes=30)


@pytest.mark.slow
def test_what_is_written_opens_is_certified_and_runs_as_planned(tuned: TuneReport, trained: Trained) -> None:
    artifact, plan = open_deployment(tuned.folder)
    chosen = tuned.chosen
    assert (plan.run.runtime, plan.run.threads, plan.run.choices.changed) == (
        chosen.runtime,
        chosen.threads,
        chosen.options,
    )
    certificate = read_certificate(artifact)
    assert certificate is not None
    assert certificate["artifact"]["path"] == str(artifact.path), "the certificate names it where it lies"
    assert certificate["against"]["sha256"] == Artifact.open(trained.checkpoint).sha256
    assert certificate["verdict"] == ("within budget" if chosen.lossy else "equivalent")
    with cnndeploy.load(tuned.folder, require_verified=True) as model:
        assert len(model.classify(IMAGES)) == 3


@pytest.mark.slow
def test_every_variant_and_runtime_has_a_row_with_a_reason(tuned: TuneReport) -> None:
    assert {row.runtime for row in tuned.rows} == set(RUNTIMES.names())
    assert {row.variant for row in tuned.rows} >= {"checkpoint", "float", "simplified", "int8"}
    assert any(row.variant.startswith(("low-rank", "channels")) and row.ratio for row in tuned.rows)
    assert all(row.reason for row in tuned.rows)
    assert [row.outcome for row in tuned.rows].count("chosen") == 1
    assert tuned.chosen.ratio is not None
    assert all(row.ratio is None or row.accuracy is not None or row.lossy for row in tuned.rows)


@pytest.mark.slow
def test_the_report_reads_back_and_lies_in_the_folder(tuned: TuneReport) -> None:
    text = Path(tuned.folder, "tuning.json").read_text()
    assert structure(TuneReport, json.loads(text)) == structure(
        TuneReport, json.loads(dumps(tuned.to_dict()))
    )
    assert structure(TuneReport, json.loads(text)).chosen == tuned.chosen


@pytest.mark.slow
def test_bench_and_verify_open_the_folder(
    tuned: TuneReport, trained: Trained, cli: Callable[..., Result]
) -> None:
    report = cnndeploy.bench([trained.checkpoint, tuned.folder], seconds=0.1, cold_starts=0)
    assert report.results[1].artifact == tuned.folder
    artifact, _ = open_deployment(tuned.folder)
    certificate = read_certificate(artifact)
    verified: Result = cli("verify", tuned.folder, "--against", trained.checkpoint, "--images", 100)
    assert verified.exit_code == 0, verified.output
    assert "it stays as it was" in verified.output
    assert read_certificate(artifact) == certificate


@pytest.mark.slow
@pytest.mark.usefixtures("without_torch")
def test_a_contender_that_is_not_admitted_is_rejected_with_all_of_its_numbers(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ONNX Runtime makes of the files is refused here, so that another runtime must win."""

    def refuse(artifact: Artifact, reference: cnndeploy.Reference, **settings: Any) -> EquivalenceReport:
        report = verify(artifact, reference, **{**settings, "images": 20})
        return replace(report, reasons=("it is refused",) if report.runtime == "onnxruntime" else ())

    monkeypatch.setattr(choice, "verify", refuse)
    report = cnndeploy.tune(trained.checkpoint, tmp_path / "d", budget=0, threads=1, max_minutes=30)
    rejected = [row for row in report.rows if row.outcome == "rejected"]
    assert {row.runtime for row in rejected} == {"onnxruntime"}
    assert all("it is refused" in row.reason for row in rejected)
    assert report.chosen.runtime != "onnxruntime"


@pytest.mark.slow
@pytest.mark.usefixtures("without_torch")
def test_what_was_timed_is_told_if_nothing_can_be_deployed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Result]
) -> None:
    def refuse(artifact: Artifact, reference: cnndeploy.Reference, **_settings: Any) -> EquivalenceReport:
        return EquivalenceReport.undecided(artifact.path, reference.artifact.path, "it is refused")

    monkeypatch.setattr(choice, "verify", refuse)
    folder, told = tmp_path / "d", tmp_path / "told.json"
    options = ("--budget", 0, "--threads", 1, "--max-minutes", 30, "--json", told)
    shown: Result = cli("tune", trained.checkpoint, "--output", folder, *options)
    assert shown.exit_code == 1, shown.output
    assert "Error: nothing can be deployed: it is refused" in shown.output
    assert "Tuned for latency" in shown.output
    assert "Nothing was written" in shown.output
    assert "cnndeploy.load" not in shown.output
    report = structure(TuneReport, json.loads(told.read_text()))
    timed = [row for row in report.rows if row.ratio is not None]
    assert len(timed) > 2
    assert {(row.outcome, row.reason) for row in timed} == {("rejected", "it is refused")}
    with pytest.raises(BenchmarkError, match="can be deployed") as caught:
        _ = report.chosen
    assert caught.value.report is report
    assert list(tmp_path.iterdir()) == [told]


def test_a_row_whose_loss_could_not_be_compared_has_none(
    int8: Quantized, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def label_alike(self: cnndeploy.Reference, images: range, **_settings: Any) -> Any:
        return np.zeros((len(images), 10), np.float32)

    monkeypatch.setattr(cnndeploy.Reference, "logits", label_alike)
    verdict = cnndeploy.verify_budget(int8.artifact, trained.checkpoint, budget=20, images=64)
    assert "the same label" in verdict.summary
    contender = Contender("int8", resolve(int8.artifact), verdict)
    race = Race({}, reference=contender, should_stop=never, on_round=lambda *_: None)
    row = choice.Choice(race, None).rows([contender], 0.9)[0]
    assert (row.outcome, row.loss_high_points, row.accuracy) == ("rejected", None, None)
    report = TuneReport("lenet.pt", "lenet.deploy", "latency", 1, 20, (row,), True, 1.0)
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["rows"][0]["loss_high_points"] is None
    measured = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert [measured[name] for name in ("loss_points", "loss_low_points", "loss_high_points")] == [None] * 3


@pytest.mark.slow
@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("at", ["Exporting", "Opening", "Verifying"])
def test_nothing_is_written_when_it_is_stopped(at: str, trained: Trained, tmp_path: Path) -> None:
    stopped = False

    def watch(done: int, total: int, text: str) -> None:
        nonlocal stopped
        stopped = stopped or text.startswith(at)

    with pytest.raises(Stopped):
        cnndeploy.tune(
            trained.checkpoint,
            tmp_path / "d",
            budget=0,
            threads=1,
            max_minutes=30,
            should_stop=lambda: stopped,
            progress=watch,
        )
    assert stopped
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": -1}, "from 0 to 100"),
        ({"budget": float("nan")}, "from 0 to 100"),
        ({"threads": 0}, "threads must be above 0"),
        ({"max_minutes": float("inf")}, "minutes must be above 0"),
        ({"calibration": 0}, "calibration images must be above 0"),
        ({"batch_size": 0}, "batch size must be above 0"),
    ],
)
def test_bad_input_is_refused_before_the_work(
    trained: Trained, tmp_path: Path, given: dict[str, float], message: str
) -> None:
    with pytest.raises((BenchmarkError, QuantizationError), match=message):
        cnndeploy.tune(trained.checkpoint, tmp_path / "d", **given)  # type: ignore[arg-type]


def test_an_exported_file_and_a_folder_of_something_else_are_refused(
    trained: Trained, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="tune the checkpoint that it was exported from"):
        cnndeploy.tune(trained.onnx, tmp_path / "d")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    (tmp_path / "photos" / "plan.json").write_text("{}")  # another program's
    with pytest.raises(ArtifactError, match="is no deployment"):
        cnndeploy.tune(trained.checkpoint, tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.png").exists()
    with pytest.raises(ArtifactError, match="is no deployment"):
        cnndeploy.tune(trained.checkpoint, trained.checkpoint.parent)


@pytest.mark.slow
def test_a_deployment_with_something_else_in_it_is_not_replaced(
    tuned: TuneReport, trained: Trained, tmp_path: Path
) -> None:
    shutil.copytree(tuned.folder, tmp_path / "d")
    shutil.copy(trained.checkpoint, tmp_path / "d" / "lenet.pt")
    with pytest.raises(ArtifactError, match="holds other files too"):
        cnndeploy.tune(trained.checkpoint, tmp_path / "d")
    with pytest.raises(ArtifactError, match=r"is no deployment|lies in"):
        cnndeploy.tune(tmp_path / "d" / "lenet.pt", tmp_path / "d")
    assert (tmp_path / "d" / "lenet.pt").exists()


def test_a_runtime_that_is_not_installed_is_skipped_by_name(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hide(monkeypatch, "openvino")
    files = {"float": [Artifact.open(trained.onnx)]}
    found, missing = contenders(files, threads=2, device="cpu", lossy=True)
    assert {each.candidate.run.runtime for each in found} == {"onnxruntime"}
    (row,) = missing
    assert (row.runtime, row.outcome) == ("openvino", "not tried")
    assert "The package openvino is not installed" in row.reason


def test_contenders_are_every_setting_once(trained: Trained) -> None:
    files = {"float": [Artifact.open(trained.onnx), Artifact.open(trained.torchscript)]}
    found, _ = contenders(files, threads=2, device="cpu", lossy=True)
    runs = [each.candidate.run for each in found]
    settings = [(run.runtime, run.threads, run.choices) for run in runs]
    plain, quiet, bfloat16 = RuntimeOptions(), RuntimeOptions(False), RuntimeOptions(precision="bfloat16")
    assert sorted(map(repr, settings)) == sorted(
        map(
            repr,
            [
                ("onnxruntime", 1, plain),
                ("onnxruntime", 2, plain),
                ("onnxruntime", 2, quiet),
                *(("openvino", count, options) for count in (1, 2) for options in (plain, bfloat16)),
                *(("torchscript", count, plain) for count in (1, 2)),
            ],
        )
    )
    strict, _ = contenders(files, threads=2, device="cpu", lossy=False)
    assert not any(each.lossy for each in strict)


def test_the_frontier_holds_what_none_beats_in_both() -> None:
    def row(ratio: float, accuracy: float | None, outcome: str = "slower") -> Row:
        return Row("float", "eager", 1, {}, False, outcome, ratio=ratio, accuracy=accuracy)  # type: ignore[arg-type]

    rows = (
        row(9, 0.90, "chosen"),
        row(5, 0.92),
        row(4, 0.91),
        row(3, 0.92),
        row(12, None),
        row(20, 0.99, "rejected"),
    )
    report = TuneReport("a", "b", "latency", 1, 0.5, rows, True, 1.0)
    assert [each.ratio for each in report.frontier] == [9, 5]


def test_a_folder_is_named_as_it_was_given_and_a_link_stays_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("link").symlink_to("there")
    with replacing_folder(Path("link"), Path("lenet.pt")) as temporary:
        (temporary / "new").touch()
    assert Path("link").is_symlink()
    assert Path("there/new").exists()
    with pytest.raises(ArtifactError, match=r"^link exists and is no deployment"):
        check_folder(Path("link"), Path("lenet.pt"))


@pytest.mark.parametrize(
    ("error", "rows"),
    [
        (
            CompressionError("Nothing was written.", {"low-rank": "not faster", "int8": "too slow"}),
            [("low-rank", "rejected", "not faster")],
        ),
        (
            BudgetError("nothing does", None, {"low-rank": "split", "int8": "no setting"}),
            [("low-rank", "rejected", "split")],
        ),
        (
            BudgetError("loses 0.7", object(), {"low-rank": "split"}),
            [("low-rank, channels, int8", "rejected", "loses 0.7")],
        ),
        (
            CompressionError("over", late=True),
            [("low-rank, channels, int8", "not tried", "none was found in time; max_minutes=2 may do")],
        ),
        (BudgetError("beyond"), [("low-rank, channels, int8", "rejected", "beyond")]),
        (DataError("no images"), [("low-rank, channels, int8", "failed", "no images")]),
    ],
)
def test_why_there_is_no_smaller_network_is_said(
    error: CnndeployError, rows: list[tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Int8 of the whole network, which is tried anyway, does not count as one."""

    def compress(*_: object, smaller_only: bool, **__: object) -> None:
        assert smaller_only
        raise error

    monkeypatch.setattr("cnndeploy.compression.compress.compress", compress)
    job: Any = SimpleNamespace(
        reference=None,
        budget=0.5,
        threads=1,
        max_minutes=1,
        search=Deadline.after(60, never),
        progress=silent,
    )
    files: Any = SimpleNamespace(rows=[])
    contenders_module._compress(job, files, Path("small.onnx"))
    assert [(row.variant, row.outcome, row.reason) for row in files.rows] == rows
