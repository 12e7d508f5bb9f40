"""Workers and the process that they work for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cnndeploy.errors import Stopped
from cnndeploy.process import WorkerProcess

_WORKER = """
import sys
from cnndeploy.process import serve
serve("x", lambda requests: (sys.stderr.write("worked") for _ in requests))
"""


def test_a_worker_whose_parent_was_killed_while_it_began_does_no_work() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", _WORKER]
    done = subprocess.run(command, input=b"{}\n", stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.usefixtures("real_workers")
def test_what_asks_whether_to_stop_may_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is ended all the same if it does not answer, and the error is raised by who waits for it."""
    monkeypatch.setattr("cnndeploy.process._GRACE_S", 0.1)

    def stop() -> bool:
        raise Stopped("enough")

    with (
        WorkerProcess("cnndeploy.verification.worker", "a file", subject="a file") as worker,
        pytest.raises(Stopped, match="enough"),
    ):
        worker.receive(should_stop=stop)  # nothing was asked of it
