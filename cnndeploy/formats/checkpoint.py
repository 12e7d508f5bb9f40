"""Checkpoint: a file of torch.save, which is a zip archive with one pickle and the tensors beside it.

The pickled dict has the manifest under its key ``manifest``. A pickle is a program, so it is not run here. Its
instructions are read, the manifest is found among them, and a file that names anything but tensors is refused. After
that torch loads the weights with ``weights_only=True``.
"""

from __future__ import annotations

import itertools
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnndeploy.errors import CheckpointError
from cnndeploy.formats._archive import check_storages, check_whole, member_names, read_members
from cnndeploy.limits import require_within
from cnndeploy.specs import Manifest

WEIGHTS_KEY, MANIFEST_KEY = "weights", "manifest"

# Other ways to name or call something; torch.save, at its protocol 2, uses none of them for our checkpoints.
_FORBIDDEN = {"STACK_GLOBAL", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "EXT2", "EXT4", "PERSID"}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"  # a tensor too
_ALLOWED = {"collections OrderedDict", _REBUILD, _PARAMETER}
_MEMOISING = {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"}
_OF_STATE_DICTS = {"BUILD"}  # which attaches the version numbers of a module's classes

_MOST_INSTRUCTIONS = 500_000  # of a pickle; a tensor takes some forty

_Instruction = tuple[str, Any]


class CheckpointFormat:
    """Checkpoints, with the manifest under their key ``manifest``."""

    default_runtime = "eager"

    def recognises(self, path: Path) -> bool:
        """Return whether the file is a zip archive as torch.save writes it."""
        names = member_names(path)
        return "data.pkl" in names and "constants.pkl" not in names

    def read_manifest(self, path: Path) -> Manifest:
        """Return the manifest; raise CheckpointError if the file is not ours or runs code, ValueError if damaged."""
        check_whole(path)
        pickled = read_members(path, lambda name: name == "data.pkl")["data.pkl"]
        instructions = list(_instructions(pickled))
        manifest, risks = _manifest_text(instructions), _risks(instructions)
        if manifest is None and set(risks) <= _OF_STATE_DICTS and ("GLOBAL", _REBUILD) in instructions:
            raise CheckpointError(
                f"{path} is a plain state_dict of PyTorch: it holds weights, but neither the architecture nor the "
                f"preprocessing and labels. Make a checkpoint of it with: cnndeploy import NETWORK --weights {path}"
            )
        if risks:
            raise CheckpointError(
                f"{path} is refused: it asks to run {risks[0].replace(' ', '.')} when opened, as a pickled module or "
                "a malicious file does. Where it was made, save its weights alone, torch.save(model.state_dict(), "
                "'weights.pt'), and make a checkpoint of them with: cnndeploy import NETWORK --weights weights.pt"
            )
        if manifest is None:
            raise CheckpointError(
                f"{path} is not a cnndeploy checkpoint: it has no manifest. Make one with: cnndeploy train"
            )
        check_storages(path)
        return Manifest.from_json(manifest)

    def describe(self, path: Path) -> dict[str, Any]:  # noqa: ARG002 - as every format's
        """Return no operators, because a checkpoint holds weights and no graph."""
        return {"operators": {}}


def check_archive(path: Path) -> None:
    """Raise ValueError if a file of torch.save is damaged or a bomb; do nothing for any other file."""
    if member_names(path):
        check_whole(path)


def _instructions(pickled: bytes) -> Iterator[_Instruction]:
    """Yield the instructions of a pickle, all but those that number values; raise BeyondLimit for very many."""
    for count, (code, argument, _) in enumerate(pickletools.genops(pickled), 1):
        if count > _MOST_INSTRUCTIONS:
            require_within(count, _MOST_INSTRUCTIONS, f"a pickle of at least {count:,} instructions")
        if code.name not in _MEMOISING:
            yield code.name, argument


def _risks(instructions: list[_Instruction]) -> list[str]:
    """Return what the pickle names or calls that a checkpoint of ours does not, in order."""
    return [
        str(argument or name)
        for name, argument in instructions
        if name in _FORBIDDEN or (name in ("GLOBAL", "INST") and not _is_harmless(argument))
    ]


def _manifest_text(instructions: list[_Instruction]) -> str | None:
    """Return the value of the key ``manifest``, None if there is none."""
    for (_, key), (name, value) in itertools.pairwise(instructions):
        if key == MANIFEST_KEY and name == "BINUNICODE":
            return str(value)
    return None


def _is_harmless(argument: str) -> bool:
    return argument in _ALLOWED or (argument.startswith("torch ") and argument.endswith("Storage"))


FORMAT = CheckpointFormat()
