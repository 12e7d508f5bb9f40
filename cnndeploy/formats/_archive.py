"""What the two formats that are zip archives share.

torch puts everything into one folder named after the file it was saved to; names here are without it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

# A manifest or the code of a network takes some kB; more is a zip bomb.
_LIMIT_BYTES = 64 * 2**20


def member_names(path: Path) -> list[str]:
    """Names of the members, none where the file is no zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return []


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Names and contents of the members that are wanted; a member too large to be meant is a ValueError."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.partition("/")[2]
            if not wanted(name):
                continue
            if member.file_size > _LIMIT_BYTES:
                raise ValueError(f"{name} in it has {member.file_size:,} bytes")
            found[name] = archive.read(member)
    return found


def check_whole(path: Path) -> None:
    """Raise ValueError where a member's content is not what its CRC-32 says; torch itself does not look."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")
