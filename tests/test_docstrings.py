"""Docstrings say something: a function's begins with a verb, a module's or class's with what it is.

Ruff's D401, in ``make lint``, finds most functions that are described by a noun. It knows no prepositions and no
conjunctions, and does not look at modules and classes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = [
    path
    for folder in ("cnndeploy", "exporters", "runtimes", "examples", "benchmarks")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
]
# After one of these words comes half a sentence.
NEVER_FIRST = re.compile(
    r"(After|Also|And|As|At|Because|Before|Behind|Below|Beside|But|By|For|From|If|In|Into|Like|Nor|Of|On|Or|Over|So|"
    r"Such|Than|That|Then|To|Under|Unless|Until|When|Where|Which|While|Whose|With|Within|Without)\b"
)
# These begin a noun phrase, with which a property may begin, and a function may not.
NO_VERB = re.compile(r"(All|Both|Each|Every|How|No|One|Some|What|Whether|Who|Why)\b")
_PROPERTIES = ("property", "cached_property")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented(tree: ast.Module, module: str) -> Iterator[tuple[str, Documented]]:
    """Yield a module and everything defined in it, each with its name."""
    yield module, tree
    waiting: list[tuple[str, ast.AST]] = [(module, tree)]
    while waiting:
        parent, node = waiting.pop()
        for child in ast.iter_child_nodes(node):
            name = parent
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{parent}.{child.name}"
                yield name, child
            waiting.append((name, child))


def faults(source: str, module: str) -> list[str]:
    """Return what is wrong with the first words of a module's docstrings."""
    wrong = []
    for name, node in documented(ast.parse(source), module):
        docstring = ast.get_docstring(node)
        if docstring is None:
            continue
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_property(node)
        if NEVER_FIRST.match(docstring) or (is_function and NO_VERB.match(docstring)):
            wrong.append(f"{name}: {docstring.splitlines()[0]}")
    return wrong


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator).rpartition(".")[2] in _PROPERTIES for decorator in node.decorator_list)


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(REPOSITORY))) for path in FILES])
def test_docstrings_begin_with_what_they_describe(path: Path) -> None:
    module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    assert faults(path.read_text(), module) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('"""Of a file without one."""', "m: Of a file without one."),
        ('class A:\n    """By its last axes."""', "m.A: By its last axes."),
        ('class A:\n    def f(self):\n        """Whether it holds."""', "m.A.f: Whether it holds."),
        ('async def f():\n    """As eager does."""', "m.f: As eager does."),
        ('if True:\n    def f():\n        """That it is so."""', "m.f: That it is so."),
    ],
)
def test_half_a_sentence_is_found(source: str, fault: str) -> None:
    assert faults(source, "m") == [fault]


def test_a_property_may_be_a_noun() -> None:
    assert faults('class A:\n    @property\n    def f(self):\n        """Whether it holds."""', "m") == []
    assert faults('class A:\n    @property\n    def f(self):\n        """Of the file."""', "m") != []
