"""The contenders that are timed if memory does not hold them all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cnndeploy.machine import available_memory
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.tuning.contenders import Contender
from cnndeploy.tuning.memory import fitting

MB = 10**6


def _contenders(tmp_path: Path) -> list[Contender]:
    """Return four that take 100 MB each: the reference, one like it, one that sleeps, one on one thread."""
    file = tmp_path / "a.onnx"
    with file.open("wb") as sparse:
        sparse.truncate(10 * MB)
    runs = [Run("eager", "cpu", 2), Run("onnxruntime", "cpu", 2)]
    runs += [
        Run("onnxruntime", "cpu", 2, RuntimeOptions(spinning=False)),
        Run("onnxruntime", "cpu", 1),
    ]
    artifact: Any = SimpleNamespace(path=file)
    candidates: list[Any] = [SimpleNamespace(artifact=artifact, run=run, lossy=False) for run in runs]
    return [Contender("plain", candidate) for candidate in candidates]


@pytest.mark.parametrize(
    ("megabytes", "left"),
    [(None, [0, 1, 2, 3]), (500, [0, 1, 2, 3]), (499, [0, 1, 3]), (300, [0, 1]), (1, [0, 1])],
)
def test_the_least_promising_are_left_out(megabytes: int | None, left: list[int], tmp_path: Path) -> None:
    contenders = _contenders(tmp_path)
    stay, rows = fitting(contenders, None if megabytes is None else megabytes * MB)
    assert stay == [contenders[place] for place in left]
    assert [(row.outcome, "memory" in row.reason) for row in rows] == [("not tried", True)] * (4 - len(left))


def test_the_memory_that_is_left_is_the_least_of_the_machine_and_the_cgroup(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:  5000 kB\n")
    assert available_memory(tmp_path) == 5000 * 1024
    (tmp_path / "proc/self/cgroup").write_text("0::/own\n")
    own = tmp_path / "sys/fs/cgroup/own"
    own.mkdir(parents=True)
    for name, text in (("max", "3000000"), ("current", "2000000"), ("stat", "anon 5\ninactive_file 70000\n")):
        (own / f"memory.{name}").write_text(text)
    assert available_memory(tmp_path) == 1_070_000
    (own / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 5000 * 1024
