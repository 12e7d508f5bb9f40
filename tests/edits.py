"""Edits of ONNX models that several tests make."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx

from cnndeploy.formats.onnx import MANIFEST_KEY
from cnndeploy.specs import Manifest


def manifest_entry(model: onnx.ModelProto) -> onnx.StringStringEntryProto:
    """Return the entry that holds the manifest."""
    found: onnx.StringStringEntryProto
    (found,) = (entry for entry in model.metadata_props if entry.key == MANIFEST_KEY)
    return found


def manifest_of(model: onnx.ModelProto) -> Manifest:
    """Read the manifest."""
    return Manifest.from_json(manifest_entry(model).value)


def edit_manifest(model: onnx.ModelProto, **changes: Any) -> None:
    """Replace fields of the manifest."""
    manifest_entry(model).value = replace(manifest_of(model), **changes).to_json()


def fix_batch(model: onnx.ModelProto, length: int) -> None:
    """Fix the batch axis of what the graph takes and gives."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = length
