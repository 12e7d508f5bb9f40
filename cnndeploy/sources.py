"""Sources: the code that builds a network, by name, and who may have it run.

A name is an architecture of cnndeploy, ``torchvision:resnet18``, ``timm:mobilenetv3_small_100``,
``package.module:factory`` or ``path/to/file.py:factory``. The last two run code of the user. A checkpoint names its
source, but a file must never make anybody run code. So such code is run only if the caller names it, or named it before
on this machine and neither the file nor the arguments have changed since.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.errors import (
    ArtifactError,
    CheckpointError,
    CnndeployError,
    UnknownNameError,
    missing_dependency,
)
from cnndeploy.files import make_folder, write_file
from cnndeploy.own_warnings import CnndeployWarning
from cnndeploy.specs import Source
from cnndeploy.user_code import Place, factory_of, place_of, sha256_of, user_code

if TYPE_CHECKING:
    import torch

# What a factory may call the number of classes; it is filled in if it is left open.
CLASSES = ("num_classes", "classes", "n_classes")
# Arguments by which a library would load or download weights by itself.
_LOADING = (
    *("weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir"),
)
# Workers inherit what the command allowed.
_ALLOWED = "CNNDEPLOY_SOURCES"
_LIBRARIES = ("torchvision", "timm")


@dataclass(frozen=True, slots=True)
class _Allowed:
    """A factory that the caller named, with the ``arguments`` that it may be called with; None for any."""

    place: Place
    arguments: dict[str, Any] | None


def is_users(name: str) -> bool:
    """Return whether this source is code of the user, and not of cnndeploy, torchvision or timm."""
    return ":" in name and name.partition(":")[0] not in _LIBRARIES


def allow_source(name: str) -> None:
    """Let checkpoints whose network is built by this code of yours be opened, in this process and its workers.

    Args:
        name: ``package.module:factory`` or ``path/to/file.py:factory``; it is looked for from the current folder.

    Raises:
        ArtifactError: It is not of this form.

    >>> cnndeploy.allow_source("mymodel.py:build")
    """
    _allow(place_of(name), None)


def _allow(place: Place, arguments: dict[str, Any] | None) -> None:
    new = _Allowed(place, arguments)
    allowed = (*(one for one in _allowed() if one != new), new)
    values = [[one.place.module, one.place.factory, one.place.folder, one.arguments] for one in allowed]
    os.environ[_ALLOWED] = json.dumps(values)


def remember(name: str, source: Source) -> None:
    """Note on disk that this user named a source, so that later commands run it, while it is the same."""
    place = next(one.place for one in reversed(_allowed()) if one.place.name == name)
    values = {"name": place.name, "module": place.module, "folder": place.folder}
    try:
        note = _note(place.name, source)
        make_folder(note.parent)
        write_file(note, json.dumps(values).encode())
    except (CnndeployError, RuntimeError) as error:  # the latter if the user has no home
        warnings.warn(
            f"name {name} again in other commands, for it cannot be noted: {error}",
            CnndeployWarning,
            stacklevel=2,
        )


def named_factory(name: str) -> Callable[..., torch.nn.Module]:
    """Return what builds the networks of a source that the caller names, so that code of the user may be imported.

    Raise ArtifactError, UnknownNameError or MissingDependencyError if there is no such source.
    """
    return factory_of(place_of(name)) if is_users(name) else _factory(name, Source())


def resolved(name: str, arguments: Mapping[str, Any], classes: int | None) -> tuple[str, Source]:
    """Return a source as a checkpoint records it: its name, and its arguments with the number of classes filled in.

    The caller names it, so code of the user is allowed. Raise ArtifactError or UnknownNameError if there is no such
    source.
    """
    try:
        json.dumps(dict(arguments))
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"the arguments of {name} are recorded as JSON, which cannot hold them: {error}"
        ) from error
    given = _with_classes(named_factory(name), arguments, classes)
    if not is_users(name):
        return name, Source(given)
    place = place_of(name)
    source = Source(given, sha256_of(place.file()))
    _allow(place, dict(source.arguments))
    return place.name, source


def build(name: str, source: Source, subject: object = "the checkpoint") -> torch.nn.Module:
    """Build a network, with fresh weights, in training mode.

    Args:
        name: The name of the source, as a manifest's ``architecture``.
        source: The manifest's ``source``.
        subject: What names it, for errors.

    Raises:
        CheckpointError: It is code that nobody on this machine named, or that has changed since.
        ArtifactError: The code fails, or returns no network.
        UnknownNameError, MissingDependencyError: There is no such architecture, or it needs a package.
    """
    import torch

    factory = _factory(name, source, subject)
    with user_code(name):
        network = factory(**source.arguments)
    if not isinstance(network, torch.nn.Module):
        raise ArtifactError(f"{name} returns {type(network).__name__}, not a torch.nn.Module")
    if source.ranks or source.widths:
        from cnndeploy.architectures._low_rank import split_layers
        from cnndeploy.architectures._widths import resize_layers

        try:
            split_layers(network, source.ranks)
            resize_layers(network, source.widths)
        except ValueError as error:
            raise CheckpointError(f"{subject} is damaged, or {name} has changed: {error}") from error
    if source.output is None:
        return network
    from cnndeploy.architectures._network import OneOutput

    return OneOutput(network, source.output)


def _factory(name: str, source: Source, subject: object = "") -> Callable[..., torch.nn.Module]:
    library, _, model = name.partition(":")
    if not model:
        return ARCHITECTURES.get(name).build
    if library not in _LIBRARIES:
        return factory_of(_permitted(name, source, subject))
    if given := [one for one in _LOADING if one in source.arguments]:
        raise ArtifactError(f"{name} takes no argument {given[0]}: weights come from a file")
    try:
        return _of_torchvision(name, model) if library == "torchvision" else _of_timm(name, model)
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error


def _of_torchvision(name: str, model: str) -> Callable[..., torch.nn.Module]:
    from torchvision import models

    known = models.list_models(module=models)
    if model not in known:
        raise UnknownNameError("architecture", name, [f"torchvision:{one}" for one in known])

    def factory(**arguments: Any) -> Any:
        if model in ("googlenet", "inception_v3"):  # its own initialisation takes half a minute
            arguments = {"init_weights": False} | arguments
        return models.get_model(model, weights=None, **arguments)

    return _signed(factory, "num_classes")


def _of_timm(name: str, model: str) -> Callable[..., torch.nn.Module]:
    import timm

    if not timm.is_model(model):
        raise UnknownNameError("architecture", name, [f"timm:{one}" for one in timm.list_models()])

    def factory(**arguments: Any) -> Any:
        return timm.create_model(model, pretrained=False, **arguments)

    return _signed(factory, "num_classes")


def _signed(factory: Callable[..., Any], *parameters: str) -> Callable[..., Any]:
    """Say by name what a function takes that passes everything on."""
    kind = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([inspect.Parameter(one, kind) for one in parameters])
    factory.__signature__ = signature  # type: ignore[attr-defined]
    return factory


def _with_classes(
    factory: Callable[..., Any], arguments: Mapping[str, Any], classes: int | None
) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # built in, or of C
        return dict(arguments)
    name = next((one for one in CLASSES if one in parameters), None)
    if classes is None or name is None or name in arguments:
        return dict(arguments)
    return {**arguments, name: classes}


def _allowed() -> list[_Allowed]:
    try:
        entries = json.loads(os.environ.get(_ALLOWED, "[]"))
        return [_Allowed(Place(*map(str, place)), arguments) for *place, arguments in entries]
    except (ValueError, TypeError):  # not ours
        return []


def _permitted(name: str, source: Source, subject: object) -> Place:
    """Return where the code of a checkpoint is; raise CheckpointError if the user never named it."""
    noted = _noted(name, source)
    for one in reversed(_allowed()):
        if one.place.name != name or one.arguments not in (None, dict(source.arguments)):
            continue
        if source.sha256 not in (None, sha256_of(one.place.file())):
            warnings.warn(
                f"{one.place.file()} has changed since {subject} was made of it",
                CnndeployWarning,
                stacklevel=2,
            )
        if one.arguments is None and noted is None and source.arguments:
            given = ", ".join(f"{key}={value!r:.80}" for key, value in source.arguments.items())
            warnings.warn(f"{name} is called with {given}, as {subject} says", CnndeployWarning, stacklevel=2)
        return one.place
    if noted is None:
        raise CheckpointError(
            f"{subject} says that {name!r} builds its network. That is code outside cnndeploy, torchvision and timm, "
            f"and a file must not run code by itself. If it is yours, name it: cnndeploy.allow_source({name!r})"
        )
    if not noted.file().is_file() or sha256_of(noted.file()) != source.sha256:
        raise CheckpointError(
            f"{subject} is built by {name}, and {noted.file()} has changed since it was made, or is gone. If its "
            f"network is still the same, name it each time, cnndeploy.allow_source({name!r}), or import it again"
        )
    return noted


def _noted(name: str, source: Source) -> Place | None:
    """Return where the code was when the user named it, with these arguments; None if it never was."""
    try:
        note = json.loads(_note(name, source).read_bytes())
        place = Place(str(note["module"]), name.rpartition(":")[2], str(note["folder"]))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):
        return None
    return place if place.name == name else None


def _note(name: str, source: Source) -> Path:
    """Return the file that says that the user named exactly this source; its name is a hash of what was named."""
    configuration = (
        os.environ.get("APPDATA" if os.name == "nt" else "XDG_CONFIG_HOME") or Path.home() / ".config"
    )
    exact = json.dumps([name, source.sha256, source.arguments], sort_keys=True)
    return Path(configuration, "cnndeploy", "sources", f"{hashlib.sha256(exact.encode()).hexdigest()}.json")
