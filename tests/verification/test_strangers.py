"""A residual network is looked into as ours are: each defect is caught, and its module named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from cnndeploy.artifact import Artifact
from cnndeploy.exporters import EXPORTERS, ExportOptions
from cnndeploy.formats.torchscript import MANIFEST_FILE
from cnndeploy.machine import quiet
from cnndeploy.run import Run
from cnndeploy.runtimes import open_session
from cnndeploy.runtimes.eager import EagerSession
from cnndeploy.simplification import simplify
from cnndeploy.verification.checks import LIMIT, Tolerance, check_against_oracle
from cnndeploy.verification.divergence import Divergence, find_divergence
from helpers import Once
from resnet import build
from strangers import as_trained, images, in_hand

IMAGES = images(6).numpy()
RUNTIMES = {"onnx": "onnxruntime", "torchscript": "torchscript"}


def _network() -> nn.Module:
    torch.manual_seed(0)
    return as_trained(build())


@pytest.fixture(scope="module")
def good(once: Once) -> Callable[[str, bool], Path]:
    def make(folder: Path) -> None:
        checkpoint = in_hand(_network())
        for model_format in RUNTIMES:
            for simplified in (True, False):
                path = folder / f"{simplified}.{model_format}"
                EXPORTERS.get(model_format).export(checkpoint, path, ExportOptions(simplify=simplified))

    folder = once("strangers", make)
    return lambda model_format, simplify: folder / f"{simplify}.{model_format}"


def _examined(path: Path) -> tuple[list[str], Divergence]:
    """What the oracle has against a file of the network, and where it departs first; in this process."""
    artifact = Artifact.open(path)
    run = Run(RUNTIMES[artifact.format], device="cpu", threads=1)
    simplified = bool(artifact.require_manifest().rewrites)
    eager = EagerSession(artifact, run, torch.device("cpu"), _network().requires_grad_(False))
    exact, feeds = IMAGES.astype(np.float64), {"image": IMAGES[:2]}
    with open_session(artifact, run) as session, np.errstate(all="ignore"):
        check = check_against_oracle(
            session.run({"image": IMAGES})["logits"],
            eager.run({"image": IMAGES})["logits"],
            eager.computed("float64").run({"image": exact})["logits"],
            seed=0,
        )
        divergence = find_divergence(
            (0, 1),
            session.activations(feeds),
            eager.computed(simplified=simplified).activations(feeds),
            eager.computed("float64", simplified=simplified).activations({"image": exact[:2]}),
        )
    return check.reasons(), divergence


@pytest.mark.parametrize("simplify", [True, False])
@pytest.mark.parametrize("model_format", RUNTIMES)
def test_a_sound_file_departs_nowhere(
    model_format: str, simplify: bool, good: Callable[[str, bool], Path]
) -> None:
    reasons, divergence = _examined(good(model_format, simplify))
    assert (reasons, divergence.first) == ([], None), divergence.description
    assert len(divergence.modules) >= 22


def _at(network: nn.Module, path: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    parent, _, name = path.rpartition(".")
    getattr(network.get_submodule(parent), name).data = change(network.state_dict()[path])


def _other_eps(network: nn.Module) -> None:
    network.get_submodule("layer3.block.1").eps = 0.1  # type: ignore[assignment]


def _no_addition(network: nn.Module) -> None:
    network.set_submodule("layer2.shortcut", _Zero())


class _Zero(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x).repeat(1, 2, 1, 1)[:, :, ::2, ::2]


def _no_normalisation(network: nn.Module) -> None:
    network.set_submodule("layer1.bn2", nn.Identity())


def _other_groups(network: nn.Module) -> None:
    """Every channel is filtered by its neighbour's filter."""
    _at(network, "layer3.block.3.weight", lambda weight: weight.roll(1, 0))


DEFECTS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "eps": (_other_eps, r"layer3\.block\.1 "),
    "mean": (lambda net: _at(net, "layer1.bn1.running_mean", torch.zeros_like), r"layer1\.bn1 "),
    "variance": (lambda net: _at(net, "layer2.bn2.running_var", torch.ones_like), r"layer2\.bn2 "),
    "scale": (lambda net: _at(net, "stem.1.weight", lambda weight: weight * 1.001), r"stem\.1 "),
    "no addition": (_no_addition, r"layer2\.(shortcut\.1|relu) "),
    "no normalisation": (_no_normalisation, r"layer1\.(bn2|conv2) "),
    "groups": (_other_groups, r"layer3\.block\.(3|4) "),
    "transposed": (
        lambda net: _at(net, "layer1.conv2.weight", lambda weight: weight.transpose(0, 1).contiguous()),
        r"layer1\.(conv2|bn2) ",
    ),
    "nan": (lambda net: _at(net, "layer3.block.6.fc1.weight", lambda w: w * torch.nan), r"fc1 .*NaN"),
    "bias": (lambda net: _at(net, "classifier.bias", lambda b: b + 0.01), r"classifier .*another bias"),
    "activation": (
        lambda net: setattr(net.get_submodule("layer3.block"), "5", nn.ReLU()),
        r"layer3\.block\.5 ",
    ),
    "excitation": (
        lambda net: setattr(net.get_submodule("layer3.block.6"), "gate", nn.Sigmoid()),
        r"layer3\.block\.6(\.gate)? ",
    ),
}


@pytest.mark.parametrize(
    ("defect", "model_format", "simplified"),
    [
        pytest.param(
            defect,
            model_format,
            simplified,
            marks=pytest.mark.field if model_format == "onnx" and defect not in ("eps", "nan") else (),
        )
        for defect in DEFECTS
        for model_format in RUNTIMES
        for simplified in (True, False)
    ],
)
def test_a_defect_is_caught_and_its_module_named(
    defect: str, model_format: str, simplified: bool, good: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    break_it, words = DEFECTS[defect]
    network = _network().requires_grad_(False)
    break_it(network)
    manifest = Artifact.open(good(model_format, simplified)).require_manifest()
    path = tmp_path / f"broken.{model_format}"
    with quiet():
        made = simplify(network)[0] if simplified else network
        if model_format == "torchscript":
            frozen = torch.jit.freeze(torch.jit.script(made), optimize_numerics=False)
            torch.jit.save(frozen, path, {MANIFEST_FILE: manifest.to_json()})
        elif defect == "nan":
            _write_nan(good("onnx", simplified), path)
        else:
            EXPORTERS.get("onnx").export(in_hand(network), path, ExportOptions(simplify=simplified))
    reasons, divergence = _examined(path)
    assert reasons
    assert divergence.first is not None, divergence.description
    assert re.search(words, divergence.description), divergence.description


def _write_nan(good: Path, path: Path) -> None:
    model = onnx.load(good)
    tensor = next(each for each in model.graph.initializer if each.name == "layer3.block.6.fc1.weight")
    values = numpy_helper.to_array(tensor) * np.float32(np.nan)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def test_the_tolerance_follows_eagers_error_above_its_floor() -> None:
    assert Tolerance().at_least(1e-6) == Tolerance()
    assert Tolerance().at_least(2e-5).relative == pytest.approx((LIMIT + 1) * 2e-5)
    assert Tolerance().at_least(float("nan")) == Tolerance()


class _Odd(nn.Module):
    """Attention, whose output is a tuple; a module that is called twice; values that are changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 8, 8)
        self.relu = nn.ReLU(inplace=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.classifier = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.convolution(image)).flatten(2).transpose(1, 2)
        x = self.relu(x + self.attention(x, x, x, need_weights=False)[0])
        logits: torch.Tensor = self.classifier(x.mean(1))
        return logits


def test_tuples_and_values_changed_in_place_are_seen(tmp_path: Path) -> None:
    checkpoint = in_hand(_Odd())
    artifact = EXPORTERS.get("onnx").export(checkpoint, tmp_path / "odd.onnx", ExportOptions())
    run = Run("onnxruntime", device="cpu", threads=1)
    eager = EagerSession(artifact, run, torch.device("cpu"), checkpoint.network())
    shown = eager.activations({"image": IMAGES[:2]})
    names = [one.module for one in shown]
    assert names == ["convolution", "relu", "attention", "relu", "classifier"]
    assert shown[0].values.min() < 0 <= shown[1].values.min()
    exact = eager.computed("float64").activations({"image": IMAGES[:2].astype(np.float64)})
    with open_session(artifact, run) as session:
        divergence = find_divergence((0, 1), session.activations({"image": IMAGES[:2]}), shown, exact)
    assert divergence.first is None, divergence.description
    assert len(divergence.modules) >= 3
