"""cnndeploy takes an image classifier from PyTorch to deployment and shows with evidence that every step was right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnndeploy.registry import lazy

if TYPE_CHECKING:
    from cnndeploy.artifact import Artifact as Artifact
    from cnndeploy.benchmark.bench import bench as bench
    from cnndeploy.benchmark.report import BenchmarkReport as BenchmarkReport
    from cnndeploy.classifier import Classifier as Classifier, Prediction as Prediction, load as load
    from cnndeploy.compression.compress import compress as compress
    from cnndeploy.compression.report import Compressed as Compressed
    from cnndeploy.errors import CnndeployError as CnndeployError
    from cnndeploy.evaluation import Evaluation as Evaluation, evaluate as evaluate
    from cnndeploy.exporters import export as export
    from cnndeploy.images import read_image as read_image
    from cnndeploy.importing.import_model import import_model as import_model
    from cnndeploy.importing.imported import Imported as Imported
    from cnndeploy.preprocessing import Preprocessing as Preprocessing
    from cnndeploy.quantization.quantize import Quantized as Quantized, quantize as quantize
    from cnndeploy.run import Run as Run, RuntimeOptions as RuntimeOptions
    from cnndeploy.serving.server import serve as serve
    from cnndeploy.sources import allow_source as allow_source
    from cnndeploy.training.train import train as train
    from cnndeploy.transforms import preprocessing_of as preprocessing_of
    from cnndeploy.tuning.report import TuneReport as TuneReport
    from cnndeploy.tuning.tune import tune as tune
    from cnndeploy.verification.budget import verify_budget as verify_budget
    from cnndeploy.verification.reference import Reference as Reference
    from cnndeploy.verification.report import (
        BudgetReport as BudgetReport,
        EquivalenceReport as EquivalenceReport,
    )
    from cnndeploy.verification.verify import verify as verify

_NAMES = {  # a test holds the imports above to this
    "artifact": "Artifact",
    "benchmark.bench": "bench",
    "benchmark.report": "BenchmarkReport",
    "classifier": "Classifier Prediction load",
    "compression.compress": "compress",
    "compression.report": "Compressed",
    "errors": "CnndeployError",
    "evaluation": "Evaluation evaluate",
    "exporters": "export",
    "images": "read_image",
    "importing.import_model": "import_model",
    "importing.imported": "Imported",
    "serving.server": "serve",
    "sources": "allow_source",
    "transforms": "preprocessing_of",
    "preprocessing": "Preprocessing",
    "quantization.quantize": "Quantized quantize",
    "run": "Run RuntimeOptions",
    "training.train": "train",
    "tuning.report": "TuneReport",
    "tuning.tune": "tune",
    "verification.budget": "verify_budget",
    "verification.reference": "Reference",
    "verification.report": "BudgetReport EquivalenceReport",
    "verification.verify": "verify",
}
__all__ = sorted(" ".join(_NAMES.values()).split())  # noqa: PLE0605 - type checkers read the imports above
__getattr__ = lazy(__name__, _NAMES)  # importing cnndeploy loads neither torch nor onnxruntime


def __dir__() -> list[str]:
    return __all__
