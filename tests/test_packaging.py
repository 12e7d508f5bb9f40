from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


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
        "onnxruntime-gpu"
    ]
