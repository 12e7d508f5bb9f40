"""Zip archives: code that the two formats made of them share.

torch puts everything into one folder that is named after the file; names here leave that folder out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from cnndeploy.formats._pickle import check_pickle

# A manifest or the code of a network takes a few kB; much more is a zip bomb.
_LIMIT_BYTES = 64 * 2**20
# torch compresses nothing.
_MOST_TIMES = 20
# The pickles of an archive, and the folder that each keeps its storages in.
_STORAGES = {"data.pkl": "data", "constants.pkl": "constants"}


def member_names(path: Path) -> list[str]:
    """Return the names of the members, or none if the file is not a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [_inner(name) for name in archive.namelist()]
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return []


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the contents of the wanted members by name; raise ValueError if one is unreasonably large."""
    with zipfile.ZipFile(path) as archive:
        members = {_inner(member.filename): member for member in archive.infolist()}
        members = {name: member for name, member in members.items() if wanted(name)}
        for name, member in members.items():
            if member.file_size > _LIMIT_BYTES:
                raise ValueError(f"{name} in it has {member.file_size:,} bytes")
        return {name: archive.read(member) for name, member in members.items()}


def check_whole(path: Path) -> None:
    """Raise ValueError if a name is there twice, or a member's content does not match its CRC-32, or is a bomb.

    torch itself checks none of it.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len({_inner(member.filename) for member in members}) < len(members):
            raise ValueError("a name is in the archive twice")
        if (unpacked := sum(member.file_size for member in members)) > _MOST_TIMES * path.stat().st_size:
            raise ValueError(f"it would unpack to {unpacked:,} bytes")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")


def check_storages(path: Path) -> None:
    """Raise an error if a pickle is none that torch may load, or speaks of other storages than there are."""
    with zipfile.ZipFile(path) as archive:
        sizes = {_inner(member.filename): member.file_size for member in archive.infolist()}
    for name, pickled in read_members(path, lambda name: name in _STORAGES).items():
        check_pickle(pickled, _STORAGES[name], sizes)


def _inner(name: str) -> str:
    return name.partition("/")[2]
