"""TorchScript: a zip archive of code and constants, with the manifest as an extra file.

A TorchScript archive is a program: run only what you trust. Reading it here runs nothing.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from cnndeploy.errors import ArtifactError
from cnndeploy.specs import Manifest

MANIFEST_FILE = "cnndeploy_manifest.json"

_OPERATOR = re.compile(r"\b(?:torch|ops\.\w+)\.(\w+)\(")


class TorchScriptFormat:
    """TorchScript archives, with the manifest in ``extra/``."""

    def recognises(self, path: Path) -> bool:
        """Whether it is a zip archive with TorchScript's constants and code."""
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
        return "constants.pkl" in names and any(name.startswith("code/") for name in names)

    def read_manifest(self, path: Path) -> Manifest | None:
        """The manifest among the extra files."""
        for name, content in _members(path, f"extra/{MANIFEST_FILE}"):
            try:
                return Manifest.from_json(content)
            except ValueError as error:
                raise ArtifactError(f"{path}: {name} is damaged: {error}") from error
        return None

    def describe(self, path: Path) -> dict[str, Any]:
        """Counts of the operators that the archived code calls."""
        operators: Counter[str] = Counter()
        for _, code in _members(path, "code/", ".py"):
            operators.update(_OPERATOR.findall(code.decode()))
        return {"operators": dict(sorted(operators.items()))}


def _members(path: Path, prefix: str, suffix: str = "") -> list[tuple[str, bytes]]:
    """Names, without the archive's own folder, and contents of the members that match."""
    found = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.partition("/")[2]
                if name.startswith(prefix) and name.endswith(suffix):
                    found.append((name, archive.read(member)))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ArtifactError(f"{path} is a damaged TorchScript archive: {error}") from error
    return found


FORMAT = TorchScriptFormat()
