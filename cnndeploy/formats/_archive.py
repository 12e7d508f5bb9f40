"""What the two formats that are zip archives share.

torch puts everything into one folder named after the file it was saved to; names here are without it.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

# A manifest or the code of a network takes some kB; more is a zip bomb.
_LIMIT_BYTES = 64 * 2**20


def member_names(path: Path) -> list[str]:
    """Names of the members, none where the file is no zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, EOFError):
        return []


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Names and contents of the members that are wanted.

    Raises:
        ValueError: The archive is damaged, or a member is too large to be meant.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.partition("/")[2]
                if not wanted(name):
                    continue
                if member.file_size > _LIMIT_BYTES:
                    raise ValueError(f"{name} in it has {member.file_size:,} bytes")
                found[name] = archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    return found
