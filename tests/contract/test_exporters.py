"""What holds for every exporter, with every architecture."""

from __future__ import annotations

import getpass
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import cnndeploy
from cnndeploy import registry
from cnndeploy.equivalence import verify
from cnndeploy.errors import ArtifactError, ExportError
from cnndeploy.exporters import export
from cnndeploy.training.checkpoint import Checkpoint
from helpers import Trained

EXPORTERS = registry.names("exporters")


@pytest.mark.parametrize("architecture", registry.names("architectures"))
def test_every_architecture_exports_and_is_equivalent(architecture: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.untrained(architecture).save(tmp_path / f"{architecture}.pt")
    for name in EXPORTERS:
        artifact = export(checkpoint.path, name)
        assert artifact.format == registry.get("exporters", name).format
        assert artifact.require_manifest().checkpoint_sha256 == checkpoint.sha256
        report = verify(artifact, checkpoint, images=13)
        assert report.reasons == ()
        assert report.equivalent
        assert report.batch_sizes == (1, 2, 3, 7)
        artifact.path.unlink()  # vgg11's three files are 1.5 GB


@pytest.mark.parametrize("name", EXPORTERS)
def test_the_same_checkpoint_gives_the_same_bytes(name: str, trained: Trained, tmp_path: Path) -> None:
    """Also in a process that exported another network before, and under another name."""
    script = (
        "import sys, cnndeploy\n"
        "from cnndeploy.training.checkpoint import Checkpoint\n"
        "checkpoint, name, folder = sys.argv[1:]\n"
        "Checkpoint.untrained('googlenet').save(f'{folder}/other.pt')\n"
        "cnndeploy.export(f'{folder}/other.pt', name)\n"
        "cnndeploy.export(checkpoint, name, f'{folder}/again')\n"
    )
    subprocess.run([sys.executable, "-c", script, trained.checkpoint, name, tmp_path], check=True)
    assert (tmp_path / "again").read_bytes() == trained.file_of(name).read_bytes()


@pytest.mark.parametrize("name", EXPORTERS)
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


@pytest.mark.parametrize("name", EXPORTERS)
def test_an_export_that_fails_its_checks_leaves_what_was_there(
    name: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = registry.get("exporters", name)
    path = tmp_path / f"lenet{exporter.suffix}"
    path.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise ExportError("unusable")

    monkeypatch.setattr(sys.modules[type(exporter).__module__], "_check", fail)
    with pytest.raises(ExportError):
        export(trained.checkpoint, name, path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", EXPORTERS)
def test_a_checkpoint_is_not_overwritten_by_its_export(name: str, trained: Trained) -> None:
    before = trained.checkpoint.read_bytes()
    with pytest.raises(ArtifactError, match="is also an input"):
        export(trained.checkpoint, name, trained.checkpoint)
    assert trained.checkpoint.read_bytes() == before
