"""The table that benchmarks/models.py writes: what failed has a row, and what was not measured is named."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

_PAGE = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "_field_page.py"))["page"]
_MEASURED_ON = {"cpu": "a CPU", "usable_cpus": 2, "versions": {"torch": "9"}, "date": "2026-01-02"}
_FACTS = {"input": [3, 8, 8], "parameters": 1_500_000, "multiply_adds": 2e9, "spread": 0.5, **_MEASURED_ON}
_MACHINE = {"cpu": "another CPU", "usable_cpus": 2, "gpus": [], "system": "Linux", "versions": {"torch": "9"}}
_SPEED = {
    "ratio": 3.2,
    "ratio_low": 3.1,
    "ratio_high": 3.3,
    "eager_s": 0.01,
    "environment": _MACHINE,
    "date": "2026-01-03",
}


def _run(verdict: str, ratio: float | None, *reasons: str) -> dict[str, Any]:
    errors = {} if ratio is None else {"ratio": ratio, "eager_error": 1e-6, "artifact_error": ratio * 1e-6}
    return {"verdict": verdict, "reasons": list(reasons), **errors}


def _page(**results: dict[str, Any]) -> str:
    known = {f"torchvision:{name}@V1": "" for name in (*results, "later")}
    page: str = _PAGE(
        {f"torchvision:{name}@V1": {"bytes": {}, **one} for name, one in results.items()}, known
    )
    return page


def _row(page: str, name: str) -> str:
    return next(line for line in page.splitlines() if line.startswith(f"| {name} |"))


def test_every_network_has_a_row_or_is_listed() -> None:
    page = _page(
        good={"runs": {"onnxruntime": _run("equivalent", 0.9)}, **_FACTS},
        bad={"runs": {"onnxruntime": _run("not equivalent", 7.5, "it is | wrong")}, **_FACTS},
        crashed={"runs": {"onnxruntime": _run("failed", None, "it ended by SIGSEGV")}, **_FACTS},
        odd={"runs": {}, "failure": "no logits", **_MEASURED_ON},
    )
    assert "| ONNX Runtime | 3 | 1 | 4.20 | 7.50 |" in page
    assert "equivalent | 1.0e-06 | 0.90 |" in _row(page, "good")
    assert r"**ONNX Runtime not equivalent**: it is \| wrong | 1.0e-06 | 7.50 |" in _row(page, "bad")
    assert "**ONNX Runtime failed**: it ended by SIGSEGV |  | none |" in _row(page, "crashed")
    assert "not imported: no logits" in _row(page, "odd")
    assert "## Far from float64" in page
    assert "| bad | ONNX Runtime | not equivalent | 1.0e-06 | 7.5e-06 | 7.50 |" in page
    assert page.endswith("## Not yet measured\n\nlater.\n")


def test_a_speed_of_a_busy_machine_is_not_shown() -> None:
    page = _page(
        idle={"runs": {}, "speed": {**_SPEED, "busy": False}, **_FACTS},
        busy={"runs": {}, "speed": {**_SPEED, "busy": True}, **_FACTS},
        slow={"runs": {}, "speed": {"skipped": "one call takes 2 s"}, **_FACTS},
    )
    assert "Errors: a CPU, 2 usable CPUs; torch 9; 2026-01-02." in page
    assert "Speeds: another CPU, 2 usable CPUs, no GPU; Linux; torch 9; 2026-01-03." in page
    assert _row(page, "idle").endswith("| 10.0 ms | 3.20 (3.10 to 3.30) |")
    assert _row(page, "busy").endswith("|  | the machine was busy |")
    assert _row(page, "slow").endswith("|  | one call takes 2 s |")
