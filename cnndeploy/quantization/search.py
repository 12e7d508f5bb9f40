"""The search for an int8 file: first the calibration method, then which layers stay in float, all by measuring.

It sees training images only: some calibrate, others, which no calibration saw, screen, so that test images choose
nothing. A step leaves the next most sensitive layers in float, until the screen predicts that the budget is kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from cnndeploy.artifact import Artifact
from cnndeploy.datasets import Dataset, Images, feeds, require_labels, sound
from cnndeploy.errors import DataError, QuantizationError
from cnndeploy.machine import quiet
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.progress import Deadline, Progress, silent
from cnndeploy.quantization.graph import Network, Range, quantised, with_manifest
from cnndeploy.specs import Manifest
from cnndeploy.verification.paired import paired_counts, paired_interval

SEED = 0
# Layers left in float at each step, as shares of all; at least one more than before.
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
# How many times the budget training images may predict of a network that was repaired. They have taught the original,
# but not that network, which looks worse on them than on test images: AlexNet by a point.
REPAIRED = 2.0
# If the test images did not confirm the first choice, the next must promise to stay below this share of the budget.
_CAREFUL = 0.5
Method = Literal["min-max", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
PERCENTILE = 99.99  # of all values lie within; those beyond are clipped
# Entropy takes time by the square of the bins; of values of one sign half of them are used, a level of uint8 each.
_BINS, _ENTROPY_BINS = 512, 128
_Z = 1.96  # of a 95% interval
# Fewer images for larger networks, by their multiply-adds.
_FEWEST, _MOST, _MULTIPLY_ADDS = 128, 2000, 4e11
_SENSITIVITY_IMAGES = 64
_MOST_KEPT = 2**26  # floats of prepared images, which are not read again for each setting
CALIBRATION = 512  # training images, if there are so many
_BATCH_FLOATS = 2**22  # of a batch's prepared images and, many times that, its activations


def int8_files(
    source: Artifact,
    original: Artifact,
    budget: float,
    calibration: int | None,
    tests: int,
    threads: int,
    dataset: Dataset,
    deadline: Deadline,
    progress: Progress,
) -> tuple[list[Trial], Iterator[bytes]]:
    """Calibrate a float file on so many training images; ``tests`` test images will measure what comes of it.

    What is lost is judged by what the ``original`` says; it is another file if the network was compressed. Return the
    settings that were tried so far, and the contents of the files that should keep the budget, the least careful
    first, each made when it is asked for.
    """

    def reading(done: int, total: int, text: str) -> None:
        progress(done, total, text)
        deadline.check()

    manifest, network = source.require_manifest(), Network(onnx.load(source.path))
    train = dataset.split("train", manifest.preprocessing.channels, manifest.labels)
    require_labels(train, dataset)
    # As many as the original's work allows: a smaller network may have been taught by the images that come after them.
    exact = onnx.load(original.path)
    most = screen_size(network.work() if original.sha256 == source.sha256 else Network(exact).work())
    calibrating, screening = split_training(train, calibration, most, manifest.preprocessing, reading)
    calibrated, done = Calibration(network), 0
    for size in calibrated.collect(batches(calibrating, manifest, network.floats()), threads):
        done += size
        progress(done, len(calibrating), "Calibrating")
        deadline.check()
    progress(0, 0, "Running the float file")
    screen = Screen(exact, manifest, screening, tests, threads)
    search = Search(network, calibrated, screen, deadline, progress)
    settings: dict[str, Any] = {
        "precision": "int8",
        "activations": "uint8",
        "weights": "int8 per channel",
        "calibration_images": len(calibrating),
        "seed": SEED,
        "layers": len(network.layers),
        "budget_points": budget,
    }

    repaired = (manifest.compression or {}).get("repaired_on_images", 0) > 0

    def files() -> Iterator[bytes]:
        for trial, model in search.candidates(REPAIRED * budget if repaired else budget):
            tried = {"method": trial.method, "float_layers": list(trial.float_layers)}
            yield with_manifest(model, replace(manifest, quantization=settings | tried).to_json())

    return search.trials, files()


def split_training(
    train: Images,
    calibration: int | None,
    screening: int,
    preprocessing: Preprocessing,
    progress: Progress = silent,
) -> tuple[Images, Images]:
    """Draw images to calibrate with, by a seed, and others to screen with; leave out those that cannot be used."""
    screening = min(screening, len(train) // 2)
    most = len(train) - screening
    if calibration is None:
        calibration = min(CALIBRATION, most)
    if calibration > most:
        raise DataError(
            f"calibration takes 1 to {most:,} training images, for {screening:,} of {len(train):,} are held out to "
            f"choose settings by; not {calibration:,}. {CALIBRATION} are usual."
        )
    drawn = np.random.default_rng(SEED).permutation(len(train))
    readable = sound(train.take(drawn[: screening + calibration]), preprocessing.resized_size, progress)
    held_out = int(np.isin(train.numbers[drawn[:screening]], readable.numbers).sum())
    if not 0 < held_out < len(readable):
        raise DataError(
            f"at least two training images that can be read are needed, one of {calibration:,} to learn from and "
            f"one of {screening:,} to choose settings by"
        )
    return readable.take(range(held_out, len(readable))), readable.first(held_out)


class Search:
    """Finds the settings worth measuring on test images; ``trials`` are all that were tried."""

    def __init__(
        self,
        network: Network,
        calibration: Calibration,
        screen: Screen,
        deadline: Deadline,
        progress: Progress,
    ) -> None:
        self._network, self._screen, self._deadline, self._progress = network, screen, deadline, progress
        self._ranges = cache(calibration.ranges)
        self.trials: list[Trial] = []

    def candidates(self, budget: float) -> Iterator[tuple[Trial, onnx.ModelProto]]:
        """Yield the setting with the fewest layers in float that should keep the budget, then a more careful one."""
        tried = {method: self._try(method, []) for method in METHODS}
        # nearest to the float file with every layer in int8
        method = min(METHODS, key=lambda method: tried[method][0].logit_error)
        limit, ranking = budget, list[str]()
        for count in self._counts():
            if count and not ranking:
                ranking = self._ranking(method)
            trial, model = self._try(method, ranking[:count]) if count else tried[method]
            if trial.predicted_high_points <= limit:
                yield trial, model
                limit = _CAREFUL * budget

    def _counts(self) -> list[int]:
        """Return how many layers stay in float at each step; never all of them."""
        layers = len(self._network.layers)
        counts = accumulate(_SHARES, lambda last, share: max(last + 1, round(share * layers)), initial=0)
        return [count for count in counts if count < layers]

    def _try(self, method: Method, float_layers: list[str]) -> tuple[Trial, onnx.ModelProto]:
        left = f", {len(float_layers)} layers in float" if float_layers else ""
        self._progress(0, 0, f"Trying {method}{left}")
        model = quantised(self._network, self._ranges(method), float_layers)
        trial = self._screen.trial(model, method, sorted(float_layers))
        self.trials.append(trial)
        self._deadline.check()
        return trial, model

    def _ranking(self, method: Method) -> list[str]:
        """Return the layers by the error that each makes when it alone is in int8, the worst first."""
        layers, errors = list(self._network.layers), {}
        for done, layer in enumerate(layers):
            self._progress(done, len(layers), f"Layer {layer} alone in int8")
            self._deadline.check()
            others = [other for other in layers if other != layer]
            errors[layer] = self._screen.logit_error(quantised(self._network, self._ranges(method), others))
        return sorted(layers, key=lambda layer: -errors[layer])


class Calibration:
    """The histogram of each activation over the calibration images, which all methods read.

    Only histograms are kept, and the images come in small batches, so that memory is bounded whatever the network.
    """

    def __init__(self, network: Network) -> None:
        from onnxruntime.quantization.calibrate import HistogramCollector

        self._input = network.model.graph.input[0].name
        self._collector: Any = HistogramCollector("entropy", False, _BINS, _ENTROPY_BINS, PERCENTILE, "same")
        self._network = network

    def collect(self, batches: Iterable[tuple[list[int], NDArray[Any]]], threads: int) -> Iterator[int]:
        """Run all :func:`batches`, and yield the size of each."""
        wanted = self._network.measured()
        names = [name for name in wanted if name != self._input]
        model = copy.deepcopy(self._network.model)
        inner = (name for name in names if name not in self._network.outputs)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
        session = open_on_cpu(model, threads)
        for _, batch in batches:
            values = dict(zip(names, session.run(names, {self._input: batch}), strict=True))
            if self._input in wanted:
                values[self._input] = batch
            for name, array in values.items():
                if not np.isfinite(array).all():
                    raise QuantizationError(
                        f"{name} is NaN or infinite on training images; train the network again"
                    )
            with quiet():
                self._collector.collect(values)
            yield len(batch)

    def ranges(self, method: Method) -> dict[str, Range]:
        """Return, for each activation, the lowest and the highest value that is not clipped.

        Images keep their whole range in every method: they are grey levels, which 256 levels hold exactly.

        Source: onnxruntime.quantization.calibrate; entropy as in Migacz, 8-bit Inference with TensorRT, 2017.
        """
        histograms = self._collector.get_histogram_dict()
        ranges = {name: histogram[2:4] for name, histogram in histograms.items()}
        images = ranges.get(self._input)
        with quiet():
            if method == "percentile":
                ranges |= self._collector.compute_percentile()
            for name in ranges.keys() - {self._input} if method == "entropy" else ():
                ranges[name] = self._collector.get_entropy_threshold(histograms[name], _ENTROPY_BINS)
        if images is not None:
            ranges[self._input] = images
        return {name: (float(values[0]), float(values[1])) for name, values in ranges.items()}


def screen_size(work: int) -> int:
    """Return how many images screen a network whose layers take ``work`` multiply-adds an image."""
    return int(min(_MOST, max(_FEWEST, _MULTIPLY_ADDS // max(1, work))))


def batches(
    images: Images, manifest: Manifest, floats_an_image: int = 0
) -> Iterator[tuple[list[int], NDArray[Any]]]:
    """Yield images as the network takes them, in batches of bounded size, (batch, ...), and which images these are."""
    values = math.prod(manifest.preprocessing.shape)
    size = max(1, min(64, _BATCH_FLOATS // max(values * 16, floats_an_image)))
    prepare = None if manifest.takes_images else manifest.preprocessing
    for start in range(0, len(images), size):
        for places, batch in feeds(images, range(start, min(start + size, len(images))), prepare):
            yield [start + place for place in places], batch


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting and what it cost on the screen.

    ``logit_error`` is the root mean square of the logits' error relative to that of the float file's logits;
    ``changed`` the share of labels that are not the float file's. ``predicted_high_points`` is the upper end of the
    interval that the test images would give, in percentage points; it assumes the screen's rate of discordant images
    and the smallest loss that the screen does not rule out.
    """

    method: str
    float_layers: tuple[str, ...]
    images: int
    logit_error: float
    changed: float
    loss_points: float
    predicted_high_points: float


class Screen:
    """Training images, their labels, and the float file's logits for them; ``tests`` images will be asked later."""

    def __init__(
        self,
        network: onnx.ModelProto,
        manifest: Manifest,
        images: Images,
        tests: int,
        threads: int,
    ) -> None:
        self._manifest, self._images, self._tests, self._threads = manifest, images, tests, threads
        few = (
            not manifest.takes_images and len(images) * math.prod(manifest.preprocessing.shape) <= _MOST_KEPT
        )
        self._kept = list(batches(images, manifest)) if few else None  # every setting runs them
        self._expected = self._logits(network, len(images))

    def trial(self, model: onnx.ModelProto, method: str, float_layers: Sequence[str]) -> Trial:
        """Run the whole screen."""
        count = len(self._images)
        logits = self._logits(model, count)
        labels, expected = logits.argmax(axis=1), self._expected.argmax(axis=1)
        assert self._images.labels is not None  # noqa: S101 - int8_files() has looked
        lost, gained = paired_counts(labels, expected, self._images.labels)
        # at least one: that none of so few differed does not mean that none of 10,000 would
        discordant = max(1, lost + gained) / count
        # of so few images two labels are half a point: only what they prove counts against a setting
        proven, _ = paired_interval(lost, gained, count)
        high = max(0.0, proven) + _Z * math.sqrt(discordant / self._tests)
        return Trial(
            method=method,
            float_layers=tuple(float_layers),
            images=count,
            logit_error=_relative_error(logits, self._expected),
            changed=float((labels != expected).mean()),
            loss_points=100 * (lost - gained) / count,
            predicted_high_points=100 * high,
        )

    def logit_error(self, model: onnx.ModelProto) -> float:
        """Return the logit error on some dozens of images, to rank layers by."""
        logits = self._logits(model, _SENSITIVITY_IMAGES)
        return _relative_error(logits, self._expected[: len(logits)])

    def _logits(self, model: onnx.ModelProto, count: int) -> NDArray[np.float32]:
        session = open_on_cpu(model, self._threads)
        (name,), wanted = (value.name for value in model.graph.input), [self._manifest.output.name]
        rows: NDArray[np.float32] = np.empty((len(self._images), len(self._manifest.labels)), np.float32)
        done = 0
        for places, batch in self._kept or batches(self._images.first(min(count, len(rows))), self._manifest):
            if done >= count:
                break
            rows[places] = session.run(wanted, {name: batch})[0]
            done += len(places)
        return rows[:done]


def open_on_cpu(model: onnx.ModelProto, threads: int) -> Any:
    """Open an ONNX Runtime session in this process, whose threads do not spin between runs.

    It is for trying settings; what is shipped is measured elsewhere, in a process of its own.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _relative_error(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    error = logits.astype(np.float64) - expected
    return float(np.sqrt((error**2).mean() / max(float((expected.astype(np.float64) ** 2).mean()), 1e-30)))
