"""Pickles inside torch's archives, checked before torch sees them, and run by nothing.

libtorch believes what a pickle says of a storage's size, and reads beyond the end of a shorter one.

Source: torch/csrc/jit/serialization/unpickler.cpp for the opcodes; torch/_utils.py for what rebuilds a tensor.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from cnndeploy.limits import require_within

# Those that torch writes, at protocol 2, and no others that libtorch reads.
_OPCODES = frozenset(
    {
        *(
            "PROTO",
            "MARK",
            "STOP",
            "POP",
            "NONE",
            "NEWTRUE",
            "NEWFALSE",
            "BININT",
            "BININT1",
            "BININT2",
            "LONG1",
        ),
        *("BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
        *("BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"),
        *("GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID"),
    }
)
_PUTS = ("BINPUT", "LONG_BINPUT")
_ITEM_BYTES = {
    **dict.fromkeys(("Untyped", "Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
# Of a tensor whose elements share memory, as those that were expanded; a copy of it has them all.
_MOST_SHARED = 2**24
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor")


def check_pickle(pickled: bytes, folder: str, sizes: Mapping[str, int]) -> None:
    """Raise an error unless a pickle is one that torch may load.

    Its storages must be members of ``folder``, each as long as it says, and its tensors must lie within them. ``sizes``
    are those of all members, in bytes.
    """
    for instructions, (code, argument, _) in enumerate(pickletools.genops(pickled), 1):
        if code.name not in _OPCODES:
            raise ValueError(f"its pickle has the instruction {code.name}, which torch does not write")
        if code.name in _PUTS and argument is not None and argument > instructions:
            raise ValueError(f"its pickle remembers a value as number {argument:,}, of {instructions:,}")
    _Checker(pickled, folder, sizes).load()


class _Anything:
    """An object that stands for one of a class of torch or of the network; it takes everything and does nothing."""

    def __new__(cls, *_: object) -> _Anything:
        return object.__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Take any state."""


class _Storage:
    """A storage of so many items."""

    def __init__(self, items: int) -> None:
        self.items = items


class _Checker(pickle.Unpickler):
    """Unpickler that finds no class but the names of storages, and nothing that could run."""

    def __init__(self, pickled: bytes, folder: str, sizes: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._folder, self._sizes = folder, sizes

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for the class or function of this name."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in _REBUILD:
            return _check_tensor
        if name.endswith("Storage") and module in ("torch", "torch.storage"):
            return name.removesuffix("Storage")
        return _Anything

    def persistent_load(self, pid: Any) -> _Storage:
        """Check a storage, which is named by ('storage', type, key, device, items)."""
        word, kind, key, _, items = pid
        if word != "storage" or type(key) is not str or type(items) is not int or items < 0:
            raise ValueError(f"{pid!r:.80} is no storage")
        member = f"{self._folder}/{key}"
        expected, got = items * _ITEM_BYTES[kind], self._sizes.get(member)
        if got != expected:
            raise ValueError(f"{member} in it should have {expected:,} bytes, and has {got or 0:,}")
        return _Storage(items)


def _check_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: object) -> _Anything:
    """Raise ValueError unless a tensor lies within its storage."""
    numbers = [offset, *shape, *strides]
    if not isinstance(storage, _Storage) or not all(type(one) is int and one >= 0 for one in numbers):
        raise ValueError("the shape of a tensor in it makes no sense")
    steps = ((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if all(shape) and offset + sum(steps) >= storage.items:
        raise ValueError(f"a tensor of the shape {tuple(shape)} in it is larger than its storage")
    if (count := math.prod(shape)) > storage.items:
        require_within(count, _MOST_SHARED, f"a tensor of {count:,} elements that share {storage.items:,}")
    return _Anything()
