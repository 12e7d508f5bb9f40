"""The work of a compression: which networks and files are made, timed and measured, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.report import Result
from cnndeploy.compression.failure import BEYOND, FAILED, NO_SETTING, nothing_made
from cnndeploy.compression.material import Material
from cnndeploy.compression.report import METHODS, Compressed, Method, Step, described, faster_of
from cnndeploy.compression.smaller import Searches, Smaller, repaired_checkpoint, write_smaller
from cnndeploy.compression.speed import speed_beside
from cnndeploy.devices import last_line
from cnndeploy.errors import (
    BudgetError,
    CnndeployError,
    DataError,
    ExportError,
    MissingDependencyError,
    OutOfTime,
    Stopped,
)
from cnndeploy.exporters import export
from cnndeploy.progress import Deadline, Progress
from cnndeploy.quantization.quantize import quantize
from cnndeploy.quantization.search import REPAIRED
from cnndeploy.run import Run
from cnndeploy.verification.budget import verify_budget
from cnndeploy.verification.reference import Reference
from cnndeploy.verification.report import BudgetReport
from cnndeploy.words import counted

_ATTEMPTS = 3  # smaller networks, at most, whose files test images measure: each, and its int8 file
# What is written, and what is timed: the same, or a checkpoint and its export.
Files = tuple[Artifact, Artifact]
# The share of the time after which repair ends, and the search for networks that need none; and of the time for repair,
# what the first may take of it. What must be left of it if a method is to be tried on what another made: repair gives
# more than a second method.
_FOR_REPAIR, _FOR_SEARCH, _FOR_FIRST, _FOR_SECOND = 0.75, 0.8, 0.6, 0.5
# What a network may be predicted to lose, as shares of the budget: before it is repaired, and if it needs no repair.
# Few images predict, and int8 loses some too. The first of two methods may take the share FIRST of that.
_BEFORE_REPAIR, _SAFE, _SAFER, _FIRST = (10.0, 3.0), 0.7, 0.3, 0.7
_FOR_INT8 = 0.25  # the share of the time by which int8 of the whole network may go beyond it, if there is nothing else
_BOLDER = 30.0  # once a network keeps the budget, one that may be predicted to lose so much is repaired too
_OVER = "the time was over before a network was found"


@dataclass(slots=True)
class Job:
    """The arguments of :func:`cnndeploy.compress`, checked, and what was found out; ``count`` test images measure."""

    source: Artifact
    reference: Reference
    target: Path
    folder: Path
    budget: float
    methods: tuple[Method, ...]
    run: Run
    count: int
    seconds: float
    deadline: Deadline
    max_minutes: float
    smaller_only: bool
    progress: Progress
    steps: dict[Method, Step] = field(default_factory=dict)
    failed: list[BudgetReport] = field(default_factory=list)
    searches: Searches = field(default_factory=Searches)
    tried: set[tuple[str, str]] = field(default_factory=set)  # what was done to a network, by its SHA-256
    slow: set[Method] = field(default_factory=set)  # methods that were not seen to make a network faster
    late: bool = False  # whether the time was over before a method was tried to its end
    trouble: str = ""  # why a repair failed
    beyond: tuple[Files, dict[Method, Step]] | None = None  # what int8 put beyond the budget, and its steps
    best: Compressed | None = None

    def made(self) -> Iterator[Compressed]:
        """Yield what was made, in a file in the folder, and whatever better is made later; raise if nothing is."""
        self.progress(0, 0, f"Exporting {self.source.path.name}")
        original = export(self.reference.artifact.path, "onnx", self.folder / "original.onnx")
        exported = original
        if not self._is_original(self.source):  # it was compressed before, and that is what becomes smaller
            exported = export(self.source.path, "onnx", self.folder / "source.onnx")
        whole: Files = self.source, exported
        try:
            yield from self._ever_better(whole, original)
        except Exception as error:  # a network's own errors too
            if self.best is None:
                raise
            if not isinstance(error, Stopped):
                yield self.best.with_note(f"a network that was cut further failed: {last_line(error)}")
        if self.best is None:
            if (made := self._otherwise(whole, original)) is None:
                self.deadline.check_stop()
                raise self._nothing()
            yield made

    def _ever_better(self, whole: Files, original: Artifact) -> Iterator[Compressed]:
        """Yield each smaller network that keeps the budget and is faster than the one before."""
        for small in itertools.islice(self._networks(whole, original), _ATTEMPTS):
            final, report, is_beyond = self._int8(small)
            if self.best is not None and final is None and self.deadline.is_over():
                return  # there is no time to measure it without int8
            if is_beyond:
                self.beyond = small, dict(self.steps)  # the next network notes its own
                continue
            best = faster_of(self.best, self._judged(final or small, report, original))
            if best is not None and best is not self.best:
                self.best = best
                yield best

    def _otherwise(self, whole: Files, original: Artifact) -> Compressed | None:
        """Return the faster of a network that int8 puts beyond the budget, without int8, and of int8 alone."""
        in_float = None
        if self.beyond is not None:
            small, self.steps = self.beyond
            in_float = self._judged(small, None, original)
        why = "no such file keeps the budget" if in_float is None else "int8 of the whole network is faster"
        for method, step in [*self.steps.items()]:
            if step.kept and method != "int8":
                self._leave_out(method, f"{step.reason}; {why}")
        if self.smaller_only:
            return in_float
        if in_float is None:  # int8 of the whole network is better than nothing, if that took all the time
            self.deadline = self.deadline.with_at_least(60 * _FOR_INT8 * self.max_minutes)
        try:
            final, report, _ = self._int8(whole)
        except Stopped:
            if in_float is not None:
                return in_float
            raise
        in_int8 = None if final is None else self._judged(final, report, original)
        return faster_of(in_float, in_int8)

    def _is_original(self, checkpoint: Artifact) -> bool:
        return checkpoint.sha256 == self.reference.artifact.sha256

    def _judged(self, files: Files, report: BudgetReport | None, original: Artifact) -> Compressed | None:
        """Return what was made if it keeps the budget; it is measured unless there is a report of it."""
        if report is None:
            files, report = self._measured(files)
        if report.passed:
            return self._finished(files, report, original)
        self.failed.append(report)
        return None

    def _networks(self, whole: Files, original: Artifact) -> Iterator[Files]:
        """Yield smaller checkpoints and their exports that should keep the budget, the smallest first.

        The first may lose more, and are repaired; for those after them no time may be left for that. If one keeps the
        budget, there is only one more, which is smaller.
        """
        methods = [method for method in self.methods if method != "int8"]
        if "channels" in methods and find_spec("torch_pruning") is None:
            self._leave_out("channels", str(MissingDependencyError("torch_pruning")))
            methods.remove("channels")
        material = self._material(original, methods) if methods else None
        if material is None:
            return
        yield from self._repaired_networks(methods, whole, material)
        material = replace(material, deadline=self._part(_FOR_SEARCH))
        for share in (_SAFE, _SAFER):
            if self.best is None:
                small = self._shrunk(methods, whole, material, share * self.budget)
                if small is not None and self._is_new("measured", small):
                    yield small

    def _repaired_networks(
        self, methods: Sequence[Method], whole: Files, material: Material
    ) -> Iterator[Files]:
        for times in _BEFORE_REPAIR:
            small = self._shrunk(methods, whole, material, times * self.budget)
            part = 1.0 if times == _BEFORE_REPAIR[-1] else _FOR_FIRST
            if (better := self._repaired(small, material, part)) is not None:
                yield better
            if self.best is not None:
                if times == _BEFORE_REPAIR[0] and self.seconds:
                    self.slow.clear()  # what was not faster for that one may be for a smaller one
                    bolder = self._shrunk(methods, whole, material, _BOLDER * self.budget)
                    if (better := self._repaired(bolder, material, 1.0)) is not None:
                        yield better
                return

    def _material(self, original: Artifact, methods: Sequence[Method]) -> Material | None:
        try:
            return Material.of(self.reference, original, self._part(_FOR_REPAIR), self.progress)
        except OutOfTime:
            self.late = True
            for method in methods:
                self._leave_out(method, _OVER)
        return None

    def _part(self, share: float) -> Deadline:
        """Return the deadline of work that may take so large a share of the time."""
        return replace(self.deadline, ends=self.deadline.ends - (1 - share) * 60 * self.max_minutes)

    def _shrunk(
        self, methods: Sequence[Method], whole: Files, material: Material, points: float
    ) -> Files | None:
        """Return what the methods make, one after the other, for a loss of so many points; None if nothing."""
        files, methods = whole, [method for method in methods if method not in self.slow]
        for method in methods:
            part = _FIRST if method != methods[-1] else 1.0
            files = self._smaller(method, files, material, part * points) or files
        return None if files is whole else files

    def _smaller(self, method: Method, start: Files, material: Material, points: float) -> Files | None:
        """Return what one method makes of a checkpoint, if it is faster; note the step."""
        try:
            found = self._search(method, start[0], material).within(material, points)
            if found is None:
                self._leave_out(method, BEYOND)
                return None
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - a forward() may do anything
            self.late = self.late or isinstance(error, OutOfTime)
            is_ours = isinstance(error, CnndeployError)
            self._leave_out(method, str(error) if is_ours else f"{FAILED}{last_line(error)}")
            return None
        sizes, checkpoint = found
        small = write_smaller(checkpoint, self._next(method), self.reference, self.budget, method=method)
        try:
            onnx_file = export(small.path, "onnx")
        except ExportError as error:
            self._leave_out(method, str(error))
            return None
        if self._faster(method, described(method, sizes), onnx_file, start[1]):
            return small, onnx_file
        self.slow.add(method)
        return None

    def _search(self, method: Method, start: Artifact, material: Material) -> Smaller:
        """Return the search of a method on a checkpoint, or raise why there is none; the same each time."""
        repair, needs_s = self._part(_FOR_REPAIR), _FOR_SECOND * _FOR_REPAIR * 60 * self.max_minutes
        is_new = (method, start.sha256) not in self.searches.known and start.sha256 != self.source.sha256
        if is_new and material.deadline == repair and repair.left_s < needs_s:
            raise OutOfTime("not tried, so that there is time for repair")
        settings = {"tests": self.count, "threads": self.run.thread_count, "int8": "int8" in self.methods}
        return self.searches.of(method, start, material, **settings)

    def _next(self, name: str) -> Path:
        """Return the path of another checkpoint."""
        return self.folder / f"{name}-{len(list(self.folder.glob('*.pt')))}.pt"

    def _is_new(self, what: str, files: Files) -> bool:
        """Return whether this was not done to a network before."""
        known = len(self.tried)
        self.tried.add((what, files[0].sha256))
        return len(self.tried) > known

    def _repaired(self, files: Files | None, material: Material, part: float) -> Files | None:
        """Return a smaller network once it is repaired, in a part of the time left; None if it does not do even so."""
        if files is None or self.trouble or not self._is_new("repaired", files):
            return None
        points = REPAIRED * self.budget
        try:
            _ = material.lesson  # every repair needs it
            ends = material.deadline.ends - (1 - part) * material.deadline.left_s
            material = replace(material, deadline=replace(material.deadline, ends=ends))
            of_it, checkpoint, taught = repaired_checkpoint(files[0], material, points, tests=self.count)
            if of_it.predicted_high_points > points:
                return None
            small = write_smaller(
                checkpoint, self._next("repaired"), self.reference, self.budget, taught=taught
            )
            files = small, export(small.path, "onnx")
        except Stopped as error:
            self.late = self.late or isinstance(error, OutOfTime)
            return None
        except Exception as error:  # noqa: BLE001 - a forward() may do anything
            self.trouble = f"repair failed: {last_line(error)}"
            return None
        self._add(f"repaired on {counted(taught, 'image')}")
        return files

    def _add(self, what: str) -> None:
        """Add to what is said of the last step that was kept."""
        kept = [step for method, step in self.steps.items() if step.kept and method != "int8"]
        for step in kept[-1:]:
            self.steps[step.method] = replace(step, reason=f"{step.reason}, {what}")

    def _int8(self, files: Files) -> tuple[Files | None, BudgetReport | None, bool]:
        """Return the int8 file of a network, and the verdict on it.

        There is none if it is left out; the last says whether that is because it is beyond the budget.
        """
        if "int8" not in self.methods:
            return None, None, False
        self.steps.pop("int8", None)
        checkpoint, before = files
        against = None if self._is_original(checkpoint) else self.reference
        try:
            quantized = quantize(
                checkpoint if against else self.reference,
                self.folder / f"int8-{len(list(self.folder.glob('*.onnx')))}.onnx",
                against=against,
                budget=self.budget,
                run=self.run,
                images=self.count,
                seconds=0,
                most_measured=1,
                deadline=self.deadline,
                progress=self.progress,
            )
        except OutOfTime:
            self.late = True
            self._leave_out("int8", "the time was over before a file was found")
        except Stopped:
            if checkpoint is self.source:
                raise
            self._leave_out("int8", "it was stopped before a file was found")
        except BudgetError as error:
            if isinstance(error.report, BudgetReport):
                self.failed.append(error.report)
            self._leave_out("int8", NO_SETTING)
            return None, None, True
        except CnndeployError as error:
            self._leave_out("int8", str(error))
        else:
            layers = quantized.settings["layers"] - len(quantized.float_layers)
            what = f"{layers} of {counted(quantized.settings['layers'], 'layer')} in int8"
            if self._faster("int8", what, quantized.artifact, before):
                return (quantized.artifact, quantized.artifact), quantized.report, False
        return None, None, False

    def _faster(self, method: Method, what: str, artifact: Artifact, before: Artifact) -> bool:
        """Note a step, and return whether it makes the file faster; if it is not timed it is taken to."""
        size = artifact.path.stat().st_size
        row, doubts = self._timed(artifact, before) if self.seconds else (None, ())
        if row is not None:
            step = Step.timed(method, what, size, row)
        else:
            unknown = f"; it could not be timed: {doubts[0]}" if doubts else ""
            step = Step(method, not doubts, what + unknown, size)
        self.steps[method] = step
        return step.kept

    def _timed(self, artifact: Artifact, before: Artifact) -> tuple[Result | None, tuple[str, ...]]:
        """Return a file's row in a benchmark beside another, if it has figures, and what to doubt about it."""
        self.reference.release()  # what waits for work may disturb what is timed
        return speed_beside(before, artifact, self.run, self.seconds, self._heard, self.progress)

    def _heard(self) -> bool:
        """Return False, since ending a measurement would lose everything; asking may raise, though."""
        self.deadline.should_stop()
        return False

    def _leave_out(self, method: Method, reason: str) -> None:
        self.steps[method] = Step(method, False, reason)

    def _measured(self, files: tuple[Artifact, Artifact]) -> tuple[tuple[Artifact, Artifact], BudgetReport]:
        """Measure a smaller network on the test images: the checkpoint if that is wanted, else its export."""
        wanted = files[0] if self.target.suffix == ".pt" else files[1]
        report = verify_budget(
            wanted,
            self.reference,
            budget=self.budget,
            run=Run(threads=self.run.threads) if self.target.suffix == ".pt" else self.run,
            images=self.count,
            deadline=Deadline(should_stop=self._heard),
            progress=self.progress,
        )
        return (wanted, files[1]), report

    def _finished(self, files: Files, report: BudgetReport, original: Artifact) -> Compressed:
        row, doubts = self._timed(files[1], original) if self.seconds else (None, ())
        row = None if row is None else replace(row, artifact=str(self.target))  # this one will be gone
        if self.trouble and not any(self.trouble in step.reason for step in self.steps.values()):
            self._add(self.trouble)
        steps = tuple(self.steps[method] for method in METHODS if method in self.steps)
        size, float_size = (one.path.stat().st_size for one in (files[1], original))
        return Compressed(files[0], report, steps, size, float_size, row, doubts)

    def _nothing(self) -> CnndeployError:
        """Return what to raise if nothing was made."""
        return nothing_made(
            self.reference.artifact.path,
            self.budget,
            self.steps,
            [one.moved_to(self.target) for one in self.failed],  # where it would have been
            all_images=len(self.reference.test),
            late=self.late,
            more_minutes=None if self.smaller_only else 2 * self.max_minutes,
            trouble=self.trouble,
        )
