"""README and docs: the commands parse, the Python does too, and links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cnndeploy.cli import main

REPOSITORY = Path(__file__).parents[1]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
EACH_PAGE = pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
_PROGRAM = re.compile(r"^(?:cnndeploy|torchrun .* -m cnndeploy) (?=.)")
_MOST_LINES_OF_README = 150


def blocks(text: str, language: str) -> Iterator[str]:
    """Yield the code blocks of a page in a language."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[str]:
    """Yield the commands of cnndeploy in the shell blocks of a page."""
    for block in blocks(text, "sh"):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if _PROGRAM.match(line))


def parse(command: str) -> None:
    """Parse a command line and do nothing; raise click's UsageError if an option or its value is wrong."""
    words = shlex.split(_PROGRAM.sub("", command, count=1), comments=True)
    group: click.Command = main
    name = ""
    context = click.Context(main)
    while isinstance(group, click.Group):
        name = words.pop(0)
        subcommand = group.get_command(context, name)
        assert subcommand is not None, f"there is no command {name}"
        group = subcommand
    group.make_context(name, words, parent=context)


@EACH_PAGE
def test_commands_parse(page: Path) -> None:
    for command in commands(page.read_text()):
        try:
            parse(command)
        except click.UsageError as error:
            pytest.fail(f"{command}: {error.format_message()}")


@pytest.mark.parametrize("wrong", ["cnndeploy bench lenet.pt --target eager", "cnndeploy export --format x"])
def test_a_wrong_command_is_found(wrong: str) -> None:
    (command,) = commands(f"```sh\n{wrong}    # as it was once\n```\n")
    with pytest.raises(click.UsageError):
        parse(command)


@EACH_PAGE
def test_python_compiles(page: Path) -> None:
    for block in blocks(page.read_text(), "python"):
        compile(block, str(page), "exec")


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@EACH_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in _anchors(linked), f"{page.name} links to {target}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\((docs/[\w-]+\.md)", (REPOSITORY / "README.md").read_text()))
    assert linked == {str(page.relative_to(REPOSITORY)) for page in PAGES if page.parent.name == "docs"}


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= _MOST_LINES_OF_README
