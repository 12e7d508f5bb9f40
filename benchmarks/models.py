"""A table of the field, docs/MODELS.md: every classifier of torchvision and twenty of timm, to a verified file.

Each network is imported with seeded weights, exported as `cnndeploy export` does by default, and verified on each
runtime, in a process of its own. What was measured is kept in benchmarks/results/models.json after each network: an
interrupted run goes on, and what is there for the same versions is not measured again. Errors may be measured on a
busy machine, speeds not, so these have a run of their own.

    .venv/bin/python benchmarks/models.py                       # a night on two cores
    .venv/bin/python benchmarks/models.py --only 'resnet18|vit_tiny' --runtime compiled
    .venv/bin/python benchmarks/models.py --timings-only        # an hour, on a machine that does nothing else
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _field import FORMATS, measure
from _field_page import page
from torchvision import models

from cnndeploy.files import write_file
from cnndeploy.machine import environment
from cnndeploy.serial import dumps

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "models.json"
USUAL = ("onnxruntime", "openvino")
PAGE = REPOSITORY / "docs" / "MODELS.md"

# Of timm: chosen for what no network of torchvision has, and small.
TIMM = {
    "vit_tiny_patch16_224": "attention",
    "deit_tiny_distilled_patch16_224": "attention, two heads averaged",
    "xcit_nano_12_p16_224": "attention across channels",
    "levit_128s": "attention with batch normalisation, hard swish",
    "edgenext_xx_small": "hybrid, attention across channels",
    "mobilevit_xxs": "hybrid, patches unfolded",
    "coatnet_nano_rw_224": "hybrid, relative positions",
    "halonet26t": "hybrid, local attention with halos",
    "poolformer_s12": "pooling in the place of attention, group norm",
    "mixer_s32_224": "MLP-mixer",
    "convnextv2_atto": "large kernels, global response norm",
    "inception_next_atto": "large kernels in strips",
    "repvgg_a0": "re-parametrised, in its training form",
    "mobileone_s0": "re-parametrised, in its training form",
    "resnetv2_50x1_bit": "group norm, standardised weights",
    "nf_regnet_b1": "free of normalisation, squeeze-excite",
    "resnest14d": "split attention",
    "skresnet18": "selective kernels",
    "hrnet_w18_small": "several resolutions",
    "ghostnet_100": "ghost features, squeeze-excite",
}
# Imported once, and not by each network's process; that is a quarter of the time of a small network.
_PRELOADED = ["cnndeploy.importing.import_model", "torchvision", "timm", "torch.onnx", "torch._dynamo"]
_TIMM_SIZE = 2.0  # billions of multiply-adds, more or less, for the order


def names() -> dict[str, str]:
    """Return each network as a source, and what it is known by; the smallest first."""
    sizes = {f"timm:{model}": _TIMM_SIZE for model in TIMM}
    for model in models.list_models(module=models):
        # of several sizes of images that there are weights for, the smallest
        weights = min(models.get_model_weights(model), key=lambda one: one.meta["_ops"])
        sizes[f"torchvision:{model}@{weights.name}"] = weights.meta["_ops"]
    return {name: TIMM.get(name.partition(":")[2], "") for name in sorted(sizes, key=lambda one: sizes[one])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A table of the field, docs/MODELS.md: networks of torchvision and timm."
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="networks with this in their name")
    default = " and ".join(USUAL)
    parser.add_argument("--runtime", action="append", choices=list(FORMATS), help=f"(default: {default})")
    parser.add_argument("--images", type=int, help="for each (default: 77, 13 or 6, by the network's size)")
    again = "measure anew what is there"
    parser.add_argument("--again", action="store_true", help=again)
    parser.add_argument("--resume", dest="again", action="store_false", help=f"do not {again} (the default)")
    parser.add_argument("--timings-only", action="store_true", help="speeds, of networks with a result")
    parser.add_argument("--minutes", type=float, default=15.0, help="for each network (default: 15)")
    parser.add_argument("--memory", type=float, help="GB for each process (default: 3/4 of the machine's)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what it started ends with it
    machine = environment()
    memory = int(arguments.memory * 1e9) if arguments.memory else int((machine["memory_bytes"] or 8e9) * 0.75)
    wanted = tuple(arguments.runtime or USUAL)
    known = names()
    chosen = [name for name in known if re.search(arguments.only, name)]
    # of what computes here: no GPU is used, and its libraries may or may not be installed beside
    versions = {name: one for name, one in machine["versions"].items() if not name.startswith("nvidia")}
    versions = {name: one for name, one in versions.items() if name != "triton"}
    versions |= {"timm": metadata.version("timm")}
    for number, name in enumerate(chosen, 1):
        task = _task(_read().get(name), wanted, versions, arguments)
        if isinstance(task, str):
            print(f"{number:3} of {len(chosen)}  {name}: {task}", flush=True)
            continue
        print(f"{number:3} of {len(chosen)}  {name}: {', '.join(task[0]) or 'speed'}", end=" ", flush=True)
        started = time.monotonic()
        new = _measured((name, *task, arguments.images, memory), arguments.minutes)
        results = _read()  # again, because another run may have added to it
        results[name] = _merged(results.get(name, {}), new, machine, versions)
        write_file(RESULTS, dumps(results).encode())
        _render(results, known)
        print(f"{time.monotonic() - started:.0f} s, {_told(new)}", flush=True)
    _render(_read(), known)


def _read() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def _task(
    old: dict[str, Any] | None, wanted: tuple[str, ...], versions: dict[str, str], asked: argparse.Namespace
) -> tuple[tuple[str, ...], bool] | str:
    """Return the runtimes to verify, and whether to time; or why there is nothing to do."""
    current = old if old is not None and old["versions"] == versions else None
    if asked.timings_only:
        if current is None:
            return "no result with these versions; measure its errors first"
        if current.get("failure"):
            return "it was not imported"
        speed = current.get("speed")
        is_known = speed is not None and not speed.get("busy") and not asked.again
        return "is there" if is_known else ((), True)
    if current is None or asked.again:
        return wanted, False
    missing = tuple(runtime for runtime in wanted if runtime not in current["runs"])
    return (missing, False) if missing and not current.get("failure") else "is there"


def _merged(
    old: dict[str, Any], new: dict[str, Any], machine: dict[str, Any], versions: dict[str, str]
) -> dict[str, Any]:
    """Return the result of a network with what was measured now in the place of what was measured before."""
    date = datetime.now(UTC).date().isoformat()
    kept = {} if old.get("versions") != versions else {key: old[key] for key in old if key != "failure"}
    parts = {key: kept.get(key, {}) | new.get(key, {}) for key in ("runs", "bytes")}
    if "speed" in new:
        return kept | new | parts | {"speed": {**new["speed"], "date": date}}
    facts = {"cpu": machine["cpu"], "usable_cpus": machine["usable_cpus"], "versions": versions, "date": date}
    return kept | new | parts | facts


def _measured(task: tuple[Any, ...], minutes: float) -> dict[str, Any]:
    """Return what a process of its own notes of a network; if it is ended, what it was at has that for a reason."""
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "notes.json")
        process = context.Process(target=measure, args=(*task, path))
        process.start()
        try:
            process.join(60 * minutes)
            is_late = process.is_alive()
        finally:
            process.kill()  # its own processes end with it
            process.join()
        notes: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"stage": "import"}
    if not (stage := notes.pop("stage")):
        return notes
    reason = f"no result within {minutes:g} minutes" if is_late else _ended(process.exitcode or 0)
    if stage == "import":
        notes["failure"] = reason
    elif stage == "speed":
        notes["speed"] = {"skipped": reason}
    else:
        notes["runs"][stage] = {"verdict": "failed", "reasons": [reason]}
    return notes


def _ended(status: int) -> str:
    if status == -signal.SIGKILL:
        return "its process was killed; out of memory?"
    with contextlib.suppress(ValueError):
        return f"its process ended by {signal.Signals(-status).name}"
    return f"its process ended with status {status}"


def _told(new: dict[str, Any]) -> str:
    """Return a line on what came out."""

    def parts() -> Iterator[str]:
        if failure := new.get("failure"):
            yield f"not imported: {failure}"
        for runtime, run in new.get("runs", {}).items():
            figure = f" {run['ratio']:.2f} times eager's error" if run.get("ratio") else ""
            yield f"{runtime} {run['verdict']}{figure}{''.join(f': {one}' for one in run['reasons'][:1]):.160}"
        if speed := new.get("speed"):
            yield speed.get("skipped") or f"{speed['ratio']:.2f} times as fast{', busy' * speed['busy']}"

    return "; ".join(parts())


def _render(results: dict[str, Any], known: dict[str, str]) -> None:
    """Put the results into the page, between its two marks."""
    before, mark, rest = PAGE.read_text().partition("<!-- results -->\n")
    _, end, after = rest.partition("<!-- end of results -->")
    if not mark or not end:
        raise SystemExit(f"{PAGE} has no marks for the results")
    write_file(PAGE, f"{before}{mark}\n{page(results, known)}\n{end}{after}".encode())


if __name__ == "__main__":
    main()
