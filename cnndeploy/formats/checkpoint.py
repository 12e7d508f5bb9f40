"""Checkpoint: what torch.save wrote, a zip archive with one pickle and the tensors beside it.

The manifest is the key ``manifest`` of the pickled dict. It is read here without torch, by an unpickler
that can make nothing but plain values and ordered dicts: a pickle that asks for anything else is refused.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

from cnndeploy.errors import CheckpointError
from cnndeploy.formats._archive import member_names, read_members
from cnndeploy.specs import Manifest

WEIGHTS_KEY, MANIFEST_KEY = "weights", "manifest"


class CheckpointFormat:
    """Checkpoints, with the manifest under their key ``manifest``."""

    def recognises(self, path: Path) -> bool:
        """Whether it is a zip archive as torch.save writes it."""
        names = member_names(path)
        return "data.pkl" in names and "constants.pkl" not in names

    def read_manifest(self, path: Path) -> Manifest:
        """The manifest.

        Raises:
            CheckpointError: The file is damaged, runs code, or was not written by cnndeploy.
        """
        try:
            pickled = read_members(path, lambda name: name == "data.pkl")["data.pkl"]
            return Manifest.from_json(_InertUnpickler(io.BytesIO(pickled)).load()[MANIFEST_KEY])
        except _Refused as error:
            raise CheckpointError(
                f"{path} is refused: it asks to run {error} when opened. Open only checkpoints you trust."
            ) from error
        except Exception as error:
            raise CheckpointError(
                f"{path} is damaged or no cnndeploy checkpoint ({error}). Make one with: cnndeploy train"
            ) from error

    def describe(self, path: Path) -> dict[str, Any]:
        """A checkpoint holds weights and no graph, so it has no operators."""
        del path
        return {"operators": {}}


class _Refused(Exception):  # noqa: N818 - says what happened; never leaves this module
    pass


class _InertUnpickler(pickle.Unpickler):
    """Gives None for every tensor and refuses every other object that is not a plain value."""

    def persistent_load(self, pid: Any) -> None:
        del pid

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return _nothing
        if module == "torch" and name.endswith("Storage"):
            return None
        raise _Refused(f"{module}.{name}")


def _nothing(*_: object) -> None:
    return None


FORMAT = CheckpointFormat()
