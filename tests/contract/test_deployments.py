"""What holds for every way to open a deployment's folder: it runs as planned, and what the caller gives wins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.datasets import fashion_mnist
from cnndeploy.deployment import PLAN_FILE, Plan
from cnndeploy.machine import environment
from cnndeploy.run import Run, RuntimeOptions
from cnndeploy.runtimes import Session
from helpers import Trained

Cli = Callable[..., Result]
Ran = tuple[str, int, bool]
"""The runtime, the number of threads, and whether they spin."""
# Neither has the defaults of ONNX: onnxruntime, all CPUs, spinning threads.
PLANS = {
    "openvino": Run("openvino", "cpu", 1, RuntimeOptions()),
    "onnxruntime": Run("onnxruntime", "cpu", 1, RuntimeOptions(spinning=False)),
}


@pytest.fixture(params=PLANS)
def planned(request: pytest.FixtureRequest) -> Run:
    return PLANS[request.param]


@pytest.fixture
def folder(planned: Run, trained: Trained, tmp_path: Path) -> Path:
    """A deployment as tune writes it."""
    path = tmp_path / "lenet.deploy"
    path.mkdir()
    shutil.copy(trained.onnx, path / "lenet.onnx")
    plan = Plan("lenet.onnx", Artifact.open(trained.onnx).sha256, planned, environment())
    (path / PLAN_FILE).write_text(plan.to_json())
    return path


class Opener:
    """Opens a folder in each way and returns how it ran."""

    def __init__(self, trained: Trained, cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained, self.cli, self.folder = trained, cli, folder
        self.sessions: list[Session] = []
        init = Session.__init__

        def recorded(session: Session, *arguments: Any, **options: Any) -> None:
            init(session, *arguments, **options)
            self.sessions.append(session)

        monkeypatch.setattr(Session, "__init__", recorded)

    def load(self, run: Run) -> Ran:
        image = fashion_mnist.load("test").images[0]
        with cnndeploy.load(
            self.folder, runtime=run.runtime, device=run.device, threads=run.threads
        ) as model:
            model.classify(image)
        return self._session()

    def predict(self, run: Run) -> Ran:
        shoe = self.folder.parent / "shoe.png"
        Image.fromarray(fashion_mnist.load("test").images[0]).save(shoe)
        self._succeeds("predict", self.folder, shoe, *_options(run))
        return self._session()

    def evaluate(self, run: Run) -> Ran:
        report = self.json("evaluate", "--images", 20, *_options(run))
        ran = self._session()
        assert (report["runtime"], report["threads"]) == ran[:2]
        return ran

    def evaluate_in_python(self, run: Run) -> Ran:
        evaluation = cnndeploy.evaluate(self.folder, run=run, images=20)
        ran = self._session()
        assert (evaluation.runtime, evaluation.threads) == ran[:2]
        return ran

    def verify(self, run: Run) -> Ran:
        arguments = ("--against", self.trained.checkpoint, "--images", 9, *_options(run))
        return _ran(self.json("verify", *arguments))

    def verify_in_python(self, run: Run) -> Ran:
        return _ran(cnndeploy.verify(self.folder, self.trained.checkpoint, run=run, images=9).to_dict())

    def bench(self, run: Run) -> Ran:
        assert run == Run()
        (row,) = cnndeploy.bench([self.folder], seconds=0.1, cold_starts=0).results
        assert row.failure in (None, "")
        assert row.settings is not None
        assert row.threads is not None
        return row.runtime, row.threads, row.settings.get("spinning", True)

    def inspect(self, run: Run) -> Ran:
        assert run == Run()
        return _ran(self.json("inspect")["plan"])

    def _session(self) -> Ran:
        """The one session that was opened; its class is the runtime's, whatever it says of itself."""
        (session,) = self.sessions
        assert type(session).__module__ == f"cnndeploy.runtimes.{session.run_as.runtime}"
        return session.run_as.runtime, session.threads, session.options.spinning

    def _succeeds(self, *arguments: object) -> Result:
        result = self.cli(*arguments)
        assert result.exit_code == 0, result.output
        return result

    def json(self, command: str, *arguments: object) -> dict[str, Any]:
        target = [] if command == "inspect" else ["-"]
        result = self._succeeds(command, self.folder, *arguments, "--json", *target)
        report: dict[str, Any] = json.loads(result.stdout)
        return report


def _options(run: Run) -> list[object]:
    given = {"--runtime": run.runtime, "--device": run.device, "--threads": run.threads}
    return [word for option, value in given.items() if value for word in (option, value)]


def _ran(report: dict[str, Any]) -> Ran:
    return report["runtime"], report["threads"], report["options"].get("spinning", True)


@pytest.fixture
def opener(trained: Trained, cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    return Opener(trained, cli, folder, monkeypatch)


TAKE_A_RUN = ["load", "predict", "evaluate", "evaluate_in_python", "verify", "verify_in_python"]


@pytest.mark.slow
@pytest.mark.parametrize("way", [*TAKE_A_RUN, "bench", "inspect"])
def test_a_folder_runs_as_its_plan_says(way: str, opener: Opener, planned: Run) -> None:
    assert getattr(opener, way)(Run()) == (planned.runtime, planned.threads, planned.choices.spinning)


@pytest.mark.slow
@pytest.mark.parametrize("way", TAKE_A_RUN)
def test_threads_that_the_caller_gives_win_over_the_plan(way: str, opener: Opener, planned: Run) -> None:
    given = Run(threads=2)
    assert getattr(opener, way)(given) == (planned.runtime, 2, planned.choices.spinning)


@pytest.mark.slow
@pytest.mark.parametrize("way", TAKE_A_RUN)
def test_a_runtime_that_the_caller_gives_wins_and_the_plans_options_go(
    way: str, opener: Opener, planned: Run
) -> None:
    other = next(name for name in PLANS if name != planned.runtime)
    assert getattr(opener, way)(Run(runtime=other)) == (other, 1, True)


@pytest.mark.slow
def test_a_precision_that_the_caller_gives_leaves_the_plans_other_options(
    opener: Opener, planned: Run, trained: Trained
) -> None:
    arguments = ("--against", trained.checkpoint, "--images", 9, "--precision", "float32")
    report = opener.json("verify", *arguments)
    assert _ran(report) == (planned.runtime, planned.threads, planned.choices.spinning)


@pytest.mark.parametrize("way", TAKE_A_RUN)
def test_a_device_that_the_caller_gives_wins_over_the_plan(way: str, opener: Opener) -> None:
    with pytest.raises((cnndeploy.CnndeployError, AssertionError), match="'cuda:77' is not available"):
        getattr(opener, way)(Run(device="cuda:77"))
    assert opener.sessions == []
