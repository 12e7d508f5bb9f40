"""The warnings that people see on a terminal: ours, and those of their own code.

They cannot change what an installed package warns of, such as torch's own deprecated functions. So these warnings are
logged at debug level, or shown if debugging is on.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

DEBUG = "CNNDEPLOY_DEBUG"
"""The environment variable that turns debugging on, in workers too, which inherit it."""

_PACKAGES = {"site-packages", "dist-packages"}  # of any environment


class CnndeployWarning(UserWarning):
    """Base of all warnings of cnndeploy itself."""


@contextmanager
def showing_own(show: Callable[[CnndeployWarning], None]) -> Iterator[None]:
    """Pass our own warnings to ``show``, and show those of the user's code as Python does, once for each line."""
    with warnings.catch_warnings():
        usual, seen = warnings.showwarning, set[tuple[str, str, int]]()

        def sort_out(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if isinstance(message, CnndeployWarning):
                show(message)
            elif not _is_installed(filename) or os.environ.get(DEBUG):
                # Python forgets which warnings it has shown whenever a library changes the filters for a while
                if (place := (str(message), filename, lineno)) not in seen:
                    seen.add(place)
                    usual(message, category, filename, lineno, file, line)
            else:
                import logging  # most commands need it for nothing else

                text = warnings.formatwarning(message, category, filename, lineno, line)
                logging.getLogger("cnndeploy").debug(text.rstrip())

        warnings.simplefilter("always", CnndeployWarning)
        warnings.showwarning = sort_out
        yield


@contextmanager
def no_standard_error() -> Iterator[None]:
    """Hide what native libraries print on standard error, past Python; Python's own output is hidden too."""
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _is_installed(filename: str) -> bool:
    """Return whether a file belongs to Python, an installed package or us; torch calls generated code ``<...>``."""
    path = Path(filename)
    if filename.startswith("<") or not _PACKAGES.isdisjoint(path.parts):
        return True
    if any(path.is_relative_to(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")):
        return True
    ours = (module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "cnndeploy")
    return any(getattr(module, "__file__", None) == filename for module in ours)
