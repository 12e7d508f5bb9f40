"""The contenders that memory can hold beside each other: each has a process, and all are open at once."""

from __future__ import annotations

from collections.abc import Sequence

from cnndeploy.tuning.contenders import Contender
from cnndeploy.tuning.report import Row

# What a process takes: AlexNet's 24, of files of 187 MB and less, took 8 GB together, LeNet's 24 took 1.8 GB.
_FILES_A_PROCESS, _PROCESS_BYTES = 2, 80_000_000
_SHARE = 0.8  # of the memory that is available


def fitting(contenders: Sequence[Contender], available: int | None) -> tuple[list[Contender], list[Row]]:
    """Leave out contenders if all together would take more than the ``available`` bytes of memory.

    Those whose threads do not spin go first, then those on fewer threads. No others are left out, and never the first,
    which all are timed against. Return those that stay, and a row for each other.
    """
    stay, rows = [*contenders], list[Row]()
    if available is None:
        return stay, rows
    most = max(one.candidate.run.thread_count for one in contenders)
    spare = [
        *(one for one in contenders[1:] if not one.candidate.run.choices.spinning),
        *(one for one in contenders[1:] if one.candidate.run.thread_count < most),
    ]
    for one in dict.fromkeys(spare):
        if sum(map(_bytes, stay)) <= _SHARE * available:
            break
        stay.remove(one)
        rows.append(
            one.row("not tried", "memory does not hold a process for each candidate; free some of it")
        )
    return stay, rows


def _bytes(contender: Contender) -> int:
    return _PROCESS_BYTES + _FILES_A_PROCESS * contender.candidate.artifact.path.stat().st_size
