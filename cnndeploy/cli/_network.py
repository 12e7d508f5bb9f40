"""What ``import`` and ``train`` are told of a network: its source, the arguments of its factory, its preprocessing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from cnndeploy.cli import _common as common


class SourceName(common.RegisteredName):
    """What builds a network: a registered name, or a source with a colon in it, which is looked for later."""

    def __init__(self) -> None:
        super().__init__("architectures")

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """List the known names."""
        return f"{super().get_metavar(param, ctx)[:-1]}|SOURCE}}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name itself."""
        return str(value) if ":" in str(value) else super().convert(value, param, ctx)


class _Argument(click.ParamType[tuple[str, Any]]):
    """An argument of a factory, ``name=value``; the value is read as JSON if it is JSON, and else as text."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        name, equals, text = str(value).partition("=")
        if not equals or not name.isidentifier():
            self.fail(f"{value!r} is not name=value, as classes=5.", param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


def _as_dict(_context: click.Context, _parameter: click.Parameter, values: Any) -> dict[str, Any] | None:
    return dict(values) or None


model_arguments_option = click.option(
    "--model-arg",
    "arguments",
    type=_Argument(),
    multiple=True,
    callback=_as_dict,
    help="Keyword argument of the factory; repeatable. The number of classes is filled in if the factory takes it.",
)


def preprocessing_option(meaning: str, default: str) -> Callable[[common.Command], common.Command]:
    """Return the option ``--preprocessing``, which describes a network to one command and makes one in another."""
    return click.option(
        "--preprocessing",
        type=common.PATH,
        metavar="JSON",
        help=f"{meaning} The file has fields of cnndeploy.Preprocessing, or is timm's config.json or Hugging Face's "
        f"preprocessor_config.json.  [default: {default}]",
    )
