from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cnndeploy.errors import ArtifactError
from cnndeploy.importing.labels import labels_of
from cnndeploy.importing.weights import fitted, read_weights


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


def prefixed(prefix: str, tensors: Any) -> dict[str, Any]:
    return {prefix + key: value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("wrap", "notes"),
    [
        (lambda own: own, []),
        (dict, []),
        (lambda own: {"state_dict": own, "epoch": 3}, ["took the weights under 'state_dict'"]),
        (lambda own: {"model": own, "ema": own}, ["took the weights under 'model', not those under 'ema'"]),
        (
            lambda own: {"model_state_dict": own, "args": argparse.Namespace(lr=0.1)},
            ["took the weights under 'model_state_dict'"],
        ),
        (
            lambda own: {"state_dict": {"model": own}},
            ["took the weights under 'state_dict'", "took the weights under 'model'"],
        ),
        (lambda own: prefixed("module.", own), ["took 'module.' off the names of the weights"]),
        (
            lambda own: prefixed("_orig_mod.module.", own),
            ["took '_orig_mod.' off the names of the weights", "took 'module.' off the names of the weights"],
        ),
        (
            lambda own: {"n_averaged": torch.tensor(3), **prefixed("module.", own)},
            ["took 'module.' off the names of the weights"],
        ),
        (
            lambda own: {
                key: value.half() if value.is_floating_point() else value for key, value in own.items()
            },
            ["turned float16 into float32"],
        ),
        (
            lambda own: {
                key: value.bfloat16() if value.is_floating_point() else value for key, value in own.items()
            },
            ["turned bfloat16 into float32"],
        ),
        (lambda own: {key: value for key, value in own.items() if "num_batches" not in key}, []),
    ],
)
def test_weights_are_taken_out_of_what_people_save(wrap: Any, notes: list[str], tmp_path: Path) -> None:
    own = network()
    torch.save(wrap(own.state_dict()), tmp_path / "w.pth")
    weights = fitted(read_weights(tmp_path / "w.pth"), network(), "w.pth")
    assert list(weights.notes) == notes
    assert weights.tensors.keys() == own.state_dict().keys()
    for key, value in own.state_dict().items():
        assert weights.tensors[key].dtype == value.dtype
        torch.testing.assert_close(weights.tensors[key], value, rtol=1e-2, atol=1e-2)
    assert weights.origin == "w.pth"
    assert len(weights.sha256 or "") == 64


def test_safetensors_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "weights.bin")
    assert read_weights(tmp_path / "weights.bin").tensors.keys() == network().state_dict().keys()
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "weights.bin").read_bytes()[:200])
    with pytest.raises(ArtifactError, match=r"cut\.safetensors is damaged"):
        read_weights(tmp_path / "cut.safetensors")


def test_a_network_whose_own_names_begin_like_a_wrapper_keeps_them(tmp_path: Path) -> None:
    own = nn.Sequential()
    own.add_module("module", network())
    torch.save(own.state_dict(), tmp_path / "w.pth")
    assert fitted(read_weights(tmp_path / "w.pth"), own, "w.pth").notes == ()


def test_what_is_missing_left_over_or_of_another_shape_is_listed(tmp_path: Path) -> None:
    tensors = network().state_dict()
    del tensors["0.bias"]
    tensors["3.weight"] = torch.zeros(7, 4)
    tensors |= {f"extra.{number:02}": torch.zeros(1) for number in range(12)}
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(ArtifactError) as error:
        fitted(read_weights(tmp_path / "w.pth"), network(), "w.pth")
    for text in (
        "1 missing: 0.bias",
        "12 left over: extra.00",
        "extra.09 and 2 more",
        "1 of another shape: 3.weight (7, 4), not (5, 4)",
    ):
        assert text in str(error.value)
    assert "extra.10" not in str(error.value)


def test_a_new_head_is_left_out_only_if_that_is_wanted(tmp_path: Path) -> None:
    tensors = network().state_dict() | {"3.weight": torch.zeros(7, 4), "3.bias": torch.zeros(7)}
    torch.save(tensors, tmp_path / "w.pth")
    weights = fitted(read_weights(tmp_path / "w.pth"), network(), "w.pth", new_head=True)
    assert weights.notes == ("left out 3.bias, 3.weight, whose shapes are for other classes",)
    assert not {"3.bias", "3.weight"} & weights.tensors.keys()
    with pytest.raises(ArtifactError, match="2 of another shape"):
        fitted(read_weights(tmp_path / "w.pth"), network(), "w.pth")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (network, r"holds more than weights, such as a whole model.*torch\.save\(model\.state_dict\(\)"),
        (lambda: {"epoch": 3}, r"holds no state_dict, but keys 'epoch'"),
        (lambda: [torch.zeros(2)], r"holds no state_dict, but no dict"),
        (dict, "holds no state_dict"),
    ],
)
def test_other_content_is_refused(content: Any, reason: str, tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match=reason):
        read_weights(tmp_path / "w.pth")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    (tmp_path / "empty.pth").touch()
    for name, reason in (
        ("nowhere.pth", "no such file"),
        ("page.pth", "damaged"),
        ("empty.pth", "damaged"),
        (".", "cannot be read"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "boot\nsandal\npump\n"),
        ("labels.txt", "\ufeffboot\r\nsandal\r\npump\r\n\r\n"),
        ("labels.json", json.dumps(["boot", "sandal", "pump"])),
        ("labels.json", json.dumps({"0": "boot", "2": "pump", "1": "sandal"})),
        ("labels.json", json.dumps({"boot": 0, "pump": 2, "sandal": 1})),
        ("labels.json", json.dumps({"0": ["n1", "boot"], "1": ["n2", "sandal"], "2": ["n3", "pump"]})),
    ],
)
def test_labels_are_read_in_the_order_of_the_outputs(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert labels_of(tmp_path / name) == labels_of(["boot", " sandal", "pump"]) == ("boot", "sandal", "pump")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("l.txt", "boot\n", "1 labels; a classifier has 2"),
        ("l.txt", "boot\n\npump\n", "label 1 is empty"),
        ("l.json", '{"0": "boot", "2": "pump"}', "expected the numbers 0 to 1"),
        ("l.json", '{"0": "a", "00": "b", "1": "c"}', "expected the numbers 0 to 1"),
        ("l.json", '{"a": 0, "b": 0, "c": 1}', "expected the numbers 0 to 1"),
        ("l.json", "3", "expected a list"),
        ("l.json", "[1, 2]", "a label is text, not 1"),
        ("l.json", "[", "holds no labels"),
    ],
)
def test_labels_that_make_no_sense_are_refused(name: str, text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ArtifactError, match=reason):
        labels_of(tmp_path / name)


def test_a_file_that_holds_itself_ends(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"epoch": 1}
    loop["state_dict"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    with pytest.raises(ArtifactError, match="holds no state_dict"):
        read_weights(tmp_path / "loop.pth")
