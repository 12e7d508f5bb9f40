from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import cnndeploy
from cnndeploy import certificate
from cnndeploy.artifact import Artifact
from cnndeploy.certificate import (
    Certification,
    SaturationWarning,
    certificate_path,
    certify,
    doubt_here,
    read_certificate,
    read_certificates,
    require_certificate,
)
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.errors import ArtifactError, InputMismatchError
from cnndeploy.machine import int8_may_saturate
from cnndeploy.quantization.quantize import Quantized
from cnndeploy.run import Run
from cnndeploy.verification.report import EquivalenceReport, FileIdentity
from helpers import Trained


@pytest.fixture(scope="module")
def report(trained: Trained) -> EquivalenceReport:
    return cnndeploy.verify(trained.onnx, trained.checkpoint, images=32)


def test_a_file_that_took_the_place_of_the_verified_one_gets_nothing_from_its_certificate(
    report: EquivalenceReport, trained: Trained, tmp_path: Path
) -> None:
    other = Path(shutil.copy(trained.onnx_image, tmp_path / "lenet.onnx"))
    for path in (other, tmp_path / "gone.onnx"):
        with pytest.raises(ArtifactError, match="is no longer the file that was verified"):
            certify(report, path, "cnndeploy verify")
        assert not certificate_path(path).exists()
    shutil.copy(trained.onnx, other)
    assert certify(report, other, "cnndeploy verify").outcome == "written"
    shutil.copy(trained.onnx_image, other)
    assert read_certificate(Artifact.open(other)) is None
    with pytest.raises(ArtifactError, match="has no certificate"):
        cnndeploy.load(other, require_verified=True)


def test_a_certificate_may_be_written_beside_a_file_that_is_still_to_be_moved(
    report: EquivalenceReport, trained: Trained, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(trained.onnx, tmp_path / "lenet.onnx"))
    assert certify(report, copy, "cnndeploy verify") == Certification("written", certificate_path(copy))
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


@pytest.fixture
def certified(report: EquivalenceReport, trained: Trained, tmp_path: Path) -> Path:
    """A file with a certificate on 32 images."""
    copy = Path(shutil.copy(trained.onnx, tmp_path / "lenet.onnx"))
    certify(report, copy, "cnndeploy verify")
    return copy


OTHER = FileIdentity("other/lenet.pt", "0" * 64)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": 31}, "Kept the certificate on 32 images by onnxruntime on cpu"),
        ({"artifact": FileIdentity("lenet.onnx", "0" * 64)}, "Kept the certificate on 32 images"),
        ({}, "(replaces the certificate on 32 images by onnxruntime on cpu)"),
        ({"images": 33}, "(replaces the certificate on 32 images by onnxruntime on cpu)"),
        ({"images": 1, "options": {"spinning": False}}, "this pass was on 1 image"),
        ({"images": 31, "data_sha256": {"photos": "1"}}, "this pass was on 31 images of another data set"),
        (
            {"data_sha256": {"photos": "1"}},
            "replaces the certificate on 32 images by onnxruntime on cpu, of another data set",
        ),
    ],
)
def test_a_pass_replaces_the_certificate_of_its_run_unless_that_is_on_more_images(
    changes: dict[str, Any], told: str, report: EquivalenceReport, certified: Path
) -> None:
    before, verdict = certificate_path(certified).read_text(), replace(report, **changes)
    done = certify(verdict, certified, "again")
    assert told in str(done)
    now = certificate_path(certified).read_text()
    if done.outcome == "kept":
        assert now == before
    else:
        assert json.loads(now)["images"] == verdict.images
        assert json.loads(now)["runtime"] == verdict.runtime


@pytest.mark.parametrize(
    ("changes", "outcome", "told"),
    [
        ({}, "removed", "Removed the certificate on 32 images by onnxruntime on cpu"),
        ({"images": 1}, "removed", "did not pass"),
        ({"device": "cuda:0"}, "kept", "this verification was by onnxruntime on cuda:0"),
        ({"options": {"spinning": False}}, "removed", "did not pass"),
        ({"against": OTHER}, "kept", "which is not the one that was given"),
        ({"runtime": "openvino"}, "kept", "this verification was by openvino on cpu"),
        ({"options": {"precision": "tf32"}}, "kept", "by onnxruntime on cpu, precision tf32"),
        ({"artifact": FileIdentity("lenet.onnx", "0" * 64)}, "kept", "of other bytes"),
    ],
)
def test_a_failure_removes_only_a_certificate_that_it_contradicts(
    changes: dict[str, Any], outcome: str, told: str, report: EquivalenceReport, certified: Path
) -> None:
    done = certify(replace(report, reasons=("why",), **changes), certified, "again")
    assert done.outcome == outcome
    assert told in str(done)
    assert str(certificate_path(certified)) in str(done)
    assert certificate_path(certified).exists() is (outcome == "kept")


def test_a_certificate_of_other_bytes_is_replaced_and_removed_with_a_word(
    report: EquivalenceReport, trained: Trained, certified: Path
) -> None:
    stale = certificate_path(certified).read_text().replace(report.artifact.sha256, "0" * 64)
    certificate_path(certified).write_text(stale)
    assert "replaces a certificate that is not of this file" in str(certify(report, certified, "again"))
    certificate_path(certified).write_text(stale)
    failed = certify(replace(report, against=OTHER, reasons=("why",)), certified, "again")
    assert "Removed a certificate that is not of this file" in str(failed)
    assert not certificate_path(certified).exists()


def test_the_wrong_checkpoint_leaves_the_certificate_and_is_named(
    cli: Callable[..., Result], report: EquivalenceReport, certified: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Checkpoint.untrained("lenet").save(tmp_path / "other" / "lenet.pt")
    certificate = certificate_path(certified).read_text()
    done = cli("verify", certified, "--against", other.path, "--json", tmp_path / "r.json")
    assert done.exit_code == 3
    assert certificate_path(certified).read_text() == certificate
    assert "Kept the certificate on 32 images" in done.output
    source, given = report.against.sha256[:8], other.sha256[:8]
    (reason,) = json.loads((tmp_path / "r.json").read_text())["reasons"]  # and none on what else differs
    assert (
        reason == f"it was exported from another checkpoint ({source}...), not from {other.path} ({given}...)"
    )
    cells = [line.split("│")[2].strip() for line in done.output.splitlines() if "│ against " in line]
    assert str(other.path).startswith(cells[0])
    assert cells[0] != "lenet.pt"


def test_the_command_keeps_the_certificate_on_more_images(
    cli: Callable[..., Result], trained: Trained, certified: Path
) -> None:
    certificate = certificate_path(certified).read_text()
    done = cli("verify", certified, "--against", trained.checkpoint, "--images", 1)
    assert done.exit_code == 0, done.output
    assert "Kept the certificate on 32 images" in done.output
    assert "this pass was on 1 image" in done.output
    assert certificate_path(certified).read_text() == certificate


def test_a_checkpoint_is_not_compared_with_itself(
    cli: Callable[..., Result], trained: Trained, tmp_path: Path
) -> None:
    first, second = (Path(shutil.copy(trained.checkpoint, tmp_path / name)) for name in ("a.pt", "b.pt"))
    done = cli("verify", first, "--against", second, "--images", 9, "--json", tmp_path / "r.json")
    assert done.exit_code == 2
    assert "compared with itself" in done.output
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_inspect_suggests_to_verify_only_what_can_be_verified(
    cli: Callable[..., Result], trained: Trained, edited: Callable[..., Path]
) -> None:
    foreign = edited(lambda model: model.ClearField("metadata_props"))
    for path, suggested in ((trained.checkpoint, False), (foreign, False), (trained.onnx_image, True)):
        assert ("cnndeploy verify" in cli("inspect", path).output) is suggested


def test_an_app_can_demand_a_number_of_images(certified: Path) -> None:
    for enough in (True, 1, 32):
        cnndeploy.load(certified, require_verified=enough).close()
    with pytest.raises(ArtifactError, match=r"verified on 32 images, and at least 33 are required"):
        cnndeploy.load(certified, require_verified=33)
    for wrong in (0, -1, 32.0, "yes"):
        with pytest.raises(InputMismatchError, match="a number of images"):
            cnndeploy.load(certified, require_verified=wrong)  # type: ignore[arg-type]
    path = certificate_path(certified)
    for images in (0, True, "32", None):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"images": images}))
        with pytest.raises(ArtifactError, match="has no certificate"):
            cnndeploy.load(certified, require_verified=True)


def test_the_error_names_the_run_of_the_certificate_that_is_there(certified: Path) -> None:
    only = "by openvino, only the certificate on 32 images by onnxruntime on cpu"
    with pytest.raises(ArtifactError, match=only):
        cnndeploy.load(certified, require_verified=True, runtime="openvino")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_no_certificate(trained: Trained, tmp_path: Path) -> None:
    path = Path(shutil.copy(trained.onnx, tmp_path / "lenet.onnx"))
    os.mkfifo(certificate_path(path))
    assert read_certificate(Artifact.open(path)) is None


@pytest.mark.parametrize(
    "changes", [{"runtime": "openvino"}, {"options": {"precision": "tf32"}}, {"device": "cuda:0"}]
)
def test_each_runtime_has_a_certificate_of_its_own(
    changes: dict[str, Any], cli: Callable[..., Result], report: EquivalenceReport, certified: Path
) -> None:
    other = replace(report, images=1, **changes)
    done = certify(other, certified, "again")
    assert (done.outcome, done.earlier) == ("written", "")
    both = read_certificates(Artifact.open(certified))
    assert [one["images"] for one in both] == [1, 32]
    cnndeploy.load(certified, require_verified=32).close()
    shown = cli("inspect", certified).output
    assert shown.count("equivalent to") == 2
    assert len(json.loads(cli("inspect", certified, "--json").output)["certificates"]) == 2
    failed = certify(replace(other, reasons=("why",)), certified, "again")
    assert failed.outcome == "removed"
    assert [one["images"] for one in read_certificates(Artifact.open(certified))] == [32]
    assert certify(replace(report, reasons=("why",)), certified, "again").outcome == "removed"
    assert not certificate_path(certified).exists()


def test_load_insists_on_the_certificate_of_the_runtime_that_it_opens(
    report: EquivalenceReport, certified: Path
) -> None:
    with pytest.raises(ArtifactError, match="by openvino, only the certificate on 32 images by onnxruntime"):
        cnndeploy.load(certified, require_verified=True, runtime="openvino")
    certify(replace(report, runtime="openvino"), certified, "again")
    for runtime in ("openvino", "onnxruntime"):
        cnndeploy.load(certified, require_verified=True, runtime=runtime).close()
    certify(replace(report, runtime="openvino", reasons=("why",)), certified, "again")
    cnndeploy.load(certified, require_verified=True).close()
    with pytest.raises(ArtifactError, match="by openvino, only"):
        cnndeploy.load(certified, require_verified=True, runtime="openvino")


def test_a_certificate_of_one_device_vouches_for_no_other(report: EquivalenceReport, certified: Path) -> None:
    artifact, on_cuda = Artifact.open(certified), Run("onnxruntime", "cuda:1")
    with pytest.raises(ArtifactError, match="by onnxruntime on cuda:1, only the certificate on 32 images"):
        require_certificate(artifact, on_cuda, 1)
    certify(replace(report, device="cuda:0"), certified, "again")
    require_certificate(artifact, on_cuda, 32)
    require_certificate(artifact, Run("onnxruntime"), 32)


def test_a_certificate_of_before_there_were_several_is_read_and_kept(
    report: EquivalenceReport, certified: Path
) -> None:
    before = json.loads(certificate_path(certified).read_text())
    assert "others" not in before
    certify(replace(report, runtime="openvino"), certified, "again")
    assert json.loads(certificate_path(certified).read_text())["others"] == [before]


def test_verifications_that_end_together_lose_no_certificate(
    report: EquivalenceReport, certified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = certificate._existing_certificates

    def slowly(path: Any) -> Any:
        certificates = read(path)
        time.sleep(0.3)
        return certificates

    monkeypatch.setattr(certificate, "_existing_certificates", slowly)
    with ThreadPoolExecutor(2) as pool:
        verdicts = [replace(report, runtime=runtime) for runtime in ("openvino", "other")]
        list(pool.map(lambda verdict: certify(verdict, certified, "again"), verdicts))
    runtimes = {one["runtime"] for one in read_certificates(Artifact.open(certified))}
    assert runtimes == {"onnxruntime", "openvino", "other"}
    assert {path.name for path in certified.parent.iterdir()} == {
        certified.name,
        certificate_path(certified).name,
    }


def test_int8_on_a_processor_that_may_saturate_is_doubted_unless_it_was_verified_there(
    int8: Quantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(int8.artifact.path, tmp_path / "a.onnx"))
    flags = "fpu avx2 avx512f avx512bw"
    monkeypatch.setattr("cnndeploy.machine._proc_entry", lambda _, name: flags if name == "flags" else "Z80")
    monkeypatch.setattr("cnndeploy.certificate.int8_may_saturate", int8_may_saturate.__wrapped__)
    for vnni in (True, False):
        flags = f"{flags} avx512_vnni" if vnni else "fpu avx2"
        with contextlib.nullcontext() if vnni else pytest.warns(SaturationWarning, match="has no VNNI"):
            cnndeploy.load(path, threads=1).close()
    certificate = json.loads(certificate_path(int8.artifact.path).read_text())
    certificate["environment"]["cpu"] = "Z80"
    certificate_path(path).write_text(json.dumps(certificate))
    cnndeploy.load(path, threads=1).close()
    odd: Any
    for odd in (None, [], {"cpu": 1}):
        certificate_path(path).write_text(json.dumps(certificate | {"environment": odd}))
        assert "no VNNI" in doubt_here(Artifact.open(path), Run("onnxruntime"))
    assert doubt_here(Artifact.open(path), Run("onnxruntime", "cuda:0")) == ""
