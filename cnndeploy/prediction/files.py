"""The image files that an argument names."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cnndeploy.images import other_suffixes, suffixes


def image_files(name: str, passed_over: Counter[str]) -> list[str]:
    """Return the files that a name, folder or pattern stands for.

    Keep one that matches nothing, so that it is reported. Count by suffix in ``passed_over`` the pictures in folders
    that are of no kind that is read.
    """
    if is_folder(name):
        return sorted(_images_below(Path(name), passed_over)) or [name]
    if is_pattern(name):
        matches = sorted(_matches(Path(name)))
        return [file for match in matches for file in image_files(match, passed_over)] or [name]
    return [name]


def is_folder(name: str) -> bool:
    """Return whether a name is a folder's."""
    return name != "" and os.path.isdir(name)  # noqa: PTH112 - which raises nothing, whatever the name


def is_pattern(name: str) -> bool:
    """Return whether a name is a pattern, and not that of a file or folder."""
    return glob.has_magic(name) and not os.path.lexists(name)


def _images_below(folder: Path, passed_over: Counter[str]) -> Iterator[str]:
    """Yield image files and folders that may not be read, to be reported; skip what is hidden, follow no link."""
    read, others = suffixes(), other_suffixes()
    unreadable: list[OSError] = []
    for inner, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [Path(inner, name) for name in names if not name.startswith(".")]
        yield from (str(file) for file in files if file.suffix.lower() in read and file.is_file())
        passed_over.update(suffix for file in files if (suffix := file.suffix.lower()) in others)
    yield from (str(error.filename) for error in unreadable)


def _matches(pattern: Path) -> list[str]:
    """Match by pathlib, whose ``**`` follows no links to folders; a hidden name matches only if it is spelled out.

    The longest leading part that exists is meant as itself: a folder may be called ``shoes [1]``.
    """
    root = next((parent for parent in pattern.parents if os.path.lexists(parent)), Path(pattern.anchor))
    try:
        matches = list(root.glob(str(pattern.relative_to(root))))
    except (ValueError, OSError):  # no pattern that pathlib takes, or no name that the system takes
        return []
    spelled_out = {part for part in pattern.parts if part.startswith(".")}
    hidden = ({part for part in match.parts if part.startswith(".")} for match in matches)
    return [str(match) for match, parts in zip(matches, hidden, strict=True) if parts <= spelled_out]
