from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import cnndeploy
from cnndeploy import artifact as artifact_module
from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.errors import ArtifactError, DataError, DeviceUnavailableError, NotEquivalentError, Stopped
from cnndeploy.exporters import export
from cnndeploy.progress import Deadline
from cnndeploy.run import Run
from cnndeploy.serial import dumps, structure
from cnndeploy.verification.reference import AS_IT_IS, Computation, Runner
from cnndeploy.verification.report import EquivalenceReport
from cnndeploy.verification.verify import BATCH_SIZES, _batches, verify
from edits import edit_manifest
from helpers import Trained

POPEN = subprocess.Popen
Edited = Callable[[Callable[[onnx.ModelProto], None]], Path]


@pytest.mark.slow
@pytest.mark.parametrize("model_format", ["onnx", "torchscript", "checkpoint"])
def test_all_test_images_in_all_batch_sizes(model_format: str, trained: Trained) -> None:
    done: list[tuple[int, int]] = []
    report = verify(
        trained.file_of(model_format), trained.checkpoint, progress=lambda *now: done.append(now[:2])
    )
    assert report.equivalent
    report.require()
    assert report.images == 10_000
    assert set(BATCH_SIZES) <= set(report.batch_sizes)
    assert report.top1_agreement == 1.0
    assert done[-1][0] == done[-1][1] > 30_000  # both sides, and float64
    assert report.artifact.sha256 == Artifact.open(trained.file_of(model_format)).sha256


@pytest.mark.slow
def test_the_report_survives_json(trained: Trained) -> None:
    report = verify(trained.onnx, trained.checkpoint, images=5)
    assert structure(EquivalenceReport, json.loads(dumps(report.to_dict()))) == report
    failed = replace(report, max_abs_error=None, reasons=("why",))
    assert structure(EquivalenceReport, json.loads(dumps(failed.to_dict()))) == failed


def _weights(model: onnx.ModelProto, name: str) -> tuple[onnx.TensorProto, np.ndarray]:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return tensor, numpy_helper.to_array(tensor).copy()


def one_weight_changed(model: onnx.ModelProto) -> None:
    tensor, values = _weights(model, "features.0.weight")
    values[2, 0, 1, 3] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def channels_swapped(model: onnx.ModelProto) -> None:
    tensor, values = _weights(model, "classifier.5.weight")
    values[[1, 7]] = values[[7, 1]]
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (one_weight_changed, "beyond the tolerance"),
        (channels_swapped, "labels differ"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_differs_raises_where_that_is_required(
    edit: Callable[[onnx.ModelProto], None], reason: str, trained: Trained, edited: Edited
) -> None:
    report = verify(edited(edit), trained.checkpoint, images=13)
    assert not report.equivalent
    with pytest.raises(NotEquivalentError, match=reason) as caught:
        report.require()
    assert caught.value.report is report


@pytest.mark.slow
def test_an_untouched_copy_is_not_rejected(trained: Trained, edited: Edited) -> None:
    assert verify(edited(lambda model: None), trained.checkpoint, images=13).equivalent


def test_the_file_of_another_checkpoint_is_rejected(trained: Trained, tmp_path: Path) -> None:
    other = Checkpoint.untrained("lenet").save(tmp_path / "other.pt")
    report = verify(trained.onnx, other.path, images=13)
    assert any("exported from another checkpoint" in reason for reason in report.reasons)
    assert report.images == 0


@pytest.mark.slow
def test_nan_on_both_sides_is_rejected(trained: Trained, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(trained.checkpoint)
    weights = {name: value.clone() * float("nan") for name, value in checkpoint.weights.items()}
    path = Checkpoint(weights, checkpoint.manifest).save(tmp_path / "nan.pt").path
    assert "NaN" in verify(path, path, images=13).reasons[0]


def test_only_a_checkpoint_is_a_reference(trained: Trained) -> None:
    with pytest.raises(ArtifactError, match="name the checkpoint it came from instead"):
        verify(trained.onnx, trained.torchscript)


def test_the_device_is_never_another(trained: Trained) -> None:
    with pytest.raises(DeviceUnavailableError):
        verify(trained.onnx, trained.checkpoint, run=Run(device="cuda:99"))


def test_more_images_than_there_are(trained: Trained) -> None:
    with pytest.raises(DataError, match="10000"):
        verify(trained.onnx, trained.checkpoint, images=10_001)


def test_a_file_without_manifest_is_refused(trained: Trained, edited: Edited) -> None:
    with pytest.raises(ArtifactError, match="carries no cnndeploy manifest"):
        verify(edited(lambda model: model.ClearField("metadata_props")), trained.checkpoint, images=13)


def test_every_image_is_compared_once_and_in_order() -> None:
    batches = list(_batches(700, BATCH_SIZES))
    assert [number for batch in batches for number in batch] == list(range(700))
    assert [len(batch) for batch in batches] == [*BATCH_SIZES, *BATCH_SIZES, 1, 2, 3, 7, 700 - 2 * 333 - 13]


def test_a_file_that_is_replaced_meanwhile_is_rejected(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "lenet.onnx"
    path.write_bytes(trained.onnx.read_bytes())

    def replace_it(done: int, total: int, _text: str) -> None:
        if done == total:
            path.write_bytes(trained.torchscript.read_bytes())

    report = verify(path, trained.checkpoint, images=13, progress=replace_it)
    assert any("was replaced while it was verified" in reason for reason in report.reasons)


@pytest.mark.slow
def test_an_artifact_opened_earlier_and_replaced_since_is_rejected(
    trained: Trained, tmp_path: Path, edited: Edited
) -> None:
    path = tmp_path / "lenet.onnx"
    path.write_bytes(trained.onnx.read_bytes())
    artifact = Artifact.open(path)
    path.write_bytes(edited(one_weight_changed).read_bytes())
    report = verify(artifact, trained.checkpoint, images=13)
    assert not report.equivalent
    assert any("was replaced" in reason for reason in report.reasons)


@pytest.mark.slow
def test_a_false_claim_about_training_is_rejected(trained: Trained, edited: Edited) -> None:
    path = edited(lambda model: edit_manifest(model, training={"test_accuracy": 0.999}))
    (reason,) = verify(path, trained.checkpoint, images=13).reasons
    assert "the manifests differ: training." in reason


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
@pytest.mark.field
def test_alexnet_is_verified_within_2_gib(tmp_path: Path) -> None:
    """The largest peak of the processes that run the two sides; 333 images use every batch size once.

    In float64 one batch is run, which takes as much memory as all of them would.
    They are the children of a small process: a peak counts from the fork on, and pytest's own is higher.
    """
    script = (
        "import resource, sys, cnndeploy\n"
        "from cnndeploy.verification import reference, verify\n"
        "verify.ORACLE_IMAGES = reference._FLOAT64_BATCH\n"
        "assert cnndeploy.verify(sys.argv[1], sys.argv[2], images=333).equivalent\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    checkpoint = Checkpoint.untrained("alexnet").save(tmp_path / "alexnet.pt").path
    artifact = export(checkpoint, "onnx").path
    done = subprocess.run(
        [sys.executable, "-c", script, artifact, checkpoint], capture_output=True, text=True, check=True
    )
    assert 2**18 < int(done.stdout) < 2 * 2**20  # KiB; the weights alone take 0.7 of the lower bound


@pytest.mark.slow
def test_answers_that_were_left_over_are_not_taken_for_others(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a batch of the wrong shape the worker still has answers to give; the next request gets its own."""
    logits = Runner.logits

    def too_few_classes(self: Runner, batches: Any, computation: Computation = AS_IT_IS) -> Any:
        return (values[:, :3] for values in logits(self, batches, computation))

    with cnndeploy.Reference(trained.checkpoint) as reference:
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "logits", too_few_classes)
            with pytest.raises(ArtifactError, match="cannot be run"):
                reference.logits(range(128))
        later = reference.logits(range(200, 264))
    with cnndeploy.Reference(trained.checkpoint) as reference:
        assert np.array_equal(later, reference.logits(range(200, 264)))


@pytest.mark.slow
@pytest.mark.usefixtures("real_workers")
def test_many_files_are_held_against_one_run_of_the_checkpoint(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint's worker starts once, and computes each image once in each precision."""
    ran: list[tuple[str, str, int]] = []
    logits = Runner.logits

    def counting(self: Runner, batches: Any, computation: Computation = AS_IT_IS) -> Any:
        images = sum(map(len, batches))
        ran.append((self.candidate.artifact.format, computation.precision, images))
        return logits(self, batches, computation)

    monkeypatch.setattr(Runner, "logits", counting)
    with cnndeploy.Reference(trained.checkpoint) as reference:
        for path in (trained.onnx, trained.torchscript, trained.onnx):
            assert verify(path, reference, images=64).equivalent
        few = verify(trained.onnx, reference, images=7)
    assert [run[1:] for run in ran if run[0] == "checkpoint"] == [("float32", 64), ("float64", 64)]
    assert few.equivalent
    assert few.images == 7


@pytest.mark.slow
def test_a_reference_that_knows_its_logits_needs_no_worker(trained: Trained) -> None:
    with cnndeploy.Reference(trained.checkpoint) as reference:
        first = reference.logits(range(5))
        reference.release()
        assert reference._runner is None
        assert np.array_equal(reference.logits([4, 0]), first[[4, 0]])
        assert reference._runner is None
        assert len(reference.labels(6)) == 6  # one image more
        assert reference._runner is not None


@pytest.mark.slow
def test_what_a_reference_computed_before_it_was_stopped_is_not_lost(trained: Trained) -> None:
    stops = iter([False, True])
    with cnndeploy.Reference(trained.checkpoint) as reference:
        with pytest.raises(Stopped):
            reference.labels(640, deadline=Deadline(should_stop=lambda: next(stops)))
        known = int(reference._memory(AS_IT_IS)[1].sum())
        assert 0 < known < 640
        done: list[int] = []
        reference.labels(640, progress=lambda now, _total, _text: done.append(now))
        assert done[0] == known


@pytest.mark.slow
def test_a_passing_verification_opens_and_hashes_each_file_twice(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    sha256_of = artifact_module.sha256_of

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(artifact_module, "sha256_of", counting)
    assert verify(trained.onnx, trained.checkpoint, images=5).equivalent
    assert sorted(hashed) == sorted([trained.onnx.name, trained.checkpoint.name] * 2)
    worker = (
        "import cnndeploy.artifact as artifact\n"
        "artifact.sha256_of = None\n"  # the worker is told what was opened, and hashes nothing
        "from cnndeploy.verification import worker\n"
        "worker.main('it')\n"
    )
    monkeypatch.setattr(
        "cnndeploy.process.subprocess.Popen",
        lambda command, **more: POPEN([*command[:2], "-c", worker], **more),
    )
    assert verify(trained.onnx, trained.checkpoint, images=5).equivalent
