from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from cnndeploy import registry
from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError
from cnndeploy.formats.onnx import MANIFEST_KEY
from helpers import Trained


def test_what_is_read_without_onnx_is_what_onnx_reads(trained: Trained) -> None:
    model = onnx.load(trained.onnx)
    facts = registry.get("formats", "onnx").describe(trained.onnx)
    assert facts["ir_version"] == model.ir_version
    assert facts["opset"] == {"ai.onnx": model.opset_import[0].version}
    assert facts["producer"] == model.producer_name
    assert sum(facts["operators"].values()) == len(model.graph.node)
    assert set(facts["operators"]) == {node.op_type for node in model.graph.node}
    assert facts["inputs"] == [{"name": "image", "dtype": "float32", "shape": ("batch", 1, 28, 28)}]
    assert facts["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ("batch", 10)}]


def test_a_foreign_file_has_no_manifest(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph), tmp_path / "foreign.onnx")
    artifact = Artifact.open(tmp_path / "foreign.onnx")
    assert artifact.format == "onnx"
    assert artifact.manifest is None
    with pytest.raises(ArtifactError, match="carries no cnndeploy manifest"):
        artifact.require_manifest()


def test_a_damaged_manifest_is_refused(edited: Callable[..., Path]) -> None:
    def damage(model: onnx.ModelProto) -> None:
        (entry,) = (entry for entry in model.metadata_props if entry.key == MANIFEST_KEY)
        entry.value = entry.value[:-10]

    with pytest.raises(ArtifactError, match="damaged"):
        Artifact.open(edited(damage))


def test_a_truncated_file_is_refused(trained: Trained, tmp_path: Path) -> None:
    content = trained.onnx.read_bytes()
    for length in (1, 10, 1000, len(content) // 2, len(content) - 1):
        (tmp_path / "short.onnx").write_bytes(content[:length])
        with pytest.raises(ArtifactError, match="damaged"):
            Artifact.open(tmp_path / "short.onnx")
