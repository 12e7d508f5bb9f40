"""The part of docs/MODELS.md that benchmarks/models.py writes: tables of what was measured, and of nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from cnndeploy.display.cells import duration, machine_line, pairs, size

Results = dict[str, dict[str, Any]]
RUNTIMES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torchscript": "TorchScript",
    "compiled": "torch.compile",
}
_FAR = 2.0  # times eager's own error
_WORDS = 160  # characters of a reason in a table


def page(results: Results, known: dict[str, str]) -> str:
    """Return Markdown on the networks of ``known`` that have a result; it lists the others."""
    there = {name: results[name] for name in known if name in results}
    parts = [_summary(there), _measured_on(there)]
    for library in ("torchvision", "timm"):
        rows = {name: one for name, one in there.items() if name.startswith(library)}
        parts.append(f"## {library}\n\n{_table(rows, known)}" if rows else "")
    parts.append(f"## Far from float64\n\n{_far(there)}")
    if missing := [_short(name) for name in known if name not in there]:
        parts.append(f"## Not yet measured\n\n{', '.join(missing)}.")
    return "\n\n".join(filter(None, parts)) + "\n"


def _short(name: str) -> str:
    return name.partition(":")[2].partition("@")[0]


def _runs(there: Results, runtime: str) -> dict[str, dict[str, Any]]:
    return {name: one["runs"][runtime] for name, one in there.items() if runtime in one["runs"]}


def _summary(there: Results) -> str:
    lines = ["| runtime | networks | equivalent | error, times eager's own: median | largest |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for runtime, title in RUNTIMES.items():
        if not (runs := _runs(there, runtime)):
            continue
        passed = sum(run["verdict"] == "equivalent" for run in runs.values())
        ratios = [run["ratio"] for run in runs.values() if run.get("ratio") is not None]
        figures = f"{statistics.median(ratios):.2f} | {max(ratios):.2f}" if ratios else "|"
        lines.append(f"| {title} | {len(runs)} | {passed} | {figures} |")
    return "\n".join(lines)


def _measured_on(there: Results) -> str:
    """Say on what, with what and when; more than once if results differ in that."""
    groups: dict[str, set[str]] = {}
    for one in there.values():
        line = f"Errors: {one['cpu']}, {one['usable_cpus']} usable CPUs; {pairs(one['versions'])}"
        groups.setdefault(line, set()).add(one["date"])
    for one in there.values():
        if (speed := one.get("speed", {})).get("ratio") and not speed["busy"]:
            groups.setdefault(f"Speeds: {machine_line(speed['environment'])}", set()).add(speed["date"])
    spreads = [one["spread"] for one in there.values() if one.get("spread")]
    lines = [f"{line}; {' and '.join(sorted({min(dates), max(dates)}))}." for line, dates in groups.items()]
    if spreads:
        lines.append(
            f"A logit varies from image to image by {min(spreads):.2g} to {max(spreads):.2g} times the scale of the "
            "errors, depending on the network, so equal logits are no accident."
        )
    return "\n\n".join(lines)


def _table(rows: Results, known: dict[str, str]) -> str:
    shown = [runtime for runtime in RUNTIMES if _runs(rows, runtime)]
    titles = [
        "network",
        "input",
        "parameters",
        "multiply-adds",
        "`.pt`",
        "`.onnx`",
        "verdict",
        "eager's error",
    ]
    titles += [RUNTIMES[runtime] for runtime in shown]
    titles += ["eager, a call", "ONNX Runtime, times as fast"]
    lines = [f"| {' | '.join(titles)} |"]
    lines.append(f"| --- | --- | ---: | ---: | ---: | ---: | --- | {'---: | ' * (len(shown) + 3)}".rstrip())
    for name, one in rows.items():
        title = f"{_short(name)}{', ' * bool(known[name])}{known[name]}"
        lines.append(f"| {title} | {' | '.join(_cells(one, shown))} |")
    return "\n".join(lines)


def _cells(one: dict[str, Any], shown: list[str]) -> Iterator[str]:
    if "input" not in one:
        yield from [""] * 5
    else:
        yield " x ".join(map(str, one["input"]))
        yield f"{one['parameters'] / 1e6:.1f} M"
        yield f"{one['multiply_adds'] / 1e9:.2f} G"
        for kind in ("checkpoint", "onnx"):
            yield size(one["bytes"][kind]) if kind in one["bytes"] else ""
    yield _verdict(one)
    errors = [run["eager_error"] for run in one["runs"].values() if run.get("eager_error") is not None]
    yield f"{max(errors):.1e}" if errors else ""
    for runtime in shown:
        run = one["runs"].get(runtime)
        yield "" if run is None else "none" if run.get("ratio") is None else f"{run['ratio']:.2f}"
    yield from _speed(one.get("speed"))


def _verdict(one: dict[str, Any]) -> str:
    if failure := one.get("failure"):
        return f"not imported: {_plain(failure)}"
    wrong = [
        f"**{RUNTIMES[runtime]} {run['verdict']}**: {_plain(run['reasons'][0])}"
        for runtime, run in one["runs"].items()
        if run["verdict"] != "equivalent"
    ]
    return "; ".join(wrong) or "equivalent"


def _plain(reason: str) -> str:
    """Return a reason that a cell can hold."""
    words = reason.replace("|", "\\|").replace("<", "&lt;")
    return words if len(words) <= _WORDS else f"{words[:_WORDS]}..."


def _speed(speed: dict[str, Any] | None) -> tuple[str, str]:
    if speed is None:
        return "", ""
    if speed.get("busy"):
        return "", "the machine was busy"
    if skipped := speed.get("skipped"):
        return "", _plain(skipped)
    interval = f"{speed['ratio_low']:.2f} to {speed['ratio_high']:.2f}"
    return duration(speed["eager_s"]), f"{speed['ratio']:.2f} ({interval})"


def _far(there: Results) -> str:
    """List what errs more than twice as much as eager PyTorch, equivalent or not."""
    lines = [
        f"| {_short(name)} | {RUNTIMES[runtime]} | {run['verdict']} | {run['eager_error']:.1e} | "
        f"{run['artifact_error']:.1e} | {run['ratio']:.2f} |"
        for name, one in there.items()
        for runtime, run in one["runs"].items()
        if (run.get("ratio") or 0) > _FAR
    ]
    if not lines:
        return f"Nothing that was measured errs more than {_FAR:g} times as much as eager PyTorch."
    head = ["| network | runtime | verdict | eager's error | its error | ratio |"]
    head += ["| --- | --- | --- | ---: | ---: | ---: |"]
    return "\n".join([*head, *lines])
