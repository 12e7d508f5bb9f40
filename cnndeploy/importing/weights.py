"""Weights as people save them: read without running anything, unwrapped, and fitted to a network."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cnndeploy.artifact import sha256_of
from cnndeploy.errors import ArtifactError
from cnndeploy.formats.checkpoint import check_archive
from cnndeploy.limits import BeyondLimit

if TYPE_CHECKING:
    from cnndeploy.importing.families import Known

# The keys under which training programs save a state_dict, the likeliest first; averaged weights come last.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net", "weights", "params")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
# What DataParallel, torch.compile and Lightning put before each name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
_COUNTER = ".num_batches_tracked"
# As torchvision's files of densenets name layers, ``denselayer1.norm.1``; its modules are ``denselayer1.norm1``.
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_LISTED = 10
_DEEPEST = 5  # wrappers in wrappers
_SAVE = "torch.save(model.state_dict(), 'weights.pt')"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Weights:
    """A state_dict; ``origin``, the name of its file, and the SHA-256; and ``notes`` on what was done to get it."""

    tensors: Tensors
    origin: str
    sha256: str | None = None
    notes: tuple[str, ...] = ()


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read a file of torch.save, with ``weights_only=True``, or of safetensors.

    Take the state_dict out of what training programs put around it.

    Raises:
        ArtifactError: The file cannot be read, would run code, or holds no state_dict.
    """
    path = Path(path)
    try:
        content, sha256 = _read(path), sha256_of(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    notes = list[str]()
    while isinstance(content, Mapping) and not _is_state_dict(content) and len(notes) < _DEEPEST:
        keys = [key for key in (*_WRAPPERS, *_AVERAGES) if isinstance(content.get(key), Mapping)]
        if not keys:
            break
        others = [key for key in keys[1:] if _is_state_dict(content[key])]
        notes.append(
            f"took the weights under {keys[0]!r}"
            + (f", not those under {', '.join(map(repr, others))}" * bool(others))
        )
        content = content[keys[0]]
    if not isinstance(content, Mapping) or not _is_state_dict(content):
        held = (
            f"keys {', '.join(map(repr, list(content)[:_LISTED]))}"
            if isinstance(content, Mapping)
            else "no dict"
        )
        raise ArtifactError(f"{path} holds no state_dict, but {held or 'nothing'}. Save one with: {_SAVE}")
    tensors = {
        _DENSENET.sub(r"\1\2", str(key)): value for key, value in content.items() if torch.is_tensor(value)
    }
    return Weights(tensors, path.name, sha256, tuple(notes))


def weights_of(known: Known, path: str | os.PathLike[str] | None) -> Weights | None:
    """Return the weights in a file, or without one those that come with the name; None if there are none.

    Raise ArtifactError if they cannot be read or downloaded.
    """
    path = known.weights if path is None and isinstance(known.weights, Path) else path
    if path is not None:
        return read_weights(path)
    if known.weights is None or isinstance(known.weights, Path):
        return None
    try:
        return Weights(dict(known.weights()), known.name)
    except (OSError, RuntimeError) as error:  # the network's, or a wrong checksum
        raise ArtifactError(
            f"the weights of {known.name} could not be downloaded ({error}); pass weights, the file, instead"
        ) from error


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(16)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ArtifactError(f"{path} is damaged, or not of safetensors: {error}") from error
    try:
        check_archive(path)  # torch would unpack whatever is in it
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm and others save their options so
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except BeyondLimit as error:
        raise ArtifactError(f"{path} is refused: {error}") from error
    except Exception as error:  # its own message may advise to load without weights_only
        raise ArtifactError(
            f"{path} is damaged, or holds more than weights, such as a whole model, which cannot be opened without "
            f"running code. Where it was made, save its weights alone: {_SAVE}"
        ) from error


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Return whether a mapping holds tensors by name; numbers may be among them, such as an averaged model's steps."""
    values = list(content.values())
    return any(map(torch.is_tensor, values)) and not any(isinstance(value, Mapping) for value in values)


def fitted(weights: Weights, network: torch.nn.Module, path: object, *, new_head: bool = False) -> Weights:
    """Return the weights by the network's names, in its shapes and dtypes.

    Args:
        weights: What was read from ``path``.
        network: The network that the weights are for.
        path: The name of the weights in errors.
        new_head: Leave out weights of other shapes instead of refusing them, as for training with other classes.

    Raises:
        ArtifactError: Something is missing, left over, or has another shape.
    """
    expected: Mapping[str, torch.Tensor] = network.state_dict()
    tensors, notes = dict(weights.tensors), list(weights.notes)
    while expected.keys() - tensors.keys():
        rest = {key: value for key, value in tensors.items() if value.dim() or key != "n_averaged"}
        prefix = next((one for one in _PREFIXES if rest and all(key.startswith(one) for key in rest)), None)
        if prefix is None:
            break
        tensors = {key.removeprefix(prefix): value for key, value in rest.items()}
        notes.append(f"took {prefix!r} off the names of the weights")
    others = sorted(
        key for key in expected.keys() & tensors.keys() if expected[key].shape != tensors[key].shape
    )
    if new_head and others:
        notes.append(f"left out {_some(others)}, whose shapes are for other classes")
        tensors = {key: value for key, value in tensors.items() if key not in others}
    for key in expected.keys() - tensors.keys():
        if key.endswith(
            _COUNTER
        ):  # files of before 2018 do not count batches, and nothing in eval mode reads it
            tensors[key] = expected[key]
    _require_all(expected, tensors, [] if new_head else others, others if new_head else [], path)
    pairs = {(str(tensors[key].dtype), expected[key].is_floating_point()) for key in tensors}
    casts = sorted(dtype for dtype, floating in pairs if floating and dtype != "torch.float32")
    if casts:
        notes.append(f"turned {', '.join(casts)} into {_dtypes(expected)}".replace("torch.", ""))
    plain = {key: _plain(tensors[key], expected[key].dtype) for key in expected if key in tensors}
    return replace(weights, tensors=plain, notes=tuple(notes))


def _require_all(
    expected: Mapping[str, torch.Tensor],
    tensors: Tensors,
    others: list[str],
    left_out: list[str],
    path: object,
) -> None:
    missing = sorted(expected.keys() - tensors.keys() - set(left_out))
    surplus = sorted(tensors.keys() - expected.keys())
    shapes = [f"{key} {tuple(tensors[key].shape)}, not {tuple(expected[key].shape)}" for key in others]
    lists = (("missing", missing), ("left over", surplus), ("of another shape", shapes))
    if faults := [f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in lists if keys]:
        raise ArtifactError(
            f"the weights in {path} are not those of this network; {'; '.join(faults)}. Other arguments of the "
            "network, such as the number of classes, may be what is wrong"
        )


def _plain(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if value.is_quantized:
        raise ArtifactError(
            "the weights are quantized tensors; save those of the network before it was quantized"
        )
    value = value.to_dense() if value.layout != torch.strided else value
    return value.detach().to(dtype).clone(memory_format=torch.contiguous_format)


def _dtypes(expected: Mapping[str, torch.Tensor]) -> str:
    floating = {str(value.dtype) for value in expected.values() if value.is_floating_point()}
    return ", ".join(sorted(floating)) or "whole numbers"


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_LISTED]) + (f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else "")
