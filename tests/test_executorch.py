"""ExecuTorch as a format, an exporter and a runtime; most of it needs the package, which a base install lacks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from torch import nn

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.datasets import fashion_mnist
from cnndeploy.errors import (
    ArtifactError,
    DeviceUnavailableError,
    ExportError,
    InputMismatchError,
    MissingDependencyError,
)
from cnndeploy.exporters import EXPORTERS, ExportOptions, export
from cnndeploy.formats._flatbuffer import Table
from cnndeploy.formats.executorch import forward_of
from cnndeploy.limits import BeyondLimit
from cnndeploy.run import Run
from cnndeploy.runtimes import open_session
from helpers import EXECUTORCH, Trained

Cli = Callable[..., Result]


def field(test: Any) -> Any:
    for mark in EXECUTORCH:
        test = mark(test)
    return test


def _hide(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "executorch" else find(name)
    )


def test_without_the_package_it_is_said_what_to_install(
    trained: Trained, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hide(monkeypatch)
    listed = json.loads(cli("list", "--json").output)["runtimes"]["executorch"]["devices"]["cpu"]
    assert not listed["usable"]
    assert "pip install 'cnndeploy[executorch]'" in listed["reason"]
    with pytest.raises(MissingDependencyError, match=r"cnndeploy\[executorch\]"):
        export(trained.checkpoint, "executorch", tmp_path / "lenet.pte")
    result = cli("export", trained.checkpoint, "--output-dir", tmp_path)  # what else there is
    assert result.exit_code == 0, result.output
    assert {path.suffix for path in tmp_path.iterdir()} == {".onnx", ".torchscript"}


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\0\0ET12",
        b"\0\0\0\0ET12eh00" + b"\xff" * 40,
        b"\x30\0\0\0ET12eh00 \0\0\0" + bytes(24) + b"\0" * 64,
        b"\xff\xff\xff\x7fET12eh00 \0\0\0" + (64).to_bytes(8, "little") + bytes(16) + b"\x01" * 64,
    ],
)
def test_what_only_begins_as_a_program_is_damaged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.pte"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"bad\.pte is damaged"):
        Artifact.open(path).describe()


@pytest.mark.parametrize("at", [-1, 5, 8, 2**31])
def test_no_number_is_read_outside_the_buffer(at: int) -> None:
    with pytest.raises(ValueError, match="outside itself"):
        Table(b"\0" * 8, at).number(0, "I")


def test_a_list_is_not_longer_than_its_buffer() -> None:
    # a vtable of one field at 0, its table at 8, whose field at 12 points to a list at 16 that claims 2**31 items
    entries = (6).to_bytes(2, "little") + (8).to_bytes(2, "little") + (4).to_bytes(2, "little") + bytes(2)
    table = (8).to_bytes(4, "little") + (4).to_bytes(4, "little") + (2**31).to_bytes(4, "little")
    with pytest.raises(ValueError, match="past the end of its buffer"):
        Table(entries + table, 8).numbers(0, "i")


def test_a_list_is_not_longer_than_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = (6).to_bytes(2, "little") + (8).to_bytes(2, "little") + (4).to_bytes(2, "little") + bytes(2)
    table = (8).to_bytes(4, "little") + (4).to_bytes(4, "little") + (3).to_bytes(4, "little") + bytes(12)
    assert Table(entries + table, 8).numbers(0, "i") == [0, 0, 0]
    monkeypatch.setattr("cnndeploy.formats._flatbuffer._MOST_ITEMS", 2)
    with pytest.raises(BeyondLimit, match="a list of 3 items"):
        Table(entries + table, 8).numbers(0, "i")


@field
def test_a_file_is_verified_and_inspected(network: Trained, cli: Cli) -> None:
    report = cnndeploy.verify(network.executorch, network.checkpoint, images=30)
    assert report.reasons == ()
    assert report.equivalent
    facts = json.loads(cli("inspect", network.executorch, "--json").output)
    assert facts["format"] == "executorch"
    assert facts["largest_batch"] == 256
    assert facts["inputs"][0]["shape"][0] == "batch"
    # Everything that takes time is XNNPACK's.
    assert facts["operators"].pop("XnnpackBackend") >= 1
    assert not [name for name in facts["operators"] if "conv" in name or "mm" in name or "pool" in name]


@field
def test_a_batch_of_every_size_up_to_the_bound(trained: Trained) -> None:
    draw = np.random.default_rng(0)
    images = draw.random((257, 1, 28, 28), np.float32)
    with open_session(Artifact.open(trained.executorch)) as session:
        whole = session.run({"image": images[:256]})["logits"]
        again = session.run({"image": images[:256:2]})["logits"]  # after a larger one, and not contiguous
        np.testing.assert_allclose(again, whole[::2], rtol=1e-4, atol=1e-5)
        with pytest.raises(InputMismatchError, match=r"takes at most 256 images at once.*and 257 came"):
            session.run({"image": images})
        assert set(session.placement().values()) == {"cpu"}
        assert any(part.startswith("XnnpackBackend") for part in session.placement())


@field
def test_an_app_gets_eagers_labels(trained: Trained) -> None:
    images = fashion_mnist.load("test").images[:20]
    with cnndeploy.load(trained.executorch) as model, cnndeploy.load(trained.checkpoint) as eager:
        for image in images:
            (ours, *_), (theirs, *_) = model.classify(image), eager.classify(image)
            assert ours.label == theirs.label
            assert ours.probability == pytest.approx(theirs.probability, abs=1e-5)


@field
@pytest.mark.usefixtures("real_workers")
def test_it_is_timed_beside_onnx_runtime(trained: Trained) -> None:
    targets = [trained.onnx, trained.executorch]
    report = cnndeploy.bench(targets, threads=[1], batch_sizes=(1, 8), seconds=0.1, cold_starts=0)
    assert [row.failure or "" for row in report.results] == [""] * 4
    assert {row.runtime for row in report.results} == {"onnxruntime", "executorch"}


@field
def test_threads_do_not_change_below_an_open_program(trained: Trained) -> None:
    artifact = Artifact.open(trained.executorch)
    with open_session(artifact, Run(threads=1)) as session:
        assert session.settings()["threads"] == 1
        with pytest.raises(DeviceUnavailableError, match=r"open on 1; 2 were asked for\. Close"):
            open_session(artifact, Run(threads=2))
        open_session(artifact, Run(threads=1)).close()
    with open_session(artifact, Run(threads=2)) as session:
        session.run({"image": np.zeros((1, 1, 28, 28), np.float32)})


@field
def test_the_manifest_is_read_without_torch(trained: Trained) -> None:
    script = (
        "import sys, cnndeploy\n"
        "manifest = cnndeploy.Artifact.open(sys.argv[1]).require_manifest()\n"
        "assert not {'torch', 'executorch', 'flatbuffers'} & set(sys.modules)\n"
        "print(manifest.labels[0], manifest.checkpoint_sha256)\n"
    )
    command = [sys.executable, "-c", script, str(trained.executorch)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert told == ["T-shirt/top", Artifact.open(trained.checkpoint).sha256]


@field
def test_other_programs_read_the_manifest_by_calling_it(trained: Trained) -> None:
    from executorch.extension.pybindings import _C

    method = _C._load_program(str(trained.executorch)).load_method("cnndeploy_manifest")
    (text,) = method([])
    assert json.loads(text)["architecture"] == "lenet"


@field
def test_a_damaged_file_is_an_artifact_error(trained: Trained, tmp_path: Path) -> None:
    """Cut short, or with a byte of the flatbuffer changed at each of many places, it is refused by name or read."""
    content, path = trained.executorch.read_bytes(), tmp_path / "bad.pte"
    for length in (9, 40, 200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError, match=r"bad\.pte is damaged"):
            Artifact.open(path)
    refused = 0
    for place in range(12, 4000, 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            Artifact.open(path).describe()
        except ArtifactError:
            refused += 1
    assert refused > 20


@field
@pytest.mark.parametrize("sizes", [[2**40], [2**40, -(2**40)]])
def test_memory_that_no_network_needs_is_refused(
    trained: Trained, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = Table.numbers
    monkeypatch.setattr(
        Table, "numbers", lambda table, field, kind: sizes if kind == "q" else numbers(table, field, kind)
    )
    with pytest.raises(ArtifactError, match=r"planned memory|below 0"):
        Artifact.open(trained.executorch).describe()


@field
@pytest.mark.parametrize("architecture", ["nin", "googlenet", "vgg11_small", "alexnet"])
def test_our_architectures(architecture: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.untrained(architecture).save(tmp_path / f"{architecture}.pt")
    artifact = export(checkpoint.path, "executorch")
    report = cnndeploy.verify(artifact, checkpoint, images=6)
    assert (report.max_rel_error or 1) < report.tolerance.relative
    # XNNPACK rounds AlexNet's sums of thousands of terms further off than eager does, by about the limit
    reasons = [text for text in report.reasons if architecture != "alexnet" or "against float64" not in text]
    assert reasons == []
    assert "XnnpackBackend" in artifact.describe()["operators"]


class _Deep(nn.Module):
    """XNNPACK knows no convolution in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, 1, (1, 5, 5))
        self.classifier = nn.Linear(24 * 24, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.convolution(image.unsqueeze(2)).flatten(1))
        return logits


@field
def test_a_network_that_would_be_slow_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.load(trained.checkpoint)
    monkeypatch.setattr(Checkpoint, "network", lambda _: _Deep().eval())
    path = tmp_path / "slow.pte"
    with pytest.raises(ExportError, match="XNNPACK does not take over its aten::convolution"):
        EXPORTERS.get("executorch").export(replace(checkpoint), path, ExportOptions(simplify=False))
    assert not path.exists()


@field
def test_largest_batch_is_what_the_file_says(trained: Trained) -> None:
    forward = forward_of(trained.executorch)
    assert (forward.largest_batch, forward.fixed_batch) == (256, False)
    assert forward.planned_bytes < 2**20
