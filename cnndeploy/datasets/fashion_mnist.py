"""Fashion-MNIST: find it, fetch it, check it, load it.

Files are uncompressed in ``<data folder>/FashionMNIST/raw``, where torchvision's FashionMNIST reads them
too. Each is checked against its SHA-256 whenever it is installed or loaded.

Source: Xiao, Rasul, Vollgraf: Fashion-MNIST, a novel image dataset for benchmarking machine learning
algorithms, 2017. The checksums are of the original files, uncompressed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cnndeploy.datasets._dataset import Check, Damaged, Prepare, Split
from cnndeploy.datasets._labels import indices_of
from cnndeploy.errors import DataError
from cnndeploy.files import make_folder, scratch_folder, write_file
from cnndeploy.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CLASSES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
LABELS = tuple(_CLASSES.split(", "))
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
IMAGE_SIZE = 28
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

NAME = "fashion-mnist"

_TIMEOUT_S = 20
_LIMIT_BYTES = 64 * 2**20  # the largest file has 47 MB uncompressed


@dataclass(frozen=True, slots=True)
class Images:
    """One split: ``images`` are uint8 (n, 28, 28), 0 is black; ``labels`` are uint8 (n,), indices into LABELS.

    ``sha256`` holds the checksums of the two files that they were read from, by file name. With 3 ``channels`` images
    are read as RGB. ``places`` are the images' numbers in the split, or None for all from 0 on.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]
    sha256: dict[str, str]
    channels: int = 1
    places: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def numbers(self) -> NDArray[np.int64]:
        """The images' numbers in the whole split, (n,)."""
        import numpy as np

        return np.arange(len(self)) if self.places is None else self.places

    @property
    def damaged(self) -> tuple[Damaged, ...]:
        """No image, ever: a damaged file is an error."""
        return ()

    def first(self, count: int | None) -> Self:
        """Return the first ``count`` images, or all of them for None; raise DataError if there are fewer."""
        if count is None:
            return self
        if not 0 < count <= len(self):
            raise DataError(f"the split has {len(self)} images; ask for 1 to {len(self)}, not {count}")
        return replace(
            self, images=self.images[:count], labels=self.labels[:count], places=self.numbers[:count]
        )

    def take(self, numbers: Sequence[int] | NDArray[np.integer[Any]]) -> Self:
        """Return the images at these places, in this order."""
        return replace(
            self, images=self.images[numbers], labels=self.labels[numbers], places=self.numbers[numbers]
        )

    def sound(self, check: Check, progress: Progress = silent) -> Self:
        """Return itself: checksums say that no image is damaged, and all have one size."""
        del check, progress
        return self

    def read(self, places: slice | Sequence[int]) -> NDArray[np.uint8]:
        """Return images, uint8 (n, 28, 28) or (n, 28, 28, 3); grey ones of a slice without a copy."""
        import numpy as np

        grey = self.images[places]
        return grey if self.channels == 1 else np.repeat(grey[..., None], 3, axis=-1)

    def prepared(self, places: slice | Sequence[int], prepare: Prepare) -> NDArray[Any]:
        """Return what ``prepare`` makes of images."""
        return prepare(self.read(places))


@dataclass(frozen=True, slots=True)
class FashionMNIST:
    """Fashion-MNIST in a data folder; None is the usual one."""

    folder: str | None = None
    classes: tuple[str, ...] = LABELS
    note: str = ""

    @property
    def spec(self) -> str:
        """What opens it again."""
        return NAME if self.folder is None else str(Path(self.folder).absolute())

    def split(self, name: Split, channels: int, labels: Sequence[str]) -> Images:
        """Return a split, with labels as indices into a model's ``labels``; raise DataError if it lacks one."""
        images = replace(load(name, self.folder), channels=channels)
        if tuple(labels) == LABELS:
            return images
        return replace(images, labels=indices_of(LABELS, labels, NAME)[images.labels])


def open_data(data: str) -> FashionMNIST | None:
    """Open ``fashion-mnist``, or a folder that holds it; return None for anything else."""
    if data == NAME:
        return FashionMNIST()
    return FashionMNIST(data) if raw_folder(data).is_dir() else None


def data_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return ``folder`` if it is given, else $CNNDEPLOY_DATA, else the user's cache folder."""
    if chosen := folder or os.environ.get("CNNDEPLOY_DATA"):
        try:
            return Path(chosen).expanduser()
        except RuntimeError as error:
            raise DataError(f"the data folder {chosen} names a user that does not exist") from error
    variable, usual = ("LOCALAPPDATA", "AppData/Local") if os.name == "nt" else ("XDG_CACHE_HOME", ".cache")
    return Path(os.environ.get(variable) or Path.home() / usual, "cnndeploy")


def raw_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return where the four files are in a data folder, which has torchvision's layout."""
    return data_folder(folder) / "FashionMNIST" / "raw"


def fetch_command(folder: str | os.PathLike[str] | None = None) -> str:
    """Return the command that fetches the files into this data folder."""
    import shlex  # not for an app that only reads

    return "cnndeploy data fetch" + (
        "" if folder is None else f" --data-dir {shlex.quote(os.fspath(folder))}"
    )


def load(split: Split, folder: str | os.PathLike[str] | None = None) -> Images:
    """Load one split; raise DataError if a file is missing or damaged. The message says how to get the files."""
    import numpy as np

    prefix = "train" if split == "train" else "t10k"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    images, labels = (np.frombuffer(_read_checked(folder, name), np.uint8) for name in names)
    # after a header of four bytes each: magic number, n, height, width; magic number, n
    count, rest = divmod(images.size - 16, IMAGE_SIZE**2)
    if rest or count != labels.size - 8 or count < 1 or labels[8:].max() >= len(LABELS):
        raise DataError(
            f"{' and '.join(names)} in {raw_folder(folder)} are not images and as many labels of them"
        )
    pixels = images[16:].reshape(count, IMAGE_SIZE, IMAGE_SIZE)
    return Images(pixels, labels[8:], {name: SHA256[name] for name in names})


def status(folder: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """Return ``ok``, ``missing`` or ``damaged`` for each file name."""
    return {name: _state(folder, name) for name in SHA256}


def _state(folder: str | os.PathLike[str] | None, name: str) -> str:
    try:
        _read_checked(folder, name)
    except DataError:
        return "damaged" if (raw_folder(folder) / name).exists() else "missing"
    return "ok"


def fetch(folder: str | os.PathLike[str] | None = None, progress: Progress = silent) -> str:
    """Make sure that all four files are in the data folder, and return where they came from.

    Look first in the data folder, then in the folder of Debian's package, then at torchvision's mirror. If the
    machine has apt, last download Debian's package, and unpack it without installing it. A file appears whole or not
    at all, and two processes may fetch at the same time.

    Args:
        folder: The data folder, see :func:`data_folder`.
        progress: Called with the bytes of a file that are done, its size in bytes, and its name.

    Raises:
        DataError: A file in the data folder is damaged, or no source has the files; the message says why for each.
        ArtifactError: The data folder cannot be written.
    """
    raw = raw_folder(folder)
    missing = [name for name in SHA256 if not (raw / name).exists()]
    for name in SHA256.keys() - missing:
        _read_checked(folder, name)  # a damaged file is an error, so that nothing is overwritten
    if not missing:
        return f"already in {raw}"
    make_folder(raw)
    refusals = []
    for label, source in _sources(data_folder(folder)):
        try:
            for name in missing:
                content = source(name, progress)
                _check(content, name, label, folder)
                write_file(raw / name, content)
        except _Unreachable as reason:
            refusals.append(f"{label}: {reason}")
        else:
            return label
    raise DataError(
        f"Fashion-MNIST could not be fetched. {'; '.join(refusals)}. "
        f"Put the four files, uncompressed or .gz, into {data_folder(folder)} and run this again."
    )


class _Unreachable(Exception):  # noqa: N818 - never leaves this module
    """A source does not have the files; the message says why."""


def _sources(folder: Path) -> Iterator[tuple[str, Callable[[str, Progress], bytes]]]:
    """Yield the places to look, nearest first, each with a function that returns a file's uncompressed content."""
    yield f"files in {folder}", partial(_from_folder, folder)
    yield f"Debian's package in {DEBIAN_FOLDER}", partial(_from_folder, DEBIAN_FOLDER)
    yield "torchvision's mirror", _from_mirror
    with scratch_folder() as scratch:
        yield f"Debian's package {DEBIAN_PACKAGE}", partial(_from_apt, Path(scratch))


def _from_folder(folder: Path, name: str, progress: Progress) -> bytes:
    for path in (folder / name, folder / f"{name}.gz", raw_folder(folder) / f"{name}.gz"):
        if path.is_file():
            content = path.read_bytes()
            progress(len(content), len(content), name)
            return _uncompressed(content, str(path)) if path.suffix == ".gz" else content
    raise _Unreachable(f"no {name} there")


def _from_mirror(name: str, progress: Progress) -> bytes:
    try:
        from torchvision.datasets import FashionMNIST
    except ModuleNotFoundError as error:
        raise _Unreachable("needs torchvision, pip install 'cnndeploy[torch]'") from error
    reasons = []
    for mirror in FashionMNIST.mirrors:
        try:
            content = _uncompressed(_download(f"{mirror}{name}.gz", name, progress), mirror)
            _check(content, name, mirror)
            return content
        except (
            OSError,
            HTTPException,
            ValueError,
            DataError,
        ) as error:  # from the network, or from the server
            reasons.append(f"{getattr(error, 'reason', None) or error}")
    raise _Unreachable("; ".join(reasons))


def _download(url: str, name: str, progress: Progress) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310 - torchvision's own address
        total = int(response.headers.get("Content-Length") or 0)
        content = bytearray()
        while chunk := response.read(1 << 16):
            content += chunk
            progress(len(content), total, name)
            if len(content) > _LIMIT_BYTES:
                raise DataError(f"{url} sends more than {_LIMIT_BYTES:,} bytes")
    return bytes(content)


def _from_apt(scratch: Path, name: str, progress: Progress) -> bytes:
    """Download and unpack the package on first use; install nothing, and need no root."""
    unpacked = scratch / "unpacked"
    if not unpacked.exists():
        progress(0, 0, DEBIAN_PACKAGE)
        try:
            _call(["apt-get", "download", DEBIAN_PACKAGE], scratch)
        except _Unreachable:
            # the machine has never fetched its package lists: fetch them into a folder of our own
            (scratch / "lists" / "partial").mkdir(parents=True)
            own = ["-o", f"Dir::State::lists={scratch / 'lists'}", "-o", f"Dir::Cache={scratch}"]
            _call(["apt-get", *own, "update"], scratch)
            _call(["apt-get", *own, "download", DEBIAN_PACKAGE], scratch)
        package = next(scratch.glob(f"{DEBIAN_PACKAGE}_*.deb"))
        _call(["dpkg-deb", "--extract", str(package), str(unpacked)], scratch)
    return _from_folder(unpacked / DEBIAN_FOLDER.relative_to("/"), name, progress)


def _call(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise _Unreachable(f"{command[0]} is not on this machine")
    # _apt, the user apt drops to, may not enter our folder; as root it then downloads as root, and says so
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise _Unreachable(f"{command[0]} failed: {lines[-1] if lines else done.returncode}")


def _uncompressed(content: bytes, origin: str) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as file:
            return file.read(_LIMIT_BYTES)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{origin} is damaged ({error}). Delete it and run: cnndeploy data fetch") from error


def _read_checked(folder: str | os.PathLike[str] | None, name: str) -> bytes:
    path = raw_folder(folder) / name
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing. Get it with: {fetch_command(folder)}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    _check(content, name, str(path), folder)
    return content


def _check(content: bytes, name: str, origin: str, folder: str | os.PathLike[str] | None = None) -> None:
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != SHA256[name]:
        raise DataError(
            f"{name} from {origin} is damaged: SHA-256 is {sha256}, expected {SHA256[name]}. "
            f"Delete it and run: {fetch_command(folder)}"
        )
