from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import helper, numpy_helper

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.certificate import Accuracy, certificate_path, certify, known_accuracy, read_certificate
from cnndeploy.datasets import fashion_mnist
from cnndeploy.errors import ArtifactError, BudgetError, QuantizationError
from cnndeploy.formats.onnx import MANIFEST_KEY
from cnndeploy.quantization.quantize import Quantized
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.serial import dumps, structure
from cnndeploy.verification import examination
from cnndeploy.verification.budget import _beyond_budget, verify_budget
from cnndeploy.verification.paired import paired_interval
from cnndeploy.verification.reference import AS_IT_IS, Runner
from cnndeploy.verification.report import BudgetReport
from helpers import Trained

IMAGES = 200
Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture
def lossy(int8: Quantized, tmp_path: Path) -> Callable[[Edit], Path]:
    """A copy of the int8 file after an edit."""

    def edit_and_save(edit: Edit) -> Path:
        model = onnx.load(int8.artifact.path)
        edit(model)
        path = tmp_path / "edited.int8.onnx"
        onnx.save(model, path)
        return path

    return edit_and_save


def _measure(path: Path, trained: Trained, **options: Any) -> BudgetReport:
    return verify_budget(path, trained.checkpoint, **{"budget": 20, "images": IMAGES, **options})


@pytest.mark.slow
def test_the_figures_are_those_of_the_two_files(int8: Quantized, trained: Trained) -> None:
    report = _measure(int8.artifact.path, trained)
    images = fashion_mnist.load("test").first(IMAGES)
    with cnndeploy.load(int8.artifact.path) as ours, cnndeploy.load(trained.checkpoint) as theirs:
        labels = [model.logits(images.images).argmax(axis=1) for model in (ours, theirs)]
    right = [each == images.labels for each in labels]
    assert (report.artifact_accuracy, report.checkpoint_accuracy) == (right[0].mean(), right[1].mean())
    assert (report.lost, report.gained) == ((right[1] & ~right[0]).sum(), (right[0] & ~right[1]).sum())
    assert report.top1_agreement == (labels[0] == labels[1]).mean()
    low, high = paired_interval(report.lost, report.gained, IMAGES)
    assert (report.loss_low_points, report.loss_high_points) == (100 * low, 100 * high)
    assert report.within_budget
    assert report.reasons == ()
    assert structure(BudgetReport, json.loads(dumps(report.to_dict()))) == report


@pytest.mark.slow
def test_the_budget_is_held_against_the_upper_end_not_the_point(int8: Quantized, trained: Trained) -> None:
    report = _measure(int8.artifact.path, trained)
    assert report.loss_points is not None
    assert report.loss_high_points is not None
    between = (max(0.0, report.loss_points) + report.loss_high_points) / 2
    strict = _measure(int8.artifact.path, trained, budget=between)
    assert not strict.within_budget
    assert "may lose up to" in strict.reasons[0]
    with pytest.raises(BudgetError, match="may lose up to") as caught:
        strict.require()
    assert caught.value.exit_code == 5


def test_labels_that_are_known_are_not_computed_again(int8: Quantized, trained: Trained) -> None:
    with cnndeploy.Reference(trained.checkpoint) as reference:
        wrong = (fashion_mnist.load("test").first(IMAGES).labels + 1) % 10
        rows, known = reference._memory(AS_IT_IS)
        rows[:IMAGES], known[:IMAGES] = np.eye(10)[wrong], True
        report = verify_budget(int8.artifact.path, reference, budget=20, images=IMAGES)
    assert report.checkpoint_accuracy == 0
    assert report.lost == 0


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf"), 101, True, "0.5"])
def test_what_is_no_budget_is_refused(int8: Quantized, trained: Trained, budget: Any) -> None:
    with pytest.raises(QuantizationError, match="percentage points"):
        _measure(int8.artifact.path, trained, budget=budget)


def test_a_float_file_has_no_budget_and_a_lossy_one_is_never_equivalent(
    int8: Quantized, trained: Trained
) -> None:
    with pytest.raises(ArtifactError, match="Use verify"):
        _measure(trained.onnx, trained)
    with pytest.raises(ArtifactError, match="verify_budget"):
        cnndeploy.verify(int8.artifact.path, trained.checkpoint, images=9)


@pytest.mark.slow
def test_a_float_file_run_in_bfloat16_has_a_budget(trained: Trained) -> None:
    options = RuntimeOptions(precision="bfloat16")
    try:
        report = _measure(trained.onnx, trained, run=Run("openvino", options=options))
    except cnndeploy.CnndeployError as error:
        pytest.skip(f"this processor or installation has no bfloat16 in OpenVINO: {error}")
    assert report.within_budget
    assert report.options == {"precision": "bfloat16"}
    assert 0.9 < report.top1_agreement <= 1


def _weights(model: onnx.ModelProto, layer: str, value: float) -> None:
    scale = next(each for each in model.graph.initializer if each.name == f"{layer}.weight_scale")
    scale.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(scale), value), scale.name))


def _random(model: onnx.ModelProto) -> None:
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "exact"
    noise = helper.make_node("RandomNormalLike", ["exact"], ["noise"], scale=1.0)
    model.graph.node.extend([noise, helper.make_node("Add", ["exact", "noise"], ["logits"])])


def _another_checkpoint(model: onnx.ModelProto) -> None:
    (entry,) = (each for each in model.metadata_props if each.key == MANIFEST_KEY)
    entry.value = json.dumps({**json.loads(entry.value), "checkpoint_sha256": "0" * 64})


def _batch_fixed(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda model: _weights(model, "classifier.5", float("nan")), "NaN or infinite"),
        (_random, "random is active"),
        (_another_checkpoint, "another checkpoint"),
        (_batch_fixed, "batch axis is fixed"),
        (lambda model: _weights(model, "features.0", 100.0), "may lose up to"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_no_pass(
    edit: Edit, reason: str, lossy: Callable[[Edit], Path], trained: Trained
) -> None:
    report = _measure(lossy(edit), trained)
    assert not report.within_budget
    assert reason in "; ".join(report.reasons)


def test_one_that_is_random_where_the_graph_does_not_say_so_is_seen(
    int8: Quantized, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shaky(Runner):
        asked = 0

        def logits(self, *arguments: Any, **options: Any) -> Any:
            Shaky.asked += 1
            return (each * (1 + 1e-3 * Shaky.asked) for each in super().logits(*arguments, **options))

    monkeypatch.setattr(examination, "Runner", Shaky)
    report = _measure(int8.artifact.path, trained)
    assert not report.within_budget
    assert "run again" in report.reasons[0]


@pytest.mark.slow
def test_a_file_replaced_meanwhile_is_no_pass(int8: Quantized, trained: Trained, tmp_path: Path) -> None:
    path = Path(shutil.copy(int8.artifact.path, tmp_path / "replaced.onnx"))
    report = _measure(path, trained, progress=lambda *_: path.write_bytes(b"other"))
    assert not report.within_budget
    assert "was replaced" in "; ".join(report.reasons)


def test_nothing_compared_is_no_pass(int8: Quantized, trained: Trained) -> None:
    nothing = replace(int8.report, images=0)
    assert not nothing.within_budget
    with pytest.raises(BudgetError, match="nothing was compared"):
        nothing.require()
    undecided = BudgetReport.undecided(int8.artifact.path, trained.checkpoint, "why", budget_points=0.5)
    assert not undecided.within_budget
    assert structure(BudgetReport, json.loads(dumps(undecided.to_dict()))) == undecided


@pytest.mark.slow
def test_verify_measures_the_budget_of_a_lossy_file(
    cli: Callable[..., Result], int8: Quantized, trained: Trained, tmp_path: Path
) -> None:
    path = Path(shutil.copy(int8.artifact.path, tmp_path / "lenet.int8.onnx"))
    arguments = ("verify", path, "--against", trained.checkpoint, "--images", IMAGES)
    passed = cli(*arguments, "--junit", tmp_path / "pass.xml")
    assert passed.exit_code == 0, passed.output
    assert "paired 95% interval" in passed.output
    assert 'failures="0"' in (tmp_path / "pass.xml").read_text()
    content = json.loads(certificate_path(path).read_text())
    assert (content["verdict"], content["equivalent"], content["within_budget"]) == (
        "within budget",
        False,
        True,
    )
    assert content["budget_points"] == 20  # of the manifest
    assert "within its budget of 20" in cli("inspect", path).output
    cnndeploy.load(path, require_verified=True).close()

    failed = cli(*arguments, "--budget", 0.01, "--json", tmp_path / "r.json", "--junit", tmp_path / "f.xml")
    assert failed.exit_code == 5
    assert json.loads((tmp_path / "r.json").read_text())["within_budget"] is False
    assert 'message="not within budget"' in (tmp_path / "f.xml").read_text()
    assert "Kept the certificate on 200 images" in failed.output
    assert "the loss is within its own budget of 20 points" in failed.output
    cnndeploy.load(path, require_verified=True).close()


def test_verify_refuses_what_does_not_go_together(
    cli: Callable[..., Result], int8: Quantized, trained: Trained
) -> None:
    budget = cli("verify", trained.onnx, "--against", trained.checkpoint, "--budget", 1)
    assert (budget.exit_code, "computes in float32" in budget.output) == (2, True)
    tf32 = cli("verify", int8.artifact.path, "--against", trained.checkpoint, "--precision", "tf32")
    assert (tf32.exit_code, "is lossy" in tf32.output) == (2, True)


def _figures(images: int, low: float, loss: float, high: float) -> dict[str, Any]:
    return {"images": images, "loss_low_points": low, "loss_points": loss, "loss_high_points": high}


@pytest.mark.parametrize(
    ("figures", "words", "more"),
    [
        (_figures(500, -0.9, -0.2, 0.56), "it gains 0.20 percentage points of accuracy on 500 images", True),
        (_figures(500, 0.1, 0.8, 1.5), "it loses 0.80 percentage points of accuracy on 500 images", True),
        (
            _figures(1, 0.0, 0.0, 95.0),
            "1 image is too few to say whether it keeps the budget of 0.5: it ",
            True,
        ),
        (_figures(500, 0.6, 0.8, 1.5), "may lose up to 1.50, beyond the budget of 0.5", False),
        (_figures(10_000, 0.3, 0.4, 0.6), "may lose up to 0.60, beyond the budget of 0.5", False),
    ],
)
def test_more_images_are_advised_before_a_larger_budget_if_they_may_do(
    figures: dict[str, Any], words: str, more: bool, int8: Quantized
) -> None:
    (reason,) = _beyond_budget(replace(int8.report, budget_points=0.5, **figures), 10_000)
    assert words in reason
    assert ("more of the 10,000 images before you allow a larger budget" in reason) is more
    assert ("too few to say" in reason, "beyond the budget" in reason) == (more, not more)


def test_a_loss_within_the_budget_is_no_reason(int8: Quantized) -> None:
    assert (
        _beyond_budget(replace(int8.report, budget_points=0.5, **_figures(500, 0.1, 0.3, 0.5)), 10_000) == []
    )


@pytest.mark.parametrize(
    ("images", "high", "outcome"),
    [(319, 25.0, "kept"), (320, 25.0, "removed"), (320, 19.9, "kept"), (0, 19.9, "removed")],
)
def test_a_failure_takes_only_a_certificate_away_that_it_contradicts(
    images: int, high: float, outcome: str, int8: Quantized, tmp_path: Path
) -> None:
    """The certificate is within a budget of 20 points, on 320 images."""
    path = Path(shutil.copy(int8.artifact.path, tmp_path / "lenet.int8.onnx"))
    certify(int8.report, path, "")
    failed = replace(
        int8.report, images=images, budget_points=0.01, loss_high_points=high, reasons=("beyond the budget",)
    )
    assert certify(failed, path, "").outcome == outcome


def test_a_lossy_file_shows_its_own_accuracy_or_none(
    cli: Callable[..., Result], int8: Quantized, trained: Trained, tmp_path: Path
) -> None:
    path = Path(shutil.copy(int8.artifact.path, tmp_path / "lenet.int8.onnx"))
    report = replace(int8.report, artifact_accuracy=0.1234, checkpoint_accuracy=0.2345)
    stated = int8.artifact.require_manifest().training["test_accuracy"]

    def shown() -> tuple[list[float | None], float | None, str]:
        rows = cnndeploy.bench([trained.onnx, path], seconds=0.05, cold_starts=0).results
        inspected = json.loads(cli("inspect", path, "--json").output)["accuracy"]
        return [row.accuracy for row in rows], inspected, cli("inspect", path).output

    rows, inspected, table = shown()
    assert (rows, inspected) == ([stated, None], None)
    assert f"not measured (checkpoint {stated:.4f})" in table
    certify(report, path, "")
    rows, inspected, table = shown()
    assert (rows, inspected) == ([stated, 0.1234], 0.1234)
    assert "0.1234 (checkpoint 0.2345) on 320 images" in table
    other = known_accuracy(Artifact.open(path), Run("openvino", "cpu"))
    assert other is None, "it rounds elsewhere, so its accuracy may be another"


def test_a_float_file_run_in_bfloat16_has_not_its_checkpoints_accuracy(trained: Trained) -> None:
    artifact, options = Artifact.open(trained.onnx), RuntimeOptions(precision="bfloat16")
    assert known_accuracy(artifact, Run("openvino", "cpu", options=options)) is None
    stated = artifact.require_manifest().training["test_accuracy"]
    assert known_accuracy(artifact, Run("openvino", "cpu")) == Accuracy(stated, 8000)


@pytest.mark.slow
def test_a_lossy_file_is_never_certified_as_equivalent(
    int8: Quantized, trained: Trained, tmp_path: Path
) -> None:
    path = Path(shutil.copy(int8.artifact.path, tmp_path / "lenet.int8.onnx"))
    passed = cnndeploy.verify(trained.onnx, trained.checkpoint, images=3)
    claimed = replace(passed, artifact=int8.report.artifact)
    certify(claimed, path, "")
    assert read_certificate(Artifact.open(path)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "equivalent", "equivalent": True},
        {"loss_high_points": None},
        {"loss_high_points": 21.0},
        {"within_budget": False},
        {"images": 0},
        {"artifact": {"path": "", "sha256": "0" * 64}},
    ],
)
def test_a_certificate_that_contradicts_itself_is_none(
    int8: Quantized, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = Path(shutil.copy(int8.artifact.path, tmp_path / "lenet.int8.onnx"))
    artifact = Artifact.open(path)
    assert certify(int8.report, path, "").outcome == "written"
    assert read_certificate(artifact) is not None
    content = json.loads(certificate_path(path).read_text())
    certificate_path(path).write_text(json.dumps({**content, **change}))
    assert read_certificate(artifact) is None


def test_a_run_with_options_is_no_pass_of_a_run_without(trained: Trained, tmp_path: Path) -> None:
    path = Path(shutil.copy(trained.onnx, tmp_path / "lenet.onnx"))
    sha256 = Artifact.open(path).sha256
    figures: dict[str, Any] = {
        "images": 9,
        "loss_points": 0.0,
        "loss_low_points": -0.1,
        "loss_high_points": 0.1,
    }
    identity = {"artifact": replace(_identity(path), sha256=sha256), "against": _identity(trained.checkpoint)}
    report = BudgetReport(
        **identity,
        **figures,
        runtime="onnxruntime",
        device="cpu",
        threads=1,
        budget_points=1.0,
        reasons=(),
        options={"precision": "bfloat16"},
    )
    assert certify(report, path, "").outcome == "written"
    assert read_certificate(Artifact.open(path)) is not None
    with pytest.raises(ArtifactError, match="no certificate"):
        cnndeploy.load(path, require_verified=True)
    assert certify(replace(report, options={}), path, "").outcome == "written"
    with pytest.raises(
        ArtifactError, match="no certificate"
    ):  # within a budget is nothing for a float file as it is
        cnndeploy.load(path, require_verified=True)


def _identity(path: Path) -> Any:
    from cnndeploy.verification.report import FileIdentity

    return FileIdentity(str(path), Artifact.open(path).sha256)


def test_a_wider_budget_does_not_replace_a_smaller_one(int8: Quantized, tmp_path: Path) -> None:
    path = Path(shutil.copy(int8.artifact.path, tmp_path / "lenet.int8.onnx"))
    certify(int8.report, path, "")
    wider = certify(replace(int8.report, budget_points=30.0), path, "")
    assert (wider.outcome, wider.reason) == ("kept", "its budget of 20 points is smaller than 30")
    smaller = replace(int8.report, budget_points=int8.report.loss_high_points or 0.0)
    assert certify(smaller, path, "").outcome == "written"
