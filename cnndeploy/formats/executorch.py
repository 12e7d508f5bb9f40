"""ExecuTorch: a program as a flatbuffer, and behind it segments with weights and with what a backend computes.

The manifest is a method of the program that returns a string, so C++ can read it too. This module runs nothing.

Source: field numbers from ExecuTorch's schema/program.fbs, the header from its runtime/schema/extended_header.h.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnndeploy.formats._flatbuffer import Table, number_at
from cnndeploy.formats._protobuf import mapped
from cnndeploy.limits import require_within
from cnndeploy.specs import Manifest

MANIFEST_METHOD = "cnndeploy_manifest"
FORWARD = "forward"

_PLANS = 1
_NAME, _VALUES, _INPUTS, _OUTPUTS, _CHAINS, _OPERATORS, _DELEGATES, _BUFFERS = 0, 2, 3, 4, 5, 6, 7, 8
_TENSOR, _STRING = 5, 6  # of the union KernelTypes
_KERNEL, _DELEGATE = 1, 2  # of the union InstructionArguments
_SIZES, _DYNAMISM = 2, 8  # of a tensor
_STATIC = 0
_MOST_STEPS, _MOST_PLANNED = 100_000, 16 * 2**30
_WITH_SEGMENTS = 32  # the length of a header that says where segments begin


@dataclass(frozen=True, slots=True)
class Forward:
    """What a program does with an image.

    ``parts`` are its steps in order: a backend that computes several layers at once, such as ``XnnpackBackend``, or
    the kernel of one operator, such as ``aten::view_copy.out``. ``largest_batch`` is how many images it takes at once;
    if it is ``fixed_batch``, it takes so many and no fewer. ``planned_bytes`` is the memory that it always takes.
    """

    parts: tuple[str, ...]
    largest_batch: int
    fixed_batch: bool
    planned_bytes: int


class ExecuTorchFormat:
    """ExecuTorch programs, with the manifest in a method."""

    default_runtime = "executorch"

    def recognises(self, path: Path) -> bool:
        """Return whether the content has the identifier of such a program."""
        with path.open("rb") as file:
            head = file.read(8)
        return head[4:6] == b"ET" and head[6:8].isdigit()

    def read_manifest(self, path: Path) -> Manifest | None:
        """Return what the manifest's method returns."""
        with _program(path) as program:
            if (plan := _plan(program, MANIFEST_METHOD)) is None:
                return None
            value = _value(plan, _OUTPUTS, _STRING)
            return Manifest.from_json(value.text(0))

    def describe(self, path: Path) -> dict[str, Any]:
        """Return how often each backend and kernel is called, and how large a batch may be."""
        forward = forward_of(path)
        return {
            "operators": dict(sorted(Counter(forward.parts).items())),
            "largest_batch": forward.largest_batch,
            "planned_memory": forward.planned_bytes,
        }


def forward_of(path: Path) -> Forward:
    """Read what a program does with an image; raise ValueError if it is damaged, or takes something else."""
    with _program(path) as program:
        if (plan := _plan(program, FORWARD)) is None:
            raise ValueError(f"it has no method {FORWARD}")
        tensor = _value(plan, _INPUTS, _TENSOR)
        sizes, buffers = tensor.numbers(_SIZES, "i"), plan.numbers(_BUFFERS, "q")
        if not sizes or sizes[0] < 1 or any(size < 0 for size in buffers):
            raise ValueError("its input has no batch axis, or a size is below 0")
        planned = sum(buffers)
        require_within(planned, _MOST_PLANNED, f"{planned:,} bytes of planned memory")
        return Forward(tuple(_parts(plan)), sizes[0], tensor.number(_DYNAMISM, "b") == _STATIC, planned)


@contextlib.contextmanager
def _program(path: Path) -> Iterator[Table]:
    """Open the flatbuffer; raise ValueError if the file is shorter than its header says."""
    with mapped(path) as content:
        if content[8:12] != b"eh00":
            raise ValueError("it has no header that says how long it is")
        length, base = (number_at(content, position, "Q") for position in (16, 24))
        segments = number_at(content, 32, "Q") if number_at(content, 12, "I") >= _WITH_SEGMENTS else 0
        if max(length, base + segments) > len(content):
            raise ValueError("the file ends before its header says")
        yield Table.root(content[:length])


def _plan(program: Table, name: str) -> Table | None:
    return next((plan for plan in program.tables(_PLANS) if plan.is_text(_NAME, name)), None)


def _value(plan: Table, field: int, kind: int) -> Table:
    """Return the first input or output of a method, which must be a value of this kind."""
    places = plan.numbers(field, "i")
    number = places[0] if places else -1
    entry = next(itertools.islice(plan.tables(_VALUES), number, None), None) if number >= 0 else None
    value = entry.table(1) if entry is not None and entry.number(0, "B") == kind else None
    if value is None:
        raise ValueError("a method takes or returns an unexpected type")
    return value


def _parts(plan: Table) -> Iterator[str]:
    kernels = [_kernel(entry.name(0), entry.name(1)) for entry in plan.tables(_OPERATORS)]
    backends = [delegate.name(0) for delegate in plan.tables(_DELEGATES)]
    steps = (instruction for chain in plan.tables(_CHAINS) for instruction in chain.tables(2))
    for count, instruction in enumerate(steps, 1):
        require_within(count, _MOST_STEPS, f"more than {_MOST_STEPS:,} steps")
        kind, called = instruction.number(0, "B"), instruction.table(1)
        names = {_KERNEL: kernels, _DELEGATE: backends}.get(kind)
        if names is None or called is None:  # moves a value, or jumps
            continue
        number = called.number(0, "i")
        if not 0 <= number < len(names):
            raise ValueError("it calls an operator that it does not name")
        yield names[number]


def _kernel(name: str, overload: str) -> str:
    return sys.intern(f"{name}.{overload}" if overload else name)


FORMAT = ExecuTorchFormat()
