"""Registries, and names of a package that are imported when they are first used.

A registry has a name for each file of a package, its stem, unless that begins with an underscore. It also has the
names of other packages' entry points in its group, such as ``cnndeploy.runtimes``. It is declared beside the protocol
of what it holds, and lists names without importing their modules.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from cnndeploy.errors import UnknownNameError, missing_dependency

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint  # it imports email and zipfile, which no app should wait for

T = TypeVar("T")


def names(kind: str) -> list[str]:
    """List all names of a kind, sorted, without importing the package that holds them."""
    return sorted({*_own(kind), *_entry_points(kind)})


class Registry(Generic[T]):
    """The objects of one kind: ``kind`` is the package's name, ``attribute`` the name of the object in each module."""

    def __init__(self, kind: str, attribute: str) -> None:
        self.kind = kind
        self._attribute = attribute

    def names(self) -> list[str]:
        """List all names, sorted."""
        return names(self.kind)

    def names_in_turn(self, likely: str) -> Iterator[str]:
        """Yield all names, the ``likely`` one first and those of other packages last.

        An app starts a tenth faster if it need not read what is installed, nor import modules for other formats.
        """
        yield from sorted(_own(self.kind), key=lambda name: (name != likely, name))
        yield from sorted(_entry_points(self.kind).keys() - _own(self.kind))

    def get(self, name: str) -> T:
        """Import the object of this name; raise UnknownNameError, or MissingDependencyError if it needs a package."""
        try:
            if name in _own(self.kind):
                module = importlib.import_module(f"cnndeploy.{self.kind}.{name}")
                return cast(T, getattr(module, self._attribute))
            if name not in _entry_points(self.kind):
                raise UnknownNameError(self.kind.removesuffix("s"), name, self.names())
            return cast(T, _entry_points(self.kind)[name].load())
        except ModuleNotFoundError as error:
            raise missing_dependency(error) from error


def lazy(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``, which imports a name's module when the name is first used (PEP 562).

    ``names`` maps each module of the package to the names that it defines, separated by spaces.
    """
    module_of = {name: module for module, defined in names.items() for name in defined.split()}

    def getattribute(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        except ModuleNotFoundError as error:
            raise missing_dependency(error) from error

    return getattribute


@cache
def _own(kind: str) -> frozenset[str]:
    spec = importlib.util.find_spec(f"cnndeploy.{kind}")
    folders = () if spec is None else spec.submodule_search_locations or ()
    return frozenset(m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_"))


@cache
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=f"cnndeploy.{kind}")}
