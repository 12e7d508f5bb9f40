"""``--precision`` in the commands that run a file: what it is computed in reaches the runtime, and is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

import cnndeploy
from cnndeploy.benchmark.bench import candidates_of
from cnndeploy.benchmark.report import BenchmarkReport
from cnndeploy.display.names import candidate_names
from cnndeploy.display.rows import as_csv
from cnndeploy.errors import BenchmarkError, CnndeployError
from cnndeploy.run import RuntimeOptions
from cnndeploy.serial import dumps
from helpers import Trained

Cli = Callable[..., Result]
BY = ["--runtime", "openvino", "--precision", "bfloat16"]


@pytest.fixture
def _has_bfloat16(trained: Trained) -> None:
    try:
        cnndeploy.load(trained.onnx, runtime="openvino", precision="bfloat16", threads=1).close()
    except CnndeployError as error:
        pytest.skip(f"this processor or installation has no bfloat16 in OpenVINO: {error}")


@pytest.mark.usefixtures("_has_bfloat16")
def test_predict_and_evaluate_compute_in_it(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    image = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)).save(image)
    told = json.loads(cli("predict", trained.onnx, image, *BY, "--threads", 1, "--json").stdout)
    exact = json.loads(cli("predict", trained.onnx, image, *BY[:2], "--threads", 1, "--json").stdout)
    with cnndeploy.load(trained.onnx, runtime="openvino", precision="bfloat16", threads=1) as model:
        (expected,) = model.classify(cnndeploy.read_image(image))
    (shown,) = told["predictions"]
    assert (told["options"], exact["options"]) == ({"precision": "bfloat16"}, {})
    assert shown["classes"] == [{"label": expected.label, "probability": expected.probability}]
    assert shown["classes"][0]["probability"] != exact["predictions"][0]["classes"][0]["probability"]
    evaluated = cli("evaluate", trained.onnx, *BY, "--images", 64, "--json", tmp_path / "accuracy.json")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert "openvino on cpu" in evaluated.stdout
    assert "precision bfloat16" in evaluated.stdout
    assert json.loads((tmp_path / "accuracy.json").read_text())["options"] == {"precision": "bfloat16"}


@pytest.mark.slow
@pytest.mark.usefixtures("_has_bfloat16")
def test_bench_has_a_row_for_each_that_a_runtime_can(cli: Cli, trained: Trained, tmp_path: Path) -> None:
    runtimes = ["--runtime", "onnxruntime", "--runtime", "openvino", "--precision", "float32,bfloat16"]
    quick = ["--threads", 1, "--seconds", 0.1, "--cold-start", 0, "--json", tmp_path / "bench.json"]
    done = cli("bench", trained.onnx, *runtimes, *quick)
    assert done.exit_code == 0, done.output
    report = BenchmarkReport.from_json((tmp_path / "bench.json").read_text())
    shown = [(row.runtime, row.options) for row in report.results]
    assert shown == [("onnxruntime", {}), ("openvino", {}), ("openvino", {"precision": "bfloat16"})]
    assert "openvino, precision bfloat16" in done.output
    assert len({row.identity for row in report.results}) == 3
    assert len(set(candidate_names(report.results))) == 3
    # of before there were options
    content = json.loads((tmp_path / "bench.json").read_text())
    for row in content["results"]:
        del row["options"]
    assert [row.options for row in BenchmarkReport.from_json(dumps(content)).results] == [
        {},
        {},
        {"precision": "bfloat16"},
    ]
    content["results"][0]["options"] = {"x": []}
    with pytest.raises(BenchmarkError, match="no report of cnndeploy bench"):
        BenchmarkReport.from_json(dumps(content))
    assert ",precision bfloat16," in as_csv(report)


def test_bench_takes_no_precision_that_none_of_its_runtimes_has(trained: Trained) -> None:
    every: dict[str, Any] = {"runtimes": ["onnxruntime", "openvino", "raw-onnxruntime"]}
    candidates = candidates_of([trained.onnx], **every, precisions=["bfloat16"])
    assert [(one.run.runtime, one.run.options) for one in candidates] == [
        ("openvino", RuntimeOptions(precision="bfloat16"))
    ]
    with pytest.raises(BenchmarkError, match="none of the runtimes of these files computes in bfloat16"):
        candidates_of([trained.onnx, trained.checkpoint], precisions=["float32", "bfloat16"])
    with pytest.raises(BenchmarkError, match=r"no runtime of .*\.pt computes in bfloat16; add float32"):
        candidates_of(
            [trained.checkpoint, trained.onnx], runtimes=["eager", "openvino"], precisions=["bfloat16"]
        )


@pytest.mark.parametrize("command", ["predict", "evaluate", "bench"])
def test_what_a_runtime_has_not_is_refused(command: str, cli: Cli, trained: Trained, tmp_path: Path) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "black.png")
    given = [tmp_path / "black.png"] if command == "predict" else []
    done = cli(command, trained.onnx, *given, "--precision", "bfloat16")
    assert done.exit_code == 1
    assert "bfloat16" in done.stderr
    assert "Traceback" not in done.stderr
