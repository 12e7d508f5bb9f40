"""A corpus of hostile files: drawn by number from benchmarks/hostile.py, so that none is stored.

Each was the first, of thousands, that came to an end of its own: another message, or the most memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 15, 16, 17, 18, 21, 23, 25, 27, 28, 30, 32, 33, 35),
    *(36, 37, 38, 40, 42, 43, 44, 45, 46, 49, 52, 56, 57, 59, 60, 63, 69, 70, 71, 77, 78, 80),
    *(81, 84, 86, 96, 102, 104, 107, 115, 117, 118, 125, 132, 135, 136, 141, 146, 156, 158, 164),
    *(172, 173, 175, 179, 189, 199, 200, 201, 205, 222, 224, 240, 247, 249, 255, 260, 262, 273),
    *(275, 288, 294, 295, 311, 312, 314, 319, 320, 323, 333, 337, 341, 354, 355, 358, 364, 388),
    *(389, 390, 403, 410, 412, 416, 434, 440, 448, 479, 489, 493, 522, 523, 527, 562, 596, 605),
    *(614, 651, 658, 672, 686, 738, 760, 769, 785, 805, 823, 831, 848, 850, 851, 856, 873, 896),
    *(925, 965, 992, 995, 1023, 1024, 1025, 1035, 1079, 1190, 1192, 1223, 1296, 1307, 1362),
    *(1365, 1374, 1481, 1502, 1504, 1526, 1636, 1662, 1769, 1772, 1827, 1835, 1863, 1949, 2007),
    *(2027, 2031, 2080, 2097, 2159, 2166, 2185, 2205, 2246, 2469, 2582, 2609, 2615, 2633, 2660),
    *(2730, 2813, 2826, 3000, 3016, 3025, 3048, 3084, 3177, 3197, 3199, 3323, 3352, 3892, 3947),
    *(3952, 4038, 4223, 4323, 4344, 4394, 4442, 4673, 4695, 4908, 5120, 5140, 5221, 5260, 5324),
    *(5391, 5705, 5863, 5933),
)


def test_each_runs_or_raises_a_named_error(hostile: Any, tmp_path: Path) -> None:
    sound, scratch = tmp_path / "sound", tmp_path / "scratch"
    sound.mkdir()
    scratch.mkdir()
    files = hostile.write_files(sound)
    contents = [file.read_bytes() for file in files]
    ends = dict[int, tuple[str, str]]()
    with hostile.started(files) as worker:
        for number in _NUMBERS:
            which, content = hostile.drawn(contents, f"corpus {number}")
            path = scratch / files[which].name
            path.write_bytes(content)
            end, said, _ = hostile.ask(worker, path, sound)
            ends[number] = end, f"{path.name}: {said}"
            if end in ("crash", "hang"):
                break
        worker.kill()
    bad = {number: end for number, end in ends.items() if end[0] not in ("ran", "named error")}
    assert not bad
    assert {end for end, _ in ends.values()} == {"ran", "named error"}
