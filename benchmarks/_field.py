"""One network of the field, imported, exported, verified and timed in this process, for benchmarks/models.py."""

from __future__ import annotations

import re
import resource
import sys
import tempfile
import time
import timeit
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from cnndeploy import sources
from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.bench import bench
from cnndeploy.benchmark.report import BUSY_CPUS
from cnndeploy.deployment import resolve
from cnndeploy.exporters import export
from cnndeploy.files import write_file
from cnndeploy.importing import trials
from cnndeploy.importing.families import known_of
from cnndeploy.importing.import_model import import_model
from cnndeploy.machine import busy_cpus, end_with_parent
from cnndeploy.run import Run
from cnndeploy.serial import dumps
from cnndeploy.verification import checks
from cnndeploy.verification.reference import Computation, NotRun, Reference, Runner
from cnndeploy.verification.verify import verify

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from strangers import as_trained, with_a_head

# What each runtime opens; compiled takes the checkpoint itself.
FORMATS = {"onnxruntime": "onnx", "openvino": "onnx", "torchscript": "torchscript", "compiled": "checkpoint"}
# Images for networks of up to so many billions of multiply-adds: the batches of 1, 2, 3, 7 and 64, then fewer of them.
# From 64 images on verification runs 444 more, to see that none depends on its batch; below that at most 60.
_IMAGES = ((0.3, 77), (4.0, 13), (float("inf"), 6))
_SEEN = 6  # whose statistics normalisation has
_COMPILED_IMAGES = 6  # alone, because each size of a batch would be compiled
_SLOW_CALL_S, _BENCH_S, _THREADS = 1.0, 1.5, 2


@dataclass
class Notes:
    """What is known of a network so far, in a file, so that it outlives this process."""

    path: Path
    values: dict[str, Any] = field(default_factory=lambda: {"runs": {}, "bytes": {}})

    def stage(self, text: str) -> None:
        """Note what is done now, which is to blame if the process ends; nothing if it is done."""
        self.values["stage"] = text
        write_file(self.path, dumps(self.values).encode())


def measure(
    name: str, runtimes: tuple[str, ...], speed: bool, images: int | None, memory_bytes: int, path: Path
) -> None:
    """Measure a network and note everything in ``path``.

    Args:
        name: A source, as ``import`` takes it.
        runtimes: Those to verify.
        speed: Compare the speed of ONNX Runtime with eager PyTorch.
        images: How many to verify on; None for fewer, the larger the network is.
        memory_bytes: The most that this process, and each that it starts, may hold.
        path: Notes are written here after each step.
    """
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    warnings.simplefilter("ignore")
    notes = Notes(path)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            notes.stage("import")
            subject = _Subject(name, Path(scratch), notes)
        except Exception as error:  # noqa: BLE001 - whatever it is becomes the network's row
            notes.values["failure"] = told(error)
        else:
            if runtimes:
                subject.verify(runtimes, images)
            if speed:
                notes.stage("speed")
                notes.values["speed"] = subject.speed()
        notes.stage("")


def told(error: BaseException) -> str:
    """Return an error in one line; one of Python's own with its kind."""
    kind = "" if type(error).__module__.startswith("cnndeploy") else f"{type(error).__name__}: "
    return worded(f"{kind}{error}")


def worded(reason: str) -> str:
    """Return a reason in one line, without folders of this machine, and say so if it is the limit of memory."""
    text = " ".join(re.sub(r"[^\s'(]*/(site-packages|tmp\w+)/", "", reason).split())
    if re.search(r"allocate|bad_alloc|MemoryError", text):
        most, _ = resource.getrlimit(resource.RLIMIT_DATA)
        text = f"it needs more memory than the {most / 1e9:.0f} GB that a process may hold: {text}"
    return text


class _Subject:
    """A network as a checkpoint in ``folder``, and the files that are made of it when they are needed."""

    def __init__(self, name: str, folder: Path, notes: Notes) -> None:
        self._folder, self._notes = folder, notes
        self._files: dict[str, Artifact] = {}
        known = known_of(name)
        assert known.preprocessing is not None  # noqa: S101 - the names say weights
        assert known.labels is not None  # noqa: S101 - the same
        seen = [torch.from_numpy(known.preprocessing(one[None])) for one in pictures(_SEEN)]
        seen.append(trials.sample(known.preprocessing, 2))  # on which import tries it out
        torch.manual_seed(0)
        recorded, source = sources.resolved(known.name, known.arguments, len(known.labels))
        network = with_a_head(as_trained(sources.build(recorded, source).eval(), seen=torch.cat(seen)))
        example = trials.sample(known.preprocessing, 1)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(example)
        self._multiply_adds = counter.get_total_flops() / 2
        with torch.inference_mode():
            self._call_s = min(timeit.repeat(partial(network, example), number=1, repeat=2))
        weights = folder / "weights.pth"
        torch.save(network.state_dict(), weights)
        del network
        # the exports below show the same
        with mock.patch.object(trials, "check_export"):
            made = import_model(name, folder / "m.pt", weights=weights)
        weights.unlink()
        self._files["checkpoint"] = made.artifact
        notes.values |= {
            "parameters": made.parameters,
            "multiply_adds": self._multiply_adds,
            "input": list(example.shape[1:]),
        }
        notes.values["bytes"]["checkpoint"] = made.artifact.path.stat().st_size

    def file(self, kind: str) -> Artifact:
        """Return the file of a format, exported as ``cnndeploy export`` does by default."""
        if kind not in self._files:
            self._files[kind] = export(self._files["checkpoint"].path, kind)
            self._notes.values["bytes"][kind] = self._files[kind].path.stat().st_size
        return self._files[kind]

    def verify(self, runtimes: tuple[str, ...], images: int | None) -> None:
        """Verify the network on each runtime, against the same run of its checkpoint."""
        count = images or next(few for most, few in _IMAGES if self._multiply_adds <= most * 1e9)
        photos = self._folder / "photos"
        photos.mkdir()
        for number, pixels in enumerate(pictures(count)):
            Image.fromarray(pixels).save(photos / f"{number:03}.png")
        with Reference(self._files["checkpoint"], data=photos) as reference:
            for runtime in runtimes:
                self._notes.stage(runtime)
                try:
                    of = _compiled if runtime == "compiled" else _verified
                    run = of(self.file(FORMATS[runtime]), reference, runtime, count)
                except Exception as error:  # noqa: BLE001 - whatever it is becomes the network's row
                    run = {"verdict": "failed", "reasons": [told(error)]}
                self._notes.values["runs"][runtime] = run
            logits = reference.logits(range(count))
            typical = checks.typical_logit(logits)
            self._notes.values["spread"] = float(np.ptp(logits, axis=0).max()) / typical

    def speed(self) -> dict[str, Any]:
        """Return how many times as fast as eager PyTorch the ONNX file is, both at batch 1, side by side."""
        if self._call_s > _SLOW_CALL_S:
            is_busy = (busy_cpus(0.5) or 0.0) > BUSY_CPUS  # then it may have been slow for that
            return {"skipped": f"one call of eager PyTorch takes {self._call_s:.1f} s", "busy": is_busy}
        try:
            report = bench(
                [self._files["checkpoint"], self.file("onnx")],
                runtimes=["eager", "onnxruntime"],
                threads=[_THREADS],
                seconds=_BENCH_S,
                cold_starts=0,
                timeout_s=60,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is becomes the network's row
            return {"skipped": told(error)}
        eager, row = report.results
        if failure := eager.failure or row.failure:
            return {"skipped": worded(failure)}
        return {
            "eager_s": eager.p50_s,
            "onnxruntime_s": row.p50_s,
            "ratio": row.ratio,
            "ratio_low": row.ratio_low,
            "ratio_high": row.ratio_high,
            "verdict": row.verdict,
            "busy": report.was_busy,
            "environment": report.environment,
        }


def _verified(artifact: Artifact, reference: Reference, runtime: str, images: int) -> dict[str, Any]:
    report = verify(artifact, reference, run=Run(runtime), images=images)
    oracle = report.oracle
    facts: Mapping[str, Any] = {} if oracle is None else _facts(oracle)
    return {
        "verdict": report.verdict,
        "reasons": list(map(worded, report.reasons)),
        "max_rel_error": report.max_rel_error,
        "tolerance": report.tolerance.relative,
        "batch_sizes": report.batch_sizes,
        "top1_agreement": report.top1_agreement,
        **facts,
    }


def _compiled(checkpoint: Artifact, reference: Reference, runtime: str, images: int) -> dict[str, Any]:
    """Compare torch.compile's error from float64 with eager's; no more, because every size of a batch is compiled."""
    places = range(min(images, _COMPILED_IMAGES))
    candidate = resolve(checkpoint, Run(runtime, "cpu"))
    started = time.perf_counter()
    try:
        with Runner(candidate, reference.dataset.spec, reference.numbers) as runner:
            rows = list(runner.opened().logits([[place] for place in places]))
    except NotRun as error:
        return {"verdict": "failed", "reasons": [worded(str(error))]}
    seconds = time.perf_counter() - started
    exact = reference.logits(places, Computation("float64"))
    logits = np.concatenate(rows)
    oracle = checks.check_against_oracle(logits, reference.logits(places), exact, 0)
    reasons = oracle.reasons()
    verdict = "not equivalent" if reasons else "equivalent"
    return {"verdict": verdict, "reasons": reasons, "seconds": seconds, **_facts(oracle)}


def _facts(oracle: checks.OracleCheck) -> dict[str, Any]:
    return {
        "images": oracle.images,
        "artifact_error": oracle.artifact_max,
        "eager_error": oracle.eager_max,
        "ratio": oracle.ratio,
    }


def pictures(count: int) -> Iterator[NDArray[np.uint8]]:
    """Yield RGB images of many sizes: blots of colour with more or less noise, and each eighth noise alone."""
    draw = np.random.default_rng(0)
    for number in range(count):
        width, height = draw.integers(150, 400, 2).tolist()
        blots = Image.fromarray(draw.integers(256, size=(5, 6, 3), dtype=np.uint8))
        pixels = np.asarray(blots.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        if number % 8 == 7:
            pixels = draw.uniform(0, 255, pixels.shape)
        pixels = pixels + draw.normal(0, draw.uniform(0, 30), pixels.shape)
        yield pixels.clip(0, 255).astype(np.uint8)
