"""A function over many items in several threads, with few results in memory at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from cnndeploy.machine import usable_cpus

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """Yield the function's result for each item, in order, computed by as many threads as there are CPUs.

    No more than twice as many results as threads wait to be taken. Decoding an image frees Python's lock.
    """
    threads = min(usable_cpus(), len(items))
    if threads <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        rest, waiting = iter(items), deque[Future[_Result]]()
        try:
            waiting.extend(pool.submit(function, item) for item in islice(rest, 2 * threads))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
