"""An ONNX graph computed in float64 by the definition of its operators, as good as exact beside float32.

It is the reference implementation that comes with the package onnx, in numpy: right, and some thousand times as slow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, missing_dependency
from cnndeploy.run import Run
from cnndeploy.runtimes._session import Arrays, Session

# What rounds to fewer bits on purpose is another function in float64.
_ROUNDING = ("QuantizeLinear", "QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "Round")


class DefinitionSession(Session):
    """A float32 graph in which every number is float64; its inputs are float64, and so are its outputs."""

    _library = "onnx.reference"

    def __init__(self, artifact: Artifact, run: Run) -> None:
        """Widen the file's weights; raise ArtifactError if it computes in less than float32 by itself."""
        try:
            import onnx
            from onnx.reference import ReferenceEvaluator
        except ModuleNotFoundError as error:
            raise missing_dependency(error) from error
        model = onnx.load(artifact.path)
        kinds = {each.data_type for each in model.graph.initializer}
        fewer = kinds & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
        if fewer or any(node.op_type.startswith(_ROUNDING) for node in model.graph.node):
            raise ArtifactError(
                f"{artifact.path} computes in less than float32, so float64 is another function"
            )
        for tensor in model.graph.initializer:
            _widen(tensor)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _widen(attribute.t)
                if (
                    node.op_type == "Cast"
                    and attribute.name == "to"
                    and attribute.i == onnx.TensorProto.FLOAT
                ):
                    attribute.i = onnx.TensorProto.DOUBLE
        manifest = artifact.require_manifest()
        given, returned = (replace(spec, dtype="float64") for spec in (manifest.input, manifest.output))
        super().__init__(artifact, run, [given], [returned], "cpu")
        try:
            self._evaluator: Any = ReferenceEvaluator(model)
        except Exception as error:  # an operator that it does not know, of another domain perhaps
            raise self._failure({}, error) from error

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        (name,) = (spec.name for spec in self.outputs)
        (values,) = self._evaluator.run([name], dict(feeds))
        return {name: np.asarray(values)}

    def placement(self) -> dict[str, str]:
        """Return the one place that there is."""
        return {"graph": self.placed_on}


def _widen(tensor: Any) -> None:
    """Make a TensorProto of float32 one of float64."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        )
