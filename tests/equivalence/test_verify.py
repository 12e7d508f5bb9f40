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

from cnndeploy.artifact import Artifact
from cnndeploy.equivalence import BATCH_SIZES, _batches, verify
from cnndeploy.equivalence.report import EquivalenceReport
from cnndeploy.errors import ArtifactError, DataError, DeviceUnavailableError, NotEquivalentError
from cnndeploy.exporters import export
from cnndeploy.formats.onnx import MANIFEST_KEY
from cnndeploy.specs import Manifest
from cnndeploy.training.checkpoint import Checkpoint
from helpers import Trained

Edited = Callable[[Callable[[onnx.ModelProto], None]], Path]


@pytest.mark.slow
@pytest.mark.parametrize("model_format", ["onnx", "torchscript", "checkpoint"])
def test_all_test_images_in_all_batch_sizes(model_format: str, trained: Trained) -> None:
    done: list[tuple[int, int]] = []
    report = verify(trained.file_of(model_format), trained.checkpoint, on_batch=lambda *at: done.append(at))
    assert report.equivalent
    report.require()
    assert report.images == 10_000
    assert set(BATCH_SIZES) <= set(report.batch_sizes)
    assert report.top1_agreement == 1.0
    assert done[-1][0] == done[-1][1] > 30_000  # both sides, and float64
    assert report.artifact.sha256 == Artifact.open(trained.file_of(model_format)).sha256


def test_the_report_survives_json(trained: Trained) -> None:
    report = verify(trained.onnx, trained.checkpoint, images=5)
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert EquivalenceReport.from_json(text) == report
    failed = replace(report, max_abs_error=float("inf"), reasons=("why",))
    assert EquivalenceReport.from_json(json.dumps(failed.to_dict(), allow_nan=False)) == failed


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


def _edit_manifest(model: onnx.ModelProto, **changes: Any) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == MANIFEST_KEY)
    entry.value = replace(Manifest.from_json(entry.value), **changes).to_json()


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


def test_an_untouched_copy_is_not_rejected(trained: Trained, edited: Edited) -> None:
    assert verify(edited(lambda model: None), trained.checkpoint, images=13).equivalent


def test_the_file_of_another_checkpoint_is_rejected(trained: Trained, tmp_path: Path) -> None:
    other = Checkpoint.untrained("lenet").save(tmp_path / "other.pt")
    report = verify(trained.onnx, other.path, images=13)
    assert any("exported from another checkpoint" in reason for reason in report.reasons)
    assert report.images == 0


def test_nan_on_both_sides_is_rejected(trained: Trained, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(trained.checkpoint)
    weights = {name: value.clone() * float("nan") for name, value in checkpoint.weights.items()}
    path = Checkpoint(weights, checkpoint.manifest).save(tmp_path / "nan.pt").path
    assert "NaN" in verify(path, path, images=13).reasons[0]


def test_only_a_checkpoint_is_a_reference(trained: Trained) -> None:
    with pytest.raises(ArtifactError, match="verify against the checkpoint"):
        verify(trained.onnx, trained.torchscript)


def test_the_device_is_never_another(trained: Trained) -> None:
    with pytest.raises(DeviceUnavailableError):
        verify(trained.onnx, trained.checkpoint, device="cuda:99")


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

    def replace_it(done: int, total: int) -> None:
        if done == total:
            path.write_bytes(trained.torchscript.read_bytes())

    report = verify(path, trained.checkpoint, images=13, on_batch=replace_it)
    assert any("was replaced while it was verified" in reason for reason in report.reasons)


def test_an_artifact_opened_earlier_is_read_anew(trained: Trained, tmp_path: Path, edited: Edited) -> None:
    path = tmp_path / "lenet.onnx"
    path.write_bytes(trained.onnx.read_bytes())
    artifact = Artifact.open(path)
    path.write_bytes(edited(one_weight_changed).read_bytes())
    report = verify(artifact, trained.checkpoint, images=13)
    assert not report.equivalent
    assert report.artifact.sha256 != artifact.sha256


def test_a_false_claim_about_training_is_rejected(trained: Trained, edited: Edited) -> None:
    path = edited(lambda model: _edit_manifest(model, training={"test_accuracy": 0.999}))
    (reason,) = verify(path, trained.checkpoint, images=13).reasons
    assert "the manifests differ: training." in reason


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_alexnet_is_verified_within_2_gib(tmp_path: Path) -> None:
    """The largest peak of the processes that run the two sides; 333 images use every batch size once.

    They are the children of a small process: a peak counts from the fork on, and pytest's own is higher.
    """
    script = (
        "import resource, sys, cnndeploy\n"
        "assert cnndeploy.verify(sys.argv[1], sys.argv[2], images=333).equivalent\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    checkpoint = Checkpoint.untrained("alexnet").save(tmp_path / "alexnet.pt").path
    artifact = export(checkpoint, "onnx").path
    done = subprocess.run(
        [sys.executable, "-c", script, artifact, checkpoint], capture_output=True, text=True, check=True
    )
    assert 2**18 < int(done.stdout) < 2 * 2**20  # KiB; the weights alone take 0.7 of the lower bound
