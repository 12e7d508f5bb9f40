"""The ONNX exporter's own checks refuse what they are there to refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, ExportError
from cnndeploy.exporters import export, onnx as exporter
from cnndeploy.exporters._network import write
from cnndeploy.specs import Manifest
from edits import fix_batch
from helpers import Trained


def _fixed_batch(model: onnx.ModelProto) -> None:
    fix_batch(model, 2)


def _dropout(model: onnx.ModelProto) -> None:
    last = model.graph.node[-1]
    node = onnx.helper.make_node("Dropout", ["before"], [last.output[0]])
    last.output[0] = "before"
    model.graph.node.append(node)


def _other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 19


def _broken_shapes(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] += 1


def _write(source: Path, manifest: Manifest, output: Path) -> None:
    """Write the bytes of ``source`` as the exporter would write its own."""
    write(output, source.read_bytes(), manifest, lambda written: exporter._faults(written, manifest, 20))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_fixed_batch, r"it takes image float32 \(2, 1, 28, 28\), not .*is an axis fixed"),
        (_dropout, "contains Dropout"),
        (_other_opset, "opset is not 20"),
        (_broken_shapes, "does not pass ONNX's checker"),
    ],
)
def test_unusable_files_are_refused(
    edit: Callable[[onnx.ModelProto], None],
    reason: str,
    trained: Trained,
    edited: Callable[..., Path],
    tmp_path: Path,
) -> None:
    manifest = Artifact.open(trained.onnx).require_manifest()
    _write(trained.onnx, manifest, tmp_path / "good.onnx")
    with pytest.raises(ExportError, match=reason):
        _write(edited(edit), manifest, tmp_path / "bad.onnx")
    assert not (tmp_path / "bad.onnx").exists()


def test_weights_in_another_file_are_refused(trained: Trained, tmp_path: Path) -> None:
    manifest = Artifact.open(trained.onnx).require_manifest()
    model = onnx.load(trained.onnx)
    onnx.save(
        model,
        tmp_path / "split.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=1024,
    )
    with pytest.raises(ArtifactError, match="not self-contained"):
        _write(tmp_path / "split.onnx", manifest, tmp_path / "bad.onnx")
    assert not (tmp_path / "bad.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("opset", exporter.SUPPORTED_OPSETS)
def test_every_supported_opset(opset: int, trained: Trained, tmp_path: Path) -> None:
    artifact = export(trained.checkpoint, "onnx", tmp_path / "lenet.onnx", opset=opset)
    assert [entry.version for entry in onnx.load(artifact.path).opset_import if entry.domain == ""] == [opset]


@pytest.mark.parametrize("opset", [-1, 0, 17, 24])
def test_other_opsets_are_refused(opset: int, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="choose 18 to 23"):
        export(trained.checkpoint, "onnx", tmp_path / "lenet.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_module_scopes_are_kept(trained: Trained) -> None:
    convolution = onnx.load(trained.onnx).graph.node[0]
    scopes = {entry.key: entry.value for entry in convolution.metadata_props}
    assert "features.0" in scopes["pkg.torch.onnx.name_scopes"]
    assert set(scopes) <= set(exporter._KEPT_METADATA)


def test_weights_that_no_file_holds_are_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_MOST_BYTES", 44_426 * 4 - 1)
    with pytest.raises(ExportError, match="export the network to TorchScript"):
        export(trained.checkpoint, "onnx", tmp_path / "large.onnx", simplify=False)
    monkeypatch.setattr(exporter, "_MOST_BYTES", 44_426 * 4)
    export(trained.checkpoint, "onnx", tmp_path / "large.onnx", simplify=False)
