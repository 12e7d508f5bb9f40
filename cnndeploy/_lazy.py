"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from cnndeploy.errors import missing_dependency


def lazy(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``: it imports the module in which a name is defined.

    Args:
        package: The package's name.
        names: Module, below the package, to the names that it defines, separated by spaces.
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
