"""What commands say: which files they wrote, what comes next, and errors in the command's own words."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

import cnndeploy
from cnndeploy.cli import main
from cnndeploy.cli._messages import in_options
from cnndeploy.datasets import fashion_mnist
from cnndeploy.quantization.quantize import Quantized
from cnndeploy.words import counted
from helpers import RESNET, Trained

Cli = Callable[..., Result]
TRAIN = ("--epochs", 1, "--images", 300, "--threads", 1)
QUICK = ("--seconds", 0.02, "--cold-start", 0, "--threads", 1)


@pytest.fixture
def folder(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder whose files have names that a shell would split."""
    monkeypatch.chdir(tmp_path)
    for path in (trained.checkpoint, trained.onnx):
        shutil.copy(path, tmp_path / f"my {path.name}")
    return tmp_path


def _next_command(result: Result) -> list[str]:
    """Return the command that was said to come next, split as a shell does."""
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("Next: "))
    program, *arguments = shlex.split(line.removeprefix("Next: "))
    assert program == "cnndeploy"
    return arguments


def _load_line(result: Result) -> str:
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("In an app: "))
    return line.removeprefix("In an app: ")


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_each_step_names_the_next_one_which_runs(cli: Cli) -> None:
    given: list[object] = ["train", "lenet", "--output", "my net.pt", *TRAIN]
    for name in ("train", "export", "verify"):
        result = cli(*given)
        assert result.exit_code == 0, result.output
        given = [*_next_command(result)]
        assert given[0] == {"train": "export", "export": "verify", "verify": "bench"}[name]
    assert cli(*given, *QUICK).exit_code == 0
    call = ast.parse(_load_line(result), mode="eval").body
    assert isinstance(call, ast.Call)
    cnndeploy.load(*map(ast.literal_eval, call.args)).close()


def test_a_failing_verification_and_json_on_standard_output_name_no_next_step(
    cli: Cli, folder: Path, trained: Trained
) -> None:
    shutil.copy(trained.torchscript, folder / "lenet.torchscript")
    untrained = cnndeploy.train("lenet", "other.pt", epochs=0).path
    arguments = ("verify", "my lenet.onnx", "--images", 3)
    failed = cli(*arguments, "--against", untrained, "--json", "r.json", "--junit", "r.xml")
    assert failed.exit_code == 3
    assert "Next:" not in failed.output
    assert "Wrote r.json, r.xml" in failed.stdout
    printed = cli(*arguments, "--against", "my lenet.pt", "--json", "-", "--junit", "r.xml")
    assert printed.exit_code == 0
    assert json.loads(printed.stdout)["equivalent"]
    assert "Wrote r.xml" in printed.stderr
    assert "Next:" not in printed.output


def test_data_fetch_names_the_training_with_its_data_folder(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _next_command(cli("data", "fetch")) == ["train", "lenet"]
    own = tmp_path / "my data"
    own.symlink_to(fashion_mnist.data_folder())
    assert _next_command(cli("data", "fetch", "--data-dir", own)) == [
        "train",
        "lenet",
        "--data",
        str(own),
    ]
    Path("lenet.pt").touch()
    assert "Next:" not in cli("data", "fetch").output


@pytest.mark.usefixtures("folder")
def test_evaluate_names_its_json_file(cli: Cli) -> None:
    result = cli("evaluate", "my lenet.onnx", "--images", 9, "--json", "r.json")
    assert result.stdout.splitlines()[-1] == "Wrote r.json"
    printed = cli("evaluate", "my lenet.onnx", "--images", 9, "--json", "-")
    assert json.loads(printed.stdout)["images"] == 9
    assert "Wrote" not in printed.output


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("json_file", ["b.json", "-"])
def test_bench_names_every_file_that_it_wrote(json_file: str, cli: Cli) -> None:
    outputs = ("--html", "b.html", "--csv", "b.csv", "--markdown", "b.md", "--plots", "p")
    result = cli("bench", "my lenet.onnx", *QUICK, "--json", json_file, *outputs)
    assert result.exit_code == 0, result.output
    said = result.stderr if json_file == "-" else result.stdout
    named = {file for line in re.findall("^Wrote (.*)$", said, re.MULTILINE) for file in line.split(", ")}
    there = {str(path) for path in [*Path().glob("b.*"), *Path("p").iterdir()]}
    assert named == there
    if json_file == "-":
        assert json.loads(result.stdout)["results"]


@pytest.mark.usefixtures("folder")
def test_a_file_verified_in_a_precision_is_loaded_in_it(cli: Cli) -> None:
    run = ("--runtime", "openvino", "--precision", "bfloat16", "--threads", 1)
    result = cli("verify", "my lenet.onnx", "--against", "my lenet.pt", *run, "--budget", 50, "--images", 300)
    assert result.exit_code == 0, result.output
    load = "cnndeploy.load('my lenet.onnx', runtime='openvino', threads=1, precision='bfloat16')"
    assert _load_line(result) == load


@pytest.mark.usefixtures("folder")
def test_quantize_names_its_files_and_how_an_app_opens_it(
    cli: Cli, int8: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnndeploy.quantization.quantize.quantize", lambda *_, **__: int8)
    result = cli("quantize", "my lenet.pt", "--runtime", "onnxruntime", "--threads", 1, "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert "Wrote r.json" in result.stdout
    path = str(int8.artifact.path)
    assert _load_line(result) == f"cnndeploy.load({path!r}, runtime='onnxruntime', threads=1)"


def test_train_keeps_what_is_trained_and_says_how_to_replace_it(cli: Cli, folder: Path) -> None:
    before = (folder / "my lenet.pt").read_bytes()
    for more in ((), ("--epochs", 0)):
        refused = cli("train", "lenet", "--output", "my lenet.pt", *more)
        assert refused.exit_code == 1
        assert "my lenet.pt exists and holds trained weights" in refused.stderr
        assert "To replace them, train with --overwrite; to keep them, choose" in refused.stderr
    assert (folder / "my lenet.pt").read_bytes() == before
    replaced = cli("train", "lenet", "--output", "my lenet.pt", "--overwrite", *TRAIN)
    assert replaced.exit_code == 0, replaced.output
    assert (folder / "my lenet.pt").read_bytes() != before
    assert "choose one" in cli("train", "lenet", "--output", "my lenet.pt", "--overwrite", "--resume").stderr


@pytest.mark.parametrize("name", ["curves", "confusion"])
def test_a_folder_in_the_place_of_a_plot_is_found_before_the_training(
    name: str, cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnndeploy.training.train.train", lambda *_, **__: pytest.fail("it was trained"))
    (folder / f"x.pt.{name}.png").mkdir()
    refused = cli("train", "lenet", "--output", "x.pt")
    assert refused.exit_code == 1
    assert f"x.pt.{name}.png exists and is not a regular file" in refused.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "lenet", "--epochs", 0, "--output"),
        ("evaluate", "my lenet.onnx", "--json"),
        ("tune", "my lenet.pt", "--output"),
    ],
)
def test_a_name_that_is_too_long_is_said_with_what_to_do(
    arguments: tuple[Any, ...], cli: Cli, folder: Path
) -> None:
    assert folder.exists()
    refused = cli(*arguments, "a" * 300)
    assert refused.exit_code == 1
    assert "name is too long" in refused.stderr
    assert "hoose a shorter one" in refused.stderr


def test_a_missing_data_set_is_fetched_to_where_it_is_looked_for(cli: Cli, folder: Path) -> None:
    fetch = "cnndeploy data fetch --data-dir 'my data'"
    (folder / "my data/FashionMNIST/raw").mkdir(parents=True)
    for arguments in (
        ("train", "lenet", "--output", "x.pt"),
        ("evaluate", "my lenet.onnx"),
        ("verify", "my lenet.onnx", "--against", "my lenet.pt"),
    ):
        result = cli(*arguments, "--data-dir", "my data")
        assert result.exit_code == 1
        assert f"Get it with: {fetch}\n" in result.stderr
    assert fetch in cli("data", "info", "--data-dir", "my data").output


def test_an_unknown_network_is_named_without_a_far_fetched_suggestion(cli: Cli) -> None:
    result = cli("train", "resnet18")
    assert result.exit_code == 2
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert line.startswith("Error: Unknown architecture 'resnet18'. Known are: alexnet, googlenet, lenet, ")


@pytest.mark.parametrize("kind", ["onnx", "onnx_image"])
def test_predict_warns_of_dark_on_light_and_inverts(
    kind: str, cli: Cli, trained: Trained, tmp_path: Path
) -> None:
    shirt = fashion_mnist.load("test").images[int(np.flatnonzero(fashion_mnist.load("test").labels == 0)[0])]
    dark, light = tmp_path / "dark.png", tmp_path / "light.png"
    Image.fromarray(255 - shirt).save(dark)
    Image.fromarray(shirt).save(light)
    model = trained.file_of(kind)
    expected = cli("predict", model, light, "--csv")
    assert expected.stderr == ""
    warned = cli("predict", model, light, tmp_path / "none.png", dark, dark, "--csv")
    assert warned.exit_code == 1
    said, _ = warned.stderr.split("Error: ", 1)
    assert f"border of {dark} is brighter" in said
    warned = cli("predict", model, dark, dark, "--csv")
    assert warned.exit_code == 0
    assert warned.stderr.startswith("Warning: ")
    assert warned.stderr.count("\n") == 1
    assert "use --invert" in warned.stderr
    inverted = cli("predict", model, dark, "--csv", "--invert")
    assert inverted.stderr == ""
    assert inverted.stdout == expected.stdout.replace(str(light), str(dark))


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["evaluate", "photos"], "cnndeploy predict MODEL FOLDER"),
        (
            ["evaluate", "my lenet.onnx", "photos"],
            "For images of your own: cnndeploy predict 'my lenet.onnx' photos",
        ),
        (["evaluate", "notes.txt"], "cnndeploy train and cnndeploy export write such files"),
        (["evaluate", "empty.pt"], "empty.pt is empty"),
        (["export", "photos"], "give the path of a file that cnndeploy train"),
        (["predict", "photos", "my lenet.onnx"], "cnndeploy predict MODEL FOLDER"),
        (["predict", "shoe.png", "my lenet.onnx"], "the model comes first"),
        (["inspect", "resnet.pt"], "is a plain state_dict"),
        (["export", "resnet.pt"], "is a plain state_dict"),
        (["verify", "my lenet.onnx", "--against", "resnet.pt"], "is a plain state_dict"),
    ],
)
def test_what_is_given_wrongly_is_said_with_what_to_do(
    arguments: list[str], advice: str, cli: Cli, folder: Path
) -> None:
    (folder / "photos").mkdir()
    (folder / "notes.txt").write_text("a note")
    (folder / "empty.pt").touch()
    Image.new("L", (28, 28)).save(folder / "shoe.png")
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "resnet.pt")
    result = cli(*arguments)
    assert result.exit_code in (1, 2)
    assert advice in result.stderr


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("train with resume=True, or with overwrite=True to", "train with --resume, or with --overwrite to"),
        ("too high: learning_rate=1e-05.", "too high: --lr 1e-05."),
        ("such as batch_size=32.", "such as --batch-size 32."),
        ("use device='cuda'", "use --device cuda"),
        (
            "in /data/seed=3/lenet.pt and seed=3/x and labels=",
            "in /data/seed=3/lenet.pt and seed=3/x and labels=",
        ),
        ("other=True", "other=True"),
    ],
)
def test_parameters_are_named_as_options(message: str, said: str) -> None:
    train = main.get_command(click.Context(main), "train")
    assert in_options(message, train) == said
    assert in_options(message, None) == message


def test_one_is_singular() -> None:
    assert [counted(count, "image") for count in (0, 1, 10_000)] == [
        "0 images",
        "1 image",
        "10,000 images",
    ]


def test_tune_says_how_an_app_opens_the_folder(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Report:
        folder = "my lenet.deploy"

        def to_dict(self) -> dict[str, Any]:
            return {}

    class Plot:
        def png(self) -> bytes:
            return b""

    (folder / "my lenet.deploy").mkdir()
    monkeypatch.setattr("cnndeploy.tuning.tune.tune", lambda *_, **__: Report())
    monkeypatch.setattr("cnndeploy.display.benchmark_tables.tuning_table", lambda *_, **__: "a table")
    monkeypatch.setattr("cnndeploy.display.plots.tuning_plot", lambda _: Plot())
    result = cli("tune", "my lenet.pt", "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert "Wrote r.json" in result.stdout
    assert _load_line(result) == "cnndeploy.load('my lenet.deploy')"


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_what_comes_next_runs_the_file_as_it_was_run(cli: Cli) -> None:
    run = ("--runtime", "openvino", "--threads", "1")
    verified = cli("verify", "my lenet.onnx", "--against", "my lenet.pt", "--images", 3, *run)
    given = _next_command(verified)
    assert given == ["bench", "my lenet.pt", "my lenet.onnx", "--runtime", "eager", *run]
    timed = cli(*given, "--json", "b.json", *QUICK)
    assert timed.exit_code == 0, timed.output
    rows = json.loads(Path("b.json").read_text())["results"]
    assert [(row["artifact"], row["runtime"]) for row in rows] == [
        ("my lenet.pt", "eager"),
        ("my lenet.onnx", "openvino"),
    ]


def test_a_source_that_was_named_is_named_in_what_comes_next(
    cli: Cli, trained_resnet: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CNNDEPLOY_SOURCES", "[]")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))  # nothing is noted for later
    shutil.copy(trained_resnet.checkpoint, "resnet.pt")
    exported = cli("export", "resnet.pt", "--format", "torchscript", "--source", RESNET)
    given = _next_command(exported)
    assert given == ["verify", "resnet.torchscript", "--against", "resnet.pt", "--source", RESNET]
    monkeypatch.setenv("CNNDEPLOY_SOURCES", "[]")
    verified = cli(*given, "--images", 3)
    assert verified.exit_code == 0, verified.output
    assert _next_command(verified) == ["bench", "resnet.pt", "resnet.torchscript", "--source", RESNET]


@pytest.mark.parametrize(
    "source", ["torchvision:resnet81", "timm:resnt18", "resnet.py:wrong", "nowhere.at:all", "lenett"]
)
def test_a_wrong_source_is_said_before_what_else_is_missing(
    source: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(RESNET.removesuffix(":build"), "resnet.py")
    refused = cli("import", source, "--output", "x.pt")
    assert refused.exit_code == 1
    assert "how images are prepared" not in refused.stderr
    named = {"resnet.py:wrong": "defines no function wrong", "nowhere.at:all": "no module nowhere.at"}
    assert named.get(source, f"Unknown architecture {source!r}") in refused.stderr


def test_preprocessing_is_explained_for_each_command() -> None:
    helps = {}
    for name in ("import", "train"):
        command = main.get_command(click.Context(main), name)
        assert command is not None
        (option,) = (one for one in command.params if one.name == "preprocessing")
        assert isinstance(option, click.Option)
        helps[name] = str(option.help)
    assert "were prepared when these weights were trained" in helps["import"]
    assert "prepare images in this training" in helps["train"]


def test_evaluate_refuses_before_it_warns(
    cli: Cli, trained_resnet: Trained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for label in ("a", "b"):
        (tmp_path / "others" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40)).save(tmp_path / "others" / label / f"{number}.png")
    shutil.copytree(photos, "damaged")
    Path("damaged/val/lime/00.jpg").write_bytes(b"no image")
    for command, reason in (
        (("--data", "others"), "others has classes that are none of the model's labels"),
        (("--data", "damaged", "--device", "nowhere"), "The device 'nowhere' is not available"),
        (("--data", "damaged", "--what-if", "--device", "nowhere"), "The device 'nowhere' is not available"),
    ):
        refused = cli("evaluate", trained_resnet.onnx, *command)
        assert refused.exit_code == 1
        assert refused.stderr.startswith(f"Error: {reason}")
    warned = cli("evaluate", trained_resnet.onnx, "--data", "damaged")
    assert warned.exit_code == 0
    assert warned.stderr.startswith("Warning: 1 image cannot be used and is left out: ")
