"""Folders of images: a folder a class, in splits or not.

``DIR/CLASS/*``, or ``DIR/train/CLASS/*`` with ``DIR/test/CLASS/*``, which may also be called ``val``, ``valid`` or
``validation``. Without a folder to test on, a fifth of the images of each class are held out. What is below the folder
of a class is looked into; hidden files, and files that no name says to be images, are not. A folder with images of
which nobody knows the class, ``DIR/*``, has no labels.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from cnndeploy.datasets._dataset import Check, Damaged, Prepare, Split
from cnndeploy.datasets._labels import indices_of
from cnndeploy.datasets._threads import in_threads
from cnndeploy.errors import DataError, InputMismatchError
from cnndeploy.images import read_image, suffixes
from cnndeploy.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TRAIN, _TEST = "train", ("test", "val", "valid", "validation")  # the first that is there
# A folder with so many files that are no images, and ten times as many as images, was named by mistake, as / is.
_MOST_IGNORED, _MOST_TIMES = 100_000, 10
_HELD_OUT = 0.2  # of the images of a class


@dataclass(frozen=True, slots=True)
class File:
    """An image's name below the folder of its split, with forward slashes; its class, "" if unknown; its bytes."""

    name: str
    label: str
    size: int

    @property
    def rank(self) -> tuple[bytes, str]:
        """A random number that is always the same, whatever other files there are."""
        return hashlib.blake2b(self.name.encode(errors="surrogateescape"), digest_size=8).digest(), self.name


class Listing(NamedTuple):
    """The images below a folder, and how many other files there are."""

    files: list[File]
    ignored: int


@dataclass(frozen=True, slots=True)
class FolderImages:
    """Images of a split of a folder: its ``files``, below ``root``; nothing that is read is kept."""

    root: Path
    files: tuple[File, ...]
    channels: int
    labels: NDArray[np.int64] | None
    numbers: NDArray[np.int64]
    damaged: tuple[Damaged, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def sha256(self) -> dict[str, str]:
        """The hash of the sorted names and sizes of the files; their content is not read for it."""
        lines = sorted(f"{file.name}\0{file.size}\n" for file in self.files)
        content = "".join(lines).encode(errors="surrogateescape")
        return {self.root.name: hashlib.sha256(content).hexdigest()}

    def first(self, count: int | None) -> Self:
        """Return the first ``count`` images, or all of them for None; raise DataError if there are fewer."""
        if count is None:
            return self
        if not 0 < count <= len(self):
            raise DataError(f"the split has {len(self)} images; ask for 1 to {len(self)}, not {count}")
        return self.take(range(count))

    def take(self, numbers: Sequence[int] | NDArray[np.integer[Any]]) -> Self:
        """Return the images at these places, in this order."""
        places = list(numbers)
        return replace(
            self,
            files=tuple(self.files[place] for place in places),
            labels=None if self.labels is None else self.labels[places],
            numbers=self.numbers[places],
        )

    def sound(self, check: Check, progress: Progress = silent) -> Self:
        """Return the images that can be used, which are all read for that; ``damaged`` lists the others."""
        kept, damaged = [], []
        for place, reason in enumerate(in_threads(partial(self._fault, check), range(len(self)))):
            if reason:
                damaged.append(Damaged(str(self._path(place)), reason))
            else:
                kept.append(place)
            progress(place + 1, len(self), f"Reading the images in {self.root.name}")
        return replace(self.take(kept), damaged=(*self.damaged, *damaged)) if damaged else self

    def read(self, places: slice | Sequence[int]) -> list[NDArray[np.uint8]]:
        """Return images, uint8 (h, w) or (h, w, 3); raise DataError if one cannot be read."""
        return list(in_threads(self._image, self._all(places)))

    def prepared(self, places: slice | Sequence[int], prepare: Prepare) -> NDArray[Any]:
        """Return what ``prepare`` makes of each image, in the thread that has read it."""
        import numpy as np

        def prepared(place: int) -> NDArray[Any]:
            return prepare(self._image(place)[None])

        return np.concatenate(list(in_threads(prepared, self._all(places))))

    def _all(self, places: slice | Sequence[int]) -> Sequence[int]:
        return range(len(self))[places] if isinstance(places, slice) else places

    def _path(self, place: int) -> Path:
        return self.root / self.files[place].name

    def _image(self, place: int) -> NDArray[np.uint8]:
        return read_image(self._path(place), self.channels)

    def _fault(self, check: Check, place: int) -> str:
        try:
            check(*self._image(place).shape[:2])
        except (DataError, InputMismatchError) as error:
            return str(error)
        return ""


class ImageFolder:
    """A folder of images; its files are listed when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.spec = folder, str(folder.absolute())
        train = _TRAIN if _subfolders(folder / _TRAIN) else None
        test = next((name for name in _TEST if _subfolders(folder / name)), None)
        if train is None and test is None:
            train = ""
        else:
            _require_no_classes_beside(folder)
        self._roots: dict[Split, str | None] = {"train": train, "test": train if test is None else test}
        self._listed: dict[str, Listing] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The sorted names of the folders to train on, else to test on; none if the images have no labels."""
        root = next(root for root in self._roots.values() if root is not None)
        names = sorted({file.label for file in self._listing(root).files} - {""})
        if odd := next((name for name in names if not name.isprintable()), None):
            raise DataError(f"the folder {odd!r} in {self.folder} has no name that can be shown; rename it")
        return tuple(names)

    @property
    def holds_out(self) -> bool:
        """Whether the images to test on are held out from those to train on."""
        return self._roots["train"] == self._roots["test"] and bool(self.classes)

    @property
    def note(self) -> str:
        """A sentence that images are held out, if they are."""
        held_out = (
            f"{self.folder} has no test/ or val/: a fifth of the images of each class is held out to test on"
        )
        return held_out if self.holds_out else ""

    @property
    def ignored(self) -> int:
        """How many files are no images by their names, or are hidden."""
        return sum(self._listing(root).ignored for root in set(self._roots.values()) if root is not None)

    def split(self, name: Split, channels: int, labels: Sequence[str]) -> FolderImages:
        """Return a split; raise DataError if there is none, or a class is none of the ``labels``."""
        import numpy as np

        files, root = self.files(name), self.folder / str(self._roots[name])
        classes = sorted({file.label for file in files})
        numbers = None
        if classes != [""]:
            index = dict(zip(classes, indices_of(classes, labels, str(self.folder)).tolist(), strict=True))
            numbers = np.array([index[file.label] for file in files], np.int64)
        return FolderImages(root, files, channels, numbers, np.arange(len(files)))

    def describe(self, *, check: bool = False, progress: Progress = silent) -> dict[str, Any]:
        """Return JSON-ready facts: each split's images by class, and their bytes; with ``check`` those damaged."""
        splits: dict[Split, tuple[File, ...]] = {
            name: self.files(name)
            for name, root in self._roots.items()
            if root is not None and (name == "test" or self.classes)
        }
        damaged = None
        if check:
            read = [self.split(name, 3, self.classes).sound(_any_size, progress) for name in splits]
            damaged = {one.path: one.reason for images in read for one in images.damaged}
        counts = {name: Counter(file.label for file in files) for name, files in splits.items()}
        return {
            "folder": str(self.folder),
            "images": {name: dict(sorted(count.items())) for name, count in counts.items()},
            "bytes": {name: sum(file.size for file in files) for name, files in splits.items()},
            "note": self.note,
            "ignored": self.ignored,
            "damaged": damaged,
        }

    def files(self, name: Split) -> tuple[File, ...]:
        """Return the files of a split in a random order, which is always the same; raise DataError if it is not there.

        So the first so many are of all classes.
        """
        if (root := self._roots[name]) is None:
            raise DataError(f"{self.folder} has no folder {name}/, so there are no images to {name} on")
        if name == "train" and not self.classes:
            raise DataError(f"{self.folder} has no folder for each class, so there is nothing to train on")
        files = sorted(self._listing(root).files, key=lambda file: file.rank)
        if self.holds_out:
            held_out = _held_out(files)
            files = [file for file in files if (file.name in held_out) == (name == "test")]
        if not files:
            raise DataError(f"{self.folder} has no image to {name} on")
        return tuple(files)

    def _listing(self, root: str) -> Listing:
        if root not in self._listed:
            self._listed[root] = _list(self.folder / root)
        return self._listed[root]


def open_data(data: str) -> ImageFolder | None:
    """Open any folder; return None if there is none of this name."""
    return ImageFolder(Path(data)) if Path(data).is_dir() else None


def _held_out(files: Sequence[File]) -> set[str]:
    """Return the names of about a fifth, by each name's own hash, so that other files change nothing.

    Of a class of two images and more, one at least is held out and one is not. ``files`` are sorted by rank.
    """
    classes: dict[str, list[File]] = {}
    for file in files:
        classes.setdefault(file.label, []).append(file)
    names = set[str]()
    for ones in classes.values():
        share = sum(int.from_bytes(one.rank[0]) < _HELD_OUT * 2**64 for one in ones)
        share = min(max(share, 1), len(ones) - 1)
        names |= {one.name for one in ones[:share]}
    return names


def _any_size(_height: int, _width: int) -> None:
    """Take every image."""


def _require_no_classes_beside(folder: Path) -> None:
    """Raise DataError if folders with images lie beside train/ and its like, for then these may be classes."""
    for name in set(_subfolders(folder)) - {_TRAIN, *_TEST}:
        if _walk(folder / name, name, nested=False).files:
            raise DataError(
                f"{folder} has folders for splits, such as {_TRAIN} or {_TEST[1]}, and beside them {name} with images. "
                "If they are all classes, put them into a folder of another name with one folder, train, in between"
            )


def _list(root: Path) -> Listing:
    """List the images below each folder in ``root``; if there are none, those in it."""
    files, ignored = list[File](), 0
    for name in _subfolders(root):
        more = _walk(root / name, name)
        files += more.files
        ignored += more.ignored
        _require_images(root, len(files), ignored)
    if files:
        return Listing(files, ignored)
    direct = _walk(root, "", nested=False)
    if not direct.files:
        raise DataError(
            f"{root} has no images: none of {', '.join(sorted(suffixes()))}, in it or in the folders in it"
        )
    return direct


def _walk(folder: Path, label: str, *, nested: bool = True) -> Listing:
    """List the images in a folder and below; a folder that links lead to twice is looked into once."""
    files, ignored, read = list[File](), 0, suffixes()
    stack, seen = [(folder, label)], set[str]()
    while stack:
        path, prefix = stack.pop()
        if (real := os.path.realpath(path)) in seen:
            continue
        seen.add(real)
        _require_images(folder, len(files), ignored + len(seen))
        for entry in _entries(path):
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            hidden = entry.name.startswith(".")
            if entry.is_dir():
                if nested and not hidden:
                    stack.append((path / entry.name, name))
            elif not hidden and Path(entry.name).suffix.lower() in read and entry.is_file():
                files.append(File(name, label, entry.stat().st_size))
            else:
                ignored += 1
    return Listing(files, ignored)


def _require_images(folder: Path, images: int, others: int) -> None:
    """Raise DataError rather than walk on through a whole disk, which a model's manifest may name."""
    if others > _MOST_IGNORED and others > _MOST_TIMES * images:
        raise DataError(
            f"{folder} has more than {_MOST_IGNORED:,} files and folders, and {images:,} images among those that were "
            "looked at; name the folder of the images themselves"
        )


def _subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, none if it is not there."""
    if not folder.is_dir():
        return []
    return [entry.name for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith(".")]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
