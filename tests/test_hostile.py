"""Hostile and odd files: each is refused by a named error, and a sample of mutated ones never ends otherwise."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.errors import (
    ArtifactError,
    CheckpointError,
    CnndeployError,
    MissingDependencyError,
    UnknownNameError,
)
from cnndeploy.specs import Source
from helpers import Trained

LATIN_1 = os.fsdecode(b"mod\xe8le")
IMAGE = np.zeros((28, 28), np.uint8)


def _with_member(source: Path, target: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """Copy an archive with one member changed, under a checksum that is right."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            new.writestr(member, change(content) if member.endswith(f"/{name}") else content)
    return target


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torchscript", "eager"])
def test_a_name_that_is_not_utf_8_opens(runtime: str, trained: Trained, tmp_path: Path) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    sources = {"torchscript": trained.torchscript, "eager": trained.checkpoint}
    source = sources.get(runtime, trained.onnx)
    path = tmp_path / f"{LATIN_1}{source.suffix}"
    shutil.copy(source, path)
    with (
        cnndeploy.load(path, runtime=runtime, threads=1) as odd,
        cnndeploy.load(source, runtime=runtime, threads=1) as plain,
    ):
        assert np.array_equal(odd.logits(IMAGE), plain.logits(IMAGE))


def test_text_that_is_not_utf_8_is_a_named_error_and_prints_nothing(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = trained.onnx.read_bytes()
    assert b"Conv" in content
    path = tmp_path / "lenet.onnx"
    path.write_bytes(content.replace(b"\x22\x04Conv", b"\x22\x04Co\xff\xfe"))
    with pytest.raises(ArtifactError, match=r"UTF-8|utf-8"):
        cnndeploy.load(path, threads=1)
    assert capfd.readouterr().out == ""  # ONNX Runtime's wrapper prints that it falls back


def test_what_libtorch_raises_is_a_named_error(trained: Trained, tmp_path: Path) -> None:
    path = _with_member(
        trained.torchscript, tmp_path / "bad.torchscript", "version", lambda _: b"\xff\xfe\xfd\n"
    )
    with pytest.raises(ArtifactError, match=r"bad.torchscript"):
        cnndeploy.load(path, threads=1)


@pytest.mark.parametrize("suffix", ["pt", "torchscript"])
def test_a_storage_that_is_shorter_than_the_pickle_says_is_refused(
    suffix: str, trained: Trained, tmp_path: Path
) -> None:
    source = trained.checkpoint if suffix == "pt" else trained.torchscript
    folder = "data" if suffix == "pt" else "constants"
    path = _with_member(source, tmp_path / f"bad.{suffix}", f"{folder}/0", lambda _: b"")
    with pytest.raises(ArtifactError, match=rf"{folder}/0 in it should have [\d,]+ bytes, and has 0"):
        Artifact.open(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda pickled: pickled[:-1] + b"\x95" + bytes(8) + b".", "the instruction FRAME"),
        (lambda pickled: pickled[:-1] + b"r\xff\xff\xff\x7f.", "remembers a value as number"),
        (lambda pickled: b"\x80\x02" + b"0" * 3 + b".", "is damaged"),
    ],
)
def test_a_pickle_that_torch_would_not_write_is_refused(
    change: Callable[[bytes], bytes], reason: str, trained: Trained, tmp_path: Path
) -> None:
    path = _with_member(trained.torchscript, tmp_path / "bad.torchscript", "constants.pkl", change)
    with pytest.raises(ArtifactError, match=reason):
        Artifact.open(path)


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "lenet.pt"
    Checkpoint.untrained("lenet").save(checkpoint)
    # the shape (6,) of the first bias becomes (255,): BININT1 and TUPLE1
    path = _with_member(
        checkpoint,
        tmp_path / "bad.pt",
        "data.pkl",
        lambda pickled: pickled.replace(b"K\x06\x85", b"K\xff\x85", 1),
    )
    with pytest.raises(ArtifactError, match="is larger than its storage"):
        Artifact.open(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        archive.writestr("a/data/0", bytes(2**22))
    with pytest.raises(ArtifactError, match=r"is refused: it has 4,194,\d+ bytes once it is unpacked"):
        Artifact.open(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b'{"message": "Not Found"}', "a JSON document"),
        (b'<?xml version="1.0"?><net name="n">', "OpenVINO's own format"),
        (b"\x1f\x8b\x08\0", "compressed by gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        (pickle.dumps([1], 4), "a pickle"),
        (struct.pack("<Q", 2) + b'{"a":1}', "safetensors.*cnndeploy import"),
    ],
)
def test_another_file_under_a_models_name_is_named(content: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "lenet.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=kind):
        Artifact.open(path)


def test_the_format_of_torch_before_1_6_is_named(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ArtifactError, match=r"before torch 1.6.*cnndeploy import NETWORK --weights"):
        Artifact.open(path)


def test_a_link_to_nothing_says_so(tmp_path: Path) -> None:
    path = tmp_path / "lenet.onnx"
    path.symlink_to("gone.onnx")
    with pytest.raises(ArtifactError, match=r"it is a link to gone.onnx, which is not there"):
        Artifact.open(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_with_a_prefix_say_so(prefix: str) -> None:
    good = Checkpoint.untrained("lenet")
    wrapped = Checkpoint({prefix + key: value for key, value in good.weights.items()}, good.manifest)
    with pytest.raises(CheckpointError, match=f"carry the prefix {prefix!r}"):
        wrapped.network()


def test_weights_say_whether_name_shape_or_dtype_differs() -> None:
    good = Checkpoint.untrained("lenet")
    half = Checkpoint({key: value.half() for key, value in good.weights.items()}, good.manifest)
    with pytest.raises(
        CheckpointError, match=r"10 of another dtype, first classifier.1.bias float16, not float32"
    ):
        half.network()
    first, *others = good.weights
    fewer = Checkpoint({key: good.weights[key] for key in others}, good.manifest)
    with pytest.raises(CheckpointError, match=f"1 missing, first {first}$"):
        fewer.network()


def test_an_argument_of_a_million_is_refused_before_so_much_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Checkpoint.untrained("lenet")
    huge = replace(good, manifest=replace(good.manifest, source=Source({"classes": 10_000_000})))
    devices: list[str] = []
    built = Checkpoint._built

    def noted(self: Checkpoint) -> torch.nn.Module:
        network = built(self)
        devices.append(next(network.parameters()).device.type)
        return network

    monkeypatch.setattr(Checkpoint, "_built", noted)
    with pytest.raises(CheckpointError, match=r"of another shape, first .*not \(10000000"):
        huge.network()
    assert devices == ["meta"]


def test_parameters_are_weights_too(tmp_path: Path) -> None:
    good = Checkpoint.untrained("lenet")
    parameters = {key: torch.nn.Parameter(value) for key, value in good.weights.items()}
    loaded = Checkpoint.load(Checkpoint(parameters, good.manifest).save(tmp_path / "p.pt")).network()
    expected = good.network().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


def test_a_classifier_travels_and_refuses_other_bytes(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "lenet.onnx"
    shutil.copy(trained.onnx, path)
    with cnndeploy.load(path, threads=1, invert=True) as model:
        content = pickle.dumps(model)
        expected = model.logits(IMAGE)
        with pytest.raises(ArtifactError, match="an open session cannot be pickled"):
            pickle.dumps(model._session)
    with pickle.loads(content) as again:  # noqa: S301 - ours
        assert np.array_equal(again.logits(IMAGE), expected)
    shutil.copy(trained.checkpoint, path)
    with pytest.raises(ArtifactError, match="has changed since the Classifier was loaded"):
        pickle.loads(content)  # noqa: S301 - ours


@pytest.mark.parametrize("error", [UnknownNameError("runtime", "x", ["y"]), MissingDependencyError("onnx")])
def test_errors_travel(error: CnndeployError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - ours
    assert (type(again), str(again)) == (type(error), str(error))


def test_a_file_that_another_program_quantised_has_no_accuracy_of_ours(
    trained: Trained, tmp_path: Path
) -> None:
    import onnx

    from cnndeploy.certificate import known_accuracy
    from cnndeploy.run import Run

    model = onnx.load(trained.onnx)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["raw" if name == output else name for name in node.output]
    constants: list[tuple[str, NDArray[Any]]] = [
        ("scale", np.array(0.1, np.float32)),
        ("zero", np.array(0, np.int8)),
    ]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants)
    model.graph.node.extend(
        [
            onnx.helper.make_node("QuantizeLinear", ["raw", "scale", "zero"], ["q"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], [output]),
        ]
    )
    path = tmp_path / "lenet.onnx"
    onnx.save(model, path)
    run = Run("onnxruntime", "cpu")
    assert known_accuracy(Artifact.open(trained.onnx), run) is not None
    assert known_accuracy(Artifact.open(path), run) is None
    report = cnndeploy.verify(path, trained.checkpoint, images=20)
    assert "another program changed its precision" in report.reasons[-1]
    assert "DequantizeLinear" in report.reasons[-1]


@pytest.mark.slow
def test_one_large_image_leaves_no_memory_behind(trained: Trained, tmp_path: Path) -> None:
    path = cnndeploy.export(trained.checkpoint, "onnx", tmp_path / "image.onnx", input="image").path
    code = f"""
import numpy as np, cnndeploy
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
with cnndeploy.load({str(path)!r}, threads=1) as model:
    model.classify(np.zeros((28, 28), np.uint8))
    before = resident()
    model.classify(np.zeros((5000, 5000), np.uint8))
    print((resident() - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50  # MiB; the arena used to keep over 100


@pytest.mark.field
def test_mutated_files_run_or_raise_a_named_error() -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "hostile.py"
    done = subprocess.run(
        [sys.executable, script, "--files", "500", "--seed", "3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "500 files, 0 with a bad end" in done.stdout
