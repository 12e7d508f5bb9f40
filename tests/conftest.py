"""Fixtures that many tests share: the data set, and one trained network with its exported files."""

from __future__ import annotations

import fcntl
import importlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

# No test measures time, and beside other programs torch's spinning threads make training many times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from nursery import Nursery, Subprocess

import cnndeploy
from cnndeploy import process
from cnndeploy.benchmark import engine
from cnndeploy.benchmark.timer import Timer
from cnndeploy.cli import main
from cnndeploy.datasets import fashion_mnist
from cnndeploy.exporters import export
from cnndeploy.quantization.quantize import Quantized, quantize
from cnndeploy.sources import remember
from cnndeploy.specs import Resizing
from helpers import RESNET, Once, Trained, train_for_a_moment, train_resnet_for_a_moment, write_photos

REPOSITORY = Path(__file__).parents[1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test draws the same weights and images in every run, so that a failure can be reproduced."""
    torch.manual_seed(zlib.crc32(item.nodeid.encode()))


@pytest.fixture(scope="session", autouse=True)
def _data_set() -> None:
    """The tests run on the real data set; the first run on a machine fetches it."""
    fashion_mnist.fetch()


@pytest.fixture(scope="session", autouse=True)
def _own_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a test names as its source is remembered for the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _nursery() -> Iterator[None]:
    """Workers do not import torch or ONNX Runtime each by itself; those of ONNX files have no torch, as for users."""
    with (
        Nursery("torch", ".pt", ".torchscript") as of_torch,
        Nursery("onnxruntime", ".onnx") as of_onnxruntime,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(process, "subprocess", Subprocess(of_torch, of_onnxruntime))
        yield


@pytest.fixture
def real_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are started as users start them."""
    monkeypatch.setattr(process, "subprocess", subprocess)


@pytest.fixture(scope="module", autouse=True)
def quick_blocks() -> Iterator[None]:
    """Benchmarks pause and measure for a moment only, for no test asks how fast anything is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnndeploy.benchmark.conditions.busy_cpus", lambda _: 0.0)  # other tests run beside it
        for name, seconds in (("PAUSE_S", 0.0), ("WARM_UP_S", 0.005), ("_AIM_S", 0.004), ("BLOCK_S", 0.002)):
            patch.setattr(engine, name, seconds)
        patch.setattr("cnndeploy.benchmark.conditions._LISTEN_S", 0.05)
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, _data_set: None) -> Once:
    """Return a folder of this name that ``make`` has filled; test processes that run beside each other share it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            made = folder.with_suffix(".made")
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def trained(once: Once) -> Trained:
    def make(folder: Path) -> None:
        train_for_a_moment(folder / "lenet.pt")
        for kind in ("onnx", "torchscript"):
            export(folder / "lenet.pt", kind)
            export(folder / "lenet.pt", kind, folder / f"image.{kind}", input="image")

    folder = once("trained", make)
    return Trained(*(folder / f"lenet.{suffix}" for suffix in ("pt", "onnx", "torchscript")))


@pytest.fixture(scope="session")
def trained_resnet(once: Once, photos: Path, _own_configuration: None) -> Trained:
    """The network of tests/resnet.py, trained on ``photos``, and its exported files; read only."""

    def make(folder: Path) -> None:
        train_resnet_for_a_moment(folder / "resnet.pt", photos)
        for kind in ("onnx", "torchscript"):
            export(folder / "resnet.pt", kind)

    cnndeploy.allow_source(RESNET)  # whichever test process made it
    folder = once("resnet", make)
    source = cnndeploy.Artifact.open(folder / "resnet.pt").require_manifest().source
    remember("resnet.py:build", source)
    return Trained(*(folder / f"resnet.{suffix}" for suffix in ("pt", "onnx", "torchscript")))


@pytest.fixture(params=["lenet", "resnet"])
def network(request: pytest.FixtureRequest) -> Trained:
    """Ours, of grey images, and a stranger's, of RGB images, with batch normalisation."""
    name = {"lenet": "trained", "resnet": "trained_resnet"}[request.param]
    trained: Trained = request.getfixturevalue(name)
    return trained


@pytest.fixture(scope="session")
def hostile() -> Any:
    """Return the module benchmarks/hostile.py, whose workers use files under a limit of memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "benchmarks")
        return importlib.import_module("hostile")


@pytest.fixture(scope="session")
def int8(trained: Trained, once: Once) -> Quantized:
    """The same LeNet in int8, measured on few images; read only."""

    def make(folder: Path) -> None:
        path = folder / "lenet.int8.onnx"
        made = quantize(trained.checkpoint, path, budget=20, calibration=64, images=320, seconds=0)
        (folder / "quantized.pickle").write_bytes(pickle.dumps(made))

    folder = once("int8", make)
    made: Quantized = pickle.loads((folder / "quantized.pickle").read_bytes())  # noqa: S301 - written above
    return made


@pytest.fixture(scope="session")
def photos(once: Once) -> Path:
    """A folder of JPEGs in colours and of odd sizes: five classes, in train/ 12 images each, in val/ 6; read only.

    A class is a colour, which a small network learns from a few dozen images.
    """
    return once("photos", write_photos)


@pytest.fixture(scope="session")
def raw_files(trained_resnet: Trained, once: Once) -> Path:
    """A folder with files of the resnet that take raw images, native.onnx and portable.onnx; read only."""

    def make(folder: Path) -> None:
        for form in get_args(Resizing):
            export(trained_resnet.checkpoint, "onnx", folder / f"{form}.onnx", input="image", resize=form)

    return once("raw", make)


@pytest.fixture(scope="session")
def wheel(once: Once) -> Path:
    """Built of a copy, because setuptools leaves files behind."""

    def make(folder: Path) -> None:
        source = folder / "source"
        for name in ("cnndeploy", "exporters", "runtimes"):
            shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPOSITORY / name, source)
        options = ["--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
        subprocess.run([sys.executable, "-m", "build", *options], check=True, capture_output=True)

    (built,) = once("wheel", make).glob("*.whl")
    return built


@pytest.fixture(scope="session")
def cli() -> Callable[..., Result]:
    """Run the command line in this process; gives click's Result."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def raw_onnxruntime_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a benchmark, the process of every candidate that is run by raw-onnxruntime is killed at its first call."""
    call = Timer.call

    def crash(self: Timer, *request: int) -> dict[str, Any]:
        if self.candidate.run.runtime == "raw-onnxruntime":
            os.kill(self._process.pid, signal.SIGKILL)
        return call(self, *request)

    monkeypatch.setattr(Timer, "call", crash)


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the compilers, so that nothing is compiled: that takes ten seconds of CPU for each network."""
    monkeypatch.setattr(
        "cnndeploy.runtimes.compiled._COMPILERS", (("C", "CC", ("none",)), ("C++", "CXX", ("none",)))
    )
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def edited(trained: Trained, tmp_path: Path) -> Callable[[Callable[[onnx.ModelProto], None]], Path]:
    """Save a copy of the trained ONNX file after an edit."""

    def edit_and_save(edit: Callable[[onnx.ModelProto], None]) -> Path:
        model = onnx.load(trained.onnx)
        edit(model)
        path = tmp_path / "edited.onnx"
        onnx.save(model, path)
        return path

    return edit_and_save
