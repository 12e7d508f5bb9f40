"""Names to modules: one file in a folder is one architecture, exporter, runtime or format.

The file's stem is the name. Names are listed without importing anything; :func:`get` imports that one
module and reads its ``ARCHITECTURE``, ``EXPORTER``, ``RUNTIME`` or ``FORMAT``. A third party adds one by an
entry point, in the group ``cnndeploy.runtimes`` and its like, that points to such an object.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, overload

from cnndeploy.errors import UnknownNameError, missing_dependency

if TYPE_CHECKING:
    from cnndeploy.architectures import Architecture
    from cnndeploy.exporters import Exporter
    from cnndeploy.formats import Format
    from cnndeploy.runtimes import Runtime

Kind = Literal["architectures", "exporters", "runtimes", "formats"]


def names(kind: Kind) -> list[str]:
    """All names of a kind, sorted, without importing their modules."""
    return sorted({*_own(kind), *_entry_points(kind)})


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
    if name not in names(kind):
        raise UnknownNameError(kind.removesuffix("s"), name, names(kind))
    try:
        if name in _own(kind):
            module = importlib.import_module(f"cnndeploy.{kind}.{name}")
            return getattr(module, kind.removesuffix("s").upper())
        return _entry_points(kind)[name].load()
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error


@cache
def _own(kind: Kind) -> frozenset[str]:
    package = importlib.import_module(f"cnndeploy.{kind}")
    return frozenset(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


@cache
def _entry_points(kind: Kind) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"cnndeploy.{kind}")}
