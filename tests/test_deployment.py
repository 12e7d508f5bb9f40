from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.bench import candidates_of
from cnndeploy.deployment import Plan, PlannedElsewhereWarning, open_deployment, resolve
from cnndeploy.errors import ArtifactError
from cnndeploy.machine import CudaDriver, environment
from cnndeploy.run import Run, RuntimeOptions
from helpers import Trained

IMAGE = np.zeros((28, 28), np.uint8)


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    """A deployment as tune writes it."""
    path = tmp_path / "lenet.deploy"
    path.mkdir()
    shutil.copy(trained.onnx, path / "lenet.onnx")
    plan = Plan(
        "lenet.onnx",
        Artifact.open(trained.onnx).sha256,
        Run("onnxruntime", "cpu", 2, RuntimeOptions(spinning=False)),
        environment(),
        {"p50_s": 1e-5},
        "cnndeploy tune lenet.pt",
    )
    (path / "plan.json").write_text(plan.to_json())
    return path


def _edit(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(values | changes))


def test_a_plan_reads_back(folder: Path) -> None:
    artifact, plan = open_deployment(folder)
    assert artifact.path == folder / "lenet.onnx"
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.run.options == RuntimeOptions(spinning=False)


def test_resolve_takes_the_caller_then_the_plan_then_the_default(folder: Path, trained: Trained) -> None:
    planned = resolve(folder)
    assert planned.is_planned
    assert planned.folder == folder
    assert planned.run == Run("onnxruntime", "cpu", 2, RuntimeOptions(spinning=False))
    other = resolve(folder, Run("openvino", threads=1))
    assert not other.is_planned
    assert other.run == Run("openvino", "cpu", 1, RuntimeOptions())  # the plan's options are of its runtime
    exact = resolve(folder, Run(precision="float32"))
    assert exact.run == planned.run  # a precision replaces no other option
    reduced = resolve(folder, Run("onnxruntime", precision="tf32"))
    assert reduced.run.options == RuntimeOptions(spinning=False, precision="tf32")
    assert resolve(folder, Run("openvino", precision="bfloat16")).run.options == RuntimeOptions(
        precision="bfloat16"
    )
    file = resolve(trained.onnx)
    assert (file.plan, file.folder) == (None, None)
    assert file.run == Run("onnxruntime", "cpu", None, RuntimeOptions())
    assert resolve(Artifact.open(trained.checkpoint), Run(threads=3)).run.threads == 3


def test_load_runs_it_as_planned_unless_told_otherwise(folder: Path) -> None:
    with cnndeploy.load(folder) as model:
        assert model._session.threads == 2
        assert model._session.settings()["spinning"] is False
        assert model.classify(IMAGE)
    with cnndeploy.load(folder, threads=1, precision="float32") as model:
        assert model._session.threads == 1
        assert model._session.settings()["spinning"] is False
    with cnndeploy.load(folder, runtime="openvino") as model:  # which has no such option
        assert model._session.settings()["precision"] == "f32"


def test_a_plan_of_another_processor_says_so_and_how_to_tune_again(folder: Path) -> None:
    _edit(folder, machine={"cpu": "Z80"})
    with pytest.warns(PlannedElsewhereWarning, match=r"Z80.*cnndeploy tune lenet\.pt"):
        cnndeploy.load(folder).close()


def test_a_plan_for_a_gpu_is_held_against_the_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = resolve(folder).plan
    assert plan is not None
    machine = {"cpu": "Z80", "gpus": ["A", "B"]}
    on_gpu = replace(plan, run=replace(plan.run, device="cuda:1"), machine=machine)
    monkeypatch.setattr("cnndeploy.deployment.cuda_driver", lambda: CudaDriver(("C", "B")))
    assert on_gpu.elsewhere == ""
    first = replace(on_gpu, run=replace(plan.run, device="cuda"))
    assert "the plan was made on another GPU, A, and this is C" in first.elsewhere


def test_bench_runs_a_folder_as_planned(folder: Path, trained: Trained) -> None:
    report = cnndeploy.bench([trained.onnx, folder], runtimes=["onnxruntime"], seconds=0.1, cold_starts=0)
    plain, planned = report.results
    assert planned.artifact == str(folder)
    assert planned.settings is not None
    assert (planned.threads, planned.settings["spinning"]) == (2, False)
    assert plain.settings is not None
    assert plain.settings["spinning"] is True
    (exact,) = candidates_of([folder], precisions=["float32"])
    assert exact.run.options == RuntimeOptions(spinning=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "is not the file that"),
        ({"file": "../lenet.onnx"}, "cannot be read"),
        ({"options": {"spinning": "maybe"}}, "cannot be read"),
        ({"threads": "two"}, "cannot be read"),
        ({"unheard": 1}, "does not know unheard"),
        ({"file": "other.onnx"}, "no such file"),
    ],
)
def test_a_plan_that_is_wrong_is_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    _edit(folder, **changes)
    with pytest.raises(ArtifactError, match=message):
        cnndeploy.load(folder)


def test_a_folder_without_a_plan_and_a_plan_that_is_no_json_are_refused(folder: Path) -> None:
    (folder / "plan.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        cnndeploy.load(folder)
    (folder / "plan.json").unlink()
    with pytest.raises(ArtifactError, match=r"is a folder without a plan\.json"):
        cnndeploy.load(folder)


def test_inspect_shows_the_plan(folder: Path, cli) -> None:  # type: ignore[no-untyped-def]
    shown = cli("inspect", folder)
    assert shown.exit_code == 0
    assert "threads sleep when idle" in shown.output
    assert json.loads(cli("inspect", folder, "--json").output)["plan"]["threads"] == 2
