"""Every public name has an example, and it does what it says."""

from __future__ import annotations

import doctest
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cnndeploy
from cnndeploy.datasets import fashion_mnist
from cnndeploy.quantization.quantize import Quantized
from cnndeploy.specs import Manifest
from cnndeploy.tuning import race, tune
from helpers import Trained

_FOUND = [
    example
    for value in (*(getattr(cnndeploy, name) for name in cnndeploy.__all__), Manifest)
    for example in doctest.DocTestFinder(recurse=True).find(
        value, globs={"cnndeploy": cnndeploy, "np": np}, module=False
    )
]

_SLOW = {
    "BenchmarkReport",
    "Compressed",
    "Quantized",
    "Reference",
    "bench",
    "compress",
    "quantize",
    "train",
    "tune",
}


@pytest.mark.parametrize("name", [*cnndeploy.__all__, "Manifest"])
def test_every_public_name_has_an_example(name: str) -> None:
    assert [each for each in _FOUND if each.name == name and each.examples], name


@pytest.mark.usefixtures("without_compiler")  # tests of tune and of the runtimes compile
@pytest.mark.parametrize(
    "example",
    [
        pytest.param(each, id=each.name, marks=pytest.mark.slow if each.name in _SLOW else ())
        for each in _FOUND
        if each.examples
    ],
)
def test_an_example(
    example: Any, trained: Trained, int8: Quantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(trained.checkpoint, tmp_path / "lenet.pt")
    shutil.copy(trained.onnx, tmp_path / "lenet.onnx")
    shutil.copy(trained.torchscript, tmp_path / "lenet.torchscript")
    shutil.copy(int8.artifact.path, tmp_path / "lenet.int8.onnx")
    Image.fromarray(fashion_mnist.load("test").images[0]).save(tmp_path / "shoe.png")
    monkeypatch.chdir(tmp_path)
    # of tune, for no example shows which is fastest
    monkeypatch.setattr(race, "MOST_ROUNDS", race.FIRST_ROUNDS)
    monkeypatch.setattr(tune, "usable_cpus", lambda: 1)
    # of compress, which would train for a minute
    monkeypatch.setattr("cnndeploy.compression.job._BEFORE_REPAIR", ())
    monkeypatch.setattr("cnndeploy.compression.material._MOST_TO_JUDGE", 256)
    said: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert outcome.attempted
    assert not outcome.failed, "".join(said)
