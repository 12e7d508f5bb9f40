"""TorchScript: a zip archive of code and constants, with the manifest as an extra file.

A TorchScript archive is a program: run only what you trust. This module runs nothing in it. What libtorch reads
without checking it, sizes above all, is checked here first.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from cnndeploy.formats._archive import check_storages, check_whole, member_names, read_members
from cnndeploy.specs import Manifest

MANIFEST_FILE = "cnndeploy_manifest.json"

_OPERATOR = re.compile(r"\b(?:torch|ops\.\w+)\.(\w+)\(")


class TorchScriptFormat:
    """TorchScript archives, with the manifest in ``extra/``."""

    default_runtime = "torchscript"

    def recognises(self, path: Path) -> bool:
        """Return whether the file is a zip archive with TorchScript's constants and code."""
        names = member_names(path)
        return "constants.pkl" in names and any(name.startswith("code/") for name in names)

    def read_manifest(self, path: Path) -> Manifest | None:
        """Read the manifest among the extra files."""
        check_whole(path)
        check_storages(path)
        content = read_members(path, lambda name: name == f"extra/{MANIFEST_FILE}")
        return next(map(Manifest.from_json, content.values()), None)

    def describe(self, path: Path) -> dict[str, Any]:
        """Count the operators that the archived code calls."""
        operators: Counter[str] = Counter()
        sources = read_members(path, lambda name: name.startswith("code/") and name.endswith(".py"))
        for source in sources.values():
            operators.update(_OPERATOR.findall(source.decode()))
        return {"operators": dict(sorted(operators.items()))}


FORMAT = TorchScriptFormat()
