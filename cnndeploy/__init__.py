"""cnndeploy takes a convolutional classifier from data to deployment and proves every step.

Importing it loads neither torch nor onnxruntime; each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnndeploy.artifact import Artifact as Artifact
    from cnndeploy.benchmark import bench as bench
    from cnndeploy.benchmark.report import BenchmarkReport as BenchmarkReport
    from cnndeploy.classifier import Classifier as Classifier
    from cnndeploy.classifier import Prediction as Prediction
    from cnndeploy.classifier import load as load
    from cnndeploy.classifier import read_image as read_image
    from cnndeploy.equivalence import verify as verify
    from cnndeploy.equivalence.budget import verify_budget as verify_budget
    from cnndeploy.equivalence.budget_report import BudgetReport as BudgetReport
    from cnndeploy.equivalence.report import EquivalenceReport as EquivalenceReport
    from cnndeploy.errors import CnndeployError as CnndeployError
    from cnndeploy.evaluation import Evaluation as Evaluation
    from cnndeploy.evaluation import evaluate as evaluate
    from cnndeploy.exporters import export as export
    from cnndeploy.quantization import Quantized as Quantized
    from cnndeploy.quantization import quantize as quantize
    from cnndeploy.specs import Preprocessing as Preprocessing
    from cnndeploy.training.train import train as train
    from cnndeploy.tuning import tune as tune
    from cnndeploy.tuning.report import TuneReport as TuneReport

_MODULE_OF = {
    "Artifact": "cnndeploy.artifact",
    "BenchmarkReport": "cnndeploy.benchmark.report",
    "BudgetReport": "cnndeploy.equivalence.budget_report",
    "Classifier": "cnndeploy.classifier",
    "CnndeployError": "cnndeploy.errors",
    "EquivalenceReport": "cnndeploy.equivalence.report",
    "Evaluation": "cnndeploy.evaluation",
    "Prediction": "cnndeploy.classifier",
    "Preprocessing": "cnndeploy.specs",
    "Quantized": "cnndeploy.quantization",
    "bench": "cnndeploy.benchmark",
    "evaluate": "cnndeploy.evaluation",
    "export": "cnndeploy.exporters",
    "load": "cnndeploy.classifier",
    "quantize": "cnndeploy.quantization",
    "read_image": "cnndeploy.classifier",
    "train": "cnndeploy.training.train",
    "TuneReport": "cnndeploy.tuning.report",
    "tune": "cnndeploy.tuning",
    "verify": "cnndeploy.equivalence",
    "verify_budget": "cnndeploy.equivalence.budget",
}

__all__ = [
    "Artifact",
    "BenchmarkReport",
    "BudgetReport",
    "Classifier",
    "CnndeployError",
    "EquivalenceReport",
    "Evaluation",
    "Prediction",
    "Preprocessing",
    "Quantized",
    "TuneReport",
    "bench",
    "evaluate",
    "export",
    "load",
    "quantize",
    "read_image",
    "train",
    "tune",
    "verify",
    "verify_budget",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'cnndeploy' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    except ModuleNotFoundError as error:
        from cnndeploy.errors import missing_dependency

        raise missing_dependency(error) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
