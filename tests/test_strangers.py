"""Networks of all kinds, of which nothing here knows a thing, are simplified and exported."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from cnndeploy.errors import ExportError
from cnndeploy.exporters import EXPORTERS, ExportOptions
from strangers import in_hand

FORMATS = ("onnx", "torchscript")


class _Does(nn.Module):
    """A linear layer on what a function makes of images."""

    def __init__(
        self, function: Callable[[nn.Module, torch.Tensor], torch.Tensor], features: int = 3
    ) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(features, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.function(self, image))
        return logits


def _refusal(network: nn.Module, model_format: str, folder: Path, **options: object) -> str:
    path = folder / f"network.{model_format}"
    with pytest.raises(ExportError) as caught:
        EXPORTERS.get(model_format).export(in_hand(network), path, ExportOptions(**options))  # type: ignore[arg-type]
    assert not list(folder.iterdir())
    return str(caught.value)


@pytest.mark.parametrize("model_format", FORMATS)
@pytest.mark.parametrize(
    "function",
    [
        lambda own, image: nn.functional.dropout(image.mean((2, 3))),
        lambda own, image: image.mean((2, 3)) + torch.randn_like(image[:, :, 0, 0]),
        lambda own, image: (image * torch.bernoulli(torch.full_like(image, 0.5))).mean((2, 3)),
    ],
)
def test_what_is_random_is_refused(
    function: Callable[[nn.Module, torch.Tensor], torch.Tensor], model_format: str, tmp_path: Path
) -> None:
    message = _refusal(_Does(function), model_format, tmp_path)
    # by what it computes, or by the operator in the file
    assert "something random is active in eval mode" in message or "it contains Dropout" in message


def _dropout(own: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(image.mean((2, 3)), training=own.training)


@pytest.mark.parametrize("model_format", FORMATS)
def test_dropout_that_heeds_eval_mode_is_none(model_format: str, tmp_path: Path) -> None:
    path = tmp_path / "network"
    EXPORTERS.get(model_format).export(in_hand(_Does(_dropout)), path, ExportOptions())


@pytest.mark.parametrize(
    ("model_format", "reason"),
    [("onnx", "is an axis fixed"), ("torchscript", "it fails on a batch of 1: .*cannot be multiplied")],
)
def test_a_batch_that_is_fixed_within_is_refused(model_format: str, reason: str, tmp_path: Path) -> None:
    network = _Does(lambda own, image: image.reshape(2, -1), 3 * 32 * 32)
    assert re.search(reason, _refusal(network, model_format, tmp_path))


def test_what_torch_cannot_write_is_said_in_one_line(tmp_path: Path) -> None:
    """The way through the network depends on values; TorchScript can say that."""
    network = _Does(lambda own, image: image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3)))
    message = _refusal(network, "onnx", tmp_path)
    assert message.startswith("torch.onnx.export cannot write this network: Could not guard")
    assert "\n" not in message


class _TupleIfScripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))

    def forward(self, image: torch.Tensor):  # type: ignore[no-untyped-def]
        logits = self.layers(image)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return logits, None
        return logits


class _Unscriptable(_TupleIfScripted):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = next(iter({"logits": self.layers(value)} for value in [image]))["logits"]
        return logits


@pytest.mark.parametrize("network", [_TupleIfScripted, _Unscriptable])
def test_what_scripting_changes_or_does_not_know_is_traced(network: type[nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "network.torchscript"
    EXPORTERS.get("torchscript").export(in_hand(network()), path, ExportOptions())
    assert torch.jit.load(path)(torch.ones(7, 3, 32, 32)).shape == (7, 5)


@pytest.mark.parametrize("pad", [nn.ConstantPad2d(1, 0.0), nn.ZeroPad2d((0, 1, 0, 1))])
def test_padding_with_zeros_before_max_pooling_counts_in_onnx_runtime(pad: nn.Module, tmp_path: Path) -> None:
    """If all values are negative, the padding is the largest; ONNX Runtime would make it minus infinity."""
    network = nn.Sequential(pad, nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    artifact = EXPORTERS.get("onnx").export(in_hand(network), tmp_path / "network.onnx", ExportOptions())
    image = -torch.rand(2, 3, 32, 32)
    session = ort.InferenceSession(artifact.path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": image.numpy()})
    np.testing.assert_allclose(logits, network(image).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("simplify", [True, False])
def test_raw_colour_images_are_refused_with_advice(simplify: bool, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    message = _refusal(network, "torchscript", tmp_path, input="image", simplify=simplify)
    assert "ONNX" in message
