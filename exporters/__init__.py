"""Exporters: write a checkpoint as a self-contained file. One file each; imported as ``cnndeploy.exporters``.

An exporter reopens its file from disk and checks it before the file gets its name.
"""

from __future__ import annotations

if __name__ != "cnndeploy.exporters":
    raise ImportError(f"import this package as cnndeploy.exporters, not as {__name__}")

from cnndeploy.exporters._export import (
    EXPORTERS,
    Exporter,
    ExportOptions,
    ModelInput,
    export,
    exported_manifest,
    missing_package,
    usual_formats,
)

__all__ = [
    "EXPORTERS",
    "ExportOptions",
    "Exporter",
    "ModelInput",
    "export",
    "exported_manifest",
    "missing_package",
    "usual_formats",
]
