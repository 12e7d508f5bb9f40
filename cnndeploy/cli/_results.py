"""Standard output as the place of a command's results, apart from what libraries print there."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_streams: list[TextIO] = []  # one at most


def results() -> TextIO:
    """Return where results go that are to be on standard output."""
    return _streams[-1] if _streams else sys.stdout


@contextlib.contextmanager
def results_alone() -> Iterator[None]:
    """Keep standard output for :func:`results`: what else is printed there, from Python or C, goes to standard error.

    What C code printed may be in a buffer until the process ends, so this process's descriptor 1 is not put back.
    """
    if _streams:
        yield
        return
    stream = sys.stdout
    with contextlib.ExitStack() as stack:
        if _descriptor(stream) == 1:
            buffering = 1 if stream.isatty() else -1
            stream.flush()
            kept = os.dup(1)
            os.dup2(2, 1)
            stream = stack.enter_context(
                os.fdopen(kept, "w", buffering, encoding=stream.encoding, errors=stream.errors)
            )
        _streams.append(stream)
        stack.callback(_streams.pop)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # of a stream in memory, or one that is closed
        return None
