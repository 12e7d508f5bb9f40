"""The first divergence, on outputs made by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.exporters import export
from cnndeploy.formats.torchscript import MANIFEST_FILE
from cnndeploy.machine import quiet
from cnndeploy.runtimes import Activation
from cnndeploy.serial import dumps, structure
from cnndeploy.simplification import simplify
from cnndeploy.verification.divergence import Divergence, find_divergence
from cnndeploy.verification.verify import verify
from helpers import Trained

DRAW = np.random.default_rng(0)
SHAPES = {
    "features.0": ("Conv2d", (2, 4, 6, 6)),
    "features.1": ("ReLU", (2, 4, 6, 6)),
    "features.2": ("Dropout", (2, 4, 6, 6)),
    "features.3": ("Conv2d", (2, 4, 6, 6)),
    "classifier": ("Linear", (2, 10)),
}
EXACT = [Activation(name, kind, DRAW.normal(size=shape)) for name, (kind, shape) in SHAPES.items()]
EXACT[2] = replace(EXACT[2], values=EXACT[1].values)  # dropout that is inactive
EAGER = [replace(each, values=each.values.astype(np.float32)) for each in EXACT]


def _with(number: int, change: Callable[[np.ndarray], np.ndarray]) -> list[Activation]:
    """The outputs of an artifact that differs in one module, and after it."""
    changed = [*EAGER]
    changed[number] = replace(EAGER[number], values=change(EAGER[number].values.copy()))
    return [
        replace(each, values=each.values * np.float32(1.01)) if at > number else each
        for at, each in enumerate(changed)
    ]


def _swapped(values: np.ndarray) -> np.ndarray:
    return values[:, [0, 2, 1, 3]]


def _offset(values: np.ndarray) -> np.ndarray:
    values[:, 2] += np.float32(0.1)
    return values


def _at_the_border(values: np.ndarray) -> np.ndarray:
    values[:, :, 0] *= 2
    return values


def _noisy(values: np.ndarray) -> np.ndarray:
    return np.asarray(values + 0.1 * DRAW.normal(size=values.shape), np.float32)


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (_swapped, "output channels 1, 2 are in another order"),
        (_offset, "output channel 2 off by .*by a constant"),
        (_at_the_border, "at the border alone"),
        (
            _noisy,
            "output channel 0, 1, 2, 3 off by up to 0.[0-9]+ of the largest value, where eager's rounding",
        ),
        (lambda values: values * np.float32(np.nan), "NaN or infinite"),
        (lambda values: values[:, :, 1:], r"its output is \(2, 4, 5, 6\), not \(2, 4, 6, 6\)"),
    ],
)
def test_the_first_module_that_departs_is_named(change: Callable[[np.ndarray], np.ndarray], how: str) -> None:
    found = find_divergence((5, 7), _with(3, change), EAGER, EXACT)
    assert found.first == "features.3"
    assert found.reasons() == [found.description]
    assert [module.departs for module in found.modules] == [False, False, False, True, True]
    assert re.search(how, found.description), found.description
    assert structure(Divergence, json.loads(dumps(found))) == found


def test_without_names_modules_are_matched_by_kind_shape_and_order() -> None:
    artifact = [replace(each, module="") for each in _with(3, _noisy) if each.kind != "Dropout"]
    found = find_divergence((0,), artifact, EAGER, EXACT)
    assert found.first == "features.3"
    assert [module.module for module in found.modules] == [
        "features.0",
        "features.1",
        "features.3",
        "classifier",
    ]


def test_a_module_that_the_file_lacks_is_named() -> None:
    artifact = [each for each in _with(3, lambda values: values * 2) if each.module != "features.1"]
    del artifact[1]  # and dropout, which passes on what it is given and is not missed
    found = find_divergence((0,), artifact, EAGER, EXACT)
    assert (found.first, found.modules[-1].departs) == ("features.1", True)
    assert "computes nothing of that kind" in found.description


def test_inactive_dropout_is_not_missed() -> None:
    artifact = [each for each in _with(3, lambda values: values * 2) if each.kind != "Dropout"]
    assert find_divergence((0,), artifact, EAGER, EXACT).first == "features.3"


def test_where_all_modules_agree_none_is_blamed() -> None:
    found = find_divergence((3, 4), EAGER, EAGER, EXACT)
    assert found.first is None
    assert found.reasons() == []
    assert "all modules agree" in found.description


@pytest.mark.slow
@pytest.mark.parametrize("note", [None, "garbage(", "[" * 5000, "{'a': 1}", "[1, 2, 3]", "['a']"])
def test_a_file_without_names_is_said_to_be_so(
    note: str | None, trained: Trained, edited: Callable[..., Path]
) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for entry in node.metadata_props:
                entry.value = note or ""
            if note is None:
                node.ClearField("metadata_props")
        model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))

    report = verify(edited(edit), trained.checkpoint, images=3)
    assert not report.equivalent
    assert report.divergence is not None
    assert "is not known" in report.divergence.description


@pytest.mark.slow
def test_the_table_shows_how_the_error_grows(
    trained: Trained, edited: Callable[..., Path], cli: Callable[..., Result]
) -> None:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == "features.3.weight")
        tensor.raw_data = bytes(len(tensor.raw_data))

    result = cli("verify", edited(edit), "--against", trained.checkpoint, "--images", 3)
    assert result.exit_code == 3
    for words in ("first divergence", "features.3 (Conv2d): 1.", "classifier.5 (Linear)", "tf32 off"):
        assert words in result.output


def _script_of(trained: Trained, change: Callable[[torch.nn.Module], torch.nn.Module], path: Path) -> Path:
    network = Checkpoint.load(trained.checkpoint).network()
    with torch.no_grad():
        network.classifier[5].bias[0] += 1  # type: ignore[index, union-attr]
    manifest = replace(Artifact.open(trained.torchscript).require_manifest(), rewrites=())
    torch.jit.save(torch.jit.script(change(network)), path, {MANIFEST_FILE: manifest.to_json()})
    return path


class _ImageByImage(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = []
        for each in image.unbind(0):
            found.append(self.network(each[None]))
        return torch.cat(found)


@pytest.mark.slow
@pytest.mark.parametrize("change", [_ImageByImage])
def test_an_archive_that_hides_its_operators_blames_no_module(
    change: Callable[[torch.nn.Module], torch.nn.Module], trained: Trained, tmp_path: Path
) -> None:
    report = verify(_script_of(trained, change, tmp_path / "odd.torchscript"), trained.checkpoint, images=3)
    assert not report.equivalent
    assert report.divergence is not None
    assert report.divergence.first is None
    assert "is not known" in report.divergence.description


@pytest.mark.parametrize("shape", [(), (2,)])
def test_an_output_without_channels_is_described(shape: tuple[int, ...]) -> None:
    exact = [Activation("score", "Score", np.ones(shape))]
    off = [Activation("score", "Score", np.full(shape, 1.5, np.float32))]
    assert find_divergence((0,), off, exact, exact).first == "score"


@pytest.mark.slow
@pytest.mark.parametrize("model_format", ["onnx", "torchscript"])
def test_a_merged_layer_that_is_broken_is_named(model_format: str, tmp_path: Path) -> None:
    """By the last of its layers; before it, all modules are those of the checkpoint simplified alike."""
    checkpoint = Checkpoint.untrained("vgg11_small").save(tmp_path / "vgg11_small.pt").path
    artifact = export(checkpoint, model_format)
    assert artifact.require_manifest().rewrites == ("merge_linear(classifier.1, classifier.3, classifier.5)",)
    if model_format == "onnx":
        model = onnx.load(artifact.path)
        weight = next(each for each in model.graph.initializer if each.name == "classifier.5.weight")
        values = onnx.numpy_helper.to_array(weight).copy()
        values[3] *= 1.5
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, artifact.path)
    else:
        network, _ = simplify(Checkpoint.load(checkpoint).network())
        network.get_parameter("classifier.5.weight")[3] *= 1.5
        with quiet():
            frozen = torch.jit.freeze(torch.jit.script(network))
        torch.jit.save(frozen, artifact.path, {MANIFEST_FILE: artifact.require_manifest().to_json()})
    divergence = verify(artifact, checkpoint, images=3).divergence
    assert divergence is not None
    assert divergence.first == "classifier.5"
    assert "output channel 3 off" in divergence.description
    assert [each.module for each in divergence.modules if each.kind == "Linear"] == ["classifier.5"]
    assert len(divergence.modules) > 20
