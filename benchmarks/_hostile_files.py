"""The sound files of benchmarks/hostile.py, and what a program does with each of them."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.torch
from PIL import Image

import cnndeploy
from cnndeploy.benchmark.report import BenchmarkReport
from cnndeploy.certificate import certificate_path, read_certificates
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.datasets import fashion_mnist
from cnndeploy.formats.onnx import MANIFEST_KEY
from cnndeploy.importing.labels import labels_of
from cnndeploy.importing.weights import fitted, read_weights
from cnndeploy.training import state

PICTURES = (".png", ".jpg", ".gif", ".webp", ".tiff", ".bmp", ".pgm")
_PREPROCESSING = cnndeploy.Preprocessing(size=(28, 28))
_LABELS = [*"0123456789"]
_INT8 = "int8.onnx"
_IDX = "idx3-ubyte", "idx1-ubyte"


def write_files(folder: Path) -> list[Path]:
    """Write an untrained LeNet in every format, what is read beside models, pictures, and a data set."""
    checkpoint = folder / "lenet.pt"
    network = Checkpoint.untrained("lenet")
    network.save(checkpoint)
    for model_format in ("onnx", "torchscript"):
        cnndeploy.export(checkpoint, model_format)
    cnndeploy.export(checkpoint, "onnx", folder / "image.onnx", input="image")
    made = [checkpoint, folder / "lenet.onnx", folder / "lenet.torchscript", folder / "image.onnx"]
    model = onnx.load(folder / "lenet.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "foreign.onnx")
    safetensors.torch.save_file(dict(network.weights), folder / "weights.safetensors")
    begun = state.resolve(checkpoint, "lenet", None, {}, resume=False, overwrite=True, recipe_of=None)
    begun.network, begun.manifest = dict(network.weights), network.manifest
    begun.save(checkpoint)
    made += [folder / "foreign.onnx", folder / "weights.safetensors", state.state_path(checkpoint)]
    artifact = cnndeploy.Artifact.open(folder / "lenet.onnx")
    run = {"runtime": "onnxruntime", "device": "cpu", "threads": 1, "options": {}}
    facts = {"file": "lenet.onnx", "sha256": artifact.sha256, "machine": {}, "figures": {}}
    size = {
        "input_size": [1, 28, 28],
        "mean": [0.5],
        "std": [0.5],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    texts = {
        "plan.json": json.dumps({**facts, **run, "command": "", "date": ""}),
        "manifest.json": artifact.require_manifest().to_json(),
        "names.json": json.dumps(dict(enumerate(_LABELS))),
        "names.txt": "\n".join(_LABELS),
        "preprocessing.json": json.dumps({"size": [28, 28], "mean": 0.5, "std": 0.5, "antialias": True}),
        "config.json": json.dumps({"pretrained_cfg": size, "num_classes": 10, "label_names": _LABELS}),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [*made, *(folder / name for name in texts), *_pictures(folder), *_data_set(folder)]


def write_results(folder: Path) -> list[Path]:
    """Write what takes seconds to make: an int8 file, its certificate, and a benchmark's report."""
    path = folder / _INT8
    trained = folder / "trained.pt"
    cnndeploy.train(
        "lenet",
        trained,
        recipe="original",
        epochs=2,
        images=8000,
        batch_size=32,
        learning_rate=0.003,
        threads=1,
    )
    cnndeploy.quantize(trained, path, budget=90, calibration=64, images=320, seconds=0)
    report = folder / "report.json"
    report.write_text(
        json.dumps(cnndeploy.bench([folder / "lenet.onnx"], seconds=0.05, cold_starts=0).to_dict())
    )
    return [path, certificate_path(path), report]


def _pictures(folder: Path) -> list[Path]:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    paths = [folder / f"picture{suffix}" for suffix in PICTURES]
    for path in paths:
        Image.fromarray(pixels[..., 0] if path.suffix == ".pgm" else pixels).save(path)
    return paths


def _data_set(folder: Path) -> list[Path]:
    images, labels = (folder / f"t10k-{kind}" for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    images.write_bytes(np.array([0x803, 20, 28, 28], ">i4").tobytes() + bytes(20 * 784))
    labels.write_bytes(np.array([0x801, 20], ">i4").tobytes() + bytes(range(10)) * 2)
    packed = labels.with_name(f"{labels.name}.gz")
    packed.write_bytes(gzip.compress(labels.read_bytes()))
    return [images, labels, packed]


def use(path: Path, sound: Path) -> None:
    """Do with a file what a program of ours does; ``sound`` is the folder that :func:`write_files` filled."""
    by_name: dict[str, Callable[[Path, Path], object]] = {
        "plan.json": _deployed,
        "manifest.json": _described,
        "report.json": lambda path, _: BenchmarkReport.from_json(path.read_text(errors="replace")),
        "preprocessing.json": lambda path, _: cnndeploy.preprocessing_of(path),
        "config.json": _imported_with,
        "names.json": lambda path, _: labels_of(path),
        "names.txt": lambda path, _: labels_of(path),
        "foreign.onnx": lambda path, _: _imported(path),
        "weights.safetensors": lambda path, _: _weights(path),
        "lenet.pt.resume": lambda path, _: state.State.load(path.with_suffix("")),
        f"{_INT8}.verified.json": _certified,
    }
    if path.suffix in PICTURES:
        cnndeploy.read_image(path)
    elif path.name.startswith("t10k"):
        _data(path, sound)
    elif path.name in by_name:
        by_name[path.name](path, sound)
        if path.name == "foreign.onnx":
            _run(path)
    else:
        _run(path)
        if path.suffix == ".pt":
            _weights(path)


def _run(path: Path) -> None:
    artifact, told = cnndeploy.Artifact.open(path), dict[str, Any]()
    artifact.describe()
    if artifact.manifest is None:
        told = {"labels": _LABELS, "preprocessing": _PREPROCESSING}
    _classified(path, **told)


def _classified(source: Path, **told: Any) -> None:
    images = np.zeros((2, 28, 28), np.uint8)
    with cnndeploy.load(source, threads=1, **told) as model:
        model.classify(images[0])
        model.classify(images)


def _deployed(path: Path, sound: Path) -> None:
    shutil.copy(sound / "lenet.onnx", path.parent)
    _classified(path.parent)


def _described(path: Path, sound: Path) -> None:
    model = onnx.load(sound / "lenet.onnx")
    (entry,) = (entry for entry in model.metadata_props if entry.key == MANIFEST_KEY)
    entry.value = path.read_bytes().decode(errors="replace")
    onnx.save(model, path.with_suffix(".onnx"))
    _run(path.with_suffix(".onnx"))


def _certified(path: Path, sound: Path) -> None:
    shutil.copy(sound / _INT8, path.parent)
    artifact = cnndeploy.Artifact.open(path.parent / _INT8)
    read_certificates(artifact)
    _classified(artifact.path, require_verified=True)


def _imported(path: Path) -> None:
    cnndeploy.import_model(
        path, path.parent / "out.onnx", labels=_LABELS, preprocessing=_PREPROCESSING, overwrite=True
    )


def _weights(path: Path) -> None:
    fitted(read_weights(path), Checkpoint.untrained("lenet").network(), path)


def _imported_with(path: Path, sound: Path) -> None:
    shutil.copy(sound / "foreign.onnx", path.parent / "foreign.onnx")
    cnndeploy.import_model(path.parent / "foreign.onnx", path.parent / "out.onnx", overwrite=True)


def _data(path: Path, sound: Path) -> None:
    """Read a data set of 20 images, once under the checksums of Fashion-MNIST and once under its own."""
    raw = fashion_mnist.raw_folder(path.parent)
    raw.mkdir(parents=True, exist_ok=True)
    for name in fashion_mnist.SHA256:
        twin = sound / name.replace("train", "t10k")
        for suffix in ("", ".gz"):
            (raw / f"{name}{suffix}").unlink(missing_ok=True)
        if path.name in (twin.name, f"{twin.name}.gz"):
            shutil.copy(path, raw / f"{name}{path.suffix}")
        else:
            shutil.copy(twin, raw / name)
    usual = dict(fashion_mnist.SHA256)
    try:
        for name in usual:
            twin = sound / name.replace("train", "t10k")
            given = path if path.name == twin.name else twin
            fashion_mnist.SHA256[name] = hashlib.sha256(given.read_bytes()).hexdigest()
        fashion_mnist.fetch(path.parent)
        fashion_mnist.load("test", path.parent)
    finally:
        fashion_mnist.SHA256.update(usual)
