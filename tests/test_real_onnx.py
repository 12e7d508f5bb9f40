"""A classifier that somebody else trained and ships, in ONNX: rapidocr's, which tells upright text from upside down."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from click.testing import Result
from PIL import Image, ImageDraw, ImageFont

import cnndeploy
from cnndeploy.run import Run
from cnndeploy.tuning import race, tune
from helpers import Once

WHEEL = "rapidocr-onnxruntime==1.4.4"
MODEL = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
PREPROCESSING = {"size": [48, 192], "channels": 3, "antialias": True, "mean": 0.5, "std": 0.5}
WORDS = (
    "quick",
    "brown",
    "jumps",
    "over",
    "lazy",
    "dog",
    "invoice",
    "total",
    "amount",
    "street",
    "order",
    "number",
)
COUNTS = {"train": 24, "val": 40}


@pytest.fixture
def theirs(once: Once) -> Path:
    """The file as its wheel holds it; read only."""

    def make(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", str(folder), WHEEL]
        if subprocess.run(pip, capture_output=True, check=False).returncode:
            return
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            (folder / "theirs.onnx").write_bytes(wheel.read(MODEL))

    path = once("rapidocr", make) / "theirs.onnx"
    if not path.exists():
        pytest.skip(f"needs a package index: pip download {WHEEL}")
    return path


def _draw_texts(folder: Path) -> None:
    """Draw words in two orientations, a folder for each."""
    random = np.random.default_rng(0)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 24)
    for split, count in COUNTS.items():
        for turn in (0, 180):
            (folder / split / str(turn)).mkdir(parents=True)
            for number in range(count):
                text = " ".join(random.choice(WORDS, 2))
                image = Image.new("RGB", (int(font.getlength(text)) + 12, 40), (235, 230, 220))
                ImageDraw.Draw(image).text((6, 4), text, (30, 20, 60), font)
                image.rotate(turn).save(folder / split / str(turn) / f"{number}.png")


@pytest.mark.field
def test_it_goes_all_the_way(
    theirs: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(race, "MOST_ROUNDS", race.FIRST_ROUNDS)
    monkeypatch.setattr(tune, "usable_cpus", lambda: 1)
    _draw_texts(Path("texts"))
    Path("prep.json").write_text(json.dumps(PREPROCESSING))
    made = cli("import", theirs, "--preprocessing", "prep.json", "--data", "texts", "--output", "ours.onnx")
    assert made.exit_code == 0, made.output
    assert "Softmax, was removed" in made.output
    budget = ["--budget", "30"]
    for command in (
        ["evaluate", "ours.onnx"],
        ["bench", "ours.onnx", "--seconds", "0.2", "--cold-start", "0"],
        ["quantize", "ours.onnx", *budget, "--calibration", "16"],
        ["tune", "ours.onnx", *budget, "--threads", "1", "--max-minutes", "1", "--output", "ours.deploy"],
    ):
        result = cli(*command)
        assert result.exit_code == 0, (command, result.output, result.exception)
    assert cnndeploy.evaluate("ours.onnx").accuracy > 0.8
    for path in ("ours.int8.onnx", "ours.deploy"):
        with cnndeploy.load(path, require_verified=True) as model:
            (answer,) = model.classify(cnndeploy.read_image("texts/val/180/0.png", channels=3))
        assert answer.label == "180"
    report = cnndeploy.verify("ours.onnx", "ours.onnx", run=Run("openvino"))
    assert report.top1_agreement == 1.0
