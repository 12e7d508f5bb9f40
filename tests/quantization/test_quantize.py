from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from click.testing import Result
from PIL import Image

import cnndeploy
from cnndeploy.artifact import Artifact
from cnndeploy.benchmark.intervals import Verdict
from cnndeploy.certificate import certificate_path
from cnndeploy.datasets import Split, fashion_mnist, open_dataset
from cnndeploy.errors import (
    ArtifactError,
    BudgetError,
    CheckpointError,
    DataError,
    DeviceUnavailableError,
    MissingDependencyError,
    QuantizationError,
    Stopped,
    UnknownNameError,
)
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.progress import Deadline, silent
from cnndeploy.quantization import quantize as module
from cnndeploy.quantization.graph import Network, quantised
from cnndeploy.quantization.quantize import Quantized, quantize
from cnndeploy.quantization.search import (
    METHODS,
    Calibration,
    Screen,
    Search,
    Trial,
    batches,
    int8_files,
    screen_size,
    split_training,
)
from cnndeploy.run import Run
from cnndeploy.verification.budget import verify_budget
from cnndeploy.verification.reference import Runner
from helpers import COLOURS, Trained

FEW: dict[str, Any] = {"calibration": 32, "images": 320, "seconds": 0}


@pytest.fixture
def quick(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter's file is at hand, and fewer images screen."""

    def exported(_checkpoint: Path, _kind: str, path: Path, **_: Any) -> Artifact:
        return Artifact.open(shutil.copy(trained.onnx, path))

    monkeypatch.setattr(module, "export", exported)
    monkeypatch.setattr("cnndeploy.quantization.search._MOST", 200)


def test_the_file_says_what_it_is(int8: Quantized, trained: Trained) -> None:
    manifest, source = int8.artifact.require_manifest(), Artifact.open(trained.onnx).require_manifest()
    assert manifest.lossy
    assert replace(manifest, quantization=None) == source
    facts = dict(manifest.quantization or {})
    assert (facts["precision"], facts["calibration_images"], facts["budget_points"]) == ("int8", 64, 20)
    assert facts["method"] in METHODS
    assert facts["float_layers"] == []
    described = int8.artifact.describe()
    assert described["opset"] == Artifact.open(trained.onnx).describe()["opset"]
    assert [each["dtype"] for each in (*described["inputs"], *described["outputs"])] == ["float32"] * 2
    assert int8.artifact.path.stat().st_size < int8.float_bytes
    assert int8.artifact.sha256 == int8.report.artifact.sha256
    model = onnx.load(int8.artifact.path)
    assert b"/" + str(Path.home()).encode().strip(b"/") not in int8.artifact.path.read_bytes()
    scopes = [entry.key for node in model.graph.node for entry in node.metadata_props]
    assert "pkg.torch.onnx.name_scopes" in scopes


def test_weights_are_int8_per_channel_and_activations_uint8(int8: Quantized) -> None:
    tensors = {each.name: each for each in onnx.load(int8.artifact.path).graph.initializer}
    weights = tensors["features.3.weight_quantized"]
    assert (weights.data_type, list(tensors["features.3.weight_scale"].dims)) == (onnx.TensorProto.INT8, [16])
    assert tensors["image_zero_point"].data_type == onnx.TensorProto.UINT8


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(int8: Quantized, trained: Trained, tmp_path: Path) -> None:
    code = (
        "import sys; from cnndeploy.quantization.quantize import quantize; "
        "quantize(sys.argv[1], sys.argv[2], budget=20, calibration=64, images=320, seconds=0)"
    )
    path = tmp_path / "again.onnx"
    subprocess.run([sys.executable, "-c", code, str(trained.checkpoint), str(path)], check=True)
    assert path.read_bytes() == int8.artifact.path.read_bytes()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_other_runtimes_give_the_same_labels(int8: Quantized, trained: Trained, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="pip install openvino runs this test")
    images = fashion_mnist.load("test").images[:256]
    with cnndeploy.load(int8.artifact.path, runtime=runtime) as ours, cnndeploy.load(trained.onnx) as float32:
        same = ours.logits(images).argmax(axis=1) == float32.logits(images).argmax(axis=1)
    assert same.mean() > 0.95


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_command_says_what_was_tried_and_whether_it_is_faster(
    cli: Callable[..., Result], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Path(shutil.copy(trained.checkpoint, tmp_path / "lenet.pt"))
    arguments = ("--calibration", 32, "--budget", 20, "--images", 320, "--json", tmp_path / "r.json")
    monkeypatch.setattr(module, "_timed", _slower)
    result = cli("quantize", checkpoint, *arguments)
    assert result.exit_code == 0, result.output
    for text in (*METHODS, "paired 95% interval", "Layers left in float: 0 of 5", "ship the float file"):
        assert text in result.output
    path = tmp_path / "lenet.int8.onnx"
    content = json.loads(certificate_path(path).read_text())
    assert (content["verdict"], content["artifact"]["path"]) == ("within budget", str(path))
    report = json.loads((tmp_path / "r.json").read_text())
    assert [trial["method"] for trial in report["trials"]] == list(METHODS)
    assert report["speed"]["verdict"] == "SLOWER"
    cnndeploy.load(path, require_verified=True).close()
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "lenet.int8.onnx", "lenet.int8.onnx.verified.json", "lenet.pt", "r.json",
    ]  # fmt: skip


def _slower(quantized: Quantized, *_: Any) -> Quantized:
    from cnndeploy.benchmark.report import Result as Row

    row = Row("lenet.int8.onnx", "onnxruntime", "cpu", 1, 1, verdict="SLOWER")
    return replace(quantized, speed=replace(row, ratio=0.5, ratio_low=0.4, ratio_high=0.6))


def test_a_file_is_timed_beside_its_float_file(int8: Quantized, trained: Trained) -> None:
    source = Artifact.open(trained.onnx)
    row = module._timed(int8, source, Run("onnxruntime", "cpu", 1), 0.2, silent).speed
    assert row is not None
    assert Path(row.artifact).name == "lenet.int8.onnx"
    assert row.verdict in get_args(Verdict)
    assert row.ratio is not None


@pytest.mark.slow
def test_float16_is_held_against_the_same_budget(trained: Trained, tmp_path: Path) -> None:
    found = quantize(
        trained.checkpoint, tmp_path / "half.onnx", precision="float16", budget=20, images=320, seconds=0
    )
    assert found.artifact.require_manifest().quantization == {"precision": "float16", "budget_points": 20}
    assert found.report.within_budget
    assert found.trials == ()


@pytest.mark.slow
def test_a_file_that_takes_raw_images_can_be_quantised(trained: Trained, tmp_path: Path) -> None:
    found = quantize(trained.checkpoint, tmp_path / "raw.onnx", input="image", budget=20, **FEW)
    assert found.artifact.require_manifest().takes_images
    with cnndeploy.load(found.artifact.path) as model:
        assert model.logits(fashion_mnist.load("test").images[:2]).shape == (2, 10)


@pytest.mark.usefixtures("quick")
def test_a_budget_that_nothing_keeps_exits_with_5_and_writes_nothing(
    cli: Callable[..., Result], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "require_provable", lambda *_: None)
    checkpoint = Path(shutil.copy(trained.checkpoint, tmp_path / "lenet.pt"))
    result = cli("quantize", checkpoint, "--calibration", 16, "--budget", 0.001, "--images", 64)
    assert result.exit_code == 5, result.output
    assert "no setting tried keeps" in result.output
    assert "Nothing was written" in result.output
    assert [each.name for each in tmp_path.iterdir()] == ["lenet.pt"]


@pytest.mark.parametrize(
    ("images", "budget", "said"),
    [
        (
            500,
            0.5,
            r"500 images cannot show .* might be 0.77. Measure on more images, at least 765 of the 10,000",
        ),
        (500, 0.01, r"might be 0.77. Measure on all 10,000 and allow at least 0.04 points"),
        (None, 0.01, r"10,000 images cannot show .* might be 0.04. Allow at least 0.04 points"),
    ],
)
def test_a_budget_that_so_few_images_cannot_prove_is_refused_before_the_search(
    images: int | None,
    budget: float,
    said: str,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "export", lambda *_, **__: pytest.fail("the work has begun"))
    with pytest.raises(BudgetError, match=said):
        quantize(trained.checkpoint, tmp_path / "q.onnx", budget=budget, images=images)


def test_what_is_just_enough_images_is_not_refused() -> None:
    module.require_provable(0.5, 765, 10_000)
    with pytest.raises(BudgetError):
        module.require_provable(0.5, 764, 10_000)


def test_more_images_come_before_a_larger_budget(trained: Trained, int8: Quantized) -> None:
    """The loss is within the budget; only its bound, on few images, is not."""
    path, report = trained.checkpoint, replace(int8.report, loss_points=-0.2, reasons=("up to 0.56",))
    few = module._nothing(path, 0.5, [], report, more_images=True)
    assert "measure on more before you allow a larger budget" in few
    assert "Allow a larger budget" in module._nothing(path, 0.5, [], report, more_images=False)
    lost = replace(report, loss_points=0.6)
    assert "Allow a larger budget" in module._nothing(path, 0.5, [], lost, more_images=True)
    bare = replace(report, loss_points=None, reasons=("all the same label",))
    assert "larger budget" not in module._nothing(path, 0.5, [], bare, more_images=True)
    trial = Trial("entropy", (), 200, 0.1, 0.1, 0.4, 0.7)
    assert "measure on more" in module._nothing(path, 0.5, [trial], None, more_images=True)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_test_images_are_asked_at_most_twice(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def never_within(path: Path, *arguments: Any, **options: Any) -> Any:
        asked.append(dict(Artifact.open(path).require_manifest().quantization or {})["float_layers"])
        report = measure(path, *arguments, **{**options, "budget": 1e-9})
        assert not report.within_budget
        return report

    def logits(self: Runner, batches: Any, *computation: Any) -> Any:
        ran[self.candidate.artifact.format] += sum(map(len, batches))
        return run(self, batches, *computation)

    ran: Counter[str] = Counter()
    measure, run = verify_budget, Runner.logits
    monkeypatch.setattr(module, "verify_budget", never_within)
    monkeypatch.setattr(Runner, "logits", logits)
    with pytest.raises(BudgetError, match="Nothing was written"):
        quantize(trained.checkpoint, tmp_path / "q.onnx", budget=50, **FEW)
    first, second = map(len, asked)
    assert first < second
    assert ran["checkpoint"] == FEW["images"]  # once
    assert ran["onnx"] > 2 * FEW["images"]  # twice, and a batch of each once more
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.usefixtures("quick")
def test_an_interrupt_leaves_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def interrupt(done: int, total: int, text: str) -> None:
        if text.startswith("Verifying"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(trained.checkpoint, tmp_path / "q.onnx", budget=20, progress=interrupt, **FEW)
    assert [each.name for each in tmp_path.iterdir()] == ["scratch"]
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration": 0}, DataError, "at least 1"),
        ({"calibration": 60_000}, DataError, "held out"),
        ({"budget": 0}, QuantizationError, "percentage points"),
        ({"budget": float("nan")}, QuantizationError, "percentage points"),
        ({"precision": "int4"}, UnknownNameError, "Unknown precision"),
        ({"run": Run("eager")}, QuantizationError, "opens ONNX"),
        ({"run": Run(device="cuda:99"), "precision": "float16"}, DeviceUnavailableError, "cuda:99"),
        ({"images": 0}, DataError, "0 images"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    options: dict[str, Any], error: type[Exception], message: str, trained: Trained, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        quantize(trained.checkpoint, tmp_path / "q.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_only_a_checkpoint_is_quantised(int8: Quantized, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="is already int8"):
        quantize(int8.artifact.path)
    with pytest.raises(QuantizationError, match="give the checkpoint"):
        quantize(trained.onnx)
    with pytest.raises(ArtifactError, match="no such file"):
        quantize(tmp_path / "nowhere.pt")
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises((ArtifactError, CheckpointError)):
        quantize(tmp_path / "damaged.pt")


def test_without_onnx_the_extra_is_named(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    with pytest.raises(MissingDependencyError, match=r"cnndeploy\[torch\]"):
        quantize(trained.checkpoint)


class _Scripted:
    """A screen that answers what a test says, by the number of layers in float."""

    def __init__(self, predicted: dict[int, float], errors: Iterator[float]) -> None:
        self._predicted = predicted
        self._errors = errors

    def trial(self, _model: Any, method: str, float_layers: Any) -> Trial:
        error = {"min-max": 0.3, "percentile": 0.1, "entropy": 0.2}[method]
        high = self._predicted[len(float_layers)]
        return Trial(method, tuple(float_layers), 100, error, 0.1, 0.0, high)

    def logit_error(self, _model: Any) -> float:
        return next(self._errors)


def _search(trained: Trained, predicted: dict[int, float]) -> Search:
    network = Network(onnx.load(trained.onnx))
    calibration = Calibration(network)
    manifest = Artifact.open(trained.onnx).require_manifest()
    assert list(calibration.collect(batches(fashion_mnist.load("train").first(8), manifest), 1)) == [8]
    screen: Any = _Scripted(predicted, iter([0.1, 0.5, 0.3, 0.2, 0.4]))
    return Search(network, calibration, screen, Deadline(), silent)


def test_the_nearest_method_is_taken_and_the_worst_layers_are_left_in_float_first(trained: Trained) -> None:
    search = _search(trained, {0: 3.0, 1: 2.0, 2: 0.9, 3: 0.6, 4: 0.4})
    found = [(trial.method, trial.float_layers) for trial, _ in search.candidates(1.0)]
    assert found == [
        ("percentile", ("classifier.5", "features.3")),
        ("percentile", ("classifier.1", "classifier.3", "classifier.5", "features.3")),  # at half the budget
    ]
    assert [len(trial.float_layers) for trial in search.trials] == [0, 0, 0, 1, 2, 3, 4]


def test_a_setting_that_the_screen_does_not_trust_is_not_asked_about(trained: Trained) -> None:
    search = _search(trained, dict.fromkeys(range(5), 1.01))
    assert list(search.candidates(1.0)) == []


@pytest.mark.parametrize(("repaired", "limit"), [(0, 1.0), (500, 2.0)])
def test_a_network_that_was_repaired_may_seem_to_lose_more(
    repaired: int, limit: float, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[float]()

    def candidates(_: Search, limit: float) -> Iterator[Any]:
        asked.append(limit)
        return iter(())

    monkeypatch.setattr(Search, "candidates", candidates)
    monkeypatch.setattr("cnndeploy.quantization.search._MOST", 64)
    original = Artifact.open(trained.onnx)
    manifest = replace(original.require_manifest(), compression={"repaired_on_images": repaired})
    numbers = 1.0, 8, 100, 1
    dataset = fashion_mnist.FashionMNIST()
    source = replace(original, manifest=manifest)
    _, files = int8_files(source, original, *numbers, dataset, Deadline(), silent)
    assert list(files) == []
    assert asked == [limit]


def test_ranges_clip_more_from_method_to_method_but_never_the_image(trained: Trained) -> None:
    network = Network(onnx.load(trained.onnx))
    calibration = Calibration(network)
    manifest = Artifact.open(trained.onnx).require_manifest()
    images = fashion_mnist.load("train").first(100)
    assert sum(calibration.collect(batches(images, manifest), 1)) == 100
    full = calibration.ranges("min-max")
    assert set(full) == set(network.measured())
    with cnndeploy.load(trained.onnx) as model:
        logits = model.logits(images.images)
    assert full["logits"] == pytest.approx((logits.min(), logits.max()), rel=1e-4)
    for method in ("percentile", "entropy"):
        ranges = calibration.ranges(method)
        assert ranges["image"] == full["image"] == (0.0, 1.0)
        assert all(full[name][0] <= low < high <= full[name][1] for name, (low, high) in ranges.items())
        assert ranges != full


def test_a_network_that_gives_nan_is_not_calibrated(trained: Trained) -> None:
    model = onnx.load(trained.onnx)
    bias = next(each for each in model.graph.initializer if each.name == "features.0.bias")
    bias.raw_data = np.full(6, np.nan, np.float32).tobytes()
    manifest = Artifact.open(trained.onnx).require_manifest()
    with pytest.raises(QuantizationError, match="NaN or infinite on training images"):
        list(Calibration(Network(model)).collect(batches(fashion_mnist.load("train").first(4), manifest), 1))


def test_the_screen_counts_what_a_setting_changes(trained: Trained) -> None:
    network = Network(onnx.load(trained.onnx))
    manifest = Artifact.open(trained.onnx).require_manifest()
    images = fashion_mnist.load("train").first(100)
    screen = Screen(network.model, manifest, images, 10_000, 1)
    same = screen.trial(network.model, "none", [])
    assert (same.logit_error, same.changed, same.loss_points) == (0, 0, 0)
    assert same.predicted_high_points == pytest.approx(100 * 1.96 * (0.01 / 10_000) ** 0.5)
    narrow = dict.fromkeys(network.measured(), (0.0, 0.01))
    wrong = screen.trial(quantised(network, narrow, []), "none", [])
    assert wrong.logit_error > 0.5
    assert wrong.loss_points > 30
    assert wrong.predicted_high_points > wrong.loss_points / 2  # what 100 images prove of it


def test_slow_networks_are_screened_on_fewer_images() -> None:
    assert [screen_size(work) for work in (1, 281_640, 10**9, 10**11)] == [2000, 2000, 400, 128]


def test_calibration_and_screening_share_no_image() -> None:
    numbered = fashion_mnist.Images(np.arange(1000).reshape(-1, 1, 1), np.arange(1000), {})  # type: ignore[arg-type] # wider numbers
    for calibration in (600, 64):
        parts = split_training(numbered, calibration, 400, Preprocessing((28, 28)))
        assert [len(part) for part in parts] == [calibration, 400]
        assert not set(parts[0].numbers.tolist()) & set(parts[1].numbers.tolist())


def test_a_small_folder_is_split_in_halves_and_damaged_images_are_left_out(
    photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    (folder / "train" / "lime" / "00.jpg").write_bytes(b"damaged")
    train = open_dataset(folder).split("train", 3, list(COLOURS))
    with pytest.warns(UserWarning, match="1 image cannot be used and is left out: .*00.jpg"):
        calibrating, screening = split_training(train, None, 2000, Preprocessing((28, 28)))
    assert sorted([len(calibrating), len(screening)]) == [29, 30]
    assert not set(calibrating.numbers.tolist()) & set(screening.numbers.tolist())
    with pytest.raises(DataError, match=r"calibration takes 1 to 30 training images, for 30 of 60 .* not 31"):
        split_training(train, 31, 2000, Preprocessing((28, 28)))


@pytest.mark.slow
def test_a_file_is_quantised_on_a_folder(trained: Trained, tmp_path: Path) -> None:
    """In which images differ in size, for a file that takes them as they are."""
    counts: dict[Split, int] = {"train": 100, "test": 60}
    for split, count in counts.items():
        images = fashion_mnist.load(split).first(count)
        for number, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            path = tmp_path / "shoes" / split / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((28 + number % 3, 28)).save(path)
    output = tmp_path / "q.onnx"
    made = quantize(trained.checkpoint, output, budget=40, input="image", data=tmp_path / "shoes", seconds=0)
    assert (made.report.images, made.settings["calibration_images"]) == (60, 50)
    assert made.report.data == str(tmp_path / "shoes")
    assert f"--data {tmp_path / 'shoes'}" in json.loads(certificate_path(output).read_text())["command"]


@pytest.mark.slow
def test_the_file_and_its_certificate_are_there_before_it_is_timed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "bench", interrupt)
    path = tmp_path / "q.onnx"
    with pytest.raises(KeyboardInterrupt):
        quantize(trained.checkpoint, path, budget=20, **{**FEW, "seconds": 1.0})
    cnndeploy.load(path, require_verified=True).close()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("text", ["Calibrating", "Trying percentile", "Verifying"])
def test_a_deadline_ends_the_search_and_nothing_is_written(
    text: str, trained: Trained, tmp_path: Path
) -> None:
    reached = False

    def watch(_done: int, _total: int, now: str) -> None:
        nonlocal reached
        reached = reached or now.startswith(text)

    with pytest.raises(Stopped):
        quantize(
            trained.checkpoint,
            tmp_path / "q.onnx",
            budget=20,
            deadline=Deadline(should_stop=lambda: reached),
            progress=watch,
            **FEW,
        )
    assert reached
    assert list(tmp_path.iterdir()) == []


def test_int8_on_cuda_is_refused_before_anything_is_done(trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    with pytest.raises(QuantizationError, match=r"no int8 convolutions on CUDA; use the precision float16"):
        quantize(trained.checkpoint, output, run=Run("", "cuda"))
    with pytest.raises(DeviceUnavailableError):  # there is no GPU, but float16 would do
        quantize(trained.checkpoint, output, precision="float16", run=Run("", "cuda:77"))
