"""Many images by Ray: the rows of one process, bit for bit, whatever is killed; with Ray itself."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image

import cnndeploy
from cnndeploy.datasets import fashion_mnist
from cnndeploy.errors import ArtifactError, ClusterError, DeviceUnavailableError
from cnndeploy.machine import cuda_driver
from cnndeploy.prediction import chunks, cluster, ray_connection
from cnndeploy.prediction.cluster import predict_on_ray
from cnndeploy.prediction.ray_connection import Cluster, connected
from helpers import Trained

pytestmark = [
    pytest.mark.field,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's of itself
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: make test-field does"
    ),
]

Cli = Callable[..., Result]
COUNT = 600


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, some of another size, and files that are none."""
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(fashion_mnist.load("test").images[:COUNT]):
        image = Image.fromarray(pixels)
        (image.resize((70, 50)) if number % 10 == 0 else image).save(folder / f"{number:04}.png")
    (folder / "0100.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def files(images: Path) -> list[str]:
    return [*map(str, sorted(images.iterdir())), str(images / "none.png")]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PART", 2 * chunks.MOST_IMAGES)


@pytest.fixture
def expected(cli: Cli, trained: Trained, files: list[str]) -> list[dict[str, Any]]:
    """The rows by one process, with two classes an image."""
    told = json.loads(cli("predict", trained.onnx, *files, "--top", 2, "--json").stdout)
    rows = {failure["image"]: _row(failure["image"], [], failure["error"]) for failure in told["failures"]}
    rows |= {one["image"]: _row(one["image"], one["classes"], None) for one in told["predictions"]}
    assert len(rows) == len(files)
    return [rows[file] for file in files]


def _row(image: str, classes: list[dict[str, Any]], error: str | None) -> dict[str, Any]:
    first, second = classes or ({"label": None, "probability": None},) * 2
    row = {"image": image, "error": error}
    for suffix, one in (("", first), ("_2", second)):
        row |= {f"label{suffix}": one["label"], f"probability{suffix}": one["probability"]}
    return row


def _rows(path: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


@pytest.mark.usefixtures("small_parts")
def test_the_rows_of_one_process_although_workers_are_killed(
    trained: Trained, files: list[str], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    """One of each kind is killed, with a result on its way: Ray starts another, and nothing is lost or doubled."""
    killed, seen = dict[str, int](), set[int]()

    def kill(done: int, total: int, text: str) -> None:
        assert 0 <= done <= total == len(files)
        seen.update(_ray_processes(""))
        if done:
            for kind in {"Worker)", "Reader)"} - killed.keys():
                for process in _ray_processes(kind)[:1]:
                    os.kill(process, signal.SIGKILL)
                    killed[kind] = process

    errors = predict_on_ray(
        trained.onnx, files, tmp_path / "rows", cluster=Cluster(workers=2), top=2, progress=kill
    )
    assert "Worker)" in killed  # tasks may all have ended before one could be found
    assert _rows(tmp_path / "rows") == expected
    assert len(errors) == 2
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == [
        f"part-{number:05}.parquet" for number in range(5)
    ]
    assert seen
    _wait(lambda: not any(map(_name, seen)), 60)


def _ray_processes(kind: str) -> list[int]:
    """Return the processes of Ray that descend from this one, and have ``kind`` in their names."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        name = _name(int(folder.name))
        if name.startswith("ray::") and kind in name and _descends(int(folder.name)):
            found.append(int(folder.name))
    return found


def _name(process: int) -> str:
    """Return the name of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _descends(process: int) -> bool:
    while process > 1:
        if process == os.getpid():
            return True
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


@pytest.mark.usefixtures("small_parts")
def test_going_on_where_a_run_stopped(
    trained: Trained, files: list[str], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    output = tmp_path / "rows"
    settings: dict[str, Any] = {"top": 2, "cluster": Cluster(workers=1)}

    def stop(done: int, total: int, text: str) -> None:
        if any(output.glob("part*")):
            raise KeyboardInterrupt

    threads = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        predict_on_ray(trained.onnx, files, output, progress=stop, **settings)
    assert not set(threading.enumerate()) - threads  # those of Ray Data's started Ray again in the next run
    there = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert 0 < len(there) < 5
    with pytest.raises(ArtifactError, match=r"is not empty; choose another folder, or go on .* resume=True"):
        predict_on_ray(trained.onnx, files, output, **settings)
    for other in ({**settings, "top": 1}, {**settings, "invert": True}):
        with pytest.raises(ArtifactError, match="not of this model, these options and these images"):
            predict_on_ray(trained.onnx, files, output, resume=True, **other)
    with pytest.raises(ArtifactError, match="not of this model, these options and these images"):
        predict_on_ray(trained.onnx, files[1:], output, resume=True, **settings)
    seen = list[tuple[int, int]]()
    errors = predict_on_ray(
        trained.onnx,
        files,
        output,
        resume=True,
        progress=lambda done, total, _: seen.append((done, total)),
        **settings,
    )
    assert _rows(output) == expected
    assert len(errors) == 2
    assert seen[0][0] == len(there) * 128
    assert seen[-1] == (len(files), len(files))
    assert all(path.stat().st_mtime_ns == written for path, written in there.items())


def test_a_cluster(trained: Trained, images: Path, tmp_path: Path) -> None:
    """Ray's own server on this machine, which asks for its token; more workers than there is room for."""
    program = str(Path(sys.executable).with_name("ray"))
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 2,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    short = tempfile.mkdtemp(prefix="ray-")  # for its sockets' names
    options = ["--num-cpus", "2", "--include-dashboard", "false", "--temp-dir", short]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = [program, "start", "--head", "--block", "--port", str(port), *options]
    with subprocess.Popen(
        server, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as head:
        try:
            address = f"127.0.0.1:{port}"
            _wait_for(port)
            asked = ["predict", trained.onnx, images, "--engine", "ray", "--address", address]
            done = _run(*asked, "--output", tmp_path / "rows", "--workers", 9, environment=environment)
            assert done.returncode == 1, done.stderr  # of the file that is no image
            assert "Error: 1 of 600 could not be classified." in done.stderr
            assert len(_rows(tmp_path / "rows")) == COUNT
            stranger = {**environment, "RAY_AUTH_TOKEN": "f" * 32}
            refused = _run(*asked, "--output", tmp_path / "none", environment=stranger)
            assert refused.returncode == 1
            assert "Ray cannot be started or reached: " in refused.stderr
            assert "token" in refused.stderr
            assert "Traceback" not in refused.stderr
        finally:
            head.send_signal(signal.SIGTERM)
            try:
                head.wait(60)
            finally:
                head.kill()
            shutil.rmtree(short, ignore_errors=True)


def _run(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cnndeploy", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_a_file_that_kills_its_reader_ends_the_run(trained: Trained, images: Path, tmp_path: Path) -> None:
    """It is tried a few times and not for ever; a fault of a decoder in C may be like it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, args):\n"
        "    if event == 'open' and str(args[0]).endswith('deadly.png'):\n"
        "        os.kill(os.getpid(), 9)\n"
        "sys.addaudithook(hook)\n"
    )
    deadly = tmp_path / "deadly.png"
    deadly.write_bytes((images / "0001.png").read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for given in ([images, deadly], [deadly]):
        asked = ["predict", trained.onnx, *given, "--engine", "ray", "--output", tmp_path / "rows"]
        done = _run(*asked, environment=environment)
        assert done.returncode == 1
        assert "Error: Ray gave up: The worker died unexpectedly" in done.stderr
        assert "Traceback" not in done.stderr
        assert not any((tmp_path / "rows").iterdir())  # its images are fewer than a part's


def test_ctrl_c_keeps_what_is_written(trained: Trained, images: Path, tmp_path: Path) -> None:
    many = [str(images)] * 20  # parts of 4,096
    command = [sys.executable, "-m", "cnndeploy", "predict", str(trained.onnx), *many, "--engine", "ray"]
    output = tmp_path / "rows"
    with subprocess.Popen(
        [*command, "--output", str(output), "--workers", "1"], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _wait(lambda: any(output.glob("*.parquet")))
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert f"Go on from the files in {output} with --resume." in said
    assert {len(_rows(part)) for part in output.iterdir()} == {4096}


def test_sigterm_while_ray_starts(trained: Trained, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows"
    command = [
        sys.executable,
        "-m",
        "cnndeploy",
        "predict",
        str(trained.onnx),
        str(images),
        "--engine",
        "ray",
    ]
    with subprocess.Popen([*command, "--output", str(output)], stderr=subprocess.PIPE, text=True) as process:
        try:
            _wait(output.exists)
            time.sleep(2)
            process.terminate()
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, "Traceback" in said) == (143, False), said


def test_a_model_that_needs_more_than_there_is(trained: Trained, images: Path, tmp_path: Path) -> None:
    """More threads than CPUs run, as without Ray; a GPU that is not there is an error at once."""
    one = [str(images / "0001.png")]
    assert predict_on_ray(trained.onnx, one, tmp_path / "rows", run=cnndeploy.Run(threads=8)) == []
    assert len(_rows(tmp_path / "rows")) == 1
    if not cuda_driver().gpus:
        with pytest.raises(DeviceUnavailableError, match="Ray knows no GPU here"):
            predict_on_ray(trained.onnx, one, tmp_path / "none", run=cnndeploy.Run(device="cuda"))
    with (
        connected(Cluster(), cnndeploy.Run("onnxruntime", "cpu", 1)),
        pytest.raises(ClusterError, match=r"call ray.shutdown\(\) first"),
    ):
        predict_on_ray(trained.onnx, one, tmp_path / "second")


class _Ray:
    """What it knows of its machines, as Ray says it."""

    def __init__(self, *machines: tuple[float, float]) -> None:
        import ray.data

        self._machines = machines
        self.data = ray.data

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in self._machines]

    def cluster_resources(self) -> dict[str, float]:
        cpus, gpus = (sum(each) for each in zip(*self._machines, strict=True))
        return {"CPU": cpus, "GPU": gpus}


@pytest.mark.parametrize(
    ("machines", "device", "threads", "workers", "sizes"),
    [
        ([(2, 0)], "cpu", 1, None, (2, 2)),
        ([(2, 0)], "cpu", 1, 9, (3, 9)),
        ([(2, 0)], "cpu", 3, None, (1, 1)),
        ([(2, 0)], "cpu", 4, None, None),  # nothing is left for a task
        ([(2, 0), (2, 0)], "cpu", 5, None, None),  # no single machine has them
        ([(32, 8)], "cuda", 8, None, (7, 8)),
        ([(64, 0), (1, 1)], "cuda", 4, None, None),  # the machine with the GPU has too few CPUs
        ([(64, 0)], "cuda", 1, None, None),
    ],
)
def test_the_pool_leaves_room_for_tasks(
    machines: list[tuple[float, float]],
    device: str,
    threads: int,
    workers: int | None,
    sizes: tuple[int, int] | None,
) -> None:
    known, settled = _Ray(*machines), cnndeploy.Run("onnxruntime", device, threads)
    if sizes is None:
        with pytest.raises((ClusterError, DeviceUnavailableError)):
            ray_connection._check_room(known, Cluster(), settled)
        return
    ray_connection._check_room(known, Cluster(), settled)
    pool = ray_connection.pool(known, Cluster(workers=workers), settled, 100)
    assert (pool.min_size, pool.max_size) == sizes


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--engine", "ray"], 2, "name a folder by --output"),
        (["--engine", "ray", "--output", "{tmp}/rows", "--json"], 2, "without --csv and --json"),
        (["--workers", "2"], 2, "--workers is for --engine ray"),
        (["--address", ""], 2, "--address is empty"),
        (["--engine", "ray", "--output", "{tmp}"], 1, "is not empty; choose another folder, or go on"),
        (["--engine", "ray", "--output", "{tmp}/a.txt"], 1, "a.txt is a file; name a folder"),
        (["--engine", "ray", "--output", "{tmp}", "--resume"], 1, "a.txt is not of this run"),
        (["--engine", "ray", "--output", "{tmp}/rows", "--device", "cuda:1"], 1, "use cuda, not cuda:1"),
        (
            ["--engine", "ray", "--output", "{tmp}/rows", "--address", "127.0.0.1:1"],
            1,
            "no cluster answers at",
        ),
    ],
)
def test_what_is_refused(
    cli: Cli, trained: Trained, images: Path, tmp_path: Path, options: list[str], code: int, reason: str
) -> None:
    (tmp_path / "a.txt").write_text("of the user's")
    result = cli("predict", trained.onnx, images, *(option.format(tmp=tmp_path) for option in options))
    assert result.exit_code == code, result.stderr
    assert reason in result.stderr
    assert (tmp_path / "a.txt").read_text() == "of the user's"


def test_what_workers_say_is_said_here(trained: Trained, images: Path, tmp_path: Path) -> None:
    """A model that they cannot open, as an error; images that look inverted, as a warning that names one."""
    with Image.open(images / "0001.png") as image:
        image.point(lambda value: 255 - value).save(tmp_path / "dark.png")
    done = _run(
        "predict", trained.onnx, tmp_path / "dark.png", "--engine", "ray", "--output", tmp_path / "rows"
    )
    assert done.returncode == 0, done.stderr
    assert f"the border of {tmp_path / 'dark.png'} is brighter than its middle" in done.stderr
    assert "use --invert" in done.stderr
    with pytest.raises(ClusterError, match="no cluster answers"):
        predict_on_ray(trained.onnx, ["a.png"], tmp_path / "o", cluster=Cluster("127.0.0.1:1"))
    lost = tmp_path / "lost.onnx"
    lost.write_bytes(trained.onnx.read_bytes())

    def lose(done: int, total: int, text: str) -> None:
        if text == "Starting Ray":
            lost.write_bytes(b"no model")

    with pytest.raises(ArtifactError, match=r"a worker on .* cannot open the model: .*lost\.onnx"):
        predict_on_ray(lost, [str(images / "0001.png")], tmp_path / "p", progress=lose)
    assert not any((tmp_path / "p").iterdir())


def _wait(until: Callable[[], bool], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < ends
        time.sleep(0.1)


def _wait_for(port: int) -> None:
    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    _wait(answers)
    time.sleep(3)  # for its other processes


def test_ray_serve(cli: Cli, trained: Trained, images: Path, tmp_path: Path) -> None:
    """The example, over a socket: eager PyTorch's labels, many requests at once, and bad ones."""
    model = tmp_path / "lenet.onnx"
    model.write_bytes(trained.onnx.read_bytes())
    program = Path(__file__).parents[1] / "examples" / "ray_serve.py"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(program), str(model), "--port", str(port)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "has no certificate" in refused.stderr
    assert cli("verify", model, "--against", trained.checkpoint, "--images", 64).exit_code == 0
    some = [images / f"{number:04}.png" for number in range(64)]
    with cnndeploy.load(trained.checkpoint) as eager:
        labels = [eager.classify(cnndeploy.read_image(path))[0].label for path in some]
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as served,
    ):
        try:
            assert served.stdout is not None
            assert served.stdout.readline() == f"Ready: http://127.0.0.1:{port}/lenet\n", (
                tmp_path / "said"
            ).read_text()
            with ThreadPoolExecutor(8) as pool:
                answers = [*pool.map(lambda path: _ask(port, path.read_bytes()), some)]
            assert {status for status, _ in answers} == {200}
            assert [told["classes"][0]["label"] for _, told in answers] == labels
            assert len(_ask(port, some[0].read_bytes(), "?top=3")[1]["classes"]) == 3
            for body, query, reason in (
                (b"no image", "", "not an image"),
                (some[0].read_bytes(), "?top=x", "invalid literal"),
                (some[0].read_bytes(), "?top=0", "at least 1"),
            ):
                status, told = _ask(port, body, query)
                assert (status, reason in told["error"]) == (400, True), told
            served.send_signal(signal.SIGINT)
            assert served.wait(120) == 0
        finally:
            served.kill()


def _ask(port: int, body: bytes, query: str = "") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", f"/lenet{query}", body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
