"""The page of examples/web, in a real browser: it shows the labels of eager PyTorch, and asks nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import cnndeploy
from cnndeploy.datasets import fashion_mnist
from cnndeploy.errors import DataError
from cnndeploy.specs import Resizing
from helpers import Trained

WEB = Path(__file__).parents[1] / "examples" / "web"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NPM = shutil.which("npm")
IMAGES = 200
pytestmark = [
    pytest.mark.field,  # it installs packages
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; it would run this"),
    pytest.mark.skipif(NPM is None, reason="npm is not installed; it would run this"),
]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, and the package by which a test uses a browser."""
    folder = tmp_path_factory.mktemp("web")
    shutil.copytree(WEB, folder / "web", ignore=shutil.ignore_patterns("node_modules"))
    shutil.copy(Path(__file__).with_name("browse.mjs"), folder)
    options = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
    subprocess.run([str(NPM), "install", *options, "puppeteer-core@24.43.1"], cwd=folder, check=True)
    return folder


def _site(web: Path, model: Path, name: str) -> Path:
    ours = Path(sys.executable).with_name("cnndeploy")
    command = [web / "web" / "build.sh", model, web / name]
    subprocess.run(command, env=os.environ | {"CNNDEPLOY": str(ours)}, check=True)
    return web / name


@pytest.fixture(scope="module")
def site(web: Path, trained: Trained) -> Path:
    return _site(web, trained.onnx_image, "site")


@contextlib.contextmanager
def _served(*command: str | Path) -> Iterator[str]:
    """The address of a server that prints its address or its port first."""
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-u", *map(str, command)], **settings) as server:
        try:
            assert server.stdout is not None
            port = next(
                word for word in server.stdout.readline().replace("/", ":").split(":") if word.isdigit()
            )
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()


def _browsed(web: Path, url: str, *images: Path) -> dict[str, Any]:
    """What a browser shows; every request went to the server that the page came from."""
    command = ["node", web / "browse.mjs", url, str(CHROMIUM), *images]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    elsewhere = [
        request
        for request in found["requests"]
        if not request.startswith(("data:", f"blob:{url}"))
        and urlsplit(request).netloc != urlsplit(url).netloc
    ]
    assert len(found["requests"]) >= 5
    assert not elsewhere
    return found


def _check(
    found: dict[str, Any], images: list[Path], expected: list[cnndeploy.Prediction], off: float
) -> None:
    shown = {each["name"]: each for each in found["shown"]}
    assert set(shown) == {path.name for path in images}
    for path, prediction in zip(images, expected, strict=True):
        assert shown[path.name]["label"] == prediction.label
        assert float(shown[path.name]["probability"]) == pytest.approx(prediction.probability, abs=off)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Grey images, the last in colours, of another size, and behind a transparent ground."""
    folder = tmp_path_factory.mktemp("pictures")
    images = [Image.fromarray(pixels) for pixels in fashion_mnist.load("test").images[:IMAGES]]
    grey = np.asarray(images[-1].resize((61, 45)))
    alpha = np.clip(grey.astype(int) * 4, 0, 255).astype(np.uint8)
    images[-1] = Image.fromarray(np.stack([grey, grey // 2, 255 - grey, alpha], axis=2))
    paths = [folder / f"{number:03}.png" for number in range(IMAGES)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths


@pytest.fixture(scope="module")
def expected(trained: Trained, pictures: list[Path]) -> list[cnndeploy.Prediction]:
    with cnndeploy.load(trained.checkpoint, threads=1) as model:
        found = model.classify([cnndeploy.read_image(path) for path in pictures])
    assert len({each.label for each in found}) > 5
    return found


@pytest.mark.parametrize("threads", [True, False])
def test_labels_are_those_of_eager_pytorch(
    web: Path, site: Path, pictures: list[Path], expected: list[cnndeploy.Prediction], threads: bool
) -> None:
    """With threads, if the server sends two headers, and without, as from any static server."""
    plain = ("-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", site)
    with _served(*((WEB / "serve.py", site, "0") if threads else plain)) as url:
        found = _browsed(web, url, *pictures)
    count = min(4, len(os.sched_getaffinity(0))) if threads else 1
    counted = f"{count} threads" if count > 1 else "1 thread"
    assert found["status"] == f"lenet is ready; WebAssembly with {counted}."
    assert found["messages"] == []
    _check(found, pictures, expected, off=1e-4)


def test_photos_of_any_size(
    web: Path, trained_resnet: Trained, raw_files: Path, photos: Path, tmp_path: Path
) -> None:
    """They are decoded, resized and cropped in the browser, by either form of resizing."""
    images = [tmp_path / f"{number:03}.jpg" for number, _ in enumerate(photos.glob("*/*/*.jpg"))]
    assert len(images) > 20
    for image, photo in zip(images, sorted(photos.glob("*/*/*.jpg")), strict=True):
        shutil.copy(photo, image)
    with cnndeploy.load(trained_resnet.checkpoint, threads=1) as model:
        expected = model.classify([cnndeploy.read_image(path, channels=3) for path in images])
    assert len({each.label for each in expected}) > 1
    for form in get_args(Resizing):
        site = _site(web, raw_files / f"{form}.onnx", form)
        with _served(WEB / "serve.py", site, "0") as url:
            found = _browsed(web, url, *images)
        assert found["messages"] == []
        _check(found, images, expected, off=0.01)


def test_what_goes_wrong_is_said(web: Path, site: Path, trained: Trained, tmp_path: Path) -> None:
    no_image, dark = tmp_path / "letter.png", tmp_path / "dark.png"
    no_image.write_text("Dear Sir")
    ink = np.zeros((28, 28, 4), np.uint8)
    ink[5:20, 5:20, 3] = 255
    Image.fromarray(ink).save(dark)
    with pytest.raises(DataError, match="dark on a transparent ground"):
        cnndeploy.read_image(dark)
    with _served(WEB / "serve.py", site, "0") as url:
        found = _browsed(web, url, no_image, dark)
    failures = {shown["name"]: shown["failure"] for shown in found["shown"]}
    assert "could not be decoded" in failures["letter.png"]
    assert "nothing is left of it" in failures["dark.png"]
    with _served(WEB / "serve.py", _site(web, trained.onnx, "tensors"), "0") as url:
        found = _browsed(web, url)
    assert found["status"].endswith("export it with cnndeploy export --format onnx --input image")
