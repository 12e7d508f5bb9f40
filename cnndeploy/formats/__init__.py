"""File formats: how a model file is recognised, and read without the framework that wrote it.

``cnndeploy predict`` and ``inspect`` work in an environment with neither torch nor onnx, so each format
reads its manifest with the standard library alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from cnndeploy.registry import Registry
from cnndeploy.specs import Manifest


class Format(Protocol):
    """One file format; the module's ``FORMAT`` is an instance.

    Files may be damaged or hostile. Any exception but a CnndeployError of these methods means just that;
    :class:`~cnndeploy.artifact.Artifact` calls them and says so.
    """

    default_runtime: str

    def recognises(self, path: Path) -> bool:
        """Whether the content, not the name, is of this format."""

    def read_manifest(self, path: Path) -> Manifest | None:
        """Return the manifest inside the file, None if cnndeploy did not write the file."""

    def describe(self, path: Path) -> dict[str, Any]:
        """Return JSON-ready facts of the format's own: at least ``operators``, name to count."""


FORMATS: Registry[Format] = Registry("formats", "FORMAT")
