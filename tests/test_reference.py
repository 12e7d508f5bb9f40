"""The reference against known answers, and eager PyTorch, TorchScript and ONNX Runtime against the reference.

Known answers: sums of products small enough to check by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch.nn.functional import avg_pool2d, conv2d as torch_conv2d, max_pool2d

from cnndeploy.errors import InputMismatchError
from cnndeploy.reference import Pair, conv1x1, conv2d, corr2d, output_size, padding_for, pool2d

X = np.arange(9.0).reshape(3, 3)
K = np.arange(4.0).reshape(2, 2)
X2 = np.stack([X, X + 1])
K2 = np.stack([K, K + 1])
SQUARE = np.arange(16.0).reshape(4, 4)

property_test = settings(derandomize=True, deadline=None, max_examples=40)


# Known answers


def test_one_channel() -> None:
    np.testing.assert_array_equal(corr2d(X, K), [[19, 25], [37, 43]])
    np.testing.assert_array_equal(conv2d(X[None], K[None, None]), [[[19, 25], [37, 43]]])


def test_input_channels_are_summed() -> None:
    np.testing.assert_array_equal(conv2d(X2, K2[None]), [[[56, 72], [104, 120]]])


def test_each_output_channel_has_its_kernel_and_bias() -> None:
    weight = np.stack([K2, K2 + 1, K2 + 2])
    expected = np.array([[[56, 72], [104, 120]], [[76, 100], [148, 172]], [[96, 128], [192, 224]]])
    np.testing.assert_array_equal(conv2d(X2, weight), expected)
    bias = np.array([1.0, 20.0, 300.0])
    np.testing.assert_array_equal(conv2d(X2, weight, bias), expected + bias[:, None, None])


def test_padding_is_zeros_at_both_ends_and_stride_starts_at_the_first_place() -> None:
    padded = [[0, 3, 8, 4], [9, 19, 25, 10], [21, 37, 43, 16], [6, 7, 8, 0]]
    np.testing.assert_array_equal(conv2d(X[None], K[None, None], padding=(1, 1))[0], padded)
    strided = conv2d(X[None], K[None, None], padding=(1, 1), stride=(3, 2))
    np.testing.assert_array_equal(strided[0], [[0, 8], [6, 8]])


@pytest.mark.parametrize(
    ("kernel", "padding", "stride", "size"),
    [
        ((3, 3), (1, 1), (1, 1), (8, 8)),
        ((5, 3), (2, 1), (1, 1), (8, 8)),
        ((3, 3), (1, 1), (2, 2), (4, 4)),
        ((3, 5), (0, 1), (3, 4), (2, 2)),
    ],
)
def test_sizes_of_an_8x8_image(kernel: Pair, padding: Pair, stride: Pair, size: Pair) -> None:
    y = conv2d(np.ones((1, 8, 8)), np.ones((1, 1, *kernel)), padding=padding, stride=stride)
    assert y.shape == (1, *size)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 6])
def test_narrow_same_and_wide(kernel: int) -> None:
    assert output_size(8, kernel, padding_for("narrow", kernel)) == 8 - kernel + 1
    assert output_size(8, kernel, padding_for("wide", kernel)) == 8 + kernel - 1
    if kernel % 2:
        assert output_size(8, kernel, padding_for("same", kernel)) == 8
    else:
        with pytest.raises(InputMismatchError, match="use an odd one"):
            padding_for("same", kernel)


@pytest.mark.parametrize(("mode", "expected"), [("max", [[4, 5], [7, 8]]), ("average", [[2, 3], [5, 6]])])
def test_pooling(mode: Any, expected: list[list[int]]) -> None:
    np.testing.assert_array_equal(pool2d(X, (2, 2), mode=mode, stride=(1, 1)), expected)
    both = pool2d(np.stack([X, X + 1]), (2, 2), mode=mode, stride=(1, 1))
    np.testing.assert_array_equal(both, [expected, np.array(expected) + 1])


@pytest.mark.parametrize(
    ("window", "stride", "padding", "expected"),
    [
        ((3, 3), None, (0, 0), [[10]]),
        ((3, 3), (2, 2), (1, 1), [[5, 7], [13, 15]]),
        ((2, 4), (2, 3), (1, 2), [[1, 3], [9, 11], [13, 15]]),
    ],
)
def test_max_pooling_of_a_square(
    window: Pair, stride: Pair | None, padding: Pair, expected: list[list[int]]
) -> None:
    np.testing.assert_array_equal(pool2d(SQUARE, window, stride=stride, padding=padding), expected)


def test_padding_of_pools() -> None:
    """It never wins a maximum, not even over negative values, and counts as zeros in a mean."""
    ones = np.ones((2, 2))
    np.testing.assert_array_equal(pool2d(-ones, (2, 2), padding=(1, 1)), -ones)
    np.testing.assert_array_equal(pool2d(ones, (2, 2), mode="average", padding=(1, 1)), ones / 4)


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [("float16", "float16"), ("float32", "float32"), ("float64", "float64"), ("uint8", "float64")],
)
def test_dtypes(dtype: str, computed: str) -> None:
    x, weight = np.full((1, 2, 2), 100, dtype), np.ones((1, 1, 1, 1), dtype)
    pools = [
        pool2d(x, (2, 2), mode="average"),
        pool2d(x, (2, 2)),
        pool2d(x, (2, 2), stride=(1, 1), padding=(1, 1)),
    ]
    for y in (corr2d(x[0], x[0]), conv2d(x, weight), conv1x1(x, weight), *pools):
        assert y.dtype == computed
    if dtype == "uint8":
        assert corr2d(x[0], x[0]) == 4 * 100 * 100


# What does not fit


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: corr2d(X, np.ones((4, 1))), "kernel is 4 long, more than the input of 3 with padding 0"),
        (lambda: corr2d(X2, K), r"x is \(2, 3, 3\), not \(h, w\)"),
        (lambda: corr2d(X, K2), r"kernel is \(2, 2, 2\), not \(kh, kw\)"),
        (lambda: corr2d(X * 1j, K), "complex128"),
        (lambda: conv2d(X2, np.ones((1, 2, 1, 6)), padding=(0, 1)), "is 6 long, .* of 3 with padding 1"),
        (lambda: conv2d(X2, K[None, None]), "x has 2 channels, but the weight .* takes 1"),
        (lambda: conv2d(X2, K2), r"weight is \(2, 2, 2\), not \(out, in, kh, kw\)"),
        (lambda: conv2d(X, K2[None]), r"x is \(3, 3\), not \(in, h, w\)"),
        (lambda: conv2d(X2, K2[None], np.ones(2)), r"bias is \(2,\), not \(1,\)"),
        (lambda: conv2d(X2, K2[None], stride=(1, 0)), "stride 0"),
        (lambda: conv2d(X2, K2[None], padding=(-1, 0)), "padding -1"),
        (lambda: conv1x1(X2, K2[None]), "use conv2d"),
        (lambda: conv1x1(X2, np.ones((1, 3, 1, 1))), "takes 3"),
        (lambda: pool2d(X, (2, 4)), "kernel is 4 long"),
        (lambda: pool2d(X[0], (1, 1)), r"x is \(3,\), not"),
        (lambda: pool2d(X, (2, 2), stride=(0, 1)), "stride 0"),
        (lambda: pool2d(X, (2, 2), padding=(0, 2)), r"\(0, 2\) is not less than the window \(2, 2\)"),
        (lambda: pool2d(X, (2, 2), padding=(-1, 0)), "padding -1"),
        (lambda: pool2d(X, (2, 2), mode="sum"), "Unknown mode 'sum'"),  # type: ignore[arg-type]
        (lambda: output_size(5, 0), "kernel 0"),
        (lambda: output_size(-1, 1, 3), "Length -1"),
        (lambda: padding_for("half", 3), "'half'"),  # type: ignore[arg-type]
        (lambda: padding_for("wide", 0), "kernel 0"),
    ],
)
def test_what_does_not_fit_is_said(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputMismatchError, match=message):
        call()


# Properties


@dataclass(frozen=True)
class Convolution:
    """Arguments of one convolution, float32."""

    x: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    padding: Pair
    stride: Pair


@dataclass(frozen=True)
class Pool:
    """Arguments of one pool; x is float32 (channels, h, w)."""

    x: NDArray[np.float32]
    window: Pair
    stride: Pair
    padding: Pair


@st.composite
def _numbers(draw: st.DrawFn, *shape: int) -> NDArray[np.float32]:
    """Normally distributed, so that no two places hold the same and none holds zero."""
    return np.random.default_rng(draw(st.integers(0, 2**32))).normal(size=shape).astype(np.float32)


def _pairs(low: int, high: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def _sizes(draw: st.DrawFn, kernel: Pair, padding: Pair) -> list[int]:
    """Heights and widths from the smallest that fits."""
    return [max(1, m - 2 * p) + draw(st.integers(0, 5)) for m, p in zip(kernel, padding, strict=True)]


@st.composite
def convolutions(draw: st.DrawFn, largest_kernel: int = 4) -> Convolution:
    kernel, padding = draw(_pairs(1, largest_kernel)), draw(_pairs(0, 3))
    in_channels, out_channels = draw(_pairs(1, 3))
    return Convolution(
        x=draw(_numbers(in_channels, *_sizes(draw, kernel, padding))),
        weight=draw(_numbers(out_channels, in_channels, *kernel)),
        bias=draw(st.none() | _numbers(out_channels)),
        padding=padding,
        stride=draw(_pairs(1, 3)),
    )


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    window = draw(_pairs(1, 5))
    padding = (draw(st.integers(0, window[0] // 2)), draw(st.integers(0, window[1] // 2)))
    x = draw(_numbers(draw(st.integers(1, 3)), *_sizes(draw, window, padding)))
    return Pool(x, window, stride=draw(_pairs(1, 3)), padding=padding)


@property_test
@given(convolutions(largest_kernel=1))
def test_conv1x1_is_conv2d_with_a_1x1_kernel(case: Convolution) -> None:
    x, weight = case.x.astype(np.float64), case.weight.astype(np.float64)
    np.testing.assert_allclose(
        conv1x1(x, weight, case.bias), conv2d(x, weight, case.bias), rtol=0, atol=1e-12
    )


def _eager_convolution(case: Convolution, function: Callable[..., Any] = torch_conv2d) -> NDArray[Any]:
    bias = None if case.bias is None else torch.from_numpy(case.bias)
    x, weight = torch.from_numpy(case.x[None]), torch.from_numpy(case.weight)
    return np.asarray(function(x, weight, bias, case.stride, case.padding)[0])


def _eager_max_pool(case: Pool, function: Callable[..., Any] = max_pool2d) -> NDArray[Any]:
    pooled = function(torch.from_numpy(case.x[None]), case.window, case.stride, case.padding)
    return np.asarray(pooled[0])


def _eager_average_pool(case: Pool) -> NDArray[Any]:
    return _eager_max_pool(case, avg_pool2d)


def _conv2d_program(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> torch.Tensor:
    return torch_conv2d(x, weight, bias, stride, padding)


def _max_pool_program(
    x: torch.Tensor, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> torch.Tensor:
    return max_pool2d(x, window, stride, padding)


def _average_pool_program(
    x: torch.Tensor, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> torch.Tensor:
    return avg_pool2d(x, window, stride, padding)


_script = functools.cache(torch.jit.script)


def _torchscript_convolution(case: Convolution) -> NDArray[Any]:
    return _eager_convolution(case, _script(_conv2d_program))


def _torchscript_max_pool(case: Pool) -> NDArray[Any]:
    return _eager_max_pool(case, _script(_max_pool_program))


def _torchscript_average_pool(case: Pool) -> NDArray[Any]:
    return _eager_max_pool(case, _script(_average_pool_program))


def _onnxruntime(operator: str, feeds: dict[str, NDArray[np.float32]], **attributes: Any) -> NDArray[Any]:
    """Run a model of one operator on the CPU; the first feed is x without its batch axis."""
    feeds = {name: array[None] if name == "x" else array for name, array in feeds.items()}
    graph = helper.make_graph(
        [helper.make_node(operator, list(feeds), ["y"], **attributes)],
        operator,
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
            for name, array in feeds.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], feeds)
    return np.asarray(y[0])


def _onnxruntime_convolution(case: Convolution) -> NDArray[Any]:
    feeds = {"x": case.x, "weight": case.weight} | ({} if case.bias is None else {"bias": case.bias})
    return _onnxruntime("Conv", feeds, pads=case.padding * 2, strides=case.stride)


def _onnxruntime_max_pool(case: Pool) -> NDArray[Any]:
    shape = {"kernel_shape": case.window, "pads": case.padding * 2, "strides": case.stride}
    return _onnxruntime("MaxPool", {"x": case.x}, **shape)


def _onnxruntime_average_pool(case: Pool) -> NDArray[Any]:
    shape = {"kernel_shape": case.window, "pads": case.padding * 2, "strides": case.stride}
    return _onnxruntime("AveragePool", {"x": case.x}, count_include_pad=1, **shape)


def _assert_within_rounding(actual: NDArray[Any], expected: NDArray[Any], magnitude: NDArray[Any]) -> None:
    """float32 rounds each of some hundred sums to 6e-8; the magnitude is the sum of what is added up."""
    assert actual.dtype == np.float32
    assert expected.dtype == np.float64
    assert actual.shape == expected.shape
    assert (np.abs(actual - expected) <= 1e-5 * magnitude).all()


@pytest.mark.parametrize("operator", [_eager_convolution, _torchscript_convolution, _onnxruntime_convolution])
@property_test
@given(case=convolutions())
def test_convolutions_follow_the_definition(
    operator: Callable[[Convolution], NDArray[Any]], case: Convolution
) -> None:
    bias: NDArray[Any] = np.zeros(len(case.weight)) if case.bias is None else case.bias
    x, weight = case.x.astype(np.float64), case.weight.astype(np.float64)
    expected = conv2d(x, weight, bias, padding=case.padding, stride=case.stride)
    magnitude = conv2d(abs(x), abs(weight), abs(bias), padding=case.padding, stride=case.stride)
    _assert_within_rounding(operator(case), expected, magnitude)


@pytest.mark.parametrize("operator", [_eager_max_pool, _torchscript_max_pool, _onnxruntime_max_pool])
@property_test
@given(case=pools())
def test_max_pools_follow_the_definition(operator: Callable[[Pool], NDArray[Any]], case: Pool) -> None:
    expected = pool2d(case.x, case.window, stride=case.stride, padding=case.padding)
    np.testing.assert_array_equal(operator(case), expected, strict=True)


@pytest.mark.parametrize(
    "operator", [_eager_average_pool, _torchscript_average_pool, _onnxruntime_average_pool]
)
@property_test
@given(case=pools())
def test_average_pools_follow_the_definition(operator: Callable[[Pool], NDArray[Any]], case: Pool) -> None:
    x = case.x.astype(np.float64)
    expected, magnitude = (
        pool2d(values, case.window, mode="average", stride=case.stride, padding=case.padding)
        for values in (x, abs(x))
    )
    _assert_within_rounding(operator(case), expected, magnitude)


def test_onnx_pools_take_more_padding_than_torch() -> None:
    """Up to one less than the window, where torch stops at half of it."""
    case = Pool(X[None].astype(np.float32) - 4, (3, 4), stride=(1, 2), padding=(2, 3))
    largest, mean = (
        pool2d(case.x, case.window, mode=mode, stride=case.stride, padding=case.padding)
        for mode in ("max", "average")
    )
    np.testing.assert_array_equal(_onnxruntime_max_pool(case), largest, strict=True)
    np.testing.assert_allclose(_onnxruntime_average_pool(case), mean, rtol=0, atol=1e-6)
    with pytest.raises(RuntimeError, match="half"):
        _eager_max_pool(case)
