"""The YAML for KServe, read by the classes that KServe's own Python package has for it."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnndeploy.errors import ServingError
from cnndeploy.run import Run
from cnndeploy.serving.kserve import inference_service, known_address, service_name
from cnndeploy.serving.triton import write_repository
from helpers import Trained

ROOT = Path(__file__).resolve().parents[2]
KSERVE = ROOT / "build" / "kserve"


def _service(model: str = "lenet", run: Run | None = None, address: str = "pvc://x") -> Any:
    return yaml.safe_load(inference_service(model, run or Run(threads=2), address))


def test_a_repository_has_a_service_for_each_model(trained: Trained, tmp_path: Path) -> None:
    write_repository(trained.onnx, tmp_path, name="Shoes_v2", run=Run(threads=3))
    write_repository(trained.onnx, tmp_path, name="other", run=Run(threads=1))
    shoes, other = (yaml.safe_load((tmp_path / f"{name}.yaml").read_text()) for name in ("Shoes_v2", "other"))
    model = shoes["spec"]["predictor"]["model"]
    assert (shoes["metadata"]["name"], other["metadata"]["name"]) == ("shoes-v2-a6720c", "other")
    assert model["args"] == ["--model-control-mode=explicit", "--load-model=Shoes_v2"]
    assert model["resources"] == {"requests": {"cpu": "3"}, "limits": {"cpu": "3"}}
    assert (model["runtime"], model["protocolVersion"]) == ("kserve-tritonserver", "v2")


def test_on_a_gpu_it_asks_for_one() -> None:
    for device, count in (("cuda", "1"), ("cuda:1", "2")):
        resources = _service(run=Run("onnxruntime", device, 1))["spec"]["predictor"]["model"]["resources"]
        assert resources["limits"] == {"cpu": "1", "nvidia.com/gpu": count}


def test_what_was_filled_in_is_kept(trained: Trained, tmp_path: Path) -> None:
    write_repository(trained.onnx, tmp_path, run=Run(threads=1))
    file = tmp_path / "lenet.yaml"
    file.write_text(file.read_text().replace("pvc://CLAIM/models", "s3://bucket/models"))
    write_repository(trained.onnx, tmp_path, run=Run(threads=4))
    model = yaml.safe_load(file.read_text())["spec"]["predictor"]["model"]
    assert model["storageUri"] == "s3://bucket/models"
    assert model["resources"]["limits"]["cpu"] == "4"


def test_a_file_of_another_kind_is_not_replaced(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "lenet.yaml").write_text("apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n")
    with pytest.raises(ServingError, match=r"lenet\.yaml was not written by cnndeploy; move it"):
        write_repository(trained.onnx, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lenet.yaml"]
    (tmp_path / "lenet.yaml").write_text("")
    with pytest.raises(ServingError):
        known_address(tmp_path / "lenet.yaml")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("lenet", "lenet"),
        ("Shoes v2.1_", "shoes-v2-1-ad3e3a"),
        ("3d", "model-3d-da0568"),
        ("模型", "model-c98e11"),
        ("x" * 99, f"{'x' * 41}-d0621f"),
    ],
)
def test_names_are_those_that_kubernetes_takes(model: str, name: str) -> None:
    assert service_name(model) == name
    assert _service(model)["spec"]["predictor"]["model"]["args"][1] == f"--load-model={model}"


@pytest.fixture
def classes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """KServe's generated classes, without its server, which needs many packages."""
    for name in ("kserve", "kubernetes"):  # what these import of themselves needs more
        package = types.ModuleType(name)
        package.__path__ = [str(KSERVE / name)]
        monkeypatch.setitem(sys.modules, name, package)
    yield [importlib.import_module(f"{name}.models") for name in ("kserve", "kubernetes.client")]
    for name in [name for name in sys.modules if name.split(".")[0] in ("kserve", "kubernetes")]:
        del sys.modules[name]


def _check(value: Any, kind: str, classes: Any, where: str) -> None:
    """Raise AssertionError if a value is not what a class of KServe or Kubernetes says that it is."""
    if kind.startswith("list["):
        assert isinstance(value, list), where
        for one in value:
            _check(one, kind[5:-1], classes, where)
    elif kind.startswith("dict("):
        assert isinstance(value, dict), where
        for key, one in value.items():
            _check(one, kind[5:-1].partition(", ")[2], classes, f"{where}.{key}")
    elif kind in ("str", "int", "bool"):
        assert type(value).__name__ == kind, (where, value)
    else:
        ours = next(getattr(module, kind) for module in classes if hasattr(module, kind))
        assert isinstance(value, dict), where
        if hasattr(ours, "model_validate"):  # Kubernetes' own
            assert set(value) <= {field.alias or name for name, field in ours.model_fields.items()}, where
            ours.model_validate(value)
            return
        names = {json_name: name for name, json_name in ours.attribute_map.items()}
        assert set(value) <= set(names), (where, set(value) - set(names))
        made = {names[key]: one for key, one in value.items()}
        ours(**made)  # raises if something is missing
        for name, one in made.items():
            _check(one, ours.openapi_types[name], classes, f"{where}.{name}")


@pytest.mark.field
@pytest.mark.skipif(
    not KSERVE.is_dir(), reason="KServe's package is not there; make build/kserve installs it"
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kserves_own_classes_take_it(classes: Any, device: str) -> None:
    service = _service(run=Run("onnxruntime", device, 2))
    _check(service, "V1beta1InferenceService", classes, "service")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    del service["spec"]["predictor"]["model"]["modelFormat"]
    with pytest.raises(ValueError, match="model_format"):
        _check(service, "V1beta1InferenceService", classes, "service")
    service["spec"]["predictor"]["model"] = {"modelFormat": {"name": "onnx"}, "storageURI": "pvc://x"}
    with pytest.raises(AssertionError, match="storageURI"):
        _check(service, "V1beta1InferenceService", classes, "service")
