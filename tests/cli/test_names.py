"""Whatever a file is called, commands take it, or refuse it in words, and show its whole name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

from cnndeploy.words import quoted
from helpers import Trained

Cli = Callable[..., Result]
STEMS = {
    "dash": "-x",
    "markup": "[bold]a[red] ",
    "spaces": "a  b",
    "line end": "a\nb",
    "not UTF-8": os.fsdecode(b"mod\xe8le"),
    "escape": "a\x1b[31mb",
    "long": "n" * 230,
}
# at the place of each None is the name
COMMANDS = {
    "predict": ("predict", None, "image.png"),
    "predict the image": ("predict", "lenet.onnx", None),
    "inspect": ("inspect", None),
    "verify": ("verify", None, "--against", "lenet.pt"),
    "verify against": ("verify", "lenet.onnx", "--images", "3", "--against", None),
    "export": ("export", "--format", "onnx", None),
    "bench": ("bench", None),
    "evaluate": ("evaluate", None),
    "evaluate on data": ("evaluate", "lenet.onnx", "--data", None),
    "quantize": ("quantize", None),
    "tune": ("tune", None),
    "import": ("import", "--output", "imported.onnx", None),
}
WRONG = {
    "odd": "no [red]\x1b[31m\n\udce8.onnx",
    "dash": "./-no.onnx",
    "long name": f"{'n' * 300}.onnx",
    "long path": f"{'d/' * 2500}x.onnx",
    "loop": "loop.onnx",
    "below a file": "lenet.onnx/x.onnx",
    "nothing": "",
    "device": "/dev/null",
}


@pytest.fixture
def folder(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a network, its checkpoint, an image, and a link to itself."""
    for source in (trained.onnx, trained.checkpoint):
        shutil.copy(source, tmp_path)
    Image.new("L", (28, 28)).save(tmp_path / "image.png")
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _is_shown(text: str) -> bool:
    return text.replace("\n", "").isprintable()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_name_that_does_not_work_is_refused_in_words(
    command: tuple[str | None, ...], cli: Cli, folder: Path
) -> None:
    for kind, name in WRONG.items():
        result = cli(*(name if word is None else word for word in command))
        assert isinstance(result.exception, SystemExit), (kind, result.exception)
        assert result.exit_code in (1, 2), (kind, result.output)
        assert "Error: " in result.stderr, kind
        assert _is_shown(result.output), (kind, result.output)
        assert kind not in ("long name", "long path") or "too long" in result.stderr, (
            kind,
            result.stderr[:99],
        )


@pytest.mark.parametrize("stem", STEMS.values(), ids=STEMS)
def test_a_name_that_works_is_shown_as_a_whole(
    stem: str, cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    model, image, output = (f"{stem}.{suffix}" for suffix in ("onnx", "png", "csv"))
    (folder / "lenet.onnx").rename(model)
    (folder / "image.png").rename(image)
    shown = "".join(one if one.isprintable() else repr(one)[1:-1] for one in stem)
    said = cli("predict", "--", model, image).stdout
    assert said.startswith(f"{shown}.png: "), said
    assert json.loads(cli("predict", "--json", "--", model, image).stdout)["model"] == f"{shown}.onnx"
    assert cli("predict", "--output", output, "--", model, image).stdout == f"Wrote {shown}.csv\n"
    assert Path(output).read_text() == said
    facts = cli("inspect", "--", model)
    assert _is_shown(facts.stdout)
    assert json.loads(cli("inspect", "--json", "--", model).stdout)["path"] == model
    result = cli("evaluate", "--images", "3", "--json", "-", "--", model)
    assert (result.exit_code, _is_shown(result.stderr)) == (0, True), result.output
    json.loads(result.stdout)


@pytest.mark.parametrize("stem", STEMS.values(), ids=STEMS)
def test_a_command_that_is_shown_is_one_that_bash_runs(stem: str) -> None:
    word = f"{stem}'\\\"$x.onnx"
    assert quoted(word).isprintable()
    done = subprocess.run(["/bin/bash", "-c", f"printf %s {quoted(word)}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(word)
