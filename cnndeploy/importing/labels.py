"""Labels from where people keep them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cnndeploy.errors import ArtifactError
from cnndeploy.limits import read_text

MOST_CLASSES = 100_000


def labels_of(source: str | os.PathLike[str] | Iterable[str]) -> tuple[str, ...]:
    """Return labels in the order of the network's outputs.

    Args:
        source: The labels themselves; or the path of a text file with one on each line, or of a JSON file with a list,
            a mapping from number to label, or a mapping from label to number.

    Raises:
        ArtifactError: The file cannot be read, or a label is empty, or there are fewer than 2 or more than 100,000.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        labels, subject = _of_file(path), str(path)
    else:
        labels, subject = [_text(one) for one in source], "the labels"
    return _checked(labels, subject)


def labels_from_json(values: Any, subject: str) -> tuple[str, ...]:
    """Return labels in the order of the outputs from what JSON holds; errors are as of :func:`labels_of`."""
    try:
        return _checked(_of_json(values), subject)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"{subject}: no labels: {error}") from error


def _checked(labels: list[str], subject: str) -> tuple[str, ...]:
    if not 2 <= len(labels) <= MOST_CLASSES:
        raise ArtifactError(
            f"{subject}: {len(labels):,} labels; a classifier has 2 to {MOST_CLASSES:,} classes"
        )
    if "" in labels:
        raise ArtifactError(f"{subject}: label {labels.index('')} is empty")
    return tuple(labels)


def _of_file(path: Path) -> list[str]:
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as labels: {error}") from error
    if path.suffix.lower() != ".json":
        return [line.strip() for line in text.rstrip().splitlines()]
    try:
        return _of_json(json.loads(text))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"{path} holds no labels: {error}") from error


def _of_json(values: Any) -> list[str]:
    if isinstance(values, Mapping):
        pairs = [(number, label) for label, number in values.items()]
        if not all(type(number) is int for number, _ in pairs):  # from number to label
            pairs = [(int(number), label) for number, label in values.items()]
        by_number = dict(pairs)
        if sorted(number for number, _ in pairs) != list(range(len(by_number))):
            raise ValueError(f"expected the numbers 0 to {len(by_number) - 1}")
        values = [by_number[number] for number in range(len(by_number))]
    if not isinstance(values, list):
        raise TypeError("expected a list, or a mapping of numbers and labels")
    return [_text(one) for one in values]


def _text(label: Any) -> str:
    if (
        isinstance(label, list) and label and isinstance(label[-1], str)
    ):  # ["n01440764", "tench"], as Keras has it
        return str(label[-1]).strip()
    if not isinstance(label, str):
        raise ArtifactError(f"a label is text, not {label!r:.80}")
    return label.strip()
