"""Sessions in this process, for trying settings; what is shipped is measured elsewhere, in a process of its own."""

from __future__ import annotations

from typing import Any

from cnndeploy.errors import MissingDependencyError


def open_on_cpu(model: bytes, threads: int) -> Any:
    """An ONNX Runtime session on the CPU, whose threads do not spin between runs."""
    try:
        import onnxruntime as ort
    except ModuleNotFoundError as error:
        raise MissingDependencyError("onnxruntime") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
