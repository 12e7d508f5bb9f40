"""Model repositories for Triton; its own schema reads the configuration."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from google.protobuf import text_format

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.deployment import Plan
from cnndeploy.errors import ServingError
from cnndeploy.run import Run
from cnndeploy.serving.triton import write_repository
from helpers import Trained

model_config: Any = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="the extra serve is not installed; it would run this"
)


def read(target: Path) -> Any:
    return text_format.Parse((target / "config.pbtxt").read_text(), model_config.ModelConfig())


def test_the_configuration_says_what_the_file_is(trained: Trained, tmp_path: Path) -> None:
    target = write_repository(trained.onnx, tmp_path, max_batch=32, run=Run(threads=3))
    config = read(target)
    assert target == tmp_path / "lenet"
    assert (config.name, config.backend, config.max_batch_size) == ("lenet", "onnxruntime", 32)
    (given,), (output,) = config.input, config.output
    assert (given.name, given.data_type, list(given.dims)) == ("image", model_config.TYPE_FP32, [1, 28, 28])
    assert (output.name, output.data_type, list(output.dims)) == ("logits", model_config.TYPE_FP32, [10])
    assert (target / output.label_filename).read_text().splitlines()[9] == "Ankle boot"
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, model_config.ModelInstanceGroup.KIND_CPU)
    assert not config.HasField("dynamic_batching")
    with cnndeploy.load(target / "1" / "model.onnx") as model:
        assert len(model.classify(np.zeros((2, 28, 28), np.uint8))) == 2


def test_a_file_of_raw_images_has_free_sides_and_probabilities(trained: Trained, tmp_path: Path) -> None:
    config = read(write_repository(trained.onnx_image, tmp_path, name="raw"))
    assert (config.input[0].data_type, list(config.input[0].dims)) == (model_config.TYPE_UINT8, [-1, -1])
    assert [output.name for output in config.output] == ["logits", "probabilities"]
    assert all(output.label_filename == "labels.txt" for output in config.output)


@pytest.mark.parametrize(
    ("run", "field"),
    [
        (Run("onnxruntime", "cuda:1", 1), "dynamic_batching"),
        (Run("openvino", "cpu", 2), "optimization"),
    ],
)
def test_a_gpu_and_openvino(trained: Trained, tmp_path: Path, run: Run, field: str) -> None:
    config = read(write_repository(trained.onnx, tmp_path, run=run))
    assert config.HasField(field)
    if field == "optimization":
        accelerators = config.optimization.execution_accelerators.cpu_execution_accelerator
        assert [one.name for one in accelerators] == ["openvino"]
    else:
        (group,) = config.instance_group
        assert (group.kind, list(group.gpus)) == (model_config.ModelInstanceGroup.KIND_GPU, [1])
        assert "intra_op_thread_count" not in config.parameters


def test_a_deployment_keeps_its_plan_and_certificate(
    trained: Trained, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    folder = tmp_path / "shoes.deploy"
    folder.mkdir()
    shutil.copyfile(trained.onnx, folder / "lenet.onnx")
    plan = Plan("lenet.onnx", Artifact.open(trained.onnx).sha256, Run("onnxruntime", "cpu", 1), {})
    (folder / "plan.json").write_text(plan.to_json())
    (folder / "lenet.onnx.verified.json").write_text("{}")
    shown: Result = cli("export", folder, "--format", "triton", "--output-dir", tmp_path / "models")
    assert shown.exit_code == 0, shown.output
    assert "with its certificate" in shown.output
    target = tmp_path / "models" / "shoes"
    assert read(target).parameters["intra_op_thread_count"].string_value == "1"
    assert (target / "1" / "model.onnx.verified.json").read_text() == "{}"


def test_a_checkpoint_is_exported_and_can_be_verified_where_it_lies(
    trained: Trained, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    options = ("--format", "triton", "--output-dir", tmp_path)
    for _ in range(2):  # the second time it is replaced
        shown: Result = cli("export", trained.checkpoint, *options, "--input", "image")
        assert shown.exit_code == 0, shown.output
    model = tmp_path / "lenet" / "1" / "model.onnx"
    assert f"verify {model} --against" in shown.output.replace("\n", " ")
    verified: Result = cli("verify", model, "--against", trained.checkpoint, "--images", 64)
    assert verified.exit_code == 0, verified.output
    assert model.with_name("model.onnx.verified.json").exists()
    assert read(tmp_path / "lenet").input[0].data_type == model_config.TYPE_UINT8


def test_what_makes_no_sense_is_refused(trained: Trained, tmp_path: Path, cli: Callable[..., Result]) -> None:
    with pytest.raises(ServingError, match="Triton gets ONNX files"):
        write_repository(trained.torchscript, tmp_path)
    with pytest.raises(ServingError, match="no name"):
        write_repository(trained.onnx, tmp_path, name="..")
    with pytest.raises(ServingError, match="at least one image"):
        write_repository(trained.onnx, tmp_path, max_batch=0)
    (tmp_path / "lenet").mkdir()
    (tmp_path / "lenet" / "mine.txt").touch()
    with pytest.raises(ServingError, match=r"holds mine\.txt"):
        write_repository(trained.onnx, tmp_path)
    for arguments, message in (
        ((trained.checkpoint, "--format", "triton"), "--output-dir"),
        ((trained.checkpoint, "--format", "triton", "--format", "onnx"), "by itself"),
        ((trained.onnx, "--format", "triton", "--output-dir", tmp_path, "--opset", 19), "for checkpoints"),
    ):
        shown: Result = cli("export", *arguments)
        assert shown.exit_code == 2
        assert message in shown.output
    assert [path.name for path in tmp_path.rglob("*")] == ["lenet", "mine.txt"]
