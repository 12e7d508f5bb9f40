from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError
from cnndeploy.formats import FORMATS
from cnndeploy.formats.onnx import MANIFEST_KEY
from helpers import Trained


def test_what_is_read_without_onnx_is_what_onnx_reads(trained: Trained) -> None:
    model = onnx.load(trained.onnx)
    facts = FORMATS.get("onnx").describe(trained.onnx)
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


@pytest.mark.parametrize("hidden", [False, True])
def test_weights_in_another_file_are_refused(hidden: bool, trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "split.onnx"
    model = onnx.load(trained.onnx)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    if hidden:  # a field said twice counts as said last: "not external", and then the truth
        content = path.read_bytes()
        graph = onnx.load(path, load_external_data=False).graph
        tensor = next(each for each in graph.initializer if each.data_location)
        before = tensor.SerializeToString()
        graph.ClearField("initializer")
        assert before in content
        model = onnx.load(path, load_external_data=False)
        model.graph.ClearField("initializer")
        twice = bytes([14 << 3, 0]) + before
        extra = bytes([5 << 3 | 2]) + _varint(len(twice)) + twice
        path.write_bytes(model.SerializeToString() + bytes([7 << 3 | 2]) + _varint(len(extra)) + extra)
    with pytest.raises(ArtifactError, match="not self-contained"):
        Artifact.open(path)


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


@pytest.mark.parametrize(
    "content",
    [
        b"\x08\x08" + b"\x3a\x00" + b"\x72" + _varint(10**13),  # metadata longer than the file
        b"\x08\x08\x3a\x00\x70" + _varint(10**13),  # metadata that is a number
        b"\x08\x08\x3a\x00" + b"\x0a\xff" * 2_000_000,  # nothing but fields
        b"\x08\x08\x3a\x05\x0a\x03\x22\x01\xff",  # an operator whose name is no text
    ],
)
def test_hostile_bytes_are_refused_or_harmless(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "hostile.onnx").write_bytes(content)
    try:
        artifact = Artifact.open(tmp_path / "hostile.onnx")
        artifact.describe()
    except ArtifactError as error:
        assert "damaged" in str(error)  # noqa: PT017 - being read as what it is would be well, too


def test_a_truncated_file_is_refused(trained: Trained, tmp_path: Path) -> None:
    content = trained.onnx.read_bytes()
    for length in (1, 10, 1000, len(content) // 2, len(content) - 1):
        (tmp_path / "short.onnx").write_bytes(content[:length])
        with pytest.raises(ArtifactError, match="damaged"):
            Artifact.open(tmp_path / "short.onnx")


def test_operators_of_branches_and_functions_count(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Dropout", ["x"], ["y"])],
        "branch",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    function = helper.make_function(
        "own",
        "a long name, as of a module",
        ["a"],
        ["b"],
        [helper.make_node("Relu", ["a"], ["b"])],
        OPSETS[:1],
    )
    graph = helper.make_graph(
        [
            helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch),
            helper.make_node(function.name, ["z"], ["out"], domain="own"),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])],
        [helper.make_tensor("yes", TensorProto.BOOL, [], [True])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, functions=[function]), path)
    facts = Artifact.open(path).describe()
    assert facts["operators"] == {function.name: 1, "Dropout": 2, "If": 1, "Relu": 1}


OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
