from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

import cnndeploy
from cnndeploy import sources
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.errors import ArtifactError, CheckpointError, CnndeployError, UnknownNameError
from cnndeploy.specs import Source

CODE = """
    from torch import nn

    from parts import head


    def build(classes=10, width=1):
        return nn.Sequential(nn.Flatten(), *head(classes, width))


    def broken(classes=10):
        raise RuntimeError("no weights")


    def number():
        return 3
"""
PARTS = """
    from torch import nn


    def head(classes, width):
        return [nn.Linear(784, width), nn.Linear(width, classes)]
"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody has named any source, and the current folder holds code that imports what lies beside it."""
    monkeypatch.setenv("CNNDEPLOY_SOURCES", "[]")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    (tmp_path / "mymodel.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "parts.py").write_text(textwrap.dedent(PARTS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "parts", raising=False)
    monkeypatch.delitem(sys.modules, "mymodel", raising=False)


def checkpoint_of(name: str, **arguments: Any) -> tuple[Checkpoint, Source]:
    """Return a checkpoint of a user's source, as an import makes it, which is not remembered."""
    name, source = sources.resolved(name, arguments, 10)
    manifest = replace(Checkpoint.untrained("lenet").manifest, architecture=name, source=source)
    return Checkpoint.of(manifest, sources.build(name, source), {"imported": {}}), source


@pytest.mark.parametrize("name", ["mymodel.py:build", "mymodel:build"])
def test_code_of_the_users_is_built_with_what_lies_beside_it(name: str) -> None:
    recorded, source = sources.resolved(name, {"width": 2}, 7)
    assert (recorded, dict(source.arguments)) == (name, {"width": 2, "classes": 7})
    network = sources.build(recorded, source)
    assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 7)
    assert str(Path.cwd()) not in sys.path


def test_a_path_is_recorded_without_the_folders_of_this_machine(tmp_path: Path) -> None:
    name, source = sources.resolved(str(tmp_path / "mymodel.py") + ":build", {}, None)
    assert name == "mymodel.py:build"
    assert not source.arguments


def test_a_source_is_not_run_until_it_is_named(tmp_path: Path) -> None:
    checkpoint, source = checkpoint_of("mymodel.py:build")
    checkpoint.save(tmp_path / "own.pt")
    os.environ["CNNDEPLOY_SOURCES"] = "[]"
    with pytest.raises(
        CheckpointError, match=r"own\.pt says that 'mymodel\.py:build' builds.*allow_source\('mymodel"
    ):
        Checkpoint.load(tmp_path / "own.pt").network()
    cnndeploy.allow_source("mymodel.py:build")
    with pytest.warns(UserWarning, match=r"mymodel\.py:build is called with classes=10, as .*own\.pt says"):
        network = Checkpoint.load(tmp_path / "own.pt").network()
    assert network(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    sources.remember("mymodel.py:build", source)
    os.environ["CNNDEPLOY_SOURCES"] = "[]"
    Checkpoint.load(tmp_path / "own.pt").network()
    # for exactly these arguments, and no other function of the file
    for other in (
        replace(checkpoint.manifest, source=replace(source, arguments={"width": 9})),
        replace(checkpoint.manifest, architecture="mymodel.py:number"),
    ):
        with pytest.raises(CheckpointError, match="must not run code by itself"):
            replace(checkpoint, manifest=other).network()


def test_a_source_that_changed_is_named_again_or_refused(tmp_path: Path) -> None:
    checkpoint, source = checkpoint_of("mymodel.py:build")
    sources.remember("mymodel.py:build", source)
    os.environ["CNNDEPLOY_SOURCES"] = "[]"
    with (tmp_path / "mymodel.py").open("a") as file:
        file.write("# a change\n")
    with pytest.raises(CheckpointError, match=r"mymodel\.py has changed since it was made"):
        checkpoint.network()
    cnndeploy.allow_source("mymodel.py:build")
    with pytest.warns(UserWarning, match="has changed since"):
        checkpoint.network()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mymodel.py:broken", r"fails in .*mymodel\.py, line \d+: RuntimeError: no weights"),
        ("mymodel.py:number", r"returns int, not a torch\.nn\.Module"),
        ("mymodel.py:missing", r"defines no function missing; it defines broken, build, head, number"),
        ("nowhere.py:build", r"nowhere\.py cannot be read"),
        ("nowhere:build", r"there is no module nowhere"),
        ("mymodel.py:", r"names no code"),
        ("os.path;x:build", r"neither a module"),
    ],
)
def test_code_that_fails_is_named(name: str, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        sources.build(*sources.resolved(name, {}, None))


def test_a_file_that_ends_python_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(ArtifactError, match=r"script\.py, line 2: SystemExit"):
        sources.resolved("script.py:build", {}, None)


@pytest.mark.parametrize(
    "name",
    ["torchvision:resnet81", "torchvision:__init__", "timm:hf-hub:someone/else", "timm:nosuch", "lenot"],
)
def test_a_library_is_asked_for_its_own_networks_only(name: str) -> None:
    with pytest.raises(UnknownNameError):
        sources.build(name, Source())


@pytest.mark.parametrize("library", ["torchvision:resnet18", "timm:resnet18"])
@pytest.mark.parametrize("argument", ["weights", "pretrained", "checkpoint_path"])
def test_a_checkpoint_makes_no_library_load_anything(library: str, argument: str) -> None:
    with pytest.raises(ArtifactError, match=f"takes no argument {argument}"):
        sources.build(library, Source({argument: "https://example.org/weights.pth"}))


def test_a_hostile_checkpoint_is_refused_by_every_command(
    tmp_path: Path, cli: Callable[..., Result], trained: Any
) -> None:
    ran = tmp_path / "ran"
    hostile = Checkpoint.load(trained.checkpoint)
    for number, (name, arguments) in enumerate(
        {
            "os:system": {"command": f"touch {ran}"},
            "evil.py:build": {},
            "evil:build": {},
        }.items()
    ):
        source = Source(arguments, "0" * 64)
        manifest = replace(hostile.manifest, architecture=name, source=source)
        replace(hostile, manifest=manifest).save(tmp_path / f"hostile{number}.pt")
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\ndef build(): pass\n")
    for number in range(3):
        file = f"hostile{number}.pt"
        commands: list[list[object]] = [
            ["evaluate", file, "--images", 2],
            ["export", file, "--format", "onnx"],
            ["verify", trained.onnx, "--against", file, "--images", 2],
            ["predict", file, "shoe.png"],
            ["quantize", file, "--output", "small.onnx", "--images", 2],
            ["bench", file, trained.onnx],
            ["tune", file, "--output", "deployed"],
            ["train", "--from-checkpoint-recipe", file, "--output", "new.pt"],
        ]
        for command in commands if number == 0 else commands[:2]:
            result = cli(*command)
            assert result.exit_code not in (0, 2), (command, result.output)
            assert not ran.exists(), command
    assert cli("inspect", "hostile0.pt").exit_code == 0
    assert "os:system" in cli("evaluate", "hostile0.pt", "--images", 2).output
    assert "--source os:system" in cli("evaluate", "hostile0.pt", "--images", 2).output
    assert not ran.exists()


def test_what_is_allowed_reaches_workers_and_only_them(tmp_path: Path) -> None:
    checkpoint, _ = checkpoint_of("mymodel.py:build")
    artifact = checkpoint.save(tmp_path / "own.pt")
    with cnndeploy.Reference(artifact.path) as reference:
        assert len(reference.logits(range(2))) == 2
    os.environ["CNNDEPLOY_SOURCES"] = "[]"
    with (
        pytest.raises(CnndeployError, match="must not run code"),
        cnndeploy.Reference(artifact.path) as reference,
    ):
        reference.logits(range(2))


def test_importing_a_source_allows_no_other_arguments(tmp_path: Path) -> None:
    """What one checkpoint of this process was made with is no leave for what another one says."""
    checkpoint, source = checkpoint_of("mymodel.py:build", width=2)
    checkpoint.network()
    others = replace(checkpoint.manifest, source=replace(source, arguments={"width": 5, "classes": 10}))
    with pytest.raises(CheckpointError, match="must not run code by itself"):
        replace(checkpoint, manifest=others).network()


def test_nothing_of_a_package_runs_before_its_module_is_known(tmp_path: Path) -> None:
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "__init__.py").touch()
    (tmp_path / "networks" / "flat.py").write_text(textwrap.dedent(CODE))
    checkpoint, source = checkpoint_of("networks.flat:build")
    sources.remember("networks.flat:build", source)
    os.environ["CNNDEPLOY_SOURCES"] = "[]"
    for name in ("networks", "networks.flat"):
        del sys.modules[name]
    (tmp_path / "networks" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "networks" / "flat.py").write_text("# another\n")
    with pytest.raises(CheckpointError, match="has changed since it was made"):
        checkpoint.network()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["flat:build", "flat.py:build"])
def test_two_folders_with_modules_of_one_name_are_told_apart_or_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "size.py").write_text(f"SIZE = {number}\n")
        code = "from torch import nn\nfrom size import SIZE\ndef build():\n    return nn.Linear(3, SIZE)\n"
        (folder / "flat.py").write_text(code)
    monkeypatch.chdir(tmp_path / "1")
    assert sources.build(*sources.resolved(name, {}, None)).out_features == 1
    monkeypatch.chdir(tmp_path / "2")
    with pytest.raises(ArtifactError, match=r"is imported already|may import size"):
        sources.build(*sources.resolved(name, {}, None))
    for module in ("flat", "size"):
        sys.modules.pop(module, None)


def test_arguments_that_cannot_be_recorded_are_refused() -> None:
    with pytest.raises(ArtifactError, match="recorded as JSON"):
        sources.resolved("mymodel.py:build", {"width": object()}, None)
