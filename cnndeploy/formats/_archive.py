"""Zip archives: code that the two formats made of them share.

torch puts everything into one folder that is named after the file; names here leave that folder out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

# A manifest or the code of a network takes a few kB; much more is a zip bomb.
_LIMIT_BYTES = 64 * 2**20


def member_names(path: Path) -> list[str]:
    """Return the names of the members, or none if the file is not a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return []


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the contents of the wanted members by name; raise ValueError if one is unreasonably large."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
        members = {name: member for name, member in members.items() if wanted(name)}
        for name, member in members.items():
            if member.file_size > _LIMIT_BYTES:
                raise ValueError(f"{name} in it has {member.file_size:,} bytes")
        return {name: archive.read(member) for name, member in members.items()}


def check_whole(path: Path) -> None:
    """Raise ValueError if a member's content does not match its CRC-32; torch itself does not check that."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
