from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import cnndeploy
from cnndeploy import classifier
from cnndeploy.artifact import Artifact
from cnndeploy.certificate import certificate_path, certify
from cnndeploy.datasets import fashion_mnist
from cnndeploy.errors import ArtifactError, DataError, DeviceUnavailableError, InputMismatchError
from cnndeploy.formats.onnx import MANIFEST_KEY
from cnndeploy.images import read_image
from cnndeploy.preprocessing import border_contrast
from cnndeploy.run import Run
from cnndeploy.runtimes import RUNTIMES, Session, open_session
from cnndeploy.specs import TensorSpec
from cnndeploy.verification.verify import verify
from edits import edit_manifest, fix_batch
from helpers import Trained, names_of

Edited = Callable[[Callable[[onnx.ModelProto], None]], Path]
FORMATS = ["onnx", "torchscript", "checkpoint", "onnx_image", "torchscript_image"]


def _huge_png(path: Path) -> Path:
    """A file of some bytes whose header says that it is 50,000 pixels wide and high."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    return path


def test_the_classifier_is_as_accurate_as_training_said(trained: Trained) -> None:
    test = fashion_mnist.load("test").first(8000)
    with cnndeploy.load(trained.onnx) as model:
        logits = model.logits(test.images)
        probabilities = model.probabilities(test.images)
        expected = model.manifest.training["test_accuracy"]
    assert float((logits.argmax(axis=1) == test.labels).mean()) == pytest.approx(expected, abs=1e-3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), logits.argmax(axis=1))


@pytest.mark.parametrize("kind", FORMATS)
def test_however_images_are_given_they_get_the_same_classes(kind: str, trained: Trained) -> None:
    images = fashion_mnist.load("test").images[:3]
    wide = np.kron(images[0], np.ones((2, 3), np.uint8))
    with cnndeploy.load(trained.file_of(kind)) as model:
        many = model.classify(images)
        pictures = [Image.fromarray(one) for one in images]
        ways = {
            "one by one": [model.classify(one)[0] for one in images],
            "a list": model.classify(list(images)),
            "pictures": model.classify(pictures),
            "a picture": [model.classify(each)[0] for each in pictures],
            "of several sizes": [
                each
                for number, each in enumerate(model.classify([images[0], wide, pictures[1], wide, images[2]]))
                if number % 2 == 0
            ],
        }
        for way, predictions in ways.items():
            assert [each.label for each in predictions] == [each.label for each in many], way
            assert [each.probability for each in predictions] == pytest.approx(
                [each.probability for each in many], abs=1e-5
            ), way
        prepared = model.manifest.preprocessing(wide[None])
        with cnndeploy.load(trained.onnx) as other:
            expected = other._session.run({"image": prepared})["logits"]
        np.testing.assert_allclose(model.logits(wide), expected, atol=1e-4)


def test_the_next_classes(trained: Trained) -> None:
    images = fashion_mnist.load("test").images[:20]
    with cnndeploy.load(trained.onnx) as model:
        probabilities = model.probabilities(images)
        for top, count in ((1, 1), (3, 3), (99, 10)):
            for row, prediction in zip(probabilities, model.classify(images, top=top), strict=True):
                ranked = (prediction, *prediction.runners_up)
                assert len(ranked) == count
                assert [each.label for each in ranked] == [
                    model.labels[number] for number in np.argsort(-row)[:count]
                ]
                assert [each.probability for each in ranked] == pytest.approx(sorted(row)[::-1][:count])
        alone = model.classify(images[0])[0]
        assert (
            alone == model.classify(images)[0] == model.classify(images[:1], top=3)[0]._replace(runners_up=())
        )
        with pytest.raises(InputMismatchError, match="top is a whole number"):
            model.classify(images, top=0)
        with pytest.raises(InputMismatchError, match="top is a whole number"):
            model.classify(images, top="3")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((2, 28, 28)), r"expected uint8 images.*got float64.*use \(images \* 255\)"),
        (np.full((2, 28, 28), np.nan), "expected uint8 images"),
        (np.full((28, 28), 300.0, np.float32), "expected uint8 images"),
        (np.zeros((2, 28, 28), np.int64), r"use images.astype\(np.uint8\)"),
        (np.zeros((1, 3, 28, 28), np.uint8), "channels come last"),
        (np.zeros((1, 1, 28, 28), np.uint8), r"use images\[:, 0\]"),
        (np.zeros((2, 28, 28), bool), r"use images \* np.uint8"),
        (np.ma.masked_array(np.zeros((28, 28), np.uint8)), "got a masked array"),
        (memoryview(bytes(28)), "got memoryview"),
        (Image.Image, "got type"),
        ([Image.Image], "got type in it"),
        (np.zeros((28, 28, 4), np.uint8), "looks like one image in 4 channels"),
        (np.zeros((28, 28, 1), np.uint8), "looks like one image in 1 channels"),
        (np.zeros(28, np.uint8), r"got uint8 \(28,\)"),
        (np.zeros((), np.uint8), "expected uint8 images"),
        (np.array([[None, "x"]], object), "got object"),
        (np.zeros((0, 28, 28), np.uint8), "no images were given"),
        (np.zeros((2, 0, 28), np.uint8), "0 pixels"),
        (
            np.broadcast_to(np.uint8(0), (50_000, 50_000)),
            "image is 50000 x 50000 pixels; the limit is 8192 a side",
        ),
        (np.broadcast_to(np.uint8(0), (1, 8193, 2)), "2 x 8193 pixels; the limit is 8192"),
        ([], "no images were given"),
        ([np.zeros((2, 28, 28), np.uint8)], "expected a list of images"),
        ([[0, 255]], "got list in it"),
        ([np.zeros((28, 28))], "got float64"),
        ([np.zeros((0, 3), np.uint8)], "0 pixels"),
        ("shoe.png", "got the path 'shoe.png'"),
        (["shoe.png"], "got str in it"),
        (None, "got NoneType"),
        (7, "got int"),
        (Image.new("I;16", (28, 28)), "more than 8 bits"),
        (Image.new("L", (0, 5)), "0 pixels"),
    ],
)
def test_what_is_no_image_is_refused(images: Any, reason: str, trained: Trained) -> None:
    with cnndeploy.load(trained.onnx, threads=1) as model:
        for method in (model.classify, model.probabilities, model.logits):
            with pytest.raises(InputMismatchError, match=reason):
                method(images)
        assert len(model.classify(np.zeros((28, 28), np.uint8))) == 1


def test_a_damaged_picture_is_an_error_of_ours(trained: Trained, tmp_path: Path) -> None:
    Image.fromarray(fashion_mnist.load("test").images[0]).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:120])
    with (
        cnndeploy.load(trained.onnx, threads=1) as model,
        Image.open(tmp_path / "half.png") as picture,
        pytest.raises(DataError, match="cannot be read"),
    ):
        model.classify(picture)


def test_many_images_are_run_in_batches_that_fit_into_memory(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    run = Session.run

    def watched(self: Session, feeds: Any) -> Any:
        seen.append(next(iter(feeds.values())).shape)
        return run(self, feeds)

    monkeypatch.setattr(Session, "run", watched)
    with cnndeploy.load(trained.onnx_image, threads=1) as model:
        for images, batches in (
            (np.zeros((600, 28, 28), np.uint8), [256, 256, 88]),
            (np.zeros((5, 700, 700), np.uint8), [2, 2, 1]),
            ([np.zeros((700, 700), np.uint8)] * 3, [2, 1]),
            (np.zeros((2, 3000, 3000), np.uint8), [1, 1]),
        ):
            seen.clear()
            assert len(model.logits(images)) == len(images)
            assert [shape[0] for shape in seen] == batches


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error(value: float, edited: Edited) -> None:
    def break_bias(model: onnx.ModelProto) -> None:
        bias = next(each for each in model.graph.initializer if tuple(each.dims) == (10,))
        values = numpy_helper.to_array(bias).copy()
        values[3] = value
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))

    image = np.zeros((28, 28), np.uint8)
    with cnndeploy.load(edited(break_bias), threads=1) as model:
        for call in (
            lambda: model.classify(image),
            lambda: model.classify(image, top=2),
            lambda: model.classify(np.stack([image, image])),
            lambda: model.probabilities(image),
        ):
            with pytest.raises(ArtifactError, match="NaN or infinite logits"):
                call()


def _without_manifest(model: onnx.ModelProto) -> None:
    kept = [entry for entry in model.metadata_props if entry.key != MANIFEST_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def test_a_file_of_others_works_with_labels_and_preprocessing(trained: Trained, edited: Edited) -> None:
    images = fashion_mnist.load("test").images[:5]
    with cnndeploy.load(trained.onnx) as model:
        expected = model.classify(images)

    def one_image_at_a_time(model: onnx.ModelProto) -> None:
        _without_manifest(model)
        fix_batch(model, 1)

    told: dict[str, Any] = {
        "labels": fashion_mnist.LABELS,
        "preprocessing": cnndeploy.Preprocessing(size=(28, 28)),
    }
    for edit in (_without_manifest, one_image_at_a_time):
        path = edited(edit)
        with cnndeploy.load(path, **told) as model:
            found = model.classify(images)
        assert [each.label for each in found] == [each.label for each in expected]
        assert [each.probability for each in found] == pytest.approx([e.probability for e in expected])
    for arguments, reason in (
        ({}, "no cnndeploy manifest.*labels=.*preprocessing="),
        ({"labels": fashion_mnist.LABELS}, "no cnndeploy manifest"),
        (
            told | {"labels": ["a", "b"]},
            r"2 labels came, but .*edited\.onnx gives 10 logits.* one label for each",
        ),
        (told | {"preprocessing": cnndeploy.Preprocessing(size=(32, 32))}, r"float32 \(batch, 1, 32, 32\)"),
        (told | {"require_verified": True}, "no certificate"),
        (told | {"labels": "0123456789"}, "list of class names"),
        (told | {"labels": [1] * 10}, "list of class names"),
        (told | {"preprocessing": {"size": (28, 28)}}, "is a cnndeploy.Preprocessing"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            cnndeploy.load(path, **arguments)

    def four_at_a_time(model: onnx.ModelProto) -> None:
        _without_manifest(model)
        fix_batch(model, 4)

    def scalar(model: onnx.ModelProto) -> None:
        _without_manifest(model)
        del model.graph.input[0].type.tensor_type.shape.dim[:]

    for edit, reason in ((four_at_a_time, r"takes and gives image float32 \(4, 1"), (scalar, "edited.onnx")):
        with pytest.raises(ArtifactError, match=reason):
            cnndeploy.load(edited(edit), **told)
    with pytest.raises(ArtifactError, match="of its own"):
        cnndeploy.load(trained.onnx, **told)


def test_a_file_that_is_not_what_its_manifest_says_is_refused(edited: Edited) -> None:
    def lie(**changes: Any) -> Callable[[onnx.ModelProto], None]:
        return lambda model: edit_manifest(model, **changes)

    five = {"output": TensorSpec("logits", "float32", ("batch", 5)), "labels": tuple("abcde")}
    renamed = {"output": TensorSpec("scores", "float32", ("batch", 10))}
    fixed = {"input": TensorSpec("image", "float32", (7, 1, 28, 28))}
    for changes in (five, renamed, fixed):
        with pytest.raises(ArtifactError, match="is not what its manifest says"):
            cnndeploy.load(edited(lie(**changes)))


def test_as_many_results_as_images(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "run", lambda self, feeds: {"logits": np.zeros((1, 10), np.float32)})
    with (
        cnndeploy.load(trained.onnx, threads=1) as model,
        pytest.raises(ArtifactError, match="1 results for 3 images"),
    ):
        model.classify(np.zeros((3, 28, 28), np.uint8))


def test_only_what_was_verified_is_loaded_where_that_is_asked(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lenet.onnx"
    path.write_bytes(trained.onnx.read_bytes())
    with pytest.raises(ArtifactError, match=r"has no certificate.*cnndeploy verify"):
        cnndeploy.load(path, require_verified=True)
    certify(verify(path, trained.checkpoint, images=9), path, "cnndeploy verify")
    cnndeploy.load(path, require_verified=True).close()
    with pytest.raises(ArtifactError, match=r"by openvino, only .* by onnxruntime"):
        cnndeploy.load(path, require_verified=True, runtime="openvino")
    certificate = certificate_path(path)
    whole = json.loads(certificate.read_text())
    without = [{key: value for key, value in whole.items() if key != one} for one in ("runtime", "against")]
    for text in (*map(json.dumps, without), "[" * 200_000, "null"):
        certificate.write_text(text)
        with pytest.raises(ArtifactError, match="has no certificate"):
            cnndeploy.load(path, require_verified=True)
    certificate.write_text(json.dumps(whole))
    opened = open_session

    def replaced_meanwhile(artifact: Artifact, run: Run) -> Session:
        session = opened(artifact, run)
        path.write_bytes(trained.onnx_image.read_bytes())
        return session

    with monkeypatch.context() as patch:
        patch.setattr(classifier, "open_session", replaced_meanwhile)
        with pytest.raises(ArtifactError, match="was replaced while it was opened"):
            cnndeploy.load(path, require_verified=True)
    with pytest.raises(ArtifactError):
        cnndeploy.load(path, require_verified=True)


@pytest.mark.parametrize("runtime", names_of(RUNTIMES))
def test_threads_share_one_classifier(runtime: str, trained: Trained) -> None:
    calls = 10_000 if runtime == "onnxruntime" else 400
    images = fashion_mnist.load("test").images[:16]
    path = trained.file_of(RUNTIMES.get(runtime).formats[0])
    with cnndeploy.load(path, runtime=runtime, threads=1) as model:
        alone = [model.logits(image) for image in images]

        def work(worker: int) -> int:
            wrong = 0
            for call in range(calls // 8):
                number = (worker + call) % len(images)
                wrong += not np.array_equal(model.logits(images[number]), alone[number])
            return wrong

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(work, range(8))) == [0] * 8


@pytest.mark.parametrize("runtime", names_of(RUNTIMES))
def test_closing_between_two_steps_of_a_run_is_an_error_of_ours(
    runtime: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained.file_of(RUNTIMES.get(runtime).formats[0])
    model = cnndeploy.load(path, runtime=runtime, threads=1)
    kind = type(model._session)
    run = kind._run

    def closed_meanwhile(session: Session, feeds: Any) -> Any:
        session.close()
        return run(session, feeds)

    monkeypatch.setattr(kind, "_run", closed_meanwhile)
    with pytest.raises(ArtifactError, match="is closed"):
        model.classify(np.zeros((28, 28), np.uint8))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "openvino", "torchscript"])
def test_a_forked_process_is_told_to_load_its_own(runtime: str, trained: Trained) -> None:
    """In a process of its own: what is forked here would inherit all that other tests have begun."""
    script = """
import multiprocessing, sys, numpy as np, cnndeploy

image = np.zeros((28, 28), np.uint8)
model = cnndeploy.load(sys.argv[1], runtime=sys.argv[2], threads=2)
model.classify(np.zeros((64, 28, 28), np.uint8))

def child(answers):
    global model
    try:
        with model:
            model.classify(image)
    except cnndeploy.CnndeployError as error:
        answers.put(str(error))
    del model
    try:
        cnndeploy.load(sys.argv[1], runtime=sys.argv[2], threads=2).classify(image)
        answers.put("")
    except cnndeploy.CnndeployError as error:
        answers.put(str(error))
    with cnndeploy.load(sys.argv[1], runtime=sys.argv[2], threads=1) as own:
        answers.put(own.classify(image)[0].label)

context = multiprocessing.get_context("fork")
answers = context.SimpleQueue()
process = context.Process(target=child, args=(answers,))
process.start()
process.join(60)
print(process.exitcode)
for _ in range(3):
    print(answers.get())
print(model.classify(image)[0].label)
"""
    path = trained.file_of(RUNTIMES.get(runtime).formats[0])
    done = subprocess.run(
        [sys.executable, "-c", script, path, runtime], capture_output=True, text=True, check=True, timeout=120
    )
    status, refused, with_threads, label, parents = done.stdout.splitlines()
    assert status == "0"
    assert "opened before this process was forked" in refused
    assert ("threads=1" in with_threads) == (RUNTIMES.get(runtime).package == "torch")
    assert label == parents


@pytest.mark.slow
def test_many_predictions_do_not_take_more_memory(trained: Trained) -> None:
    script = """
import sys, numpy as np, cnndeploy
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8)
with cnndeploy.load(sys.argv[1], threads=1) as model:
    for round in range(12):
        if round == 2:
            before = resident()
        for _ in range(60):
            for image in images:
                model.classify(image)
        for top in range(1, 11):
            model.classify([*images] * 20, top=top)
        for number in range(1000):  # each of a size that was not seen before
            model.classify(np.zeros((8 + number % 40, 8 + number // 40 + 25 * round), np.uint8))
    print(resident() - before)
"""
    for path in (trained.onnx, trained.onnx_image):
        done = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) < 5 * 2**20


@pytest.fixture(scope="module")
def drawing() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A T-shirt, light on dark."""
    test = fashion_mnist.load("test")
    shirt: np.ndarray[Any, np.dtype[np.uint8]] = test.images[int(np.flatnonzero(test.labels == 0)[0])]
    return shirt


@pytest.mark.parametrize("wrong", ["no", 1, None])
def test_invert_is_true_or_false(wrong: Any, trained: Trained) -> None:
    with pytest.raises(InputMismatchError, match=f"invert is True or False, not {wrong!r}"):
        cnndeploy.load(trained.onnx, invert=wrong)


@pytest.mark.parametrize("kind", FORMATS)
def test_dark_on_light_warns_and_inverted_is_as_light_on_dark(
    kind: str, trained: Trained, drawing: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    wide = np.kron(drawing, np.ones((9, 7), np.uint8))
    with cnndeploy.load(trained.file_of(kind), threads=1) as model:
        expected = [model.classify(image) for image in (drawing, wide)]  # no warning, which would be an error
        with pytest.warns(UserWarning, match=r"border of images\[0\] is .* use invert=True") as told:
            model.classify(255 - drawing)
        assert told[0].filename == __file__
        model.classify(255 - drawing)  # it was said
    with cnndeploy.load(trained.file_of(kind), threads=1, invert=True) as model:
        model.warmup(64)  # black images tell nothing
        assert [model.classify(255 - image) for image in (drawing, wide)] == expected
        pictures = [Image.fromarray(255 - drawing), Image.fromarray(255 - wide)]
        assert [each.label for each in model.classify(pictures)] == [each[0].label for each in expected]
        with pytest.warns(UserWarning, match="leave out invert=True"):
            model.probabilities(drawing)


def test_every_way_to_classify_warns_of_dark_on_light_at_the_callers_line(
    trained: Trained, drawing: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    wide = np.kron(drawing, np.ones((9, 7), np.uint8))
    for method in ("classify", "logits", "probabilities"):
        with (
            cnndeploy.load(trained.onnx, threads=1) as model,
            pytest.warns(UserWarning, match="trained on light objects") as told,
        ):
            getattr(model, method)([wide, drawing, 255 - drawing])  # two runs, for they are of two sizes
        assert [each.filename for each in told] == [__file__]
        assert "images[2]" in str(told[0].message)


def test_only_the_first_images_are_looked_at(
    trained: Trained, drawing: np.ndarray[Any, np.dtype[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    contrast = border_contrast

    def watched(images: Any) -> Any:
        looked.append(len(images))
        return contrast(images)

    monkeypatch.setattr(classifier, "border_contrast", watched)
    with cnndeploy.load(trained.onnx, threads=1) as model:
        for _ in range(3):
            model.classify(np.stack([drawing] * 5))
        model.classify(255 - drawing)  # later ones may be what they will
    assert looked == [5, 3]


def test_no_image_of_the_data_set_is_taken_for_dark_on_light() -> None:
    images = fashion_mnist.load("test").images
    assert border_contrast(images).max() < classifier._CONTRAST
    assert (border_contrast(255 - images) >= classifier._CONTRAST).mean() > 0.95


def test_the_background_is_recorded_and_files_that_do_not_say_are_dark(
    trained: Trained, edited: Edited, drawing: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    training = Artifact.open(trained.onnx).require_manifest().training
    assert training["background"] == "dark"
    older = {key: value for key, value in training.items() if key != "background"}
    with (
        cnndeploy.load(edited(lambda model: edit_manifest(model, training=older)), threads=1) as model,
        pytest.warns(UserWarning, match="use invert=True"),
    ):
        model.classify(255 - drawing)
    light = {**training, "background": "light"}
    with cnndeploy.load(edited(lambda model: edit_manifest(model, training=light)), threads=1) as model:
        model.classify(255 - drawing)
    told: dict[str, Any] = {
        "labels": fashion_mnist.LABELS,
        "preprocessing": cnndeploy.Preprocessing(size=(28, 28)),
    }
    with cnndeploy.load(edited(_without_manifest), threads=1, **told) as model:
        model.classify(255 - drawing)  # nobody knows what it was trained on


def test_a_file_of_others_for_colours_says_that_it_takes_three_channels(
    tmp_path: Path, edited: Edited
) -> None:
    def colours(model: onnx.ModelProto) -> None:
        _without_manifest(model)
        convolution = model.graph.node[0]
        weights = next(each for each in model.graph.initializer if each.name == convolution.input[1])
        values = np.repeat(numpy_helper.to_array(weights), 3, axis=1)
        weights.CopyFrom(numpy_helper.from_array(values, weights.name))
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3

    told: dict[str, Any] = {
        "labels": fashion_mnist.LABELS,
        "preprocessing": cnndeploy.Preprocessing(size=(28, 28)),
    }
    with pytest.raises(ArtifactError, match=r"takes .* channels=3 in the preprocessing"):
        cnndeploy.load(edited(colours), **told)
    told["preprocessing"] = cnndeploy.Preprocessing(size=(28, 28), channels=3)
    with cnndeploy.load(edited(colours), **told) as model:
        assert len(model.classify(np.zeros((2, 28, 28, 3), np.uint8))) == 2


def test_a_closed_classifier_says_so(trained: Trained) -> None:
    model = cnndeploy.load(trained.onnx)
    model.warmup(2)
    for batch in (0, -1, 1.5, None, 10**12):
        with pytest.raises(InputMismatchError, match="a batch is a whole number"):
            model.warmup(batch)  # type: ignore[arg-type]
    model.close()
    model.close()
    with pytest.raises(ArtifactError, match="is closed"):
        model.classify(np.zeros((28, 28), np.uint8))


def test_what_cannot_be_loaded(trained: Trained, tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path, "is a folder"),
        (tmp_path / "no.onnx", "no such file"),
        (None, "NoneType"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            cnndeploy.load(path)  # type: ignore[arg-type]
    for threads in (0, -1, 1.5, "all", True, 999, 10**6):
        with pytest.raises(DeviceUnavailableError, match="threads are a whole number from 1 to"):
            cnndeploy.load(trained.onnx, threads=threads)  # type: ignore[arg-type]
    with cnndeploy.load(trained.onnx, threads=1) as model:
        assert repr(model) == f"Classifier('{trained.onnx}', device='cpu', threads=1)"


def test_image_files(tmp_path: Path) -> None:
    pixels = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28)
    clear = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    clear.putpixel((1, 0), (255, 255, 255, 255))
    clear.save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").tolist() == [[0, 255]]
    grey = (pixels % 256).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "colour.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), grey)
    np.testing.assert_array_equal(read_image(tmp_path / "colour.png"), grey)

    lying = Image.fromarray(grey)
    lying.getexif()[0x0112] = 6  # taken with the camera turned
    lying.save(tmp_path / "lying.png", exif=lying.getexif())
    np.testing.assert_array_equal(read_image(tmp_path / "lying.png"), np.rot90(grey, -1))
    content = (tmp_path / "grey.png").read_bytes()
    np.testing.assert_array_equal(read_image(content), grey)
    with (tmp_path / "grey.png").open("rb") as file:
        np.testing.assert_array_equal(read_image(file), grey)
    with pytest.raises(DataError, match="the file is not an image"):
        read_image(b"not an image")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(read_image, [content] * 500))) == 500
    assert warnings.filters == before

    (tmp_path / "none.png").write_bytes(b"not an image")
    (tmp_path / "short.png").write_bytes((tmp_path / "grey.png").read_bytes()[:60])
    Image.fromarray(pixels * 80).save(tmp_path / "deep.png")
    Image.new("L", (10_001, 1)).save(tmp_path / "wide.png")
    _huge_png(tmp_path / "huge.png")
    for name, reason in {
        "none.png": "not an image",
        "short.png": "cannot be read",
        "deep.png": "more than 8 bits",
        "wide.png": "10001 x 1 pixels; the limit is 8192 a side",
        "huge.png": "the limit is 8192|far larger than the limits",
        "missing.png": "no such file",
        ".": "is a folder",
    }.items():
        with pytest.raises(DataError, match=reason):
            read_image(tmp_path / name)


def test_a_file_is_loaded_in_the_precision_asked_for(trained: Trained) -> None:
    with pytest.raises(DeviceUnavailableError, match="TF32 is a format of CUDA GPUs"):
        cnndeploy.load(trained.onnx, precision="tf32")
    with cnndeploy.load(trained.onnx, precision="float32", threads=1) as model:
        assert model._session.options.precision == "float32"
