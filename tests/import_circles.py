"""A contract for import-linter: no circle of imports between files, those of type checkers and of functions included.

import-linter's own ``acyclic_siblings`` compares what lies side by side in a package, and so overlooks a package's
``__init__`` and a module below it that import each other.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output


class NoCircles(Contract):
    """Report circles until those that are left would be broken with them."""

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        imports = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
        circles = []
        while (circle := _circle(imports)) is not None:
            circles.append(circle)
            imports[circle[0]].discard(circle[1])
        return ContractCheck(kept=not circles, metadata={"circles": circles})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for circle in check.metadata["circles"]:
            output.print_error(" -> ".join(circle))


def _circle(imports: dict[str, set[str]]) -> list[str] | None:
    """Return the modules of a circle, each of which imports the next; the last is the first again."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return None
