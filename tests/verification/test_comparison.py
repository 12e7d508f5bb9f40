from __future__ import annotations

import numpy as np
import pytest

from cnndeploy.verification.checks import Comparison

LOGITS = np.array([[1.0, 4.0, -2.0], [0.5, -8.0, 3.0]], np.float32)


def _compare(actual: np.ndarray) -> Comparison:
    comparison = Comparison()
    assert comparison.add(LOGITS, actual) is None
    return comparison


def test_equal_logits_pass() -> None:
    comparison = _compare(LOGITS.copy())
    assert comparison.reasons() == []
    assert (comparison.images, comparison.max_abs_error, comparison.top1_agreement) == (2, 0.0, 1.0)


def test_errors_are_measured_against_the_images_largest_logit() -> None:
    actual = LOGITS.copy()
    actual[1, 0] += 0.25
    comparison = _compare(actual)
    assert comparison.max_abs_error == 0.25
    assert comparison.max_rel_error == 0.25 / 8
    assert comparison.first_beyond == 1
    assert "1 of 2 images are beyond the tolerance, first image 1" in comparison.reasons()[0]


def test_rounding_passes_and_ten_times_the_tolerance_does_not() -> None:
    assert _compare(LOGITS * np.float32(1 + 1e-6)).reasons() == []
    assert _compare(LOGITS * np.float32(1 + 3e-4)).reasons() != []


def test_labels_that_differ_are_counted() -> None:
    comparison = _compare(LOGITS[:, [1, 0, 2]])
    assert comparison.top1_agreement == 0.5
    assert "1 of 2 labels differ" in comparison.reasons()


def test_nothing_compared_is_no_pass() -> None:
    assert Comparison().reasons() == ["nothing was compared"]
    assert Comparison().top1_agreement == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("both", [True, False])
def test_what_is_not_finite_is_no_pass_even_on_both_sides(value: float, both: bool) -> None:
    actual = LOGITS.copy()
    actual[0, 0] = value
    reason = Comparison().add(actual if both else LOGITS, actual)
    assert reason is not None
    assert "NaN or infinite" in reason


@pytest.mark.parametrize("actual", [LOGITS[:1], LOGITS[:, :2], LOGITS[None], LOGITS.astype(np.float16)])
def test_another_shape_or_dtype_is_no_pass(actual: np.ndarray) -> None:
    comparison = Comparison()
    assert "not float32 (2, 3)" in (comparison.add(LOGITS, actual) or "")
    assert comparison.images == 0


def test_zero_logits() -> None:
    zeros = np.zeros((1, 3), np.float32)
    comparison = Comparison()
    comparison.add(zeros, zeros)
    assert comparison.reasons() == []
    comparison.add(zeros, zeros + np.float32(1e-3))
    assert comparison.max_rel_error == np.inf
    assert comparison.reasons() != []


def test_a_network_that_gives_all_images_the_same_logits_proves_nothing() -> None:
    constant = np.tile(LOGITS[:1], (5, 1)) * (1 + np.linspace(0, 1e-5, 5, dtype=np.float32))[:, None]
    comparison = Comparison()
    comparison.add(constant, constant)
    assert "agreement proves nothing" in comparison.reasons()[0]


def test_nothing_is_known_of_what_cannot_be_compared() -> None:
    comparison = _compare(LOGITS.copy())
    comparison.add(LOGITS, LOGITS * np.float32(np.nan))
    assert comparison.max_abs_error == comparison.max_rel_error == np.inf
