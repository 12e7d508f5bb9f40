"""What stays out of memory, and what works where it is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest
from PIL import Image

from cnndeploy.cli import main
from cnndeploy.datasets import fashion_mnist
from helpers import Trained

HEAVY = ("torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "numpy")

WITHOUT = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in {absent!r}
        return None if absent else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
"""


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def _cli_without(absent: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess[str]:
    """As if these packages were not installed, for the command and for the processes that it starts."""
    with tempfile.TemporaryDirectory() as folder:  # Python itself imports sitecustomize when it starts
        (Path(folder) / "sitecustomize.py").write_text(WITHOUT.format(absent=absent))
        command = [sys.executable, "-m", "cnndeploy", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": folder}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


COMMANDS = [
    *([name] for name in main.list_commands(click.Context(main))),
    *(["data", name] for name in ("fetch", "info")),
]


@pytest.mark.parametrize("arguments", [[], *COMMANDS], ids=" ".join)
def test_importing_and_helping_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, cnndeploy\nfrom cnndeploy.cli import main\n"
        f"try: main([*{arguments!r}, '--help'])\nexcept SystemExit as error: print(error.code)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    *_, exit_code, loaded = _run(code).splitlines()
    assert exit_code == "0"
    assert not set(HEAVY) & set(loaded.split())


def test_listing_the_names_of_a_kind_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom cnndeploy import registry\n"
        "print([registry.names(kind) for kind in ('architectures', 'exporters', 'formats', 'runtimes')])\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    names, loaded = _run(code).splitlines()
    assert "lenet" in names
    assert not set(HEAVY) & set(loaded.split())


def test_loading_an_onnx_file_loads_no_torch(trained: Trained) -> None:
    code = (
        f"import sys, cnndeploy\ncnndeploy.load({str(trained.onnx)!r}).close()\nprint('torch' in sys.modules)"
    )
    assert _run(code).strip() == "False"


@pytest.mark.slow
def test_what_needs_no_torch_works_without_it(trained: Trained, tmp_path: Path) -> None:
    absent = ("torch", "torchvision", "onnx", "onnxscript", "onnx_ir")
    Image.fromarray(fashion_mnist.load("test").images[0]).save(tmp_path / "shoe.png")
    predicted = _cli_without(absent, "predict", trained.onnx, tmp_path / "shoe.png", "--json")
    assert predicted.returncode == 0, predicted.stderr
    assert len(json.loads(predicted.stdout)["predictions"][0]["classes"]) == 1
    for path in (trained.onnx, trained.torchscript, trained.checkpoint):
        inspected = _cli_without(absent, "inspect", path, "--json")
        assert json.loads(inspected.stdout)["manifest"]["architecture"] == "lenet", inspected.stderr
    bench = _cli_without(absent, "bench", trained.onnx, "--seconds", "0.1")
    assert bench.returncode == 0, bench.stderr
    listed = json.loads(_cli_without(absent, "list", "--json").stdout)
    assert listed["runtimes"]["onnxruntime"]["devices"]["cpu"]["usable"]
    assert "cnndeploy[torch]" in listed["runtimes"]["eager"]["devices"]["cpu"]["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["train", "lenet"], ["export", "{0}"], ["verify", "{1}", "--against", "{0}"], ["predict", "{0}", "{2}"]],
)
def test_what_needs_torch_says_how_to_install_it(
    arguments: list[str], trained: Trained, tmp_path: Path
) -> None:
    Image.fromarray(fashion_mnist.load("test").images[0]).save(tmp_path / "shoe.png")
    names = (trained.checkpoint, trained.onnx, tmp_path / "shoe.png")
    absent = ("torch", "torchvision", "onnx", "onnxscript", "onnx_ir")
    done = _cli_without(absent, *(argument.format(*names) for argument in arguments))
    assert done.returncode == 1
    assert "pip install 'cnndeploy[torch]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_any_onnx_runtime_both_commands_are_named(trained: Trained, tmp_path: Path) -> None:
    Image.fromarray(fashion_mnist.load("test").images[0]).save(tmp_path / "shoe.png")
    done = _cli_without(("onnxruntime",), "predict", trained.onnx, tmp_path / "shoe.png")
    assert done.returncode == 1
    assert "pip install 'cnndeploy[cpu]'" in done.stderr
    assert "pip install 'cnndeploy[gpu]'" in done.stderr
    listed = json.loads(_cli_without(("onnxruntime",), "list", "--json").stdout)
    assert not listed["runtimes"]["onnxruntime"]["devices"]["cpu"]["usable"]
