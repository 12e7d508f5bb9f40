"""Names of candidates: the file, and of how it is run only what tells it from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cnndeploy.benchmark.report import Result
from cnndeploy.display.cells import settings_line
from cnndeploy.words import counted


def candidate_names(rows: Sequence[Result], *, brief: bool = False) -> list[str]:
    """Return a different name for each candidate: its file, its runtime and options, and its threads if they differ.

    A ``brief`` name is the file alone, if no file occurs twice and none runs with options.
    """
    if brief and len({row.artifact for row in rows}) == len(rows) and not any(row.options for row in rows):
        return [row.artifact for row in rows]
    threads_differ = len({row.threads for row in rows}) > 1
    names, seen = list[str](), Counter[str]()
    for row in rows:
        device = "" if row.device == "cpu" else f" on {row.device}"
        threads = f", {counted(row.threads or '?', 'thread')}" if threads_differ else ""
        options = f", {settings_line(row.options)}" if row.options else ""
        name = f"{row.artifact}, {row.runtime}{device}{options}{threads}"
        seen[name] += 1
        names.append(f"{name} ({seen[name]})" if seen[name] > 1 else name)
    return names
