"""The float16 file: weights and graph in float16, meant for CUDA; it takes and gives float32 as before."""

from __future__ import annotations

import onnx

from cnndeploy.errors import QuantizationError
from cnndeploy.quiet import quiet


def in_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the network that computes in float16, where ONNX Runtime can.

    Its CPU provider has few operators in float16: it casts to float32 and back around the others, and is slower.

    Source: onnxruntime.transformers.float16.

    Raises:
        QuantizationError: onnxruntime's tool cannot convert it.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    try:
        with quiet():  # it warns of every weight that is too small for float16
            converted: onnx.ModelProto = convert_float_to_float16(copied, keep_io_types=True)
        ONNXModel(converted).topological_sort()  # in place; the casts of the input come last
    except Exception as error:  # whatever the tool meets in a graph that it was not made for
        raise QuantizationError(f"onnxruntime cannot convert this network to float16: {error!r}") from error
    del converted.graph.value_info[:]
    converted.producer_name, converted.producer_version = model.producer_name, model.producer_version
    converted.doc_string = converted.graph.doc_string = ""
    return converted
