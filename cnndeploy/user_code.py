"""Code of the user that builds networks: where it is, imported by its very bytes, its errors told apart from ours."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from cnndeploy.errors import ArtifactError, CnndeployError

_folders = set[str]()  # that code was imported from in this process
_imports: dict[str, str] = {}  # the SHA-256 of what was imported, by the module's name


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a user's factory: its ``module``, a name or a file, and the ``folder`` that it imports from."""

    module: str
    factory: str
    folder: str

    @property
    def is_file(self) -> bool:
        """Whether the module is named by its file."""
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


def place_of(name: str) -> Place:
    """Return the place of a factory that is named from the current folder; raise ArtifactError for other names."""
    module, _, factory = name.rpartition(":")
    if not module or not factory.isidentifier():
        raise ArtifactError(
            f"{name!r} names no code: package.module:factory or path/to/file.py:factory, where factory is a function "
            "that returns a torch.nn.Module"
        )
    if module.endswith(".py"):
        path = Path(module).expanduser().resolve()
        return Place(path.name, factory, str(path.parent))
    if not all(part.isidentifier() for part in module.split(".")):
        raise ArtifactError(
            f"{module} is neither a module, as package.module, nor a file, as path/to/file.py"
        )
    return Place(module, factory, str(Path.cwd()))


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a source file; raise ArtifactError, which names it, if it cannot be read."""
    return hashlib.sha256(_content(file)).hexdigest()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror or error}") from error


def factory_of(place: Place) -> Callable[..., Any]:
    """Import the user's module and return its factory, which imports from its own folder when it is called."""
    file = place.file()
    _require_own_modules(place)
    with _importing_from(place.folder), user_code(place.name):
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


def _require_own_modules(place: Place) -> None:
    """Raise ArtifactError if what this code may import from its folder was imported from another source's folder."""
    _folders.add(place.folder)
    others = _folders - {place.folder}
    for path in Path(place.folder).glob("*"):
        known = getattr(sys.modules.get(path.stem), "__file__", None)
        own = place.is_file and path.name == place.module
        if known is not None and str(Path(known).parent) in others and path.suffix == ".py" and not own:
            raise ArtifactError(
                f"{place.name} may import {path.stem}, but {known} was imported under that name in this process; "
                "use another process, or other names"
            )


def _imported(place: Place, file: Path) -> ModuleType:
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
def user_code(name: str) -> Iterator[None]:
    """Turn whatever code of somebody else raises into an ArtifactError that says where."""
    try:
        yield
    except CnndeployError:
        raise
    except (Exception, SystemExit) as error:
        frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename != __file__]
        where = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
        raise ArtifactError(f"{name} fails{where}: {type(error).__name__}: {error}") from error
