from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import cnndeploy

REPOSITORY = Path(__file__).parents[1]


def test_type_checkers_and_python_see_the_same_public_names() -> None:
    """The imports under TYPE_CHECKING and the names that are loaded when first used."""
    tree = ast.parse((REPOSITORY / "cnndeploy" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        (str(statement.module).removeprefix("cnndeploy."), alias.name, alias.asname)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert imported == {
        (module, name, name) for module, names in cnndeploy._NAMES.items() for name in names.split()
    }


@pytest.mark.parametrize("folder", ["exporters", "runtimes"])
def test_the_folders_refuse_their_bare_names(folder: str) -> None:
    """A host app may have a package of that name; ours must not pass for it."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"import this package as cnndeploy.{folder}" in done.stderr


def test_the_wheel_holds_every_module_under_cnndeploy(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {
        str(path.relative_to(REPOSITORY / "cnndeploy" if folder == "cnndeploy" else REPOSITORY))
        for folder in ("cnndeploy", "exporters", "runtimes")
        for path in (REPOSITORY / folder).rglob("*.py")
    }
    assert held == {f"cnndeploy/{name}" for name in ours} | {"cnndeploy/py.typed"}


def test_an_app_that_only_deploys_carries_no_torch() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {re.split(r"\W", name)[0] for name in project["dependencies"]} == {
        "click",
        "numpy",
        "pillow",
        "rich",
    }
    assert [re.split(r"[><=]", name)[0] for name in project["optional-dependencies"]["cpu"]] == [
        "onnxruntime"
    ]
    assert [re.split(r"[><=]", name)[0] for name in project["optional-dependencies"]["gpu"]] == [
        "onnxruntime-gpu[cuda,cudnn]"  # without its extras it has no library of CUDA, and does not start
    ]
