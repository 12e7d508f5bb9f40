"""Two classes, and an image whose logits are near zero: it makes no tolerance wider, and no sound file fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import binary
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import cnndeploy
from cnndeploy import Preprocessing, Run
from cnndeploy.datasets import open_dataset
from cnndeploy.exporters import export
from cnndeploy.verification.checks import (
    Comparison,
    Tolerance,
    check_against_oracle,
    check_invariance,
    relative_errors,
    typical_logit,
)
from cnndeploy.verification.verify import verify
from helpers import Once

SOURCE = f"{Path(binary.__file__)}:build"


@pytest.fixture(scope="module")
def two(once: Once, photos: Path) -> Path:
    """A folder with two.pt and two.onnx, and in images/ some to test on, of which one has logits near zero."""

    def make(folder: Path) -> None:
        (folder / "images").mkdir()
        for photo in photos.glob("val/*/*.jpg"):
            shutil.copy(photo, folder / "images" / f"{photo.parent.name}-{photo.name}")
        own = Preprocessing(size=(32, 32), antialias=True, channels=3, mean=0.5, std=0.25)
        images = open_dataset(folder / "images").split("test", 3, ())
        torch.manual_seed(0)
        network = binary.Binary().eval().requires_grad_(False)
        network.head.weight[1] = -network.head.weight[0]
        zero = network(torch.from_numpy(images.prepared(range(len(images)), own))).select(1, 0)
        nearly = zero.sort().values[len(zero) // 2] - 2e-4 * zero.abs().max()
        network.head.bias.copy_(torch.stack([network.head.bias[0] - nearly, nearly - network.head.bias[0]]))
        settings: dict[str, Any] = {"preprocessing": own, "labels": ["no", "yes"]}
        cnndeploy.import_model(network, folder / "two.pt", source=SOURCE, **settings)
        export(folder / "two.pt", "onnx")

    cnndeploy.allow_source(SOURCE)
    return once("binary", make)


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.0005, False), (1.001, False)])
def test_an_ambiguous_image_makes_the_tolerance_no_wider(
    factor: float, passes: bool, two: Path, tmp_path: Path
) -> None:
    model = onnx.load(two / "two.onnx")
    for tensor in model.graph.initializer:
        if tensor.name in ("head.weight", "head.bias"):
            values = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "two.onnx")
    report = verify(tmp_path / "two.onnx", two / "two.pt", data=two / "images", run=Run(threads=1))
    assert report.passed is passes, report.reasons
    assert report.tolerance == Tolerance()


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.0002, False)])
@pytest.mark.parametrize("seed", range(5))
def test_a_few_of_ten_thousand_images_tell_what_all_of_them_may_err(
    seed: int, factor: float, passes: bool
) -> None:
    """Before, the least logit was rarely among the few, and a sound file's error there beyond their tolerance."""
    draw = np.random.default_rng(seed)
    exact = draw.normal(0, 5, (10_000, 1)) * [1, -1]  # two classes
    eager, artifact = (
        (logits + draw.normal(0, 2e-6, exact.shape)).astype(np.float32) for logits in (exact, exact * factor)
    )
    sample = draw.choice(len(exact), 256, replace=False)
    own_error = float(relative_errors(eager[sample], exact[sample]).max())
    comparison = Comparison(Tolerance().at_least(own_error), typical_logit(eager))
    assert comparison.add(eager, artifact) is None
    oracle = check_against_oracle(artifact[sample], eager[sample], exact[sample], seed=0)
    assert ([*comparison.reasons(), *oracle.reasons()] == []) is passes


def test_batches_are_compared_on_that_scale() -> None:
    probed = [np.array([[z, -z]], np.float32) for z in (1e-3, 1e-3 + 1e-6)]
    assert check_invariance([[0], [0]], probed, limit=3e-5, typical=1.0).reasons() == []
    assert check_invariance([[0], [0]], probed, limit=3e-5).reasons() != []
