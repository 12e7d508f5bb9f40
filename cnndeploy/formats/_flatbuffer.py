"""FlatBuffers, read without a copy and without their library, with every offset checked against the buffer.

Source: flatbuffers.dev, "FlatBuffer Internals".
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from cnndeploy.limits import require_small, require_within

Buffer = memoryview | bytes
# Items of a list may lie in one place, so a small file can claim many; a network has some thousand layers.
_MOST_ITEMS, _MOST_NAME = 100_000, 200


def number_at(buffer: Buffer, position: int, kind: str) -> int:
    """Return the number of this kind, as :mod:`struct` names it; raise ValueError if it is not all in the buffer."""
    if not 0 <= position <= len(buffer) - struct.calcsize(kind):
        raise ValueError("it points outside itself")
    return int(struct.unpack_from(f"<{kind}", buffer, position)[0])


@dataclass(frozen=True, slots=True)
class Table:
    """A table in a buffer: where it begins. A field that is not there is 0, empty or None."""

    buffer: Buffer
    position: int

    @classmethod
    def root(cls, buffer: Buffer) -> Table:
        """Return the outermost table."""
        return cls(buffer, number_at(buffer, 0, "I"))

    def number(self, field: int, kind: str) -> int:
        """Return a field that is a number of this kind."""
        place = self._place(field)
        return number_at(self.buffer, place, kind) if place else 0

    def table(self, field: int) -> Table | None:
        """Return a field that is a table."""
        place = self._place(field)
        return Table(self.buffer, self._target(place)) if place else None

    def tables(self, field: int) -> Iterator[Table]:
        """Yield a field that is a list of tables."""
        for place in self._few_items(field, 4):
            yield Table(self.buffer, self._target(place))

    def numbers(self, field: int, kind: str) -> list[int]:
        """Return a field that is a list of numbers of this kind."""
        return [
            number_at(self.buffer, place, kind) for place in self._few_items(field, struct.calcsize(kind))
        ]

    def text(self, field: int) -> str:
        """Return a field that is text."""
        places = self._items(field, 1)
        require_small(len(places))
        return bytes(self.buffer[places.start : places.stop]).decode()

    def name(self, field: int) -> str:
        """Return a field that is a name, the same object for the same name."""
        places = self._items(field, 1)
        require_within(len(places), _MOST_NAME, f"a name of {len(places):,} bytes")
        return sys.intern(self.text(field))

    def is_text(self, field: int, wanted: str) -> bool:
        """Return whether a field is this text, however long it is."""
        return len(self._items(field, 1)) == len(wanted.encode()) and self.text(field) == wanted

    def _place(self, field: int) -> int:
        """Return where a field is, 0 if it is not there."""
        entries = self.position - number_at(self.buffer, self.position, "i")
        entry = 4 + 2 * field
        if entry >= number_at(self.buffer, entries, "H"):
            return 0
        offset = number_at(self.buffer, entries + entry, "H")
        return self.position + offset if offset else 0

    def _target(self, place: int) -> int:
        return place + number_at(self.buffer, place, "I")

    def _items(self, field: int, size: int) -> range:
        """Return where the items of a list are, all of them in the buffer."""
        place = self._place(field)
        if not place:
            return range(0)
        start = self._target(place)
        count = number_at(self.buffer, start, "I")
        if count * size > len(self.buffer) - start - 4:
            raise ValueError("a list runs past the end of its buffer")
        return range(start + 4, start + 4 + count * size, size)

    def _few_items(self, field: int, size: int) -> range:
        """Return where the items of a list are; raise BeyondLimit for more than a network has."""
        places = self._items(field, size)
        require_within(len(places), _MOST_ITEMS, f"a list of {len(places):,} items")
        return places
