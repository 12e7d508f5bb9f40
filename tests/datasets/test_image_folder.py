from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnndeploy.datasets import Images, Split, feeds, image_folder, open_dataset
from cnndeploy.datasets._labels import indices_of
from cnndeploy.datasets.image_folder import FolderImages, ImageFolder
from cnndeploy.errors import DataError
from cnndeploy.images import read_image
from cnndeploy.preprocessing import Preprocessing
from helpers import COLOURS

LABELS = tuple(COLOURS)


def _write(path: Path, mode: str = "L", size: tuple[int, int] = (9, 7), value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in "LP" else (value, 50, 200, 255)[: len(mode)]).save(path)
    return path


def _classes(root: Path, *names: str, images: int = 10) -> Path:
    for name in names:
        for number in range(images):
            _write(root / name / f"{number}.png", value=number)
    return root


def _labels(images: Images) -> np.ndarray:
    assert images.labels is not None
    return images.labels


def _names(folder: Path, split: Split) -> list[str]:
    return [file.name for file in ImageFolder(folder).files(split)]


def test_a_folder_in_splits(photos: Path) -> None:
    dataset = open_dataset(photos)
    assert (dataset.classes, dataset.note) == (LABELS, "")
    train, test = (dataset.split(name, 3, LABELS) for name in ("train", "test"))
    assert (len(train), len(test)) == (60, 30)
    assert np.bincount(_labels(test)).tolist() == [6] * 5
    backwards = dataset.split("test", 3, ["another", *reversed(LABELS)])  # by name, of more labels
    assert np.array_equal(_labels(backwards), 5 - _labels(test))
    for place in range(3):
        file = ImageFolder(photos).files("test")[place]
        assert file.label == LABELS[_labels(test)[place]]
        assert np.array_equal(test.read([place])[0], read_image(photos / "val" / file.name, 3))


def test_the_first_images_are_of_all_classes_and_always_the_same(photos: Path, tmp_path: Path) -> None:
    test = open_dataset(photos).split("test", 3, LABELS)
    assert set(_labels(test.first(15)).tolist()) == set(range(5))
    copy = Path(shutil.copytree(photos, tmp_path / "copy"))
    (copy / "val" / "lime" / "zz.jpg").write_bytes(b"")  # one more leaves the others in their order
    order = [name for name in _names(copy, "test") if name != "lime/zz.jpg"]
    assert order == _names(photos, "test")
    with pytest.raises(DataError, match="the split has 30 images; ask for 1 to 30, not 31"):
        test.first(31)


@pytest.mark.parametrize("names", [("val",), ("valid",), ("validation",), ("test", "val")])
def test_the_folder_to_test_on(names: tuple[str, ...], tmp_path: Path) -> None:
    _classes(tmp_path / "train", "a", "b", images=2)
    for number, name in enumerate(names, start=1):
        _classes(tmp_path / name, "a", images=number)
    assert (len(_names(tmp_path, "train")), len(_names(tmp_path, "test"))) == (4, 1)
    assert open_dataset(tmp_path).classes == ("a", "b")


@pytest.mark.parametrize("inner", ["", "train"])
def test_without_a_folder_to_test_on_a_fifth_of_each_class_is_held_out(inner: str, tmp_path: Path) -> None:
    _classes(tmp_path / inner, "a", "b", images=100)
    _write(tmp_path / inner / "alone" / "0.png")
    _classes(tmp_path / inner, "two", images=2)
    train, test = (set(_names(tmp_path, name)) for name in ("train", "test"))
    assert (len(train | test), train & test) == (203, set())
    for label, least, most in (("a", 10, 30), ("b", 10, 30), ("two", 1, 1), ("alone", 0, 0)):
        assert least <= sum(name.split("/")[0] == label for name in test) <= most
    assert "a fifth of the images of each class is held out" in open_dataset(tmp_path).note
    shutil.rmtree(tmp_path / inner / "b")
    for number in range(100, 150):  # nothing that was held out is trained on since, nor the other way round
        _write(tmp_path / inner / "a" / f"{number}.png")
    assert test - set(_names(tmp_path, "test")) == {name for name in test if name[0] == "b"}
    assert not train & set(_names(tmp_path, "test"))


def test_classes_beside_splits_are_not_lost(tmp_path: Path) -> None:
    """A folder of vehicles, of which trains have two kinds."""
    _classes(tmp_path / "train", "steam", "diesel", images=2)
    _classes(tmp_path, "car", images=2)
    with pytest.raises(DataError, match="beside them car with images"):
        open_dataset(tmp_path)


def test_the_folder_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _classes(tmp_path / "photos", "a", "b", images=2)
    assert open_dataset("~/photos").spec == str(tmp_path / "photos")


def test_images_that_cannot_be_prepared_are_left_out(tmp_path: Path) -> None:
    _classes(tmp_path / "test", "a", "b", images=2)
    Image.new("RGB", (600, 2)).save(tmp_path / "test" / "a" / "thin.png")
    images = open_dataset(tmp_path).split("test", 3, "ab")
    readable = images.sound(
        Preprocessing(size=(224, 224), channels=3, resize=256, antialias=True).resized_size
    )
    assert (len(images), len(readable)) == (5, 4)
    assert "thin.png" in readable.damaged[0].path
    assert "8192" in readable.damaged[0].reason


def test_classes_may_be_called_as_splits_are(tmp_path: Path) -> None:
    """A folder of pictures of trains, cars and tests."""
    _classes(tmp_path, "train", "car", "test", images=5)
    assert open_dataset(tmp_path).classes == ("car", "test", "train")


def test_only_images_to_test_on(tmp_path: Path) -> None:
    _classes(tmp_path / "val", "a", "b")
    dataset = open_dataset(tmp_path)
    assert (dataset.classes, len(dataset.split("test", 1, "ab")), dataset.note) == (("a", "b"), 20, "")
    with pytest.raises(DataError, match="has no folder train/"):
        dataset.split("train", 1, "ab")


def test_what_lies_around(tmp_path: Path) -> None:
    """Nested folders are looked into; links in circles end; what is hidden or no image is not read, but counted."""
    _classes(tmp_path, "a", images=2)
    _write(tmp_path / "a" / "deep" / "deeper" / "x.JPEG")
    for other in ("a/notes.txt", "a/.hidden.png", "a/.cache/y.png", "README.md"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "deep" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "twin").symlink_to(tmp_path / "a" / "deep")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    folder = ImageFolder(tmp_path)
    assert folder.classes == ("a",)
    names = sorted(Path(name).name for split in ("train", "test") for name in _names(tmp_path, split))
    assert names == ["0.png", "1.png", "x.JPEG"]
    assert folder.ignored == 3  # the notes, the hidden file and the pipe


def test_no_images_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no images: none of .apng"):
        open_dataset(tmp_path).split("test", 1, ["a"])


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("b", "a"), ("a", "x", "b"), (0, 2)),
        (("0", "2"), ("x", "y", "z"), (0, 2)),
        (("1", "2"), ("2", "1"), (1, 0)),  # names go before numbers
        (("007", "2"), tuple("abcdefgh"), (7, 2)),
        (("cafe\u0301",), ("no", "caf\u00e9"), (1,)),  # as the macOS file system writes it
        (("T-shirt_top", "a"), ("a", "T-shirt/top"), (1, 0)),  # no folder's name has a slash
        (("a_b",), ("a/b", "a_b"), (1,)),
    ],
)
def test_names_become_labels(
    names: tuple[str, ...], labels: tuple[str, ...], expected: tuple[int, ...], tmp_path: Path
) -> None:
    _classes(tmp_path / "test", *names, images=1)
    images = open_dataset(tmp_path).split("test", 1, labels)
    assert isinstance(images, FolderImages)
    assert images.labels is not None
    given = {file.label: label for file, label in zip(images.files, images.labels.tolist(), strict=True)}
    assert given == dict(zip(sorted(names), expected, strict=True))


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (
            ("a", *"ghijklm"),
            ("a", "b"),
            "none of the model's labels, .*: g, h, i, j, k and 2 more. The model has 2 .*: a, b",
        ),
        (
            ("0", "2"),
            ("x", "y"),
            "labels: x, y. Name each folder of images by its label, .* 0 to 1; .*data='PATH'",
        ),
        (("0", "-1"), ("x", "y"), "none of the model's labels"),
        (("crane",), ("crane", "owl", "crane"), "or are several of them: crane"),
        (("a_b",), ("a/b", "a:b"), "or are several of them: a_b.* by its label with _ for /, or all"),
    ],
)
def test_names_that_are_no_label(
    names: tuple[str, ...], labels: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    _classes(tmp_path / "test", *names, images=1)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path).split("test", 1, labels)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Pictures in every mode, and two that are none."""
    for mode in ("L", "RGB", "P", "RGBA", "1", "LA"):
        path = tmp_path / "test" / "a" / f"{mode}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (13, 21), (10, 200, 30)).convert(mode).save(path)
    whole = _write(tmp_path / "test" / "b" / "whole.jpg", "RGB", (90, 70))
    (tmp_path / "test" / "b" / "half.jpg").write_bytes(whole.read_bytes()[:-200])
    (tmp_path / "test" / "b" / "text.jpg").write_text("not an image")
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3])
def test_damaged_images_are_left_out_and_named(channels: int, damaged: Path) -> None:
    images = open_dataset(damaged).split("test", channels, "ab")
    done: list[tuple[int, int]] = []
    sound = images.sound(lambda *_: None, lambda number, total, _: done.append((number, total)))
    assert done == [(number, 9) for number in range(1, 10)]
    assert sorted(Path(one.path).name for one in sound.damaged) == ["half.jpg", "text.jpg"]
    assert all(one.path in one.reason for one in sound.damaged)
    assert sound.labels is not None
    assert np.bincount(sound.labels).tolist() == [6, 1]
    # as another process finds them
    again = open_dataset(damaged).split("test", channels, "ab").take(sound.numbers)
    for ours, theirs in zip(sound.read(slice(None)), again.read(range(7)), strict=True):
        assert np.array_equal(ours, theirs)
        assert ours.shape in {shape + ((3,) if channels == 3 else ()) for shape in ((21, 13), (70, 90))}
    with pytest.raises(DataError, match=r"(half|text)\.jpg"):
        images.read(slice(None))


def test_images_without_classes(tmp_path: Path) -> None:
    for number in range(7):
        _write(tmp_path / f"{number}.png")
    dataset = open_dataset(tmp_path)
    assert (dataset.classes, dataset.note) == ((), "")
    images = dataset.split("test", 1, ["x", "y"])
    assert (len(images), images.labels) == (7, None)
    assert images.take([2, 4]).labels is None
    with pytest.raises(DataError, match="no folder for each class, so there is nothing to train on"):
        dataset.split("train", 1, ["x", "y"])


def test_what_identifies_a_folder(photos: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(photos, tmp_path / "copy"))
    ours, theirs = (open_dataset(folder).split("test", 3, LABELS).sha256 for folder in (photos, copy))
    assert ours == theirs
    assert list(ours) == ["val"]
    with (copy / "val" / "lime" / "00.jpg").open("ab") as file:
        file.write(b"0")
    assert open_dataset(copy).split("test", 3, LABELS).sha256 != ours


def test_few_images_are_in_memory_at_a_time(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads read; each prepares what it has read before it reads the next."""
    monkeypatch.setattr("cnndeploy.datasets._threads.usable_cpus", lambda: 3)
    lock, now, most, threads = threading.Lock(), 0, 0, set[str]()

    def read(path: Path, channels: int) -> np.ndarray:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
            threads.add(threading.current_thread().name)
        return read_image(path, channels)

    def prepare(images: np.ndarray) -> np.ndarray:
        nonlocal now
        prepared = Preprocessing(size=(8, 8), channels=3, antialias=True)(images)
        with lock:
            now -= 1
        return prepared

    monkeypatch.setattr(image_folder, "read_image", read)
    train = open_dataset(photos).split("train", 3, LABELS)
    assert train.prepared(range(60), prepare).shape == (60, 3, 8, 8)
    assert most <= 3
    assert threads
    assert threading.main_thread().name not in threads


def test_raw_images_come_in_one_array_for_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(9, 7), (5, 5), (9, 7), (8, 8), (5, 5)] * 8
    for number, size in enumerate(sizes):
        _write(tmp_path / f"{number}.png", size=size, value=number)
    images = open_dataset(tmp_path).split("test", 1, [])
    expected = images.read(slice(0, 33))
    for most, groups in ((10**6, 3), (1, 9)):  # 33 images, which are read 16 at a time
        monkeypatch.setattr("cnndeploy.datasets._feeds._MOST_VALUES", most)
        parts = list(feeds(images, range(33), None))
        assert len(parts) <= groups
        assert sorted(place for places, _ in parts for place in places) == list(range(33))
        for places, stack in parts:
            for place, image in zip(places, stack, strict=True):
                assert np.array_equal(image, expected[place])


def test_a_list_of_images_of_several_sizes_is_prepared_like_each_alone(photos: Path) -> None:
    images = open_dataset(photos).split("test", 3, LABELS)
    preprocessing = Preprocessing(size=(16, 16), resize=20, channels=3, antialias=True, mean=0.4, std=0.2)
    together = preprocessing(images.read(range(6)))
    assert (together.shape, together.dtype.name) == ((6, 3, 16, 16), "float32")
    for one, image in zip(together, images.read(range(6)), strict=True):
        assert np.array_equal(one, preprocessing(image[None])[0])
    assert np.array_equal(images.prepared(range(6), preprocessing), together)


def test_two_folders_of_one_number_are_refused() -> None:
    labels = ("bag", "boot", "shirt")
    assert indices_of(["0", "02"], labels, "photos").tolist() == [0, 2]
    with pytest.raises(DataError, match="the classes 0 and 00, and both are label number 0"):
        indices_of(["0", "00", "1"], labels, "photos")


def test_a_folder_of_everything_is_not_walked_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "_MOST_IGNORED", 20)
    for number in range(10):
        (tmp_path / "etc" / str(number)).mkdir(parents=True)
        for name in range(10):
            (tmp_path / "etc" / str(number) / f"{name}.conf").touch()
    seen, entries = list[Path](), image_folder._entries

    def counted(path: Path) -> list[os.DirEntry[str]]:
        seen.append(path)
        return entries(path)

    monkeypatch.setattr(image_folder, "_entries", counted)
    with pytest.raises(DataError, match="more than 20 files and folders, and 0 images"):
        ImageFolder(tmp_path).files("test")
    assert len(seen) < 10
