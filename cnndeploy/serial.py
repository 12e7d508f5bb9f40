"""Dataclasses to JSON and back, in one place."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from os import PathLike, fspath
from typing import Any, TypeVar

T = TypeVar("T")


def jsonable(value: Any) -> Any:
    """Return a value that JSON can hold: dataclasses become objects, tuples lists, paths text.

    Infinity and NaN become None, because JSON has no such numbers and a report must be written whatever it holds.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return fspath(value) if isinstance(value, PathLike) else value


def dumps(value: Any) -> str:
    """Return the text of a JSON file, indented, with a newline at its end."""
    return json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n"


def structure(kind: type[T], value: Any) -> T:
    """Build a ``kind`` from what :func:`jsonable` returned; ignore keys that it does not have.

    Raise ValueError if the value does not fit.
    """
    try:
        return typing.cast(T, _structure(kind, value))
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a {getattr(kind, '__name__', kind)}: {error!r}") from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _structure(kind: Any, value: Any) -> Any:  # noqa: PLR0911 - one for each kind of type
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if isinstance(value, kind):
            return value
        hints = _hints(kind)
        names = [field.name for field in dataclasses.fields(kind) if field.init and field.name in value]
        return kind(**{name: _structure(hints[name], value[name]) for name in names})
    if origin in (typing.Union, types.UnionType):
        return _of_union(arguments, value)
    if origin is typing.Literal:
        return _expect(value in arguments and not isinstance(value, bool), kind, value)
    if origin is tuple:
        _expect(isinstance(value, list), kind, value)
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(_structure(*pair) for pair in zip(kinds, value, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), kind, value)
        return {key: _structure(arguments[1], item) for key, item in value.items()}
    if kind is float:
        return float(_expect(isinstance(value, int | float) and not isinstance(value, bool), kind, value))
    if kind is Any or not isinstance(kind, type):
        return value
    return _expect(type(value) is kind or (kind not in (int, bool) and isinstance(value, kind)), kind, value)


def _of_union(kinds: tuple[Any, ...], value: Any) -> Any:
    """Build an object of the first kind that fits."""
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            return _structure(kind, value)
    raise ValueError(f"{value!r} is none of {kinds}")


def _expect(fits: bool, kind: Any, value: Any) -> Any:
    if not fits:
        raise ValueError(f"expected {kind}, got {value!r:.80}")
    return value
