"""Workers and the process that they work for."""

from __future__ import annotations

import os
import subprocess
import sys

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
