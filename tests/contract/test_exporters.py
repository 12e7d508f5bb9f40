"""What holds for every exporter, with every architecture."""

from __future__ import annotations

import getpass
import re
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cnndeploy
from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.errors import ArtifactError, ExportError, UnknownNameError
from cnndeploy.exporters import EXPORTERS, export
from cnndeploy.verification.verify import IMAGE_SIZES, verify
from helpers import Trained, names_of

NAMES = names_of(EXPORTERS)
TAKE_IMAGES = [name for name in EXPORTERS.names() if "input" in EXPORTERS.get(name).options]


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    # files of 190 and 500 MB; vgg11 is vgg11_small with sixteen times its widths
    [
        pytest.param(name, marks=pytest.mark.field if name in ("alexnet", "vgg11") else ())
        for name in ARCHITECTURES.names()
    ],
)
def test_every_architecture_exports_and_is_equivalent(architecture: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.untrained(architecture).save(tmp_path / f"{architecture}.pt")
    # for large networks seven images more take long
    sizes = (1, 2, 3) if architecture in ("vgg11", "alexnet") else (1, 2, 3, 7)
    with cnndeploy.Reference(checkpoint) as reference:
        for name in TAKE_IMAGES:  # ExecuTorch takes long to export; it has tests of its own
            artifact = export(checkpoint.path, name)
            assert artifact.format == EXPORTERS.get(name).format
            assert artifact.require_manifest().checkpoint_sha256 == checkpoint.sha256
            report = verify(artifact, reference, images=sum(sizes))
            assert report.reasons == ()
            assert report.equivalent
            assert report.batch_sizes == sizes
            artifact.path.unlink()  # vgg11's three files are 1.5 GB


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_same_checkpoint_gives_the_same_bytes(
    name: str, trained: Trained, trained_resnet: Trained, tmp_path: Path
) -> None:
    """Also in a process that exported another network before, and under another name."""
    script = (
        "import sys, cnndeploy\n"
        "from cnndeploy.checkpoint import Checkpoint\n"
        "name, folder, *checkpoints = sys.argv[1:]\n"
        "Checkpoint.untrained('vgg11_small').save(f'{folder}/other.pt')\n"
        "cnndeploy.export(f'{folder}/other.pt', name)\n"
        "for number, checkpoint in enumerate(checkpoints):\n"
        "    cnndeploy.export(checkpoint, name, f'{folder}/{number}')\n"
    )
    networks = (trained, trained_resnet)
    checkpoints = [network.checkpoint for network in networks]
    subprocess.run([sys.executable, "-c", script, name, tmp_path, *checkpoints], check=True)
    for number, network in enumerate(networks):
        assert (tmp_path / str(number)).read_bytes() == network.file_of(name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_no_path_of_this_machine_is_in_the_file(name: str, trained: Trained) -> None:
    path = trained.file_of(name)
    contents = [path.read_bytes()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            contents += [archive.read(member) for member in archive.namelist()]
            assert not [member for member in archive.namelist() if "debug" in member]
    telling = [str(Path(module.__file__ or "").parent) for module in (torch, cnndeploy)]
    telling += [str(Path.home()), sys.prefix, str(trained.checkpoint.parent)]
    telling += [name for name in (socket.gethostname(),) if len(name) > 4]  # "vm" stands in any file
    for content in contents:
        for word in telling:
            assert word.encode() not in content
        assert not re.search(rb'File "|\.py", line|/site-packages/', content)
        assert not re.search(rb"/(home|Users|tmp)/" + getpass.getuser().encode(), content)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_files_simplified_or_not_are_equivalent(name: str, network: Trained, tmp_path: Path) -> None:
    plain = export(network.checkpoint, name, tmp_path / "plain", simplify=False)
    simplified = Artifact.open(network.file_of(name))
    assert plain.require_manifest().rewrites == ()
    with cnndeploy.Reference(network.checkpoint) as reference:
        for artifact in (plain, simplified):
            assert verify(artifact, reference, images=13).reasons == ()
    rewrites = simplified.require_manifest().rewrites
    if simplified.require_manifest().architecture == "lenet":
        assert rewrites == (
            "pool_before_activation(features.1, features.2)",
            "pool_before_activation(features.4, features.5)",
        )
    else:
        assert len(rewrites) == 9
        assert "fold_batch_norm(layer1.conv1, layer1.bn1)" in rewrites


@pytest.mark.parametrize("name", NAMES)
def test_an_export_that_fails_its_checks_leaves_what_was_there(
    name: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = EXPORTERS.get(name)
    path = tmp_path / f"lenet{exporter.suffix}"
    path.write_bytes(b"before")

    monkeypatch.setattr(sys.modules[type(exporter).__module__], "_faults", lambda *_: ["it is broken"])
    with pytest.raises(ExportError, match="unusable: it is broken"):
        export(trained.checkpoint, name, path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKE_IMAGES)
@pytest.mark.parametrize("architecture", ["lenet", "vgg11_small"])
def test_a_file_that_takes_raw_images_is_equivalent(name: str, architecture: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.untrained(architecture).save(tmp_path / f"{architecture}.pt")
    artifact = export(checkpoint.path, name, input="image")
    manifest = artifact.require_manifest()
    assert str(manifest.input) == "uint8 (batch, height, width)"
    assert [spec.name for spec in manifest.outputs] == ["logits", "probabilities"]
    report = verify(artifact, checkpoint, images=13)
    assert report.reasons == ()
    assert report.other_image_sizes == IMAGE_SIZES
    # neither shapes computed on the CPU beside a GPU, nor branches
    assert not {"Shape", "If"} & artifact.describe()["operators"].keys()


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "std"), [(0.286, 0.353), (0.0, 2.0)])
@pytest.mark.parametrize("name", TAKE_IMAGES)
def test_a_file_that_takes_raw_images_normalises_them(
    name: str, mean: float, std: float, trained: Trained, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.load(trained.checkpoint)
    preprocessing = replace(checkpoint.manifest.preprocessing, mean=mean, std=std)
    manifest = replace(checkpoint.manifest, preprocessing=preprocessing)
    saved = replace(checkpoint, manifest=manifest).save(tmp_path / "lenet.pt")
    assert verify(export(saved.path, name, input="image"), saved, images=9).reasons == ()


def test_what_no_exporter_writes_is_an_error(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'image'"):
        export(trained.checkpoint, "onnx", tmp_path / "x.onnx", input="images")  # type: ignore[arg-type]
    monkeypatch.setattr(type(EXPORTERS.get("onnx")), "options", frozenset())
    with pytest.raises(ExportError, match="onnx writes no files that take raw images"):
        export(trained.checkpoint, "onnx", tmp_path / "x.onnx", input="image")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_not_overwritten_by_its_export(name: str, trained: Trained) -> None:
    before = trained.checkpoint.read_bytes()
    with pytest.raises(ArtifactError, match="is also an input"):
        export(trained.checkpoint, name, trained.checkpoint)
    assert trained.checkpoint.read_bytes() == before
