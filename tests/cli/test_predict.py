"""``cnndeploy predict`` on files, folders and patterns."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

import cnndeploy
from cnndeploy.datasets import fashion_mnist
from cnndeploy.prediction import chunks
from helpers import Trained

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 images in two folders, some of another size, and what is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more" / "empty").mkdir(parents=True)
    for number, pixels in enumerate(fashion_mnist.load("test").images[:150]):
        image = Image.fromarray(pixels)
        if number % 10 == 0:
            image = image.resize((70, 50))
        image.save(folder / ("more" if number % 3 == 0 else ".") / f"{number:03}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def labels(trained: Trained, photos: Path) -> dict[str, str]:
    """Of each image by itself, in eager PyTorch, by file name."""
    with cnndeploy.load(trained.checkpoint) as model:
        return {
            path.name: model.classify(cnndeploy.read_image(path))[0].label
            for path in photos.rglob("[0-9]*.png")
        }


@pytest.mark.parametrize("kind", ["onnx", "onnx_image", "torchscript"])
def test_a_folder(kind: str, cli: Cli, trained: Trained, photos: Path, labels: dict[str, str]) -> None:
    result = cli("predict", trained.file_of(kind), photos, "--csv")
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert rows[0].keys() == {"image", "label", "probability", "error"}
    assert [row["image"] for row in rows] == sorted(row["image"] for row in rows)
    assert {Path(row["image"]).name: row["label"] for row in rows} == labels
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)


def test_files_and_patterns_and_more_classes(
    cli: Cli, trained: Trained, photos: Path, labels: dict[str, str]
) -> None:
    (last,) = photos.glob("149.png")
    result = cli("predict", trained.onnx, last, f"{photos}/**/00*.png", "--top", 3, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    names = [Path(each["image"]).name for each in found["predictions"]]
    assert names[0] == "149.png"
    assert sorted(names[1:]) == [f"00{number}.png" for number in range(10)]
    for each in found["predictions"]:
        probabilities = [every["probability"] for every in each["classes"]]
        assert len(probabilities) == 3
        assert probabilities == sorted(probabilities, reverse=True)
        assert each["classes"][0]["label"] == labels[Path(each["image"]).name]
    line = cli("predict", trained.onnx, last, "--top", 99).stdout
    assert line.startswith(f"{last}: {labels[last.name]} ")
    assert line.count("%") == 10


def test_what_cannot_be_read_is_reported_and_the_others_go_on(
    cli: Cli, trained: Trained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (good,) = photos.glob("001.png")
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:100])
    too_long = "a" * 300 + ".png"
    given = [
        tmp_path / "half.png",
        good,
        photos / "none.png",
        "no*.png",
        photos / "more" / "empty",
        good,
        "",
        too_long,
    ]
    reasons = [
        "cannot be read",
        "no such file",
        "no file matches",
        "no image files in this folder",
        "empty name",
    ]
    for most in (1, 2, 64):
        monkeypatch.setattr(chunks, "MOST_IMAGES", most)
        result = cli("predict", trained.onnx, *given)
        assert result.exit_code == 1
        assert [line.partition(":")[0] for line in result.stdout.splitlines()] == [str(good)] * 2
        for reason in (*reasons, "6 of 8 could not be classified"):
            assert reason in result.stderr
    found = json.loads(cli("predict", trained.onnx, *given, "--json").stdout)
    assert [each["image"] for each in found["failures"]] == [str(given[at]) for at in (0, 2, 3, 4, 6, 7)]
    rows = list(csv.DictReader(cli("predict", trained.onnx, *given, "--csv", "--top", 2).stdout.splitlines()))
    assert [bool(row["error"]) for row in rows] == [True, False, True, True, True, False, True, True]
    assert rows[0].keys() == {"image", "label", "probability", "label_2", "probability_2", "error"}


def test_patterns_follow_no_links_round_and_round_and_find_folders(
    cli: Cli, trained: Trained, photos: Path, tmp_path: Path
) -> None:
    (good,) = photos.glob("001.png")
    (tmp_path / "in").mkdir()
    (tmp_path / ".hidden").mkdir()
    for path in ("one.png", "in/two.png", ".hidden/three.png", "new\nline.png"):
        (tmp_path / path).write_bytes(good.read_bytes())
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "more").symlink_to(tmp_path)
    for given, found in (
        (f"{tmp_path}/**/*.png", 3),
        (tmp_path, 3),
        (f"{tmp_path}/i*", 1),
        (f"{tmp_path}/**x", 1),
    ):
        result = cli("predict", trained.onnx, given)
        assert len([*result.stdout.splitlines(), *result.stderr.splitlines()[1:]]) == found, result.output
    assert "new\\nline.png: " in cli("predict", trained.onnx, tmp_path).stdout


@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may read all; setpriv would run this"
)
def test_a_folder_that_may_not_be_read_is_reported(trained: Trained, photos: Path, tmp_path: Path) -> None:
    (good,) = photos.glob("001.png")
    closed = tmp_path / "closed"
    closed.mkdir()
    for folder in (tmp_path, closed):
        shutil.copy(good, folder / "one.png")
    shutil.copy(trained.onnx, tmp_path / "lenet.onnx")
    closed.chmod(0)
    command = [sys.executable, "-m", "cnndeploy", "predict", "lenet.onnx", "."]
    if os.geteuid() == 0:
        command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", *command]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    closed.chmod(0o700)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("one.png: ")
    assert "closed: this folder may not be read" in done.stderr


def test_a_whole_folder_without_images_is_an_error(cli: Cli, trained: Trained, photos: Path) -> None:
    result = cli("predict", trained.onnx, photos / "more" / "empty")
    assert (result.exit_code, result.stdout) == (1, "")


@pytest.mark.parametrize(
    ("options", "message"), [(["--csv", "--json"], "choose one"), (["--top", "0"], "--top"), ([], "Missing")]
)
def test_wrong_usage(options: list[str], message: str, cli: Cli, trained: Trained) -> None:
    images = ["x.png"] if options else []
    result = cli("predict", trained.onnx, *images, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def _opened_for_writing(fifo: Path, reader: subprocess.Popen[str]) -> int:
    """Once it is being read."""
    while reader.poll() is None:
        with contextlib.suppress(OSError):
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.01)
    raise AssertionError(reader.communicate())


def test_a_second_signal_ends_what_waits_for_ever(trained: Trained, tmp_path: Path) -> None:
    fifo = tmp_path / "silent.png"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "cnndeploy", "predict", str(trained.onnx), str(fifo)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    descriptor = _opened_for_writing(fifo, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    for _ in range(20):
        # The first may have come just before the read that waits. Python handles it when another ends that read, and
        # then the two are one.
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
            break
    assert process.poll() == 143
    os.close(descriptor)
    process.communicate()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_gives_what_there_is(
    number: signal.Signals, status: int, trained: Trained, photos: Path, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.png"
    os.mkfifo(slow)  # until it is written to, reading it waits
    (good,) = photos.glob("001.png")
    images = [str(good)] * 200
    command = [sys.executable, "-m", "cnndeploy", "predict", str(trained.onnx), *images, str(slow), *images]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    descriptor = _opened_for_writing(slow, process)
    process.send_signal(number)
    os.write(descriptor, b"no image")
    os.close(descriptor)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert len(printed.splitlines()) == int(said.split("Stopped after ")[1].split()[0]) - 1
    assert 200 <= len(printed.splitlines()) < 400


@pytest.mark.parametrize("options", [[], ["--csv"], ["--json"]])
def test_an_output_file_has_what_is_printed(
    options: list[str], cli: Cli, trained: Trained, photos: Path, tmp_path: Path
) -> None:
    given = [photos / "001.png", photos / "none.png"]
    output = tmp_path / "labels"
    printed = cli("predict", trained.onnx, *given, *options)
    written = cli("predict", trained.onnx, *given, *options, "--output", output)
    assert (printed.exit_code, written.exit_code) == (1, 1)
    assert (output.read_text(), written.stdout) == (printed.stdout, f"Wrote {output}\n")
    assert written.stderr == printed.stderr


def test_an_output_file_is_written_when_all_is_done_or_stays_as_it_was(
    cli: Cli, trained: Trained, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "labels.csv"
    output.write_text("of yesterday")
    read = chunks._read

    def read_and_stop(file: str, channels: int) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return read(file, channels)

    monkeypatch.setattr(chunks, "_read", read_and_stop)
    stopped = cli("predict", trained.onnx, photos, "--csv", "--output", output)
    assert (stopped.exit_code, output.read_text()) == (143, "of yesterday")
    assert f"Stopped after 1 of 150; {output} was not written" in stopped.stderr
    for wrong, reason in ((photos / "001.png", "also an input"), (tmp_path / "no" / "x", "does not exist")):
        refused = cli("predict", trained.onnx, photos, "--output", wrong)
        assert (refused.exit_code, reason in refused.stderr) == (1, True), refused.stderr
    assert list(tmp_path.iterdir()) == [output]


def test_parts_that_begin_at_a_64th_file_have_the_chunks_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of processes form the same batches; large images make chunks smaller."""
    files = [str(tmp_path / f"{number:03}.png") for number in range(150)]
    for number, file in enumerate(files):
        Image.new("L", (1, 40) if number % 7 == 0 else (1, 1)).save(file)
    monkeypatch.setattr(chunks, "_MOST_VALUES", 100)
    whole = [[file for file, _ in chunk] for chunk in chunks.chunks(files, 1)]
    assert [file for chunk in whole for file in chunk] == files
    assert len(whole) > 6
    parts = [
        [file for file, _ in chunk]
        for start in range(0, len(files), 64)
        for chunk in chunks.chunks(files[start : start + 64], 1)
    ]
    assert parts == whole
