"""Learn an edge detector with the reference operators, export it as ONNX, and check the file by the definition.

Run as: python examples/edge_detector.py [FILE.onnx]

A picture of two white borders around a black middle has an edge where a pixel differs from its neighbour:
cross-correlation with [1, -1] is 1 from white to black, -1 from black to white, and 0 elsewhere. From the
picture and these results alone, gradient descent finds the kernel again. Needs cnndeploy[cpu,torch].
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cnndeploy.errors import CnndeployError
from cnndeploy.files import replacing
from cnndeploy.reference import corr2d

# The loss is quadratic in the kernel with curvatures 12 and 60; descent converges below a step of 2 / 60.
STEPS, STEP_SIZE = 20, 0.03
# A few roundings of float32, 6e-8 each, on sums of two products no larger than about 1.
TOLERANCE = 1e-6


def picture() -> NDArray[np.float64]:
    """Return ones, (6, 8), with zeros in columns 2 to 5."""
    image = np.ones((6, 8))
    image[:, 2:6] = 0
    return image


def learn(image: NDArray[Any], target: NDArray[Any]) -> tuple[float, NDArray[Any]]:
    """Return the last loss, and the kernel (1, 2) for which ``corr2d(image, kernel)`` is close to the target."""
    kernel = np.random.default_rng(0).normal(size=(1, 2))
    error = corr2d(image, kernel) - target  # (6, 7)
    for step in range(1, STEPS + 1):
        # loss = sum of error[i, j]**2, and error[i, j] grows with kernel[a, b] at the rate image[i + a, j + b].
        # So its gradient is 2 * sum of error[i, j] * image[i + a, j + b]: again a cross-correlation.
        kernel -= STEP_SIZE * 2 * corr2d(image, error)
        error = corr2d(image, kernel) - target
        if step % 2 == 0:
            print(f"step {step:2}: loss {(error**2).sum():.6f}")
    return float((error**2).sum()), kernel


def save(kernel: NDArray[Any], path: str | Path) -> None:
    """Write one Conv as an ONNX file: float32 (batch, 1, 6, 8) -> (batch, 1, 6, 7)."""
    weight = kernel.astype(np.float32)[None, None]  # (1, 1, 1, 2)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "kernel"], ["edges"])],
        "edge_detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 6, 8])],
        [helper.make_tensor_value_info("edges", TensorProto.FLOAT, ["batch", 1, 6, 7])],
        [numpy_helper.from_array(weight, "kernel")],
    )
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10, producer_name="cnndeploy")
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as temporary:
        onnx.save(model, temporary)


def difference(path: str | Path, kernel: NDArray[Any], images: NDArray[np.float32]) -> float:
    """Return the largest difference between ONNX Runtime and the definition in float64; images is (batch, 6, 8)."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (edges,) = session.run(["edges"], {"image": images[:, None]})
    expected = np.stack([corr2d(image, kernel) for image in images])  # (batch, 6, 7)
    return float(np.abs(edges[:, 0] - expected).max())


def main(path: str | Path) -> tuple[float, NDArray[Any], float]:
    """Learn, export to ``path`` and compare; return the loss, the kernel and the largest difference."""
    image = picture()
    loss, kernel = learn(image, target=corr2d(image, np.array([[1.0, -1.0]])))
    print(f"kernel learned: {np.array2string(kernel, precision=4)}")
    save(kernel, path)
    unseen = np.random.default_rng(1).random(image.shape)
    worst = difference(path, kernel, np.stack([image, 1 - image, unseen]).astype(np.float32))
    print(f"{path}: ONNX Runtime differs from the definition by at most {worst:.1e}")
    return loss, kernel, worst


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", nargs="?", default="edge_detector.onnx", help="where to write the ONNX file")
    try:
        *_, largest = main(parser.parse_args().path)
    except CnndeployError as failure:
        sys.exit(str(failure))
    if not largest <= TOLERANCE:  # so that NaN fails too
        sys.exit(f"ONNX Runtime and the definition disagree: {largest:.1e} is more than {TOLERANCE}")
