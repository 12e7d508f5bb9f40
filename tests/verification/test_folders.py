"""Evaluation and verification on folders of images."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from PIL import Image

import cnndeploy
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.datasets import fashion_mnist
from cnndeploy.errors import DataError
from cnndeploy.quantization.quantize import Quantized
from cnndeploy.verification.verify import verify
from helpers import COLOURS, Once, Trained

IMAGES = 150


@pytest.fixture(scope="module")
def written(once: Once) -> Path:
    """The first test images of Fashion-MNIST as PNGs, in folders called by the numbers of their labels."""

    def write(folder: Path) -> None:
        test = fashion_mnist.load("test").first(IMAGES)
        for number, (pixels, label) in enumerate(zip(test.images, test.labels, strict=True)):
            path = folder / "test" / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)

    return once("written", write)


@pytest.fixture(scope="module")
def mixed(once: Once, photos: Path) -> Path:
    """Photos of odd sizes that nobody has labelled."""

    def copy(folder: Path) -> None:
        for number, path in enumerate(sorted((photos / "val").glob("*/*.jpg"))):
            shutil.copy(path, folder / f"{number}.jpg")
            if number % 3 == 0:  # so that some sizes occur more than once
                shutil.copy(path, folder / f"{number}-again.jpg")

    return once("mixed", copy)


@pytest.mark.parametrize("name", ["checkpoint", "onnx", "onnx_image"])
def test_a_folder_gives_the_accuracy_of_the_same_images(name: str, trained: Trained, written: Path) -> None:
    path = getattr(trained, name)
    ours, theirs = (cnndeploy.evaluate(path, data=data, images=IMAGES) for data in (written, "fashion-mnist"))
    assert ours.confusion == theirs.confusion
    assert ours.top5_correct == theirs.top5_correct
    assert ours.top5_accuracy is not None
    assert 0 < ours.accuracy < ours.top5_accuracy <= 1


@pytest.mark.parametrize("name", ["onnx", "onnx_image"])
def test_a_folder_gives_the_verdict_of_the_same_images(name: str, trained: Trained, written: Path) -> None:
    path = getattr(trained, name)
    ours, theirs = (
        verify(path, trained.checkpoint, data=data, images=IMAGES) for data in (written, "fashion-mnist")
    )
    assert ours.passed, ours.reasons
    assert (ours.data, list(ours.data_sha256)) == (str(written), ["test"])
    assert (theirs.data, len(theirs.data_sha256)) == ("fashion-mnist", 2)
    assert ours.oracle is not None
    assert (ours.images, ours.decisions, ours.oracle.images) == (IMAGES, theirs.decisions, IMAGES)


@pytest.mark.parametrize("name", ["onnx", "onnx_image"])
def test_images_of_all_sizes_without_labels(name: str, trained: Trained, mixed: Path) -> None:
    report = verify(getattr(trained, name), trained.checkpoint, data=mixed)
    assert report.passed, report.reasons
    assert report.images == 40
    assert report.decisions is not None
    assert report.decisions.artifact_accuracy is None
    assert report.decisions.mcnemar_p is None
    assert len(report.other_image_sizes) == (2 if name == "onnx_image" else 0)


def test_a_defect_is_caught_and_found_on_images_of_all_sizes(
    trained: Trained, mixed: Path, tmp_path: Path
) -> None:
    model = onnx.load(trained.onnx_image)
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    mode = next(each for each in resize.attribute if each.name == "coordinate_transformation_mode")
    mode.s = b"align_corners"
    onnx.save(model, tmp_path / "wrong.onnx")
    report = verify(tmp_path / "wrong.onnx", trained.checkpoint, data=mixed)
    assert re.match("40 of 40 images are beyond the tolerance", report.reasons[0])
    assert any(re.search(r"departs first in features\.0", reason) for reason in report.reasons)


@pytest.fixture
def damaged(written: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(written, folder)
    broken = sorted(folder.glob("test/*/*.png"))[::20]
    assert len(broken) == 8
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    return folder


def test_damaged_images_are_left_out_with_one_warning(trained: Trained, damaged: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"8 images cannot be used and are left out: .*\.png and 3 more"
    ) as seen:
        evaluation = cnndeploy.evaluate(trained.onnx, data=damaged)
    assert len(seen) == 1
    with cnndeploy.Reference(trained.checkpoint, data=damaged) as reference:
        with pytest.warns(UserWarning, match="8 images cannot be used") as seen:
            report = verify(trained.onnx, reference)
        assert len(seen) == 1
        again = verify(trained.torchscript, reference, images=IMAGES)  # and does not warn again
    assert evaluation.images == report.images == again.images == IMAGES - 8
    assert report.passed, report.reasons
    assert report.decisions is not None
    assert report.decisions.artifact_accuracy == pytest.approx(evaluation.accuracy)


def test_the_first_images_of_a_reference_grow(trained: Trained, damaged: Path) -> None:
    """Each image keeps its row, though damaged ones between them are found only when they are wanted."""
    with warnings.catch_warnings(), cnndeploy.Reference(trained.checkpoint, data=damaged) as reference:
        warnings.simplefilter("ignore")
        logits = [reference.logits(range(len(reference.first(count)))) for count in (20, 75, 150)]
        assert [len(rows) for rows in logits][-1] == IMAGES - 8
        readable = reference.first()
    with cnndeploy.load(trained.onnx, threads=1) as model:
        expected = np.concatenate([model.logits(image) for image in readable.read(slice(None))])
    for rows in logits:
        np.testing.assert_allclose(rows, expected[: len(rows)], atol=1e-4)


def test_what_needs_labels_refuses_images_without(
    trained: Trained, int8: Quantized, mixed: Path, tmp_path: Path
) -> None:
    uses: list[Callable[[], object]] = [
        lambda: cnndeploy.evaluate(trained.onnx, data=mixed),
        lambda: cnndeploy.quantize(trained.checkpoint, tmp_path / "q.onnx", budget=20, data=mixed),
        lambda: cnndeploy.tune(trained.checkpoint, tmp_path / "d", data=mixed),
        lambda: cnndeploy.verify_budget(int8.artifact, trained.checkpoint, budget=20, data=mixed),
    ]
    for use in uses:
        with pytest.raises(DataError, match="no folder for each class, so what they show is not known"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_labels_that_are_not_the_models(trained: Trained, photos: Path) -> None:
    with pytest.raises(
        DataError, match=f"none of the model's labels.*: {', '.join(COLOURS)}. The model has 10"
    ):
        cnndeploy.evaluate(trained.onnx, data=photos)


def test_a_model_runs_on_the_data_set_that_it_records(
    trained: Trained, written: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    (tmp_path / "shoes").symlink_to(written)
    loaded = Checkpoint.load(trained.checkpoint)
    path = replace(loaded, manifest=replace(loaded.manifest, data="shoes")).save(tmp_path / "m.pt").path
    file = cnndeploy.export(path, "onnx").path
    assert cnndeploy.evaluate(path).images == IMAGES
    result = cli("verify", file, "--against", path, "--images", "64", "--json", "-")
    assert result.exit_code == 0, result.output
    (tmp_path / "shoes").unlink()
    for command in (("evaluate", file), ("verify", file, "--against", path)):
        gone = cli(*command)
        assert gone.exit_code == 1
        assert "or name others: --data photos" in gone.stderr


def test_commands_say_what_is_held_out_and_what_is_damaged(
    trained: Trained, damaged: Path, cli: Callable[..., Result]
) -> None:
    for option in ("--data", "--data-dir"):
        result = cli("evaluate", trained.onnx, option, damaged / "test")
        assert result.exit_code == 0, result.output
        assert result.stderr.count("a fifth of the images of each class is held out to test on") == 1
        assert result.stderr.count("Warning: ") == 1
    assert "--data-dir" not in cli("evaluate", "--help").output
    described = cli("data", "info", "--data", damaged, "--check")
    assert "test: 150 images" in described.output
    assert "Damaged: 8 images" in described.output
    gone = cli("data", "info", "--data", damaged / "no")
    assert (gone.exit_code, "no: no such folder" in gone.stderr) == (1, True)
