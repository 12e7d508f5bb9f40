"""The ways into an app: each example runs where an app would run it, and gives the labels of eager PyTorch."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import cnndeploy
from cnndeploy.datasets import fashion_mnist
from helpers import Trained

pytestmark = [pytest.mark.slow, pytest.mark.field]  # most install packages
REPOSITORY = Path(__file__).parents[1]
EXAMPLES = REPOSITORY / "examples"
IMAGES = 12


def _run(*command: object, **settings: Any) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def app_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with nothing but cnndeploy[cpu]."""
    folder = tmp_path_factory.mktemp("app") / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", folder)  # ours installs into it
    python = folder / "bin" / "python"
    _install(python, f"cnndeploy[cpu] @ {wheel.as_uri()}")
    return python


def _pip(python: Path, *arguments: str | Path) -> str:
    return _run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, *arguments)


def _install(python: Path, *packages: str) -> None:
    """Install without compiling; what is imported is compiled then, and that is little of it."""
    constraints = REPOSITORY / "constraints.txt"
    _pip(python, "install", "-q", "--no-compile", "--constraint", constraints, *packages)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Image files, the last of another size."""
    folder = tmp_path_factory.mktemp("pictures")
    images = [Image.fromarray(pixels) for pixels in fashion_mnist.load("test").images[:IMAGES]]
    images[-1] = images[-1].resize((61, 45))
    for number, image in enumerate(images):
        image.save(folder / f"{number:02}.png")
        image.save(folder / f"{number:02}.pgm")
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def expected(trained: Trained, pictures: list[Path]) -> dict[str, cnndeploy.Prediction]:
    """What eager PyTorch says of each picture, by the stem of its name."""
    with cnndeploy.load(trained.checkpoint, threads=1) as model:
        found = model.classify([cnndeploy.read_image(path) for path in pictures])
    assert len({each.label for each in found}) > 3
    return {path.stem: prediction for path, prediction in zip(pictures, found, strict=True)}


def _check_lines(printed: str, expected: dict[str, cnndeploy.Prediction]) -> None:
    """Lines of a path, a label and its probability."""
    lines = printed.splitlines()
    assert len(lines) == len(expected)
    for line in lines:
        path, label, probability = re.fullmatch(r"(.+): (.+) ([\d.e-]+)", line).groups()  # type: ignore[union-attr]
        assert label == expected[Path(path).stem].label
        assert float(probability) == pytest.approx(expected[Path(path).stem].probability, abs=1e-4)


def test_an_app_needs_little(app_python: Path, trained: Trained, tmp_path: Path) -> None:
    script = """
import sys
at_start = set(sys.modules)
import cnndeploy
print(sorted({name.partition(".")[0] for name in set(sys.modules) - at_start} - sys.stdlib_module_names))
import numpy as np
with cnndeploy.load(sys.argv[1]) as model:
    model.classify(np.zeros((28, 28), np.uint8))
print(sorted({name.partition(".")[0] for name in set(sys.modules) - at_start} - sys.stdlib_module_names))
"""
    printed = _run(app_python, "-c", script, trained.onnx, cwd=tmp_path)
    imported, used = map(str.strip, printed.splitlines())
    assert imported == "['cnndeploy']"
    assert used == "['cnndeploy', 'numpy', 'onnxruntime']"
    installed = json.loads(_pip(app_python, "list", "--format", "json"))
    assert not {"torch", "torchvision", "onnx"} & {each["name"] for each in installed}


def test_raw_images_give_what_pillow_and_numpy_give_by_hand(
    app_python: Path, trained_resnet: Trained, raw_files: Path, photos: Path, tmp_path: Path
) -> None:
    """From JPEGs, without PyTorch and cnndeploy: by both forms, and by the file of prepared tensors."""
    script = """
import pathlib, sys
import numpy as np, onnxruntime
from PIL import Image
native, portable, tensor = map(onnxruntime.InferenceSession, sys.argv[1:4])
photos = pathlib.Path(sys.argv[4])
mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
labels, off = set(), [0.0, 0.0]
for path in sorted(photos.glob("val/*/*.jpg")):
    image = Image.open(path).convert("RGB")
    width, height = image.size
    new = (36, 36 * height // width) if width <= height else (36 * width // height, 36)
    resized = image.resize((new[0], height), Image.BILINEAR).resize(new, Image.BILINEAR)
    left, top = (round((side - 32) / 2) for side in new)
    pixels = np.asarray(resized.crop((left, top, left + 32, top + 32)), np.float32)
    prepared = ((pixels / 255 - mean) / std).transpose(2, 0, 1)[None]
    (logits,) = tensor.run(None, {"image": prepared})
    expected = np.exp(logits) / np.exp(logits).sum()
    for number, session in enumerate((native, portable)):
        (given,) = session.run(["probabilities"], {"image": np.asarray(image)[None]})
        assert given.argmax() == expected.argmax()
        off[number] = max(off[number], float(np.abs(given - expected).max()))
    labels.add(int(expected.argmax()))
assert "torch" not in sys.modules and "cnndeploy" not in sys.modules
print(len(labels), *off)
"""
    files = raw_files / "native.onnx", raw_files / "portable.onnx", trained_resnet.onnx
    printed = _run(app_python, "-c", script, *files, photos, cwd=tmp_path)
    labels, native, portable = map(float, printed.split())
    assert labels > 2
    assert portable < 1e-5 < native < 0.01


@pytest.mark.parametrize("kind", ["onnx", "onnx_image"])
def test_plain_python(
    kind: str,
    app_python: Path,
    trained: Trained,
    pictures: list[Path],
    expected: dict[str, cnndeploy.Prediction],
    tmp_path: Path,
) -> None:
    path = trained.file_of(kind)
    _check_lines(_run(app_python, EXAMPLES / "classify.py", path, *pictures, cwd=tmp_path), expected)
    predicted = json.loads(
        _run(app_python, "-m", "cnndeploy", "predict", path, *pictures, "--json", cwd=tmp_path)
    )
    assert [each["classes"][0]["label"] for each in predicted["predictions"]] == [
        each.label for each in expected.values()
    ]
    refused = subprocess.run(
        [app_python, EXAMPLES / "classify.py", path, __file__], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: {__file__} is not an image of a kind that is read here: ")


def test_a_network_of_others_on_jpegs(
    app_python: Path, trained_resnet: Trained, photos: Path, tmp_path: Path
) -> None:
    """With Pillow and ONNX Runtime alone, and by hand with these."""
    pictures = sorted(photos.glob("val/*/00.jpg"))
    with cnndeploy.load(trained_resnet.checkpoint, threads=1) as model:
        answers = model.classify([cnndeploy.read_image(path, channels=3) for path in pictures])
    assert len({each.label for each in answers}) > 3
    predicted = json.loads(
        _run(app_python, "-m", "cnndeploy", "predict", trained_resnet.onnx, *pictures, "--json", cwd=tmp_path)
    )
    for one, answer in zip(predicted["predictions"], answers, strict=True):
        assert one["classes"][0]["label"] == answer.label
        assert one["classes"][0]["probability"] == pytest.approx(answer.probability, abs=1e-4)


@contextlib.contextmanager
def _serving(python: Path, model: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The example's web service, and its port; ended at the latest when the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "CNNDEPLOY_MODEL": str(model), "PORT": str(port)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, EXAMPLES / "server.py"], env=environment, stdout=output, stderr=output, cwd=log.parent
        )
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(ConnectionError):
                    if _request(port, "GET", "/health")[0] == 200:
                        break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield process, port
        finally:
            process.kill()
            process.wait()


_BOUNDARY = "between-the-parts"


def _form(name: str, paths: list[Path]) -> bytes:
    parts = b"".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{path.name}"\r\n\r\n'.encode()
        + path.read_bytes()
        + b"\r\n"
        for path in paths
    )
    return parts + f"--{_BOUNDARY}--\r\n".encode()


def _request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"} if body else {}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_a_web_service(
    app_python: Path,
    trained: Trained,
    pictures: list[Path],
    expected: dict[str, cnndeploy.Prediction],
    tmp_path: Path,
) -> None:
    _install(app_python, "fastapi", "uvicorn", "python-multipart")
    log = tmp_path / "log"
    with _serving(app_python, trained.onnx, log) as (process, port):
        health = _request(port, "GET", "/health")[1]
        assert (health["status"], health["labels"]) == ("ready", list(fashion_mnist.LABELS))

        together = threading.Barrier(200)

        def ask(number: int) -> bool:
            path = pictures[number % len(pictures)]
            body = _form("image", [path])
            together.wait(60)
            status, answer = _request(port, "POST", "/classify", body)
            (best,) = answer["classes"]
            return (status, best["label"]) == (200, expected[path.stem].label)

        with ThreadPoolExecutor(200) as clients:
            assert list(clients.map(ask, range(200))) == [True] * 200

        status, answer = _request(port, "POST", "/classify/batch?top=3", _form("images", pictures))
        assert status == 200
        assert [each["classes"][0]["label"] for each in answer["images"]] == [
            each.label for each in expected.values()
        ]
        assert {len(each["classes"]) for each in answer["images"]} == {3}

        broken = tmp_path / "broken.png"
        broken.write_bytes(pictures[0].read_bytes()[:60])
        status, answer = _request(port, "POST", "/classify/batch", _form("images", [pictures[0], broken]))
        assert (status, "broken.png: the file" in answer["detail"]) == (422, True)
        assert _request(port, "POST", "/classify/batch", _form("images", pictures * 6))[0] == 413
        Image.new("L", (4000, 4000)).save(tmp_path / "wide.png")
        (tmp_path / "long.png").write_bytes(bytes(11 * 2**20))
        for name, reason in (("wide.png", "pixels"), ("long.png", "bytes")):
            status, answer = _request(port, "POST", "/classify", _form("image", [tmp_path / name]))
            assert (status, reason in answer["detail"]) == (413, True)

        # a request that has begun when the service is told to end is answered
        body = _form("image", [pictures[0]])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as begun:
            begun.sendall(
                f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n"
                f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\n\r\n".encode()
                + body[:100]
            )
            assert begun.recv(4096).startswith(b"HTTP/1.1 100 Continue")  # the service is at it
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 30
            while "Shutting down" not in log.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            begun.sendall(body[100:])
            answer = b"".join(iter(lambda: begun.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert expected[pictures[0].stem].label.encode() in answer
        process.wait(30)
    assert "Application shutdown complete" in log.read_text()


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed; it would run this")
def test_node(
    trained: Trained, pictures: list[Path], expected: dict[str, cnndeploy.Prediction], tmp_path: Path
) -> None:
    folder = tmp_path / "node"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    _run("npm", "install", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund", cwd=folder)
    facts = folder / "lenet.json"
    facts.write_text(_run(sys.executable, "-m", "cnndeploy", "inspect", trained.onnx_image, "--json"))
    _check_lines(_run("node", folder / "classify.mjs", trained.onnx_image, facts, *pictures), expected)
    of_tensors, deep = folder / "tensors.json", tmp_path / "deep.png"
    of_tensors.write_text(_run(sys.executable, "-m", "cnndeploy", "inspect", trained.onnx, "--json"))
    Image.new("I;16", (28, 28)).save(deep)
    for described, picture, reason in (
        (of_tensors, pictures[0], "takes no raw images"),
        (facts, facts, "cannot be read as a PNG file"),
        (facts, deep, "more than 8 bits"),
    ):
        command: list[str | Path] = ["node", folder / "classify.mjs", trained.onnx_image, described, picture]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert re.search(reason, done.stderr)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed; it would run this")
def test_cpp(
    trained: Trained, pictures: list[Path], expected: dict[str, cnndeploy.Prediction], tmp_path: Path
) -> None:
    program = tmp_path / "classify"
    _run(EXAMPLES / "cpp" / "build.sh", program, env={**os.environ, "PYTHON": sys.executable})
    grey = [path.with_suffix(".pgm") for path in pictures]
    _check_lines(_run(program, trained.torchscript_image, *grey), expected)
    for model, picture, reason in (
        (trained.torchscript, grey[0], "takes no raw images"),
        (trained.torchscript_image, pictures[0], "is not an 8-bit binary PGM file"),
        (tmp_path / "none", grey[0], "Error: .*none"),
        (trained.torchscript_image, tmp_path / "none.pgm", "none.pgm cannot be opened"),
    ):
        done = subprocess.run([program, model, picture], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert re.search(reason, done.stderr)
        assert len(done.stderr.splitlines()) == 1


def test_the_pages_show_what_these_tests_run() -> None:
    page = (REPOSITORY / "docs" / "EMBEDDING.md").read_text()
    shown = re.findall(r"<!-- (\S+) -->\n```\w*\n(.*?)```", page, re.DOTALL)
    names = ["classify.py", "server.py", "node/classify.mjs", "node/package.json", "cpp/classify.cpp"]
    assert sorted(name for name, _ in shown) == sorted(
        [f"examples/{name}" for name in [*names, "cpp/build.sh"]]
    )
    for name, text in shown:
        assert text == (REPOSITORY / name).read_text(), f"docs/EMBEDDING.md shows another {name}"
