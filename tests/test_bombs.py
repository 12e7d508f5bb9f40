"""Resource bombs are refused by name before they take memory or time, unless the caller raises the limits."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bombs
import numpy as np
import pytest
from PIL import Image

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.certificate import certificate_path, read_certificates
from cnndeploy.errors import ArtifactError, DataError
from cnndeploy.importing.labels import labels_of
from cnndeploy.importing.weights import read_weights
from helpers import Trained

_MODELS, _PICTURES = bombs.models(), bombs.pictures()
_MOST_BYTES = 200 * 2**20
_LIMITED = r" is refused: it has .*, and the limit is [\d,]+\. If you trust the file, set CNNDEPLOY_LIMITS=10"
_Tried = tuple[str, str, int]


@pytest.fixture(scope="module")
def used(hostile: Any, trained: Trained) -> Iterator[Callable[[Path], _Tried]]:
    """Return what opens, loads and runs a file in a worker under a limit of memory: benchmarks/hostile.py."""
    with hostile.started([trained.checkpoint, trained.onnx]) as worker:
        yield lambda path: hostile.ask(worker, path, trained.checkpoint.parent)
        worker.kill()


@pytest.mark.parametrize("name", _MODELS)
def test_a_model_is_refused(name: str, used: Callable[[Path], _Tried], tmp_path: Path) -> None:
    content = _MODELS[name]()
    # the latter is imported, unless it is far larger
    for file in ("model.onnx", "foreign.onnx")[: 1 if len(content) > 10**6 else 2]:
        path = tmp_path / file
        path.write_bytes(content)
        end, said, memory = used(path)
        assert end == "named error"
        assert re.search("in a circle" if "circle" in name else _LIMITED, said)
        assert memory < _MOST_BYTES


@pytest.mark.parametrize("name", bombs.archives(Path()))
def test_a_checkpoint_is_refused(
    name: str, trained: Trained, used: Callable[[Path], _Tried], tmp_path: Path
) -> None:
    path = tmp_path / "bomb.pt"
    path.write_bytes(bombs.archives(trained.checkpoint)[name]())
    end, said, memory = used(path)
    assert end == "named error"
    assert re.search(_LIMITED, said)
    assert memory < _MOST_BYTES


@pytest.mark.parametrize("kind", ["weights.pt", "bomb.torchscript"])
def test_an_archive_that_unpacks_to_10_gb_is_refused(kind: str, trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / kind
    path.write_bytes(bombs.unpacking(trained.torchscript if "script" in kind else trained.checkpoint))
    with pytest.raises(ArtifactError, match=_LIMITED):
        read_weights(path) if "weights" in kind else Artifact.open(path)


@pytest.mark.parametrize("name", _PICTURES)
def test_a_picture_is_refused(name: str, used: Callable[[Path], _Tried], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(_PICTURES[name])
    with pytest.raises(DataError, match=r"the limits? (is|are)|limits:|too large"):
        cnndeploy.read_image(path.read_bytes())
    end, _, memory = used(path)
    assert (end, memory < _MOST_BYTES) == ("named error", True)


def test_of_100_000_frames_one_is_read() -> None:
    assert cnndeploy.read_image(bombs.animation()).shape == (28, 28)


def test_a_sound_picture_that_is_read_twice_keeps_its_place() -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "JPEG", progressive=True)
    expected = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
    assert np.array_equal(cnndeploy.read_image(buffer.getvalue()), expected)


def test_who_trusts_a_file_raises_the_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "pad.onnx"
    path.write_bytes(_MODELS["pad"]())
    monkeypatch.setenv("CNNDEPLOY_LIMITS", "10")
    with pytest.raises(ArtifactError, match=r"the limit is 2,684,354,560\."):
        Artifact.open(path)
    monkeypatch.setenv("CNNDEPLOY_LIMITS", "100")
    assert Artifact.open(path).manifest is None


@pytest.mark.parametrize("location", ["../../../../etc/passwd", "/etc/passwd", "link"])
def test_weights_outside_the_folder_are_not_read(location: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    path = tmp_path / "outside.onnx"
    path.write_bytes(bombs.outside(location))
    with pytest.raises(ArtifactError, match=r"is not self-contained"):
        Artifact.open(path)
    with pytest.raises(ArtifactError, match=r"cannot be read as ONNX: .*(outside|absolute|symbolic link)"):
        cnndeploy.import_model(
            path, tmp_path / "out.onnx", labels=["a", "b"], preprocessing={"size": [28, 28]}
        )


def test_a_long_text_beside_a_model_is_not_read(trained: Trained, tmp_path: Path) -> None:
    path = Path(shutil.copy(trained.onnx, tmp_path))
    long = {name: tmp_path / name for name in ("plan.json", "names.txt", "preprocessing.json")}
    for one in (*long.values(), certificate_path(path)):
        with one.open("wb") as file:
            file.truncate(10**10)
    assert read_certificates(Artifact.open(path)) == []
    for name, read in (
        ("plan.json", lambda _: cnndeploy.load(tmp_path)),
        ("names.txt", labels_of),
        ("preprocessing.json", cnndeploy.preprocessing_of),
    ):
        with pytest.raises(ArtifactError, match=rf"{name}.*10,000,000,000 bytes of text"):
            read(long[name])
