"""Compression of a whole checkpoint: what is written, against what it is held, and what is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result as Invoked

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.intervals import verdict
from cnndeploy.benchmark.report import Result
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.compression import material
from cnndeploy.compression.compress import compress
from cnndeploy.compression.job import Job
from cnndeploy.compression.material import Material
from cnndeploy.compression.report import METHODS, Compressed, Step
from cnndeploy.errors import ArtifactError, BudgetError, CheckpointError, CompressionError, OutOfTime, Stopped
from cnndeploy.progress import Deadline, silent
from cnndeploy.quantization import search
from cnndeploy.quantization.graph import Network
from cnndeploy.quantization.quantize import quantize
from cnndeploy.run import Run
from cnndeploy.training.train import train
from cnndeploy.verification.budget import verify_budget
from cnndeploy.verification.reference import Reference
from cnndeploy.verification.verify import verify
from helpers import Trained, by_work

FEW: dict[str, Any] = {"images": 320, "seconds": 0}
LOW_RANK: Any = ("low-rank",)


@pytest.fixture(scope="module")
def few() -> Any:
    """Few images judge, and times are taken from the number of multiplications, so that a ranking can be foreseen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnndeploy.compression.material._MOST_TO_JUDGE", 256)
        patch.setattr("cnndeploy.compression.search._MOST_TO_TRY", 32)
        for method in ("low_rank", "channels"):
            patch.setattr(f"cnndeploy.compression.{method}.milliseconds", by_work)
        patch.setattr("cnndeploy.compression.job._BEFORE_REPAIR", ())
        patch.setattr("cnndeploy.compression.material._MOST_TO_TEACH", 1000)
        yield


@pytest.fixture(scope="module")
def small(trained: Trained, tmp_path_factory: pytest.TempPathFactory, few: None) -> Compressed:
    """A checkpoint of low rank; each test process makes its own, for what it found out is not on disk."""
    folder = tmp_path_factory.mktemp("compressed")
    checkpoint = shutil.copy(trained.checkpoint, folder / "lenet.pt")
    return compress(checkpoint, folder / "small.pt", budget=10, methods=LOW_RANK, **FEW)


def test_a_smaller_checkpoint_says_what_it_was_made_of_and_loses_no_more_than_its_budget(
    small: Compressed, trained: Trained
) -> None:
    original = Artifact.open(trained.checkpoint)
    manifest, own = small.artifact.require_manifest(), original.require_manifest()
    assert manifest.lossy
    assert not small.artifact.is_reference
    assert manifest.compression == {
        "original_sha256": original.sha256,
        "methods": ["low-rank"],
        "budget_points": 10.0,
        "repaired_on_images": 0,
    }
    assert small.ranks
    assert replace(manifest, compression=None, source=own.source, versions=own.versions) == own
    assert small.report.within_budget
    assert small.artifact.path.stat().st_size < original.path.stat().st_size
    network = Checkpoint.load(small.artifact).network()
    for path, rank in small.ranks.items():
        first, second = (network.get_parameter(f"{path}.{number}.weight") for number in (0, 1))
        assert len(first) == second.shape[1] == rank


def test_what_is_made_of_it_is_held_against_the_original(
    small: Compressed, trained: Trained, tmp_path: Path, cli: Callable[..., Invoked]
) -> None:
    path = tmp_path / "small.onnx"
    told = cli("export", small.artifact.path, "--format", "onnx", "--output-dir", tmp_path).output
    assert f"({Artifact.open(trained.checkpoint).sha256[:8]}...)" in told
    result = cli("verify", path, "--against", trained.checkpoint, "--images", 320)
    assert result.exit_code == 0, result.output
    assert "within budget" in result.output
    assert "10 percentage points" in result.output
    cnndeploy.load(path, require_verified=True).close()
    with pytest.raises(ArtifactError, match="never equivalent"):
        verify(path, trained.checkpoint, images=64)
    report = verify_budget(path, trained.checkpoint, budget=0.001, images=320)
    assert not report.passed


def test_one_rank_less_by_hand_is_not_within_the_budget(
    small: Compressed, trained: Trained, tmp_path: Path, cli: Callable[..., Invoked]
) -> None:
    """The first layer that was split loses its directions, and the manifest says nothing of it."""
    checkpoint = Checkpoint.load(small.artifact)
    path, rank = next(iter(small.ranks.items()))
    weights = dict(checkpoint.weights)
    weights[f"{path}.1.weight"] = torch.zeros_like(weights[f"{path}.1.weight"])
    replace(checkpoint, weights=weights).save(tmp_path / "less.pt")
    cnndeploy.export(str(tmp_path / "less.pt"), "onnx")
    result = cli("verify", tmp_path / "less.onnx", "--against", trained.checkpoint, "--images", 320)
    assert result.exit_code == 5, result.output
    assert "beyond the budget of 10" in " ".join(result.output.split())
    assert weights[f"{path}.1.weight"].shape[1] == rank


def test_inspect_shows_what_it_was_made_of(
    small: Compressed, trained: Trained, cli: Callable[..., Invoked]
) -> None:
    output = "".join(cli("inspect", small.artifact.path).output.split())
    assert f"{len(small.ranks)}layersoflowrank" in output.replace("│", "")
    assert Artifact.open(trained.checkpoint).sha256[:20] in output


def test_it_runs_on_every_runtime(small: Compressed, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    labels = []
    for kind in ("onnx", "torchscript"):
        path = cnndeploy.export(str(small.artifact.path), kind, tmp_path / f"small.{kind}").path
        with cnndeploy.load(path) as model:
            labels.append(model.logits(images))
    with cnndeploy.load(small.artifact.path) as model:
        labels.append(model.logits(images))
    assert np.allclose(labels[0], labels[2], atol=1e-4)
    assert np.allclose(labels[1], labels[2], atol=1e-4)


def test_its_int8_file_is_held_against_the_original_too(
    small: Compressed, trained: Trained, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="compared with the checkpoint that it came from"):
        quantize(small.artifact.path, tmp_path / "a.onnx", budget=20, **FEW)
    settings = {"budget": 20, "calibration": 32, **FEW}
    quantized = quantize(small.artifact.path, tmp_path / "a.onnx", against=trained.checkpoint, **settings)
    manifest = quantized.artifact.require_manifest()
    assert manifest.quantization is not None
    assert manifest.compression is not None
    assert quantized.report.against.sha256 == Artifact.open(trained.checkpoint).sha256
    other = Checkpoint.untrained("lenet", seed=3).save(tmp_path / "other.pt")
    with pytest.raises(ArtifactError, match="but of another checkpoint"):
        quantize(small.artifact.path, tmp_path / "b.onnx", against=other.path, **settings)


def test_fewer_channels_are_a_checkpoint_too(
    trained: Trained, tmp_path: Path, few: None, cli: Callable[..., Invoked]
) -> None:
    made = compress(trained.checkpoint, tmp_path / "small.pt", budget=10, methods=("channels",), **FEW)
    network = Checkpoint.load(made.artifact).network()
    assert made.widths
    assert made.ranks == {}
    for path, (inputs, outputs) in made.widths.items():
        assert network.get_parameter(f"{path}.weight").shape[:2] == (outputs, inputs)
    output = "".join(cli("inspect", made.artifact.path).output.split())
    assert f"{len(made.widths)}layersoffewerchannels" in output.replace("│", "")
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    with cnndeploy.load(cnndeploy.export(str(made.artifact.path), "onnx").path) as model:
        logits = model.logits(images)
    with cnndeploy.load(made.artifact.path) as model:
        assert np.allclose(model.logits(images), logits, atol=1e-4)
    settings: dict[str, Any] = {"against": trained.checkpoint, "budget": 40, "methods": LOW_RANK, **FEW}
    again = compress(made.artifact, tmp_path / "again.pt", **settings)
    assert again.ranks
    assert again.widths
    assert again.artifact.require_manifest().compression["methods"] == ["channels", "low-rank"]  # type: ignore[index]


def test_a_smaller_checkpoint_can_be_trained_further(small: Compressed, tmp_path: Path) -> None:
    """It becomes a checkpoint of its own, with the same layers."""
    path = small.artifact.path
    again = train(None, tmp_path / "again.pt", recipe_of=path, weights=path, epochs=1, images=64)
    manifest = again.require_manifest()
    assert manifest.compression is None
    assert manifest.source.ranks == small.ranks
    before, after = (Checkpoint.load(one).weights for one in (path, again))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_channels_are_left_out_without_torch_pruning(
    trained: Trained, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    made = compress(trained.checkpoint, tmp_path / "small.pt", budget=10, **FEW)
    assert [(step.method, step.kept) for step in made.steps] == [("low-rank", True), ("channels", False)]
    assert "cnndeploy[compress]" in made.steps[1].reason


def test_compressed_again_it_is_held_against_the_first_original(
    small: Compressed, trained: Trained, tmp_path: Path, few: None
) -> None:
    with pytest.raises(ArtifactError, match="compared with the checkpoint that it came from"):
        compress(small.artifact, tmp_path / "again.pt", budget=40, **FEW)
    again = compress(small.artifact, tmp_path / "again.pt", against=trained.checkpoint, budget=40, **FEW)
    assert again.report.against.sha256 == Artifact.open(trained.checkpoint).sha256
    assert set(again.ranks) > set(small.ranks)
    Checkpoint.load(again.artifact).network()  # layers within layers are split in the right order


def test_a_model_repository_of_it_is_verified_against_the_original(
    small: Compressed, tmp_path: Path, cli: Callable[..., Invoked]
) -> None:
    shown = cli("export", small.artifact.path, "--format", "triton", "--output-dir", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "was compressed from" in " ".join(shown.output.split())


def test_int8_alone_quantises_the_compressed_checkpoint_and_is_timed_beside_it(
    small: Compressed, trained: Trained, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = list[str]()

    def timed(_job: object, artifact: Artifact, before: Artifact) -> tuple[Result, tuple[str, ...]]:
        del artifact
        beside.append(before.require_manifest().checkpoint_sha256 or "")
        row = Result("a.onnx", "onnxruntime", "cpu", 1, 1, verdict="FASTER")
        return replace(row, ratio=1.5, ratio_low=1.4, ratio_high=1.6), ()

    monkeypatch.setattr("cnndeploy.compression.job.Job._timed", timed)
    settings: dict[str, Any] = {
        "against": trained.checkpoint,
        "budget": 40,
        "methods": ["int8"],
        "images": 320,
    }
    made = compress(small.artifact, tmp_path / "int8.onnx", **settings)
    assert made.ranks == small.ranks
    assert made.artifact.require_manifest().quantization is not None
    # the step beside what was compressed before, and the file beside the original
    assert beside == [small.artifact.sha256, Artifact.open(trained.checkpoint).sha256]


def test_a_compressed_checkpoint_is_no_reference(small: Compressed, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a compressed checkpoint"):
        Reference(small.artifact)
    with pytest.raises(ArtifactError, match="a compressed checkpoint"):
        cnndeploy.tune(small.artifact, tmp_path / "folder")
    with pytest.raises(ArtifactError, match="was not compressed"):
        compress(trained.checkpoint, tmp_path / "a.pt", against=trained.checkpoint)


def test_a_damaged_compressed_checkpoint_is_refused(small: Compressed, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(small.artifact)
    path = next(iter(small.ranks))
    for ranks in ({path: 10**9}, {path: 0}, {"nowhere": 1}, {path: 1}):
        source = replace(checkpoint.manifest.source, ranks=ranks)
        bad = replace(checkpoint, manifest=replace(checkpoint.manifest, source=source)).save(
            tmp_path / "x.pt"
        )
        with pytest.raises(CheckpointError):
            Checkpoint.load(bad).network()


def test_a_network_that_loses_too_much_may_be_repaired(
    trained: Trained, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch, small: Compressed
) -> None:
    monkeypatch.setattr("cnndeploy.compression.job._BEFORE_REPAIR", (1.2,))
    monkeypatch.setattr("cnndeploy.compression.repair.LEARNING_RATE", 1e-3)
    monkeypatch.setattr("cnndeploy.compression.material._MOST_TO_TEACH", 4000)
    settings: dict[str, Any] = {**FEW, "budget": 10, "methods": LOW_RANK, "images": 1280}
    made = compress(trained.checkpoint, tmp_path / "small.pt", **settings)
    facts = made.artifact.require_manifest().compression
    assert facts is not None
    assert facts["repaired_on_images"] == 4000
    assert facts["methods"] == ["low-rank"]
    assert "repaired on 4,000 images" in made.steps[0].reason
    assert made.report.within_budget
    assert made.bytes < small.bytes


def test_all_methods_write_one_file(
    trained: Trained, tmp_path: Path, few: None, cli: Callable[..., Invoked], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = shutil.copy(trained.checkpoint, tmp_path / "lenet.pt")
    faster = _speeds(monkeypatch, 1.5, 1.3, 1.2, 1.8)
    arguments = ("--budget", 20, "--images", 320, "--json", tmp_path / "r.json")
    result = cli("compress", checkpoint, *arguments)
    assert result.exit_code == 0, result.output
    assert faster == []
    report = json.loads((tmp_path / "r.json").read_text())
    steps = [(step["method"], step["kept"]) for step in report["steps"]]
    assert steps == [("low-rank", True), ("channels", True), ("int8", True)]
    assert report["ranks"]
    assert report["widths"]
    assert report["within_budget"]
    manifest = Artifact.open(tmp_path / "lenet.small.onnx").require_manifest()
    assert manifest.quantization is not None
    assert manifest.compression is not None
    for text in (
        "channels",
        "low-rank",
        "int8",
        "Channels: ",
        " in, ",
        "times smaller",
        "1.80 times as fast",
        "In an app",
    ):
        assert text in result.output
    names = ["lenet.pt", "lenet.small.onnx", "lenet.small.onnx.verified.json", "r.json"]
    assert sorted(one.name for one in tmp_path.iterdir()) == names


def _speeds(monkeypatch: pytest.MonkeyPatch, *ratios: float, busy: bool = False) -> list[float]:
    """Have benchmarks find these ratios, one after the other."""
    left = list(ratios)

    def timed(*_: object) -> tuple[Result, tuple[str, ...]]:
        ratio = left.pop(0)
        low, high = ratio - 0.1, ratio + 0.1
        judged = None if busy else verdict((low, high), 10, 1)
        row = Result("a.onnx", "onnxruntime", "cpu", 1, 1, verdict=judged)
        return replace(row, ratio=ratio, ratio_low=low, ratio_high=high), ()

    monkeypatch.setattr("cnndeploy.compression.job.Job._timed", timed)
    return left


@pytest.mark.parametrize("busy", [False, True])
def test_a_method_that_is_not_faster_is_left_out(
    busy: bool, trained: Trained, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Differences of up to 2% count as none on a busy machine too, where bench judges nothing."""
    _speeds(monkeypatch, 1.11, 1.5, 1.5, busy=busy)
    settings: dict[str, Any] = {"budget": 20, "images": 320, "methods": ("low-rank", "int8")}
    made = compress(trained.checkpoint, tmp_path / "a.onnx", **settings)
    assert [(step.method, step.kept) for step in made.steps] == [("low-rank", False), ("int8", True)]
    assert "not seen to be faster" in made.steps[0].reason
    assert all(("other programs" in step.reason) == busy for step in made.steps)
    assert made.artifact.require_manifest().compression is None
    _speeds(monkeypatch, 1.05, 1.11, busy=busy)
    with pytest.raises(CompressionError, match=r"nothing tried makes .* faster here") as raised:
        compress(trained.checkpoint, tmp_path / "b.onnx", **settings)
    assert "low-rank: " in str(raised.value)
    assert "int8: " in str(raised.value)
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize(
    ("ratio", "wins"), [(1.2, "small"), (2.5, "whole"), (None, "small"), (Stopped(), "small")]
)
def test_a_network_that_int8_spoils_is_held_against_int8_alone(
    ratio: Any, wins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps are its own, although the search went on after it."""

    def networks(self: Job, _whole: object, _original: object) -> Iterator[str]:
        self.steps["low-rank"] = Step("low-rank", True, "3 layers split")
        yield "small"
        self._leave_out("low-rank", "the time was over before a network was found")

    def int8(self: Job, files: object) -> tuple[Any, Any, bool]:
        if isinstance(ratio, Stopped) and files != "small":
            raise ratio
        self._leave_out("int8", "no setting tried keeps the budget")
        return (None, None, True) if files == "small" else ("whole", "a report", False)

    def judged(self: Job, files: str, _report: object, _original: object) -> Any:
        steps = {step.method: step.kept for step in self.steps.values()}
        speed = _speed(2.0) if files == "small" else ratio and _speed(ratio)
        return SimpleNamespace(files=files, steps=steps, speed=speed)

    for name, value in (("_networks", networks), ("_int8", int8), ("_judged", judged)):
        monkeypatch.setattr(Job, name, value)
    made: Any = _last(_job(monkeypatch))
    assert made.files == wins
    assert made.steps == {"low-rank": wins == "small", "int8": False}
    job = _job(monkeypatch)
    job.smaller_only = True
    made = _last(job)
    assert made.files == "small"
    monkeypatch.setattr(Job, "_judged", lambda *_: None)
    with pytest.raises(
        BudgetError, match="Allow a larger budget"
    ) as raised:  # for int8 does not keep this one
        _last(job)
    assert set(raised.value.reasons) == {"low-rank", "int8"}


@pytest.mark.parametrize(
    ("ratios", "wins", "cuts"),
    [
        ({"5": 2.0, "15": 2.5}, "5", ["5"]),  # the same network again
        ({"5": 2.0, "15": 2.5}, "15", ["5", "15"]),
        ({"5": 2.0, "15": 1.9}, "5", ["5", "15"]),
        ({"5": 2.0}, "5", ["5", "15"]),  # the bolder one does not keep the budget
        ({"5": 2.0, "15": 2.04}, "5", ["5", "15"]),  # not surely faster
        ({"5": 2.0, "15": 0.0}, "5", ["5"]),  # the disk is full
        ({"1.5": 2.0, "15": 3.0}, "1.5", ["5", "1.5"]),  # one that was cut as far as that has failed
        ({"0.35": 1.5}, "0.35", ["5", "1.5", "0.35"]),
    ],
)
def test_once_a_network_keeps_the_budget_a_bolder_one_is_repaired_too(
    ratios: dict[str, float], wins: str, cuts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()

    def shrunk(job: Job, __: object, ___: object, ____: object, points: float) -> Any:
        name = f"{points:g}"
        job.steps["low-rank"] = Step("low-rank", True, "3 layers split")
        return SimpleNamespace(name=name, path=Path(name), sha256="5" if cuts == ["5"] else name), None

    def judged(_: Job, files: Any, *__: object) -> Any:
        name = files[0].name
        seen.append(name)
        return ratios.get(name) and SimpleNamespace(name=name, speed=_speed(ratios[name]))

    def written(checkpoint: Any, *_: object, **__: object) -> Any:
        if ratios.get(checkpoint.name) == 0:
            raise ArtifactError("no space left")
        return checkpoint

    monkeypatch.setattr("cnndeploy.compression.job.write_smaller", written)
    sure = SimpleNamespace(predicted_high_points=0.1)
    monkeypatch.setattr("cnndeploy.compression.job.repaired_checkpoint", lambda one, *_, **__: (sure, one, 9))

    for name, value in (
        ("_material", lambda *_: _Material(Deadline())),
        ("_shrunk", shrunk),
        ("_int8", lambda _, files: (files, None, False)),
        ("_judged", judged),
    ):
        monkeypatch.setattr(Job, name, value)
    made: Any = _last(_job(monkeypatch))
    assert (made.name, seen) == (wins, cuts)


@pytest.mark.parametrize(
    ("left_s", "first", "to_repair", "begins"),
    [(20, True, True, True), (20, False, True, False), (25, False, True, True), (20, False, False, True)],
)
def test_a_second_method_is_not_begun_in_the_time_that_repair_needs(
    left_s: float, first: bool, to_repair: bool, begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repair ends 45 seconds into a minute; half of these must be left when a second method is begun."""
    monkeypatch.setattr("cnndeploy.compression.smaller.Smaller", lambda *_, **__: "a search")
    job = _job(monkeypatch)
    job.deadline = Deadline.after(left_s + 15)
    material: Any = SimpleNamespace(deadline=job._part(0.75 if to_repair else 0.8))
    start = job.source if first else SimpleNamespace(sha256="small")
    with contextlib.nullcontext() if begins else pytest.raises(OutOfTime, match="for repair"):
        assert job._search("channels", start, material) == "a search"  # type: ignore[arg-type, comparison-overlap]
    assert len(job.searches.known) == begins


def test_the_same_network_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest that there is may be predicted to lose less than the smallest share of the budget."""
    small, seen = (SimpleNamespace(sha256="b"), None), list[object]()
    monkeypatch.setattr(Job, "_material", lambda *_: _Material(Deadline()))
    monkeypatch.setattr(Job, "_shrunk", lambda *_: small)
    monkeypatch.setattr(Job, "_repaired", lambda *_: None)
    monkeypatch.setattr(Job, "_int8", lambda _, files: (None, None, False))

    def judged(_: Job, files: object, *__: object) -> None:
        seen.append(files)

    monkeypatch.setattr(Job, "_judged", judged)
    job = _job(monkeypatch)
    job.smaller_only = True
    with pytest.raises(CompressionError):
        _last(job)
    assert seen == [small]


def _last(job: Job) -> Any:
    """Return the best of what a job makes."""
    return list(job.made())[-1]


@dataclass(frozen=True)
class _Material:
    deadline: Deadline
    lesson: None = None


def _speed(ratio: float) -> Any:
    return SimpleNamespace(ratio=ratio, ratio_low=ratio - 0.05)


def _job(monkeypatch: pytest.MonkeyPatch) -> Job:
    """Return a compression of nothing."""
    monkeypatch.setattr("cnndeploy.compression.job.export", lambda *_: None)
    # other tests of this file leave repair out
    monkeypatch.setattr("cnndeploy.compression.job._BEFORE_REPAIR", (10.0, 3.0))
    artifact: Any = SimpleNamespace(path=Path("a.pt"), sha256="a")
    reference: Any = SimpleNamespace(artifact=artifact, test=range(10))
    settings: dict[str, Any] = {"target": Path("b.onnx"), "folder": Path(), "budget": 0.5, "run": Run()}
    settings |= {"count": 10, "seconds": 1.0, "deadline": Deadline(), "max_minutes": 1.0, "progress": silent}
    return Job(artifact, reference, methods=METHODS, smaller_only=False, **settings)


def test_a_budget_that_nothing_keeps_writes_nothing(
    trained: Trained, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verify_budget

    def worse(*arguments: Any, **settings: Any) -> Any:
        report = real(*arguments, **settings)
        return replace(report, reasons=("it loses 30.00 percentage points",))

    monkeypatch.setattr("cnndeploy.compression.job.verify_budget", worse)
    with pytest.raises(BudgetError, match=r"loses 30\.00 percentage points.*Nothing was written") as raised:
        compress(trained.checkpoint, tmp_path / "a.pt", budget=20, **FEW)
    assert raised.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "settings", "complaint"),
    [
        ("a.txt", {}, r"should end in \.onnx"),
        ("a.pt", {"methods": ["int8"]}, "leave out int8"),
        ("a.onnx", {"methods": ["prune"]}, "Unknown method 'prune'"),
        ("a.onnx", {"run": cnndeploy.Run(device="cuda")}, "for the CPU"),
        ("a.onnx", {"budget": 0}, "above 0 and at most 100"),
        ("a.onnx", {"methods": "int8"}, "give methods as a list"),
        ("a.onnx", {"max_minutes": float("nan")}, "max_minutes must be above 0"),
        ("a.onnx", {"seconds": -1}, "max_minutes must be above 0"),
        ("a.onnx", {"budget": 0.01, "images": 64}, "even if no label changed"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    trained: Trained, tmp_path: Path, output: str, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(cnndeploy.CnndeployError, match=complaint):
        compress(trained.checkpoint, tmp_path / output, **settings)


def test_other_files_are_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="is an ONNX file; give a checkpoint"):
        compress(trained.onnx, tmp_path / "a.onnx")


def test_a_stop_keeps_the_best_so_far(
    trained: Trained, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller asks for the end while a network is repaired; one that needs no repair was judged before."""
    monkeypatch.setattr("cnndeploy.compression.job._BEFORE_REPAIR", (2.0,))
    texts = list[str]()
    made = compress(
        trained.checkpoint,
        tmp_path / "a.pt",
        budget=10,
        methods=LOW_RANK,
        should_stop=lambda: any("Repairing" in text for text in texts),
        progress=lambda _done, _total, text: texts.append(text),
        **FEW,
    )
    assert any("Repairing" in text for text in texts)
    assert made.report.within_budget
    assert made.artifact.require_manifest().compression["repaired_on_images"] == 0  # type: ignore[index]


def test_a_stop_while_a_network_is_measured_keeps_it(
    trained: Trained, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, it was lost if the caller asked in these seconds."""
    asked = list[bool]()

    def measured(*arguments: Any, **settings: Any) -> Any:
        asked.append(True)
        return verify_budget(*arguments, **settings)

    monkeypatch.setattr("cnndeploy.compression.job.verify_budget", measured)
    settings: dict[str, Any] = {"budget": 10, "methods": LOW_RANK, "should_stop": lambda: bool(asked), **FEW}
    assert compress(trained.checkpoint, tmp_path / "a.pt", **settings).report.within_budget
    assert asked


@pytest.mark.parametrize("fails", ["milliseconds", "repaired_checkpoint"])
def test_what_a_network_does_to_a_method_leaves_it_out(
    fails: str, trained: Trained, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch and ONNX Runtime raise errors of their own; a search that failed is not begun again."""
    calls = list[str]()

    def failing(*_: object, **__: object) -> Any:
        calls.append(fails)
        raise RuntimeError("Dilation not supported\nfor this layer")

    monkeypatch.setattr("cnndeploy.compression.job._BEFORE_REPAIR", (10.0, 3.0))
    where = {"milliseconds": "low_rank", "repaired_checkpoint": "job"}[fails]
    monkeypatch.setattr(f"cnndeploy.compression.{where}.{fails}", failing)
    settings: dict[str, Any] = {"budget": 10, "methods": LOW_RANK, **FEW}
    if fails == "repaired_checkpoint":
        made = compress(trained.checkpoint, tmp_path / "a.pt", **settings)
        assert made.report.within_budget
        assert "split, repair failed: for this layer" in made.steps[0].reason
    else:
        with pytest.raises(
            CompressionError, match=r"nothing smaller .*low-rank: it failed: for this layer\. Noth"
        ):
            compress(trained.checkpoint, tmp_path / "a.pt", **settings)
    assert calls == [fails]


def test_a_stop_before_anything_is_found_writes_nothing(trained: Trained, tmp_path: Path, few: None) -> None:
    with pytest.raises(Stopped):
        compress(trained.checkpoint, tmp_path / "a.pt", budget=20, should_stop=lambda: True, **FEW)
    assert list(tmp_path.iterdir()) == []


def test_when_the_time_is_over_the_table_says_so(trained: Trained, tmp_path: Path, few: None) -> None:
    settings: dict[str, Any] = {"budget": 20, "max_minutes": 1e-9, "methods": ["low-rank"], **FEW}
    with pytest.raises(CompressionError, match=r"the time was over before .* max_minutes=2e-09"):
        compress(trained.checkpoint, tmp_path / "a.onnx", **settings)
    assert list(tmp_path.iterdir()) == []


def test_what_keeps_the_budget_is_on_the_disk_while_something_better_is_looked_for(
    trained: Trained, tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, threads, before = Job.made, list[int](), torch.get_num_threads()

    def lost(job: Job) -> Iterator[Compressed]:
        yield next(made(job))
        threads.append(torch.get_num_threads())
        raise MemoryError

    monkeypatch.setattr(Job, "made", lost)
    torch.set_num_threads(2)
    settings: dict[str, Any] = {"budget": 10, "methods": LOW_RANK, "run": Run(threads=1), **FEW}
    try:
        with pytest.raises(MemoryError):
            compress(trained.checkpoint, tmp_path / "small.onnx", **settings)
        threads.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    cnndeploy.load(tmp_path / "small.onnx", require_verified=True).close()
    assert threads == [1, 2]


def test_images_that_taught_a_network_do_not_choose_its_settings_in_int8(
    small: Compressed, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller network could be judged by more, but these come after those that judged it."""
    work = Network(onnx.load(trained.onnx)).work()
    monkeypatch.setattr(search, "_MULTIPLY_ADDS", 64 * work)
    monkeypatch.setattr(search, "_FEWEST", 8)
    monkeypatch.setattr(material, "_TO_JUDGE", 64 * work)
    monkeypatch.setattr(material, "_FEWEST_TO_JUDGE", 8)
    split, drawn = search.split_training, list[set[int]]()

    def spied(*arguments: Any) -> Any:
        images = split(*arguments)
        drawn.append(set(images[1].numbers.tolist()))
        return images

    monkeypatch.setattr(search, "split_training", spied)
    settings: dict[str, Any] = {"against": trained.checkpoint, "budget": 50, "most_measured": 1, **FEW}
    quantize(small.artifact, tmp_path / "int8.onnx", **settings)
    with Reference(trained.checkpoint) as reference:
        images = Material.of(reference, Artifact.open(trained.onnx), Deadline(), silent)
    assert drawn == [set(images.judging.numbers.tolist())]
    assert len(drawn[0]) == 64
    assert drawn[0].isdisjoint(images.taught.numbers.tolist())


def test_if_the_search_took_all_the_time_int8_of_the_whole_network_may_take_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = list[float]()

    def int8(job: Job, _: object) -> Any:
        left.append(job.deadline.left_s)
        return "whole", "a report", False

    monkeypatch.setattr(Job, "_networks", lambda *_: iter(()))
    monkeypatch.setattr(Job, "_int8", int8)
    monkeypatch.setattr(Job, "_judged", lambda *_: SimpleNamespace(speed=None))
    job = _job(monkeypatch)
    job.deadline = Deadline.after(-1)
    _last(job)
    assert 0 < left[0] <= 15  # a quarter of a minute


def test_a_checkpoint_that_labels_all_images_alike_is_refused_before_the_search(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.load(Artifact.open(trained.checkpoint))
    weights = {name: torch.zeros_like(value) for name, value in checkpoint.weights.items()}
    replace(checkpoint, weights=weights).save(tmp_path / "same.pt")
    monkeypatch.setattr("cnndeploy.compression.compress.Job", None)
    with pytest.raises(BudgetError, match=r"all images the same label.*train it"):
        compress(tmp_path / "same.pt", tmp_path / "a.onnx", budget=20, **FEW)
