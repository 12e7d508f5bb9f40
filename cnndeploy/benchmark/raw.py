"""The raw runtimes: a package as a plain script uses it, without our own layer, to show what that layer costs."""

from __future__ import annotations

RAW_ONNXRUNTIME, RAW_OPENVINO = "raw-onnxruntime", "raw-openvino"
RAW = {RAW_ONNXRUNTIME: "onnxruntime", RAW_OPENVINO: "openvino"}
"""Name to package."""
