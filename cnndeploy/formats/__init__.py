"""File formats: how a model file is recognised, and read without the framework that wrote it.

``cnndeploy predict`` and ``inspect`` work without torch and onnx, so each format reads its manifest with the standard
library alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from cnndeploy.registry import Registry
from cnndeploy.specs import Manifest


class Format(Protocol):
    """One file format; the module's ``FORMAT`` is an instance.

    Files may be damaged or hostile. If these methods raise anything but a CnndeployError, that is what it means;
    :class:`~cnndeploy.artifact.Artifact`, which calls them, says so.
    """

    default_runtime: str

    def recognises(self, path: Path) -> bool:
        """Return whether the content, not the name, is in this format."""

    def read_manifest(self, path: Path) -> Manifest | None:
        """Return the manifest inside the file, or None if cnndeploy did not write it."""

    def describe(self, path: Path) -> dict[str, Any]:
        """Return the format's own JSON-ready facts: at least ``operators``, name to count."""


FORMATS: Registry[Format] = Registry("formats", "FORMAT")
