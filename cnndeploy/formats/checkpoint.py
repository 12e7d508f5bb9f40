"""Checkpoint: a file of torch.save, which is a zip archive with one pickle and the tensors beside it.

The pickled dict has the manifest under its key ``manifest``. A pickle is a program, so it is not run here. Its
instructions are read, the manifest is found among them, and a file that names anything but tensors is refused. After
that torch loads the weights with ``weights_only=True``.
"""

from __future__ import annotations

import itertools
import pickletools
from pathlib import Path
from typing import Any

from cnndeploy.errors import CheckpointError
from cnndeploy.formats._archive import check_whole, member_names, read_members
from cnndeploy.specs import Manifest

WEIGHTS_KEY, MANIFEST_KEY = "weights", "manifest"

# Other ways to name or call something; torch.save, at its protocol 2, uses none of them.
_FORBIDDEN = {"STACK_GLOBAL", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "EXT2", "EXT4", "PERSID"}
_ALLOWED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
_MEMOISING = {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"}


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
        instructions: list[tuple[str, Any]] = [
            (code.name, argument)
            for code, argument, _ in pickletools.genops(pickled)
            if code.name not in _MEMOISING
        ]
        for name, argument in instructions:
            if name in _FORBIDDEN or (name in ("GLOBAL", "INST") and not _harmless(argument)):
                raise CheckpointError(
                    f"{path} is refused: it asks to run {str(argument or name).replace(' ', '.')} when opened. "
                    "Open only checkpoints you trust."
                )
        for (_, key), (name, value) in itertools.pairwise(instructions):
            if key == MANIFEST_KEY and name == "BINUNICODE":
                return Manifest.from_json(value)
        raise CheckpointError(f"{path} is no cnndeploy checkpoint. Make one with: cnndeploy train")

    def describe(self, path: Path) -> dict[str, Any]:  # noqa: ARG002 - as every format's
        """Return no operators, because a checkpoint holds weights and no graph."""
        return {"operators": {}}


def _harmless(argument: str) -> bool:
    return argument in _ALLOWED or (argument.startswith("torch ") and argument.endswith("Storage"))


FORMAT = CheckpointFormat()
