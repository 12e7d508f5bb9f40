from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from cnndeploy.datasets import Split, fashion_mnist
from cnndeploy.errors import DataError


def _links(folder: Path) -> Path:
    """A data folder of links to the real files, so that one of them can be replaced."""
    raw = fashion_mnist.raw_folder(folder)
    raw.mkdir(parents=True)
    for name in fashion_mnist.SHA256:
        (raw / name).symlink_to(fashion_mnist.raw_folder() / name)
    return raw


@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_torchvision_reads_the_same(split: Split, count: int) -> None:
    ours = fashion_mnist.load(split)
    theirs = FashionMNIST(str(fashion_mnist.data_folder()), train=split == "train", download=False)
    assert len(ours) == count
    np.testing.assert_array_equal(ours.images, theirs.data.numpy())
    np.testing.assert_array_equal(ours.labels, theirs.targets.numpy())
    assert list(fashion_mnist.LABELS) == theirs.classes


def test_first_images() -> None:
    images = fashion_mnist.load("test")
    assert len(images.first(7)) == 7
    assert len(images.first(None)) == 10_000
    for count in (0, -1, 10_001):
        with pytest.raises(DataError, match="10000"):
            images.first(count)


def test_fetch_takes_files_from_the_data_folder(tmp_path: Path) -> None:
    """Two are there as they are, two as .gz, as somebody may have downloaded them."""
    for number, name in enumerate(fashion_mnist.SHA256):
        content = (fashion_mnist.raw_folder() / name).read_bytes()
        if number % 2:
            (tmp_path / name).write_bytes(content)
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content, 1, mtime=0))
    seen: list[str] = []
    assert (
        fashion_mnist.fetch(tmp_path, lambda _done, _total, name: seen.append(name)) == f"files in {tmp_path}"
    )
    assert fashion_mnist.status(tmp_path) == dict.fromkeys(fashion_mnist.SHA256, "ok")
    assert seen == list(fashion_mnist.SHA256)
    assert fashion_mnist.fetch(tmp_path).startswith("already in")


def test_a_damaged_file_is_refused_and_kept(tmp_path: Path) -> None:
    raw = _links(tmp_path)
    name = "t10k-labels-idx1-ubyte"
    content = bytearray((raw / name).read_bytes())
    content[100] ^= 1
    (raw / name).unlink()
    (raw / name).write_bytes(content)
    for use in (lambda: fashion_mnist.load("test", tmp_path), lambda: fashion_mnist.fetch(tmp_path)):
        with pytest.raises(
            DataError, match=rf"{name}.*is damaged: SHA-256 is .*expected {fashion_mnist.SHA256[name]}"
        ):
            use()
    assert (raw / name).read_bytes() == content
    assert fashion_mnist.status(tmp_path)[name] == "damaged"


@pytest.mark.parametrize("damage", [lambda c: c[:1000], lambda c: b"", lambda c: b"not gzip"])
def test_a_damaged_download_leaves_nothing(
    damage: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = gzip.compress((fashion_mnist.raw_folder() / "train-images-idx3-ubyte").read_bytes(), 1)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damage(content))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"damaged|needs|could not be fetched"):
        fashion_mnist.fetch(tmp_path)
    assert list(fashion_mnist.raw_folder(tmp_path).iterdir()) == []


def test_an_interrupted_fetch_leaves_whole_files_only(tmp_path: Path) -> None:
    def interrupt(done: int, total: int, name: str) -> None:
        if name.startswith("t10k"):
            raise KeyboardInterrupt

    for name in fashion_mnist.SHA256:
        (tmp_path / name).symlink_to(fashion_mnist.raw_folder() / name)
    with pytest.raises(KeyboardInterrupt):
        fashion_mnist.fetch(tmp_path, interrupt)
    left = {path.name for path in fashion_mnist.raw_folder(tmp_path).iterdir()}
    assert left == {"train-images-idx3-ubyte", "train-labels-idx1-ubyte"}
    fashion_mnist.fetch(tmp_path)
    assert set(fashion_mnist.status(tmp_path).values()) == {"ok"}


def test_two_processes_may_fetch_at_once(tmp_path: Path) -> None:
    for name in fashion_mnist.SHA256:
        (tmp_path / name).symlink_to(fashion_mnist.raw_folder() / name)
    command = [sys.executable, "-m", "cnndeploy", "data", "fetch", "--data-dir", str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert set(fashion_mnist.status(tmp_path).values()) == {"ok"}
    assert len(list(fashion_mnist.raw_folder(tmp_path).iterdir())) == 4


def test_no_source_says_why_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", Path("/nowhere"))
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DataError) as caught:
        fashion_mnist.fetch(tmp_path)
    for word in ("files in", "/nowhere", "torchvision's mirror", "refused", "apt-get is not on this machine"):
        assert word in str(caught.value)
    assert list(fashion_mnist.raw_folder(tmp_path).iterdir()) == []


@pytest.mark.parametrize("answer", [b"<html>log in first</html>", gzip.compress(b"short", mtime=0), b""])
def test_a_mirror_that_answers_something_else_is_passed_over(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Portal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", Path("/nowhere"))
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(
            DataError, match=r"torchvision's mirror: .*damaged.*apt-get is not on this machine"
        ):
            fashion_mnist.fetch(tmp_path)
        server.shutdown()
    assert list(fashion_mnist.raw_folder(tmp_path).iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs Debian's apt-get")
def test_fetch_from_debians_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", Path("/usr/share/datasets/fashion-mnist"))
    monkeypatch.setattr(FashionMNIST, "mirrors", [])
    if fashion_mnist.DEBIAN_FOLDER.exists():
        pytest.skip("the package is installed, so its folder comes first")
    assert fashion_mnist.fetch(tmp_path) == "Debian's package dataset-fashion-mnist"
    assert set(fashion_mnist.status(tmp_path).values()) == {"ok"}


def test_the_data_folder_is_chosen_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CNNDEPLOY_DATA", os.fspath(tmp_path / "environment"))
    assert fashion_mnist.data_folder(tmp_path / "argument") == tmp_path / "argument"
    assert fashion_mnist.data_folder() == tmp_path / "environment"
    monkeypatch.delenv("CNNDEPLOY_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    assert fashion_mnist.data_folder() == tmp_path / "cnndeploy"
