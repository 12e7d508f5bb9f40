"""Names to modules: one file in a folder is one architecture, exporter, runtime or format.

The file's stem is the name. Names are listed without importing anything; :func:`get` imports that one
module and reads its ``ARCHITECTURE``, ``EXPORTER``, ``RUNTIME`` or ``FORMAT``. A third party adds one by an
entry point, in the group ``cnndeploy.runtimes`` and its like, that points to such an object.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, overload

from cnndeploy.errors import UnknownNameError, missing_dependency

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from cnndeploy.architectures import Architecture
    from cnndeploy.exporters import Exporter
    from cnndeploy.formats import Format
    from cnndeploy.runtimes import Runtime

Kind = Literal["architectures", "exporters", "runtimes", "formats"]


def names(kind: Kind) -> list[str]:
    """All names of a kind, sorted, without importing their modules."""
    return sorted({*_own(kind), *_entry_points(kind)})


def names_in_turn(kind: Kind, likely: str) -> Iterator[str]:
    """As :func:`names`, one by one, the ``likely`` one first and third parties' last.

    An app starts a tenth faster where it need not read what is installed, nor import what opens other formats.
    """
    yield from sorted(_own(kind), key=lambda name: (name != likely, name))
    yield from sorted(_entry_points(kind).keys() - _own(kind))


@overload
def get(kind: Literal["architectures"], name: str) -> Architecture: ...
@overload
def get(kind: Literal["exporters"], name: str) -> Exporter: ...
@overload
def get(kind: Literal["runtimes"], name: str) -> Runtime: ...
@overload
def get(kind: Literal["formats"], name: str) -> Format: ...
def get(kind: Kind, name: str) -> Any:
    """Import what ``name`` stands for.

    Raises:
        UnknownNameError: No such name; the nearest one is suggested.
        MissingDependencyError: The module needs a package that is not installed.
    """
    try:
        if name in _own(kind):
            module = importlib.import_module(f"cnndeploy.{kind}.{name}")
            return getattr(module, kind.removesuffix("s").upper())
        if name not in _entry_points(kind):
            raise UnknownNameError(kind.removesuffix("s"), name, names(kind))
        return _entry_points(kind)[name].load()
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error


@cache
def _own(kind: Kind) -> frozenset[str]:
    package = importlib.import_module(f"cnndeploy.{kind}")
    return frozenset(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


@cache
def _entry_points(kind: Kind) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=f"cnndeploy.{kind}")}
