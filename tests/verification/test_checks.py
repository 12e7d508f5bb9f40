"""The single checks: oracle, decisions, batch invariance, certificate."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import Result

from cnndeploy.artifact import Artifact
from cnndeploy.certificate import certificate_path, certify, read_certificate
from cnndeploy.verification.checks import (
    FLOOR,
    LIMIT,
    check_against_oracle,
    check_invariance,
    decide,
    mcnemar,
    probes,
)
from helpers import Trained

EXACT = np.random.default_rng(0).normal(size=(2000, 10)) * 5


def _rounded(error: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=EXACT.shape)
    largest = np.abs(EXACT).max(axis=1, keepdims=True)
    return np.asarray(EXACT + noise * error * largest, np.float32)


@pytest.mark.parametrize(("error", "passes"), [(1e-6, True), (2e-6, True), (6e-6, False), (1e-3, False)])
def test_errors_are_held_against_eagers_own(error: float, passes: bool) -> None:
    check = check_against_oracle(_rounded(error, 1), _rounded(1e-6, 2), EXACT, seed=0)
    assert (check.reasons() == []) is passes
    assert check.ratio == pytest.approx(error / 1e-6, rel=0.5)


def test_one_bad_image_in_two_thousand_is_seen() -> None:
    artifact = _rounded(1e-6, 1)
    artifact[1234, 3] += 1e-3
    assert check_against_oracle(artifact, _rounded(1e-6, 2), EXACT, seed=0).reasons() != []


def test_an_eager_run_without_error_is_no_yardstick() -> None:
    eager = EXACT.astype(np.float32)
    check = check_against_oracle(np.nextafter(eager, np.float32(99)), eager, eager.astype(np.float64), 0)
    assert check.eager_max == 0
    assert check.ratio == pytest.approx(check.artifact_max / FLOOR)
    assert check.ratio <= 1
    assert check.reasons() == []


def test_a_sound_file_may_err_by_some_roundings() -> None:
    """OpenVINO errs so for convnext_tiny, for which eager happens to err little."""
    check = check_against_oracle(_rounded(4e-7, 1), _rounded(6e-8, 2), EXACT, seed=0)
    assert check.artifact_max > 4 * check.eager_max
    assert check.reasons() == []


def test_one_image_on_which_eager_errs_excuses_no_error_on_all() -> None:
    eager = _rounded(1e-6, 2)
    eager[7, 0] += 0.1
    sample = slice(0, 256)  # of which the 99.9th percentile is all but the maximum
    as_float16 = _rounded(5e-4, 1)
    check = check_against_oracle(as_float16[sample], eager[sample], EXACT[sample], seed=0)
    assert check.ratio < LIMIT
    assert check.typical_ratio > 100
    assert re.search("on the median image is .* times", check.reasons()[0])


def test_nan_is_no_pass() -> None:
    assert check_against_oracle(_rounded(math.nan, 1), _rounded(1e-6, 2), EXACT, seed=0).reasons() != []


def test_decisions_known_answer() -> None:
    checkpoint = np.array([[3, 1, 0], [2, 1.9, 0], [0, 1, 5], [4, 0, 0]], np.float32)
    artifact = np.array([[3, 1.1, 0], [1.8, 2.0, 0], [0, 1, 5], [0, 5, 0]], np.float32)
    decisions = decide(artifact, checkpoint, np.array([0, 1, 2, 0], np.uint8))
    assert decisions.flipped == (1, 3)
    assert decisions.certified == 2  # images 0 and 2: twice the error is below the margin
    assert decisions.artifact_accuracy == 0.75
    assert decisions.checkpoint_accuracy == 0.75
    assert decisions.mcnemar_p == 1.0


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(0, 0, 1.0), (1, 1, 1.0), (0, 5, 2 / 32), (1, 7, 2 * 9 / 256), (10, 0, 2 / 1024)],
)
def test_mcnemar_is_the_binomial_test(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p)


@pytest.mark.parametrize("images", [1, 2, 7, 63, 64, 1000])
def test_probes_hold_each_image_alone_first_and_last(images: int) -> None:
    batches = probes(images)
    assert all(len(set(batch)) == len(batch) and max(batch) < images for batch in batches)
    rows = {batch[0] for batch in batches if len(batch) == 1}
    assert len(rows) == min(3, images)
    assert all(batches.count([row]) == 2 for row in rows)
    for row in rows:
        for size in (size for size in (2, 7, 64) if size <= images):
            places = {
                batch.index(row) for batch in batches if len(batch) == size and row in (batch[0], batch[-1])
            }
            assert {0, size - 1} <= places


def test_a_model_that_looks_at_its_neighbours_is_seen() -> None:
    values = np.random.default_rng(0).normal(size=(100, 10)).astype(np.float32)
    batches = probes(100)
    honest = check_invariance(batches, [values[batch] for batch in batches], limit=1e-5)
    assert honest.reasons() == []
    assert (honest.rows, honest.batch_sizes) == (3, (2, 7, 64))
    assert honest.max_rel_spread == honest.max_rel_repeat_spread == 0
    leaking = [values[batch] + np.float32(1e-3) * values[batch].mean(axis=0) for batch in batches]
    assert "depend on its batch" in check_invariance(batches, leaking, limit=1e-5).reasons()[0]


@pytest.mark.slow
def test_the_certificate_is_written_on_a_pass_and_removed_on_a_failure(
    cli: Callable[..., Result], trained: Trained, tmp_path: Path, edited: Callable[..., Path]
) -> None:
    path = tmp_path / "lenet.onnx"
    path.write_bytes(trained.onnx.read_bytes())
    passed = cli(
        "verify", path, "--against", trained.checkpoint, "--images", 9, "--junit", tmp_path / "pass.xml"
    )
    assert passed.exit_code == 0, passed.output
    content = json.loads(certificate_path(path).read_text())
    assert content["equivalent"] is True
    assert content["artifact"]["sha256"] == Artifact.open(path).sha256
    assert content["against"]["sha256"] == Artifact.open(trained.checkpoint).sha256
    assert content["environment"]["versions"]["torch"]
    assert content["date"]
    assert ElementTree.parse(tmp_path / "pass.xml").getroot().get("failures") == "0"  # noqa: S314 - our own file
    assert "equivalent to" in cli("inspect", path).output

    def drop_a_bias(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == "features.3.bias")
        tensor.raw_data = bytes(len(tensor.raw_data))

    path.write_bytes(edited(drop_a_bias).read_bytes())
    assert read_certificate(Artifact.open(path)) is None  # another file's
    assert "none for this file" in cli("inspect", path).output
    failed = cli(
        "verify", path, "--against", trained.checkpoint, "--images", 9, "--junit", tmp_path / "fail.xml"
    )
    assert failed.exit_code == 3
    assert not certificate_path(path).exists()
    assert "Removed a certificate that is not of this file" in failed.output
    failure = ElementTree.parse(tmp_path / "fail.xml").getroot().find("testcase/failure")  # noqa: S314
    assert failure is not None
    assert "beyond" in (failure.text or "")


@pytest.mark.slow
def test_a_verification_that_cannot_be_done_leaves_the_certificate_of_this_file(
    cli: Callable[..., Result], trained: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "lenet.onnx"
    path.write_bytes(trained.onnx.read_bytes())
    assert cli("verify", path, "--against", trained.checkpoint, "--images", 3).exit_code == 0
    assert cli("verify", path, "--against", tmp_path / "typo.pt").exit_code == 1
    assert read_certificate(Artifact.open(path)) is not None


def test_a_verification_that_cannot_be_done_removes_another_files_certificate(
    cli: Callable[..., Result], trained: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "lenet.onnx"
    path.write_bytes(b"damaged")
    certificate_path(path).write_text("{}")
    done = cli("verify", path, "--against", trained.checkpoint)
    assert done.exit_code == 1
    assert not certificate_path(path).exists()
    assert f"Removed a certificate that is not of this file, {certificate_path(path)}" in done.stderr


def test_only_a_pass_is_certified(trained: Trained, tmp_path: Path) -> None:
    from cnndeploy.verification.report import EquivalenceReport

    failed = EquivalenceReport.undecided(tmp_path / "a.onnx", trained.checkpoint, "why")
    assert certify(failed, tmp_path / "a.onnx", "").outcome == "none"
    assert list(tmp_path.iterdir()) == []
