from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from cnndeploy.artifact import Artifact
from cnndeploy.cli import main
from helpers import Trained

Cli = Callable[..., Result]
COMMANDS = [
    *(
        "bench",
        "compress",
        "data",
        "demo",
        "evaluate",
        "export",
        "import",
        "inspect",
        "list",
        "predict",
        "quantize",
        "serve",
        "train",
        "tune",
    ),
    "verify",
]

COMMANDS_FOLDER = Path(__file__).parents[2] / "cnndeploy" / "cli"


def _process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cnndeploy", *map(str, arguments)]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, check=False, **options
    )
    return done


def _commands(command: click.Command, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield each command with its names, subcommands too."""
    yield names, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _commands(inner, *names, name)


def test_help_fits_80_columns_and_explains_every_option(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for names, command in _commands(main):
        text = cli(*names, "--help").output
        assert max(map(len, text.splitlines())) <= 80, names
        assert "..." not in text.partition("Commands:")[2], "a summary is cut"
        assert "Example" in text
        for option in command.params:
            if isinstance(option, click.Option):
                assert (option.help or "[")[0] != "[", (names, option.name)


def test_help_lists_every_command_and_each_shows_an_example(cli: Cli) -> None:
    overview = cli("--help")
    assert {path.stem for path in COMMANDS_FOLDER.glob("[!_]*.py")} == set(COMMANDS)
    for name in COMMANDS:
        assert f"\n  {name} " in overview.output
        assert f"cnndeploy {name} " in cli(name, "--help").output
    for name in ("fetch", "info"):
        assert f"cnndeploy data {name}" in cli("data", name, "--help").output


@pytest.mark.slow
def test_an_export_takes_away_the_certificate_of_what_was_there(
    cli: Cli, trained: Trained, tmp_path: Path
) -> None:
    checkpoint, exported = tmp_path / "lenet.pt", tmp_path / "lenet.onnx"
    shutil.copy(trained.checkpoint, checkpoint)
    certificate = tmp_path / "lenet.onnx.verified.json"
    assert (
        "(input: float32 (batch, 1, 28, 28), preprocessed)"
        in cli("export", checkpoint, "--format", "onnx").output
    )
    assert cli("verify", exported, "--against", checkpoint, "--images", 9).exit_code == 0
    assert cli("export", checkpoint, "--format", "onnx").exit_code == 0
    assert certificate.exists()  # of the same bytes
    other = cli("export", checkpoint, "--format", "onnx", "--input", "image")
    assert "(input: uint8 (batch, height, width), raw images)" in other.output
    assert f"removed {certificate}" in other.output
    assert not certificate.exists()


@pytest.mark.slow
def test_an_export_says_what_was_simplified(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    to = ("--format", "onnx", "--output-dir", tmp_path)
    done = "pool_before_activation(features.1, features.2)"
    assert f"simplified: {done}" in cli("export", trained.checkpoint, *to).output
    assert "simplified" in cli("inspect", tmp_path / "lenet.onnx").output
    facts = json.loads(cli("inspect", tmp_path / "lenet.onnx", "--json").output)
    assert facts["manifest"]["rewrites"][0] == done
    assert "simplified" not in cli("export", trained.checkpoint, *to, "--no-simplify").output
    facts = json.loads(cli("inspect", tmp_path / "lenet.onnx", "--json").output)
    assert facts["manifest"]["rewrites"] == []


def test_an_export_to_a_file_that_is_named(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    """The ending says the format, or ``--format`` does."""
    target = tmp_path / "first.onnx"
    assert f"Wrote {target}" in cli("export", trained.checkpoint, "--output", target).output
    assert Artifact.open(target).format == "onnx"
    target = tmp_path / "second.pt2"
    cli("export", trained.checkpoint, "--output", target, "--format", "torchscript")
    assert Artifact.open(target).format == "torchscript"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.onnx", "second.pt2"]
    for wrong, complaint in (
        (("--output", tmp_path / "a.bin"), "should end in .*onnx.*or name a --format"),
        (("--output", target, "--output-dir", tmp_path), "names one file"),
        (("--output", target, "--format", "onnx", "--format", "torchscript"), "names one file"),
        (("--output", target, "--format", "triton"), "names one file"),
    ):
        refused = cli("export", trained.checkpoint, *wrong)
        assert refused.exit_code == 2
        assert re.search(complaint, " ".join(refused.output.split()))


@pytest.mark.slow
def test_the_whole_way_by_hand(tmp_path: Path) -> None:
    """As a user would, in processes of their own."""
    checkpoint = tmp_path / "lenet.pt"
    trained = _process("train", "lenet", "--epochs", 1, "--images", 1000, "--output", checkpoint)
    assert trained.returncode == 0, trained.stderr
    assert "epoch 1/1" in trained.stdout
    assert "test accuracy" in trained.stdout
    exported = _process(
        "export", checkpoint, "--format", "onnx", "--format", "torchscript", "--output-dir", tmp_path
    )
    assert exported.returncode == 0, exported.stderr
    for name in ("lenet.onnx", "lenet.torchscript"):
        report = tmp_path / "report.json"
        verified = _process(
            "verify", tmp_path / name, "--against", checkpoint, "--images", 20, "--json", report
        )
        assert verified.returncode == 0, verified.stderr
        assert json.loads(report.read_text())["equivalent"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "lenet.onnx", "lenet.onnx.verified.json", "lenet.pt", "lenet.pt.confusion.png", "lenet.pt.curves.png",
        "lenet.pt.jsonl", "lenet.torchscript",
        "lenet.torchscript.verified.json", "report.json",
    ]  # fmt: skip


@pytest.mark.slow
def test_verify_json_has_the_keys_that_other_tools_read(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    result = cli(
        "verify", trained.onnx, "--against", trained.checkpoint, "--images", 9, "--json", tmp_path / "r.json"
    )
    assert result.exit_code == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["equivalent"] is True
    assert report["artifact"] == {"path": str(trained.onnx), "sha256": Artifact.open(trained.onnx).sha256}
    assert report["against"]["sha256"] == Artifact.open(trained.checkpoint).sha256
    assert (report["runtime"], report["device"], report["images"]) == ("onnxruntime", "cpu", 9)
    assert report["batch_sizes"] == [1, 2, 3]
    assert report["max_abs_error"] < 1e-4
    assert report["max_rel_error"] < 1e-5
    assert report["oracle"]["ratio"] <= report["oracle"]["limit"] == 4
    assert report["decisions"]["flipped"] == []
    assert report["artifact_side"]["settings"]["graph_optimization_level"] == "ORT_ENABLE_ALL"
    assert set(report["artifact_side"]["placement"].values()) == {"CPUExecutionProvider"}
    assert report["top1_agreement"] == 1.0
    assert report["reasons"] == []


@pytest.mark.slow
def test_a_file_that_is_not_equivalent_exits_with_3(
    cli: Cli, trained: Trained, edited: Callable[..., Path]
) -> None:
    def change_one_weight(model: object) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "features.0.weight")  # type: ignore[attr-defined]
        content = bytearray(tensor.raw_data)
        content[3] ^= 0x01  # the lowest bit of the first weight's exponent: doubles or halves it
        tensor.raw_data = bytes(content)

    result = cli(
        "verify", edited(change_one_weight), "--against", trained.checkpoint, "--images", 50, "--json", "-"
    )
    assert result.exit_code == 3
    assert json.loads(result.stdout)["equivalent"] is False
    assert "is not equivalent" in result.stderr


def test_an_old_pass_does_not_outlive_a_verification_that_could_not_be_done(
    cli: Cli, trained: Trained, tmp_path: Path
) -> None:
    report, artifact = tmp_path / "r.json", tmp_path / "lenet.onnx"
    report.write_text('{"equivalent": true}')
    artifact.write_bytes(b"damaged")
    result = cli("verify", artifact, "--against", trained.checkpoint, "--json", report)
    assert result.exit_code == 1
    assert json.loads(report.read_text())["equivalent"] is False
    assert "damaged" in json.loads(report.read_text())["reasons"][0]


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_a_report_never_takes_the_place_of_a_model(command: str, cli: Cli, trained: Trained) -> None:
    before = trained.checkpoint.read_bytes()
    arguments: dict[str, list[object]] = {
        "verify": [trained.onnx, "--against", trained.checkpoint],
        "bench": [trained.checkpoint],
    }
    result = cli(command, *arguments[command], "--json", trained.checkpoint)
    assert result.exit_code == 1
    assert "is also an input" in result.stderr
    assert trained.checkpoint.read_bytes() == before


@pytest.mark.slow
def test_brackets_in_a_file_name_are_shown_as_they_are(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "[red]g[bold].onnx"
    path.write_bytes(trained.onnx.read_bytes())
    assert "[red]g[bold].onnx" in cli("verify", path, "--against", trained.checkpoint, "--images", 3).output
    assert "[red]g[bold].onnx" in cli("inspect", path).output


@pytest.mark.slow
def test_a_terminal_without_greek_and_no_terminal_at_all(trained: Trained) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shown = _process("bench", trained.onnx, "--seconds", 0.1, "--cold-start", 0, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert "?s" in shown.stdout
    closing = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "cnndeploy", "inspect", str(trained.onnx)]
    closed = subprocess.run(closing, check=False, capture_output=True)
    assert closed.returncode == 0, closed.stderr


def test_sigterm_leaves_no_temporary_file(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom cnndeploy import cli\nfrom cnndeploy.files import replacing\n"
        "def slow():\n"
        "    with replacing(sys.argv[1]):\n"
        "        print('there', flush=True)\n"
        "        time.sleep(60)\n"
        "cli.main = slow\ncli.run()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.terminate()
        assert process.wait(30) == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_bench_json_has_the_keys_that_other_tools_read(cli: Cli, trained: Trained) -> None:
    result = cli(
        *("bench", trained.checkpoint, trained.onnx, "--threads", 1, "--seconds", 0.1, "--cold-start", 0),
        *("--json", "-"),
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    first, second = report["results"]
    assert first["ratio"] == 1.0
    assert second["artifact"] == second["target"] == str(trained.onnx)
    keys = ("runtime", "device", "threads", "batch_size", "p50_s", "p90_s", "images_per_s", "ratio")
    assert all(key in second for key in keys)
    assert report["environment"]["usable_cpus"] >= 1
    assert "verdict" in result.stderr


def test_list_json_has_the_keys_that_other_tools_read(cli: Cli) -> None:
    facts = json.loads(cli("list", "--json").output)
    assert "lenet" in facts["architectures"]
    assert facts["exporters"] == ["executorch", "onnx", "torchscript"]
    for runtime in ("eager", "onnxruntime", "torchscript"):
        devices = facts["runtimes"][runtime]["devices"]
        assert devices["cpu"] == {"usable": True, "reason": ""}
        assert all(status["usable"] or status["reason"] for status in devices.values())
    assert "onnxruntime on cpu: usable" in cli("list").output


@pytest.mark.parametrize("model_format", ["checkpoint", "onnx", "torchscript"])
def test_inspect(model_format: str, cli: Cli, trained: Trained) -> None:
    path = trained.file_of(model_format)
    facts = json.loads(cli("inspect", path, "--json").output)
    assert facts["format"] == model_format
    assert facts["bytes"] == path.stat().st_size
    assert facts["manifest"]["architecture"] == "lenet"
    assert facts["inputs"][0]["shape"] == ["batch", 1, 28, 28]
    assert bool(facts["operators"]) == (model_format != "checkpoint")
    text = cli("inspect", path).output
    assert facts["sha256"] in text
    assert "float32 (batch, 1, 28, 28)" in text


def test_data_info(cli: Cli, tmp_path: Path) -> None:
    facts = json.loads(cli("data", "info", "--json").output)
    assert facts["images"] == {"train": 60_000, "test": 10_000}
    empty = cli("data", "info", "--data-dir", tmp_path)
    assert empty.exit_code == 0
    assert empty.output.count("missing") == 5  # four files and what to do
    assert "cnndeploy data fetch" in empty.output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "lenett"], 2, ["Unknown architecture 'lenett'", "Did you mean 'lenet'"]),
        (
            ["export", "{checkpoint}", "--format", "onix"],
            2,
            ["Unknown exporter 'onix'", "Did you mean 'onnx'"],
        ),
        (["export", "{checkpoint}", "--format", "onnx", "--opset", "99"], 1, ["opset 99", "18 to 23"]),
        (["export", "{checkpoint}", "--format", "torchscript", "--opset", "20"], 2, ["does not apply"]),
        (["export", "{tmp}/none.pt"], 1, ["none.pt: no such file"]),
        (["export", "{onnx}"], 1, ["is an ONNX file, not a checkpoint"]),
        (["bench", "{onnx}", "--batch-size", "-1"], 2, ["-1 is not in the range"]),
        (["bench", "{onnx}", "--device", "cuda:9"], 1, ["cuda:9", "Available: cpu"]),
        (["bench"], 2, ["FILES"]),
        (["verify", "{onnx}"], 2, ["--against"]),
        (["verify", "{onnx}", "--against", "{checkpoint}", "--runtime", "onnxrt"], 2, ["'onnxruntime'"]),
        (
            ["verify", "{onnx}", "--against", "{checkpoint}", "--runtime", "eager"],
            1,
            ["Use the runtime onnxruntime"],
        ),
        (
            ["verify", "{onnx}", "--against", "{checkpoint}", "--precision", "tf32"],
            1,
            ["TF32 is a format of CUDA GPUs"],
        ),
        (
            ["verify", "{onnx}", "--against", "{checkpoint}", "--precision", "bfloat16"],
            1,
            ["say it with --budget"],
        ),
        (["verify", "{onnx}", "--against", "{checkpoint}", "--precision", "int8"], 2, ["--precision"]),
        (["predict", "{onnx}", "{checkpoint}"], 1, ["not an image"]),
        (["predict", "{tmp}", "{checkpoint}"], 1, ["is a folder"]),
        (["inspect", "{tmp}"], 1, ["is a folder"]),
        (["train", "lenet", "--images", "0"], 2, ["0 is not in the range"]),
        (["train", "lenet", "--lr", "nan"], 2, ["nan"]),
        (["train", "lenet", "--lr", "inf"], 2, ["inf"]),
        (["train", "lenet", "--seed", "18446744073709551616"], 2, ["range"]),
        (["export", "{checkpoint}", "--format", "onnx", "--opset", "0"], 1, ["opset 0"]),
        (["bench", "{onnx}", "--threads", "99999999999"], 2, ["range"]),
        (["train", "lenet", "--data-dir", "{tmp}"], 1, ["has no images"]),
        (["train", "lenet", "--output", "{tmp}/no/lenet.pt"], 1, ["does not exist"]),
        (["verfy"], 2, ["Did you mean 'verify'"]),
    ],
)
def test_bad_input(
    arguments: list[str], code: int, words: list[str], cli: Cli, trained: Trained, tmp_path: Path
) -> None:
    names = {"checkpoint": trained.checkpoint, "onnx": trained.onnx, "tmp": tmp_path}
    result = cli(*(argument.format(**names) for argument in arguments))
    assert result.exit_code == code, result.output
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in _process("--debug", "inspect", tmp_path).stderr


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    enough = ["--epochs", "1000", "--images", "2000"]  # that it is still at it when the signal comes
    command = [
        sys.executable,
        "-m",
        "cnndeploy",
        "train",
        "lenet",
        *enough,
        "--output",
        str(tmp_path / "lenet.pt"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "epoch 1/" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "--resume" in process.stderr.read()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["lenet.pt", "lenet.pt.jsonl", "lenet.pt.resume"]
    assert Artifact.open(tmp_path / "lenet.pt").format == "checkpoint"


@pytest.mark.slow
def test_the_demo_leaves_a_report(
    cli: Cli, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnndeploy.cli.demo._SECONDS", 0.2)
    (tmp_path / "demo").mkdir()
    mine = tmp_path / "demo" / "mine.onnx.verified.json"
    mine.touch()
    shutil.copy(trained.checkpoint, tmp_path / "demo" / "lenet.pt")
    refused = cli("demo", "--output", tmp_path / "demo", "--epochs", 1, "--images", 600)
    assert refused.exit_code == 1
    assert "lenet.pt is of no demo" in refused.stderr
    (tmp_path / "demo" / "report.html").touch()  # now it is of an earlier demo, which this one replaces
    done = cli("demo", "--output", tmp_path / "demo", "--epochs", 1, "--images", 600)
    assert done.exit_code == 0, done.stderr
    assert f"Certificate: {tmp_path / 'demo' / 'lenet.onnx.verified.json'}" in done.output
    mine.unlink()  # the demo leaves what it did not make
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "bench.json",
        "lenet.onnx",
        "lenet.onnx.verified.json",
        "lenet.pt",
        "lenet.pt.confusion.png",
        "lenet.pt.curves.png",
        "lenet.pt.jsonl",
        "lenet.torchscript",
        "lenet.torchscript.verified.json",
        "report.html",
    ]
    page = (tmp_path / "demo" / "report.html").read_text()
    for word in (
        "lenet",
        "Every exported file is equivalent",
        "Confusion matrix",
        "Labelled right",
        "Labelled wrong",
        "lenet.onnx",
        "REFERENCE",
        "<svg",
        "--batch-size 1,64",
        "Machine",
    ):
        assert word in page
    for outside in ("http:", "https:", "<link", "@import"):
        assert outside not in page
    assert page.count("src=") == page.count('src="data:')
