"""How the package is built: what imports what, which ``make lint`` checks, and how long files and functions are."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = [
    path
    for folder in ("cnndeploy", "exporters", "runtimes")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
]
MOST_LINES = 400
MOST_LINES_OF_INIT = 72
MOST_LINES_OF_A_FUNCTION = 60  # its docstring aside
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package with the layout of its import names."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "cnndeploy", tmp_path / "cnndeploy", ignore=ignore)
    for name in ("exporters", "runtimes"):
        shutil.copytree(REPOSITORY / name, tmp_path / "cnndeploy" / name, ignore=ignore)
    return tmp_path / "cnndeploy"


def _lint(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT, "--no-cache", "--no-logo", str(REPOSITORY / "pyproject.toml")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests"), "COLUMNS": "300"}
    return subprocess.run(
        command, cwd=tree.parent, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_contracts_are_kept(tree: Path) -> None:
    linted = _lint(tree)
    assert linted.returncode == 0, linted.stdout
    assert "3 kept, 0 broken" in linted.stdout


def test_the_table_of_layers_has_every_module() -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "layers")
    modules = {name for layer in layers for name in layer.split(" | ")} - {"__main__"}
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (`[^|]*) \|", text.partition("## Layout")[2].partition("\n## ")[0], re.MULTILINE)
    assert sorted(re.findall("`(.+?)`", " ".join(rows))) == sorted(modules)


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("errors.py", "import cnndeploy.registry", "errors -> cnndeploy.registry"),
        ("specs.py", "from cnndeploy import cli", "specs -> cnndeploy.cli"),
        ("specs.py", f"{FOR_TYPES}import cnndeploy.cli", "specs -> cnndeploy.cli"),
        ("specs.py", "def later() -> None:\n    import cnndeploy.cli", "specs -> cnndeploy.cli"),
        ("training/__init__.py", "import cnndeploy.quantization", "training -> cnndeploy.quantization"),
        ("verification/__init__.py", "import cnndeploy.benchmark", "verification -> cnndeploy.benchmark"),
        ("formats/__init__.py", "import cnndeploy.datasets", "formats -> cnndeploy.datasets"),
        ("runtimes/eager.py", "import cnndeploy.tuning", "runtimes.eager -> cnndeploy.tuning"),
    ],
)
def test_an_upward_import_is_refused(tree: Path, file: str, line: str, reason: str) -> None:
    _append(tree / file, line)
    linted = _lint(tree)
    assert linted.returncode == 1
    assert reason in linted.stdout


@pytest.mark.parametrize("form", ["{}", FOR_TYPES + "{}", "def later() -> None:\n    {}"])
def test_two_files_that_import_each_other_are_refused(tree: Path, form: str) -> None:
    """Two modules of a package, and a package and its own module, which layers do not tell apart."""
    _append(tree / "formats" / "one.py", form.format("import cnndeploy.formats.two"))
    _append(tree / "formats" / "two.py", "import cnndeploy.formats.one")
    linted = _lint(tree)
    assert linted.returncode == 1
    assert "formats.one -> cnndeploy.formats.two" in linted.stdout
    (tree / "formats" / "one.py").write_text("import cnndeploy.formats\n")
    _append(tree / "formats" / "__init__.py", form.format("from cnndeploy.formats import one"))
    linted = _lint(tree)
    assert linted.returncode == 1
    assert "formats.one -> cnndeploy.formats" in linted.stdout


def test_a_module_in_no_layer_and_an_import_of_torch_are_refused(tree: Path) -> None:
    (tree / "unlisted.py").write_text("")
    linted = _lint(tree)
    assert linted.returncode == 1
    assert "unlisted" in linted.stdout
    (tree / "unlisted.py").unlink()
    _append(tree / "specs.py", "def later() -> None:\n    import torch.nn")
    linted = _lint(tree)
    assert linted.returncode == 1
    assert "specs -> torch" in linted.stdout


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"\n{line}\n")


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(REPOSITORY))) for path in FILES])
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= (MOST_LINES_OF_INIT if path.name == "__init__.py" else MOST_LINES)
    long = {
        node.name: lines
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := _lines_of_code(node)) > MOST_LINES_OF_A_FUNCTION
    }
    assert not long


def _lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines
