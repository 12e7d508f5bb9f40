from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.certificate import certificate_path, certify, read_certificate
from cnndeploy.errors import ArtifactError
from cnndeploy.verification.report import EquivalenceReport, FileIdentity
from helpers import Trained


@pytest.fixture(scope="module")
def report(trained: Trained) -> EquivalenceReport:
    return cnndeploy.verify(trained.onnx, trained.checkpoint, images=32)


def test_a_file_that_took_the_place_of_the_verified_one_gets_nothing_from_its_certificate(
    report: EquivalenceReport, trained: Trained, tmp_path: Path
) -> None:
    other = Path(shutil.copy(trained.onnx_image, tmp_path / "lenet.onnx"))
    certify(report, other, "cnndeploy verify")
    assert read_certificate(Artifact.open(other)) is None
    with pytest.raises(ArtifactError, match="has no certificate"):
        cnndeploy.load(other, require_verified=True)


def test_a_certificate_may_be_written_beside_a_file_that_is_still_to_be_moved(
    report: EquivalenceReport, trained: Trained, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(trained.onnx, tmp_path / "lenet.onnx"))
    assert certify(report, copy, "cnndeploy verify") == certificate_path(copy)
    certificate = read_certificate(Artifact.open(copy))
    assert certificate is not None
    assert FileIdentity(**certificate["artifact"]) == report.artifact


@pytest.mark.parametrize("options", [None, {"x": 1}, ["precision"], {"precision": "bfloat16"}])
def test_a_certificate_with_strange_options_is_of_no_use(
    options: object, report: EquivalenceReport, trained: Trained, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(trained.onnx, tmp_path / "lenet.onnx"))
    certify(report, copy, "cnndeploy verify")
    path = certificate_path(copy)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"options": options}))
    with pytest.raises(ArtifactError, match="has no certificate"):
        cnndeploy.load(copy, require_verified=True)
