"""Zip archives: code that the two formats made of them share.

torch puts everything into one folder that is named after the file; names here leave that folder out.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from cnndeploy.formats._pickle import check_pickle
from cnndeploy.limits import require_within

# A pickle, a manifest or the code of a network takes some kB.
_LIMIT_BYTES = 8 * 2**20
# torch compresses nothing. A network has some thousand tensors, each in a member of its own.
_MOST_TIMES, _MOST_MEMBERS = 20, 10_000
# The pickles of an archive, and the folder that each keeps its storages in.
_STORAGES = {"data.pkl": "data", "constants.pkl": "constants"}


def member_names(path: Path) -> list[str]:
    """Return the names of the members, or none if the file is not a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return []
    require_within(len(names), _MOST_MEMBERS, f"{len(names):,} members")
    return [_inner(name) for name in names]


def read_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the contents of the wanted members by name; raise BeyondLimit if one is unreasonably large."""
    with zipfile.ZipFile(path) as archive:
        members = {_inner(member.filename): member for member in archive.infolist()}
        members = {name: member for name, member in members.items() if wanted(name)}
        for name, member in members.items():
            size = member.file_size
            require_within(size, _LIMIT_BYTES, f"a member {name} of {size:,} bytes")
        return {name: archive.read(member) for name, member in members.items()}


def check_whole(path: Path) -> None:
    """Raise ValueError if a name is there twice, or a member's content does not match its CRC-32, or is a bomb.

    torch itself checks none of it.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len({_inner(member.filename) for member in members}) < len(members):
            raise ValueError("a name is in the archive twice")
        unpacked = sum(member.file_size for member in members)
        require_within(unpacked, _MOST_TIMES * path.stat().st_size, f"{unpacked:,} bytes once it is unpacked")
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
