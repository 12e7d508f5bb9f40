"""The Parquet files of a large prediction: their columns, and what they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnndeploy.errors import ArtifactError, missing_dependency
from cnndeploy.files import check_writable, make_folder, replacing
from cnndeploy.prediction.chunks import Outcome, column_names
from cnndeploy.words import printable

_KEY = b"cnndeploy"  # of what made a file, in its schema's metadata


@dataclass(frozen=True, slots=True)
class Part:
    """A Parquet file and the images in it."""

    path: Path
    files: Sequence[str]


class Table:
    """Parquet files with ``top`` classes for each image; ``facts``, JSON-ready, identify the model and its options."""

    def __init__(self, top: int, facts: Mapping[str, Any]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise missing_dependency(error) from error
        self._arrow, self._parquet, self._top = pyarrow, pyarrow.parquet, top
        kinds = {"probability": pyarrow.float32()}
        columns = [(name, kinds.get(name.partition("_")[0], pyarrow.string())) for name in column_names(top)]
        metadata = {_KEY: json.dumps(facts, sort_keys=True).encode()}
        self._schema = pyarrow.schema(columns, metadata=metadata)

    def begin(self, folder: Path, parts: Sequence[Part], *, resume: bool) -> tuple[list[str], list[Part]]:
        """Make the folder; return the errors in files that are there already, and the parts that are still to write.

        Raise ArtifactError if there is anything else in it, or anything at all unless ``resume``.
        """
        if folder.is_file():
            raise ArtifactError(f"{folder} is a file; name a folder")
        make_folder(folder)
        there = {path for path in folder.iterdir() if not path.name.startswith(".")}
        if there and not resume:
            advice = "choose another folder, or go on with what is there by resume=True"
            raise ArtifactError(f"{folder} is not empty; {advice}")
        if others := there - {part.path for part in parts}:
            raise ArtifactError(f"{min(others)} is not of this run; choose another folder")
        errors = [error for part in parts if part.path in there for error in self._errors_in(part)]
        left = [part for part in parts if part.path not in there]
        if left:
            check_writable(left[0].path)
        return errors, left

    def write(self, path: Path, rows: Sequence[Outcome]) -> None:
        """Write a file, whole or not at all."""
        columns: list[list[Any]] = [[printable(row.image) for row in rows]]
        for rank in range(self._top):
            ranked = [row.ranked[rank] if row.ranked else None for row in rows]
            columns.append([None if one is None else one.label for one in ranked])
            columns.append([None if one is None else one.probability for one in ranked])
        columns.append([printable(row.error) or None for row in rows])
        with replacing(path) as temporary:
            self._parquet.write_table(self._arrow.table(columns, schema=self._schema), temporary)

    def _errors_in(self, part: Part) -> list[str]:
        """Return why images in a file of an earlier run could not be read; raise ArtifactError if it is of another."""
        other = f"{part.path} is not of this model, these options and these images; choose another folder"
        try:
            table = self._parquet.read_table(part.path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
            raise ArtifactError(f"{part.path} cannot be read: {error}") from error
        if not table.schema.equals(self._schema, check_metadata=True):
            raise ArtifactError(other)
        if table["image"].to_pylist() != [printable(file) for file in part.files]:
            raise ArtifactError(other)
        return [error for error in table["error"].to_pylist() if error]
