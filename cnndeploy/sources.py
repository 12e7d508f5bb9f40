"""Sources: the code that builds a network, by name, and who may have it run.

A name is an architecture of cnndeploy, ``torchvision:resnet18``, ``timm:mobilenetv3_small_100``,
``package.module:factory`` or ``path/to/file.py:factory``. The last two run code of the user. A checkpoint names its
source, but a file must never make anybody run code. So such code is run only if the caller names it, or named it before
on this machine and neither the file nor the arguments have changed since.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
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
from cnndeploy.specs import Source

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
_folders = set[str]()  # that code was imported from in this process
_imports: dict[str, str] = {}  # the SHA-256 of what was imported, by the module's name


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of a user's factory: its ``module``, a name or a file, and the ``folder`` that it imports from."""

    module: str
    factory: str
    folder: str

    @property
    def is_file(self) -> bool:
        return self.module.endswith(".py")

    @property
    def name(self) -> str:
        """The factory as a checkpoint names it, without the folders of this machine."""
        return f"{Path(self.module).name if self.is_file else self.module}:{self.factory}"

    def file(self) -> Path:
        """Find the file that defines the factory, running nothing; raise ArtifactError if there is none."""
        if self.is_file:
            return Path(self.folder, self.module)
        spec, folders, whole = None, [self.folder, *sys.path], ""
        for part in self.module.split("."):
            whole = f"{whole}.{part}" if whole else part
            # importlib.util.find_spec would import the packages above
            spec = PathFinder.find_spec(whole, folders)
            folders = [] if spec is None else list(spec.submodule_search_locations or ())
        if spec is None or spec.origin is None or not Path(spec.origin).is_file():
            raise ArtifactError(
                f"{self.name}: there is no module {self.module} in {self.folder} or installed"
            )
        return Path(spec.origin)


@dataclass(frozen=True, slots=True)
class _Allowed:
    """A factory that the caller named, with the ``arguments`` that it may be called with; None for any."""

    place: _Place
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
    _allow(_place(name), None)


def _allow(place: _Place, arguments: dict[str, Any] | None) -> None:
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
        warnings.warn(f"name {name} again in other commands, for it cannot be noted: {error}", stacklevel=2)


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
    if not is_users(name):
        return name, Source(_with_classes(_factory(name, Source()), arguments, classes))
    place = _place(name)
    source = Source(_with_classes(_users_factory(place), arguments, classes), _sha256(place.file()))
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
    with _user_code(name):
        network = factory(**source.arguments)
    if not isinstance(network, torch.nn.Module):
        raise ArtifactError(f"{name} returns {type(network).__name__}, not a torch.nn.Module")
    if source.output is None:
        return network
    from cnndeploy.architectures._network import OneOutput

    return OneOutput(network, source.output)


def _factory(name: str, source: Source, subject: object = "") -> Callable[..., torch.nn.Module]:
    library, _, model = name.partition(":")
    if not model:
        return ARCHITECTURES.get(name).build
    if library not in _LIBRARIES:
        return _users_factory(_permitted(name, source, subject))
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


def _place(name: str) -> _Place:
    module, _, factory = name.rpartition(":")
    if not module or not factory.isidentifier():
        raise ArtifactError(
            f"{name!r} names no code: package.module:factory or path/to/file.py:factory, where factory is a function "
            "that returns a torch.nn.Module"
        )
    if module.endswith(".py"):
        path = Path(module).expanduser().resolve()
        return _Place(path.name, factory, str(path.parent))
    if not all(part.isidentifier() for part in module.split(".")):
        raise ArtifactError(
            f"{module} is neither a module, as package.module, nor a file, as path/to/file.py"
        )
    return _Place(module, factory, str(Path.cwd()))


def _allowed() -> list[_Allowed]:
    try:
        entries = json.loads(os.environ.get(_ALLOWED, "[]"))
        return [_Allowed(_Place(*map(str, place)), arguments) for *place, arguments in entries]
    except (ValueError, TypeError):  # not ours
        return []


def _permitted(name: str, source: Source, subject: object) -> _Place:
    """Return where the code of a checkpoint is; raise CheckpointError if the user never named it."""
    noted = _noted(name, source)
    for one in reversed(_allowed()):
        if one.place.name != name or one.arguments not in (None, dict(source.arguments)):
            continue
        if source.sha256 not in (None, _sha256(one.place.file())):
            warnings.warn(f"{one.place.file()} has changed since {subject} was made of it", stacklevel=2)
        if one.arguments is None and noted is None and source.arguments:
            given = ", ".join(f"{key}={value!r:.80}" for key, value in source.arguments.items())
            warnings.warn(f"{name} is called with {given}, as {subject} says", stacklevel=2)
        return one.place
    if noted is None:
        raise CheckpointError(
            f"{subject} says that {name!r} builds its network. That is code outside cnndeploy, torchvision and timm, "
            f"and a file must not run code by itself. If it is yours, name it: cnndeploy.allow_source({name!r})"
        )
    if not noted.file().is_file() or _sha256(noted.file()) != source.sha256:
        raise CheckpointError(
            f"{subject} is built by {name}, and {noted.file()} has changed since it was made, or is gone. If its "
            f"network is still the same, name it each time, cnndeploy.allow_source({name!r}), or import it again"
        )
    return noted


def _noted(name: str, source: Source) -> _Place | None:
    """Return where the code was when the user named it, with these arguments; None if it never was."""
    try:
        note = json.loads(_note(name, source).read_bytes())
        place = _Place(str(note["module"]), name.rpartition(":")[2], str(note["folder"]))
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


def _sha256(file: Path) -> str:
    return hashlib.sha256(_content(file)).hexdigest()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror or error}") from error


def _users_factory(place: _Place) -> Callable[..., torch.nn.Module]:
    """Import the user's module and return its factory, which imports from its own folder when it is called."""
    file = place.file()
    _require_own_modules(place)
    with _importing_from(place.folder), _user_code(place.name):
        module = _imported(place, file)
    factory = getattr(module, place.factory, None)
    if not callable(factory):
        known = ", ".join(sorted(one for one, value in vars(module).items() if callable(value))[:10])
        raise ArtifactError(f"{file} defines no function {place.factory}; it defines {known or 'none'}")

    def building(**arguments: Any) -> Any:
        with _importing_from(place.folder):
            return factory(**arguments)

    with_signature: Any = building
    try:
        with_signature.__signature__ = inspect.signature(factory)
    except (TypeError, ValueError):
        return building
    return building


def _require_own_modules(place: _Place) -> None:
    """Raise ArtifactError if what this code may import from its folder was imported from another source's folder."""
    _folders.add(place.folder)
    others = _folders - {place.folder}
    for path in Path(place.folder).glob("*"):
        known = getattr(sys.modules.get(path.stem), "__file__", None)
        if known is not None and str(Path(known).parent) in others and path.suffix == ".py":
            raise ArtifactError(
                f"{place.name} may import {path.stem}, but {known} was imported under that name in this process; "
                "use another process, or other names"
            )


def _imported(place: _Place, file: Path) -> ModuleType:
    """Import a file, or a module with the packages above it; run the very bytes that are hashed, and no cached code.

    What was imported before is taken if it is of the same bytes. Raise ArtifactError if it is not.
    """
    content = _content(file)
    sha256 = hashlib.sha256(content).hexdigest()
    unique = hashlib.sha256(f"{file}\0{sha256}".encode(errors="surrogateescape")).hexdigest()[:16]
    name = f"cnndeploy_source_{unique}_{file.stem}" if place.is_file else place.module
    package, _, attribute = ("", "", name) if place.is_file else name.rpartition(".")
    if package:
        importlib.import_module(package)
    if (known := sys.modules.get(name)) is not None:
        if (known.__file__, _imports.get(name, sha256)) == (str(file), sha256):
            return known
        raise ArtifactError(
            f"{name} was imported in this process from {known.__file__} as it was then; to build what is in {file} "
            "now, use another process"
        )
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None:
        raise ArtifactError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    try:
        exec(compile(content, str(file), "exec"), vars(module))  # noqa: S102 - which the user named
    except BaseException:
        del sys.modules[name]
        raise
    if package:
        setattr(sys.modules[package], attribute, module)
    _imports[name] = sha256
    return module


@contextmanager
def _importing_from(folder: str) -> Iterator[None]:
    """Find modules in ``folder`` first, as a script there would."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the code may have changed the list
            sys.path.remove(folder)


@contextmanager
def _user_code(name: str) -> Iterator[None]:
    """Turn whatever code of somebody else raises into an ArtifactError that says where."""
    try:
        yield
    except CnndeployError:
        raise
    except (Exception, SystemExit) as error:
        frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename != __file__]
        where = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
        raise ArtifactError(f"{name} fails{where}: {type(error).__name__}: {error}") from error
