from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cnndeploy.datasets import fashion_mnist, open_dataset
from cnndeploy.datasets.fashion_mnist import FashionMNIST
from cnndeploy.errors import DataError


@pytest.mark.parametrize("data", [None, "fashion-mnist"])
def test_fashion_mnist_is_the_usual_data_set(data: str | None) -> None:
    dataset = open_dataset(data)
    assert (dataset.spec, dataset.classes, dataset.note) == ("fashion-mnist", fashion_mnist.LABELS, "")
    images = dataset.split("test", 1, fashion_mnist.LABELS)
    assert np.shape(images.read(slice(0, 5))) == (5, 28, 28)
    assert images.sound(lambda *_: None) is images


def test_fashion_mnist_in_colours_and_with_other_labels() -> None:
    labels = ("another", *reversed(fashion_mnist.LABELS))
    grey = fashion_mnist.load("test")
    images = open_dataset(None).split("test", 3, labels).take([3, 1])
    colours = np.asarray(images.read([0, 1]))
    assert colours.shape == (2, 28, 28, 3)
    for channel in range(3):
        assert np.array_equal(colours[..., channel], grey.images[[3, 1]])
    assert images.labels is not None
    assert images.labels.tolist() == (10 - grey.labels[[3, 1]].astype(int)).tolist()
    assert images.numbers.tolist() == [3, 1]
    with pytest.raises(DataError, match="fashion-mnist has classes that are none of the model's labels"):
        open_dataset(None).split("test", 3, ["cat", "dog"])


def test_a_folder_that_holds_fashion_mnist_is_no_folder_of_images(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.symlink_to(fashion_mnist.data_folder())
    dataset = open_dataset(own)
    assert isinstance(dataset, FashionMNIST)
    assert open_dataset(dataset.spec) == dataset
    assert len(dataset.split("test", 1, fashion_mnist.LABELS)) == 10_000


def test_what_is_recorded_is_looked_for_here_then_beside_the_model(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "elsewhere" / "m.pt"
    model.parent.mkdir()
    with pytest.raises(
        DataError, match=r"made on the images in photos, and there is no such folder here.*data='photos'"
    ):
        open_dataset(None, "photos", model)
    (model.parent / "photos").symlink_to(photos)
    assert open_dataset(None, "photos", model).spec == str(model.parent / "photos")
    (tmp_path / "photos").symlink_to(photos)
    assert open_dataset(None, "photos", model).spec == str(tmp_path / "photos")
    assert open_dataset("fashion-mnist", "photos", model).spec == "fashion-mnist"
    assert open_dataset(None, "fashion-mnist", model).spec == "fashion-mnist"
    os.chdir("elsewhere")  # another process need not work in the same folder
    assert open_dataset(str(tmp_path / "photos")).classes


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere: no such folder.*fashion-mnist.*cnndeploy data fetch --data-dir"
    ):
        open_dataset(tmp_path / "nowhere")
