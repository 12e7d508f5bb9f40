"""Convolution and pooling by their definitions, with which every runtime's operators can be compared.

The code is written to be read and to be right, not to be fast: numpy alone, one loop per sum of the definition. There
is no batch axis, no dilation and no groups. Every function computes in the floating dtype of its arguments, so
float64 stays float64; integers are computed in float64, where they cannot wrap around. Every function raises
:class:`~cnndeploy.errors.InputMismatchError` for arrays or numbers that do not fit together.

Sources: ONNX operators Conv, MaxPool and AveragePool; torch.nn.Conv2d, MaxPool2d and AvgPool2d; Dumoulin and
Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, for the sizes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cnndeploy.errors import InputMismatchError

Pair = tuple[int, int]


def output_size(n: int, kernel: int, padding: int = 0, stride: int = 1) -> int:
    """Count the places that a kernel takes along an axis: ``floor((n - kernel + 2 padding) / stride) + 1``.

    Args:
        n: Length of the axis before padding.
        kernel: Length of the kernel or window along it, m below.
        padding: The length that is added at each of the two ends. With stride 1 three cases have names, and
            :func:`padding_for` returns their p:

            narrow  p = 0             n - m + 1 places: the kernel stays inside
            same    p = (m - 1) / 2   n places: m must be odd
            wide    p = m - 1         n + m - 1 places: every one at which kernel and axis still touch
        stride: Steps of the kernel from one place to the next.
    """
    if n < 0 or kernel < 1 or padding < 0 or stride < 1:
        raise InputMismatchError(
            f"Length {n}, kernel {kernel}, padding {padding}, stride {stride}: "
            "a kernel and a stride are at least 1, a length and a padding at least 0"
        )
    if kernel > n + 2 * padding:
        raise InputMismatchError(
            f"The kernel is {kernel} long, more than the input of {n} with padding {padding} at each end; "
            "use a smaller kernel or more padding"
        )
    return (n - kernel + 2 * padding) // stride + 1


def padding_for(case: Literal["narrow", "same", "wide"], kernel: int) -> int:
    """Return the padding that makes a convolution of stride 1 narrow, same or wide; see :func:`output_size`.

    Source of narrow and wide: Kalchbrenner et al., "A Convolutional Neural Network for Modelling Sentences",
    arXiv:1404.2188, section 2.2. Dumoulin and Visin call same half and wide full.
    """
    if kernel < 1 or case not in ("narrow", "same", "wide"):
        raise InputMismatchError(
            f"No padding for case {case!r} and kernel {kernel}: a case is narrow, same or wide, "
            "and a kernel at least 1"
        )
    if case == "same" and kernel % 2 == 0:
        raise InputMismatchError(
            f"A kernel of {kernel} cannot keep the size with equal padding at both ends; use an odd one"
        )
    return {"narrow": 0, "same": (kernel - 1) // 2, "wide": kernel - 1}[case]


def corr2d(x: NDArray[Any], kernel: NDArray[Any]) -> NDArray[Any]:
    """Return the two-dimensional cross-correlation, which networks call convolution: (h - kh + 1, w - kw + 1).

    ``y[i, j]`` is the sum over a and b of ``x[i + a, j + b] * kernel[a, b]``; the kernel is not flipped.

    Args:
        x: (h, w).
        kernel: (kh, kw), at most as large as x.
    """
    x, kernel = _floating(x, kernel)
    _check_rank("x", x, "(h, w)")
    _check_rank("The kernel", kernel, "(kh, kw)")
    (h, w), (kh, kw) = x.shape, kernel.shape
    y = np.empty((output_size(h, kh), output_size(w, kw)), x.dtype)
    for i, j in np.ndindex(y.shape):
        y[i, j] = (x[i : i + kh, j : j + kw] * kernel).sum()
    return y


def conv2d(
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    padding: Pair = (0, 0),
    stride: Pair = (1, 1),
) -> NDArray[Any]:
    """Return the convolution over channels, as torch.nn.Conv2d and ONNX Conv define it: (out, oh, ow).

    For oh and ow see :func:`output_size`. An output channel is the sum of the cross-correlations of each input channel
    with its own kernel, and its bias. A stride of s is every s-th place of stride 1.

    Args:
        x: (in, h, w).
        weight: (out, in, kh, kw).
        bias: (out,), or None for zeros.
        padding: Rows of zeros above and below, columns of zeros left and right.
        stride: Down, right.
    """
    x, weight, bias = _convolution_arguments(x, weight, bias)
    out_channels, in_channels, *kernel = weight.shape
    size = [output_size(*axis) for axis in zip(x.shape[1:], kernel, padding, stride, strict=True)]
    padded = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2))  # (in, h + 2 ph, w + 2 pw)
    y = np.zeros((out_channels, *size), x.dtype)
    for o in range(out_channels):
        for i in range(in_channels):
            y[o] += corr2d(padded[i], weight[o, i])[:: stride[0], :: stride[1]]
    y += bias[:, None, None]
    return y


def conv1x1(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return the convolution with a 1x1 kernel, (out, h, w): one matrix product for the channels of every pixel.

    Args:
        x: (in, h, w).
        weight: (out, in, 1, 1), as :func:`conv2d` takes it.
        bias: (out,), or None for zeros.
    """
    x, weight, bias = _convolution_arguments(x, weight, bias)
    if weight.shape[2:] != (1, 1):
        raise InputMismatchError(f"The weight is {weight.shape}, not (out, in, 1, 1); use conv2d")
    in_channels, h, w = x.shape
    pixels = x.reshape(in_channels, h * w)  # one pixel per column
    y: NDArray[Any] = weight[:, :, 0, 0] @ pixels + bias[:, None]  # (out, h w)
    return y.reshape(len(y), h, w)


def pool2d(
    x: NDArray[Any],
    window: Pair,
    *,
    mode: Literal["max", "average"] = "max",
    stride: Pair | None = None,
    padding: Pair = (0, 0),
) -> NDArray[Any]:
    """Return the largest value or the mean of each window, channel by channel: (oh, ow) or (channels, oh, ow).

    Padding never wins a maximum: it is -inf. In a mean it counts as zeros, which is torch's default
    ``count_include_pad=True`` and an option of ONNX AveragePool. A window that would reach beyond the padding
    is left out (``ceil_mode`` is off).

    Args:
        x: (h, w) or (channels, h, w).
        window: (kh, kw).
        mode: "max" or "average".
        stride: Down, right; for None the size of the window, so that windows touch and do not overlap.
        padding: Rows above and below, columns left and right; less than the window, so that no window holds
            padding alone. torch is stricter and takes at most half the window.
    """
    (x,) = _floating(x)
    if x.ndim not in (2, 3):
        raise InputMismatchError(f"x is {x.shape}, not (h, w) or (channels, h, w)")
    if mode not in ("max", "average"):
        raise InputMismatchError(f"Unknown mode {mode!r}; use max or average")
    if any(p >= m for p, m in zip(padding, window, strict=True)):
        raise InputMismatchError(f"Padding {padding} is not less than the window {window}; use less")
    (kh, kw), (sh, sw), (ph, pw) = window, stride or window, padding
    oh, ow = output_size(x.shape[-2], kh, ph, sh), output_size(x.shape[-1], kw, pw, sw)
    channels = x.shape[:-2]  # () or (channels,)
    fill, summary = (-np.inf, np.max) if mode == "max" else (0, np.mean)
    padded = np.pad(x, (*((0, 0) for _ in channels), (ph, ph), (pw, pw)), constant_values=fill)
    y = np.empty((*channels, oh, ow), x.dtype)
    for i, j in np.ndindex(oh, ow):
        top, left = i * sh, j * sw
        y[..., i, j] = summary(padded[..., top : top + kh, left : left + kw], axis=(-2, -1))
    return y


def _convolution_arguments(
    x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Check the shapes of the three, and return them in one dtype, with a bias of zeros for None."""
    _check_rank("The weight", weight, "(out, in, kh, kw)")
    x, weight, bias = _floating(x, weight, np.zeros(len(weight), weight.dtype) if bias is None else bias)
    _check_rank("x", x, "(in, h, w)")
    if x.shape[0] != weight.shape[1]:
        raise InputMismatchError(
            f"x has {x.shape[0]} channels, but the weight {weight.shape} takes {weight.shape[1]}"
        )
    if bias.shape != weight.shape[:1]:
        raise InputMismatchError(f"The bias is {bias.shape}, not {weight.shape[:1]} as the weight needs")
    return x, weight, bias


def _check_rank(name: str, array: NDArray[Any], axes: str) -> None:
    if array.ndim != axes.count(",") + 1:
        raise InputMismatchError(f"{name} is {array.shape}, not {axes}")


def _floating(*arrays: NDArray[Any]) -> list[NDArray[Any]]:
    """Return all arrays in the dtype that numpy would compute in, or in float64 if that is an integer."""
    dtype = np.result_type(*arrays)
    if dtype.kind not in "fiub":
        raise InputMismatchError(f"The dtype is {dtype}, not a floating or an integer one")
    return [array.astype(dtype if dtype.kind == "f" else np.float64) for array in arrays]
