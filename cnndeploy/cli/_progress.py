"""How far long work is, on standard error."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from cnndeploy.cli._common import say
from cnndeploy.progress import Progress, ShouldStop, never

_LOG_EVERY_S = 60.0


@contextlib.contextmanager
def progress_bar(
    description: str, refreshes_a_second: float = 10, stop: ShouldStop = never
) -> Iterator[Progress]:
    """Show a bar on standard error, or a line each minute if that is no terminal; yield the callback that moves it.

    Once ``stop`` returns True it says that the work ends. Beside what is being timed it should refresh rarely.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Bar(
        *(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()),
        console=console,
        transient=True,
        redirect_stdout=False,  # to standard error, it would be
        refresh_per_second=refreshes_a_second,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(escape(description), total=None)
        log = _Log(stop)

        def update(done: int, total: int, text: str) -> None:
            if not console.is_terminal:
                log(f"{text} ({done:,} of {total:,})" if total else text)
            ending = "Stopping (Ctrl-C again ends at once): " if stop() else ""
            bar.update(task, completed=done, total=total or None, description=escape(ending + text))

        yield update


class _Log:
    """Prints where long work is, for those who read it in a file: a line each minute, and one when it is to stop."""

    def __init__(self, stop: ShouldStop) -> None:
        self._began = self._last = time.monotonic()
        self._stop, self._said = stop, False

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if self._stop() and not self._said:
            self._said = True
            say("Stopping at the next step; a second signal ends it at once.", err=True)
        if now - self._last >= _LOG_EVERY_S:
            self._last = now
            say(f"{(now - self._began) / 60:.0f} min: {text}", err=True)
