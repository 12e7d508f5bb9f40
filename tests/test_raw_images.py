"""ONNX files that take raw images of a colour network: exported, verified by runtime, and broken on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from onnx import helper, numpy_helper
from PIL import Image, ImageFilter

import cnndeploy
from cnndeploy import Preprocessing, Reference, Run
from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError, ExportError
from cnndeploy.exporters import EXPORTERS, ExportOptions, export
from cnndeploy.formats.onnx import MANIFEST_KEY
from cnndeploy.runtimes import open_session
from cnndeploy.specs import Manifest, Resizing, TensorSpec
from cnndeploy.variants import explained, variants
from cnndeploy.verification.prepared import (
    MOST_LEVELS,
    MOST_MOVED,
    moves_of,
    noise,
    noise_sizes,
    wrong_on_noise,
)
from cnndeploy.verification.verify import verify
from cnndeploy.what_if import what_if
from edits import edit_manifest, manifest_of
from helpers import SMALL_RGB as OWN, Trained
from strangers import in_hand

FORMS: tuple[Resizing, ...] = ("native", "portable")


@pytest.fixture(scope="module")
def reference(trained_resnet: Trained, photos: Path) -> Iterator[Reference]:
    with Reference(trained_resnet.checkpoint, data=photos) as reference:
        yield reference


@pytest.mark.parametrize(
    ("form", "runtime", "most"),
    [
        ("native", "onnxruntime", MOST_LEVELS),
        ("portable", "onnxruntime", 0),
        ("portable", "openvino", MOST_LEVELS),
    ],
)
def test_a_file_that_takes_colours_is_equivalent(
    form: str, runtime: str, most: int, raw_files: Path, reference: Reference
) -> None:
    report = verify(raw_files / f"{form}.onnx", reference, run=Run(runtime))
    assert report.reasons == ()
    assert report.prepared is not None
    assert report.decisions is not None
    assert report.oracle is not None
    assert report.prepared.levels <= most
    assert report.prepared.worst <= MOST_MOVED
    assert (report.prepared.moved == 0) is (most == 0)
    assert report.prepared.probability_change is not None
    assert report.prepared.probability_change < (0.01 if most else 1e-5)
    assert len(report.other_image_sizes) == 3
    assert report.batch_sizes == (1, 2, 3, 7, 17)  # of images resampled to one size
    assert report.tolerance.relative < 1e-4  # no wider for what was moved


def test_openvino_ignores_antialias_and_its_failure_leaves_onnx_runtimes_certificate(
    cli: Callable[..., Result],
    trained_resnet: Trained,
    raw_files: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(shutil.copy(raw_files / "native.onnx", "native.onnx"))
    command = ("verify", path, "--against", trained_resnet.checkpoint, "--data", photos)
    assert cli(*command).exit_code == 0
    failed = cli(*command, "--runtime", "openvino")
    assert failed.exit_code == 3
    assert "this mistake explains it: bilinear without antialias" in failed.stderr
    first = f"{path} is not equivalent: its preprocessing is not the checkpoint's"
    assert " ".join(failed.stdout.split()).startswith(first)
    again = f"cnndeploy export {trained_resnet.checkpoint} --format onnx --input image --resize portable"
    assert again in failed.stderr
    cnndeploy.load(path, require_verified=True, threads=1).close()
    with pytest.raises(ArtifactError, match="by openvino, only the certificate on 30 images by onnxruntime"):
        cnndeploy.load(path, require_verified=True, runtime="openvino")


@pytest.mark.parametrize(
    "own",
    [
        OWN,
        replace(OWN, interpolation="bicubic"),
        replace(OWN, resize=(50, 27), size=(40, 33), interpolation="bicubic"),  # cut high, black beside
        replace(
            OWN, resize=30, size=(40, 33), mean=0.0, std=1.0
        ),  # as much as is lacking depends on the image
        replace(OWN, resize=None, scale=1.0, mean=100.0),
        replace(OWN, channels=1, mean=0.5, std=0.2),
        replace(OWN, channels=1, mean=0.5, std=0.2, antialias=False),
        replace(OWN, antialias=False),
    ],
)
def test_the_graph_prepares_images_as_preprocessing_does(own: Preprocessing, tmp_path: Path) -> None:
    """The network returns some values of its prepared images."""
    classes = len(range(0, own.channels * own.size[0] * own.size[1], 97))
    manifest = Manifest(
        "some",
        TensorSpec("image", "float32", ("batch", *own.shape)),
        TensorSpec("logits", "float32", ("batch", classes)),
        own,
        tuple(f"class {number}" for number in range(classes)),
    )
    checkpoint = replace(in_hand(SomeValues()), manifest=manifest)
    for form in FORMS:
        path, options = tmp_path / f"{form}.onnx", ExportOptions(input="image", resize=form)
        artifact = EXPORTERS.get("onnx").export(checkpoint, path, options)
        for runtime in ("onnxruntime", "openvino"):
            if (form, runtime, own.antialias) != ("native", "openvino", True):
                _check_levels(artifact, runtime, exactly=(form, runtime) == ("portable", "onnxruntime"))


class SomeValues(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten(1)[:, ::97]


def _check_levels(artifact: Artifact, runtime: str, exactly: bool) -> None:
    manifest = artifact.require_manifest()
    own, draw = manifest.preprocessing, np.random.default_rng(0)
    with open_session(artifact, Run(runtime, threads=1)) as session:
        assert (session.inputs, session.outputs) == ((manifest.input,), manifest.outputs)
        for height, width in ((90, 35), (31, 77), (20, 22), (51, 51)):
            shape = (2, height, width, *(() if own.channels == 1 else (3,)))
            images = draw.integers(0, 256, shape, dtype=np.uint8)
            outputs = session.run({"image": images})
            if manifest.resizing is None:
                expected = own(images).reshape(2, -1)[:, ::97]
                np.testing.assert_allclose(outputs["logits"], expected, atol=2e-4)
                continue
            moves, check, reason = moves_of(own, images, outputs["prepared"], exact=True)
            assert not reason
            assert moves.any() == bool(check.moved)
            assert check.moved == 0 or not exactly
        for size in noise_sizes(own) if manifest.resizing else ():
            images = noise(own, size)
            assert not wrong_on_noise(own, images, session.run({"image": images})["prepared"], exact=True)


def _nodes(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.name.endswith(f".{operator}")]


def _use(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _bgr(model: onnx.ModelProto) -> None:
    _use(model, "image", "reversed")
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    model.graph.node.insert(0, helper.make_node("Gather", ["image", "order"], ["reversed"], axis=3))


def _scaled(operator: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    """Change the mean, which Sub takes, or the standard deviation, by which the last Div divides."""

    def edit(model: onnx.ModelProto) -> None:
        name = _nodes(model, operator)[-1].input[1]
        (constant,) = (one for one in model.graph.initializer if one.name == name)
        values = numpy_helper.to_array(constant)
        assert values.shape == (3, 1, 1)
        constant.CopyFrom(numpy_helper.from_array((values * factor).astype(np.float32), name))

    return edit


def _without_antialias(model: onnx.ModelProto) -> None:
    (resize,) = _nodes(model, "Resize")
    for attribute in resize.attribute:
        if attribute.name in ("antialias", "exclude_outside"):  # the latter goes with the former only
            attribute.i = 0


def _bicubic(model: onnx.ModelProto) -> None:
    (resize,) = _nodes(model, "Resize")
    (attribute,) = (one for one in resize.attribute if one.name == "mode")
    attribute.s = b"cubic"
    resize.attribute.append(helper.make_attribute("cubic_coeff_a", -0.5))


def _not_resized(model: onnx.ModelProto) -> None:
    (resize,), (sides,) = _nodes(model, "Resize"), _nodes(model, "Shape")
    _use(model, resize.input[3], sides.output[0])


def _labels(model: onnx.ModelProto) -> None:
    edit_manifest(model, labels=manifest_of(model).labels[::-1])


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (_bgr, "BGR for RGB"),
        (_scaled("Sub", 2), r"its mean is 0\.97, 0\.91., 0\.812, not 0\.485, 0\.456, 0\.406$"),
        (_scaled("Div", 2), r"its std is 0\.458, 0\.448, 0\.45, not 0\.229, 0\.224, 0\.225$"),
        (_without_antialias, "bilinear without antialias"),
        (_bicubic, "bicubic for bilinear"),
        (_not_resized, "cropped, not resized"),
        (_labels, r"the manifests differ: labels\[0\] is 'snow'"),
    ],
)
def test_preprocessing_that_was_broken_on_purpose_is_rejected_by_name(
    edit: Callable[[onnx.ModelProto], None], named: str, raw_files: Path, reference: Reference, tmp_path: Path
) -> None:
    model = onnx.load(raw_files / "native.onnx")
    edit(model)
    onnx.save(model, tmp_path / "edited.onnx")
    report = verify(tmp_path / "edited.onnx", reference)
    assert not report.passed
    with pytest.raises(cnndeploy.CnndeployError, match=named):
        report.require()


def _rounding_down(model: onnx.ModelProto) -> None:
    """Resize in float32, and round down once."""
    (resize,) = _nodes(model, "Resize")
    place = list(model.graph.node).index(resize)
    after = (
        helper.make_node("Add", ["in floats", "little"], ["a little more"]),
        helper.make_node("Floor", ["a little more"], [resize.output[0]]),
    )
    for node in reversed(after):
        model.graph.node.insert(place + 1, node)
    resize.input[0], resize.output[0] = "floats", "in floats"
    model.graph.node.insert(place, helper.make_node("Cast", ["image"], ["floats"], to=onnx.TensorProto.FLOAT))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1e-3, np.float32), "little"))


@pytest.fixture(scope="module")
def reference_on_smooth_photos(
    trained_resnet: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reference]:
    """On photos as of products: an object of soft shades before a white wall."""
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("smooth")
    for number, size in enumerate(((96, 118), (120, 90), (104, 104)) * 3):
        shades = draw.integers(170, 215, (4, 4, 3), dtype=np.uint8)
        photo = Image.new("RGB", size, (220, 220, 220))
        photo.paste(Image.fromarray(shades).resize((22, 22), Image.Resampling.BICUBIC), (40, 35))
        photo.filter(ImageFilter.GaussianBlur(7)).save(folder / f"{number}.png")
    with Reference(trained_resnet.checkpoint, data=folder) as reference:
        yield reference


@pytest.mark.parametrize("edit", [_without_antialias, _bicubic, _rounding_down, None])
def test_what_smooth_photos_hide_shows_on_noise(
    edit: Callable[[onnx.ModelProto], None] | None,
    raw_files: Path,
    reference_on_smooth_photos: Reference,
    tmp_path: Path,
) -> None:
    model = onnx.load(raw_files / "native.onnx")
    if edit is not None:
        edit(model)
    onnx.save(model, tmp_path / "edited.onnx")
    report = verify(tmp_path / "edited.onnx", reference_on_smooth_photos)
    if edit is None:
        assert report.reasons == ()
    else:
        assert "noise" in "; ".join(report.reasons), report.reasons


def test_a_network_with_another_weight_is_caught_beside_moved_values(
    raw_files: Path, reference: Reference, tmp_path: Path
) -> None:
    """Values off by a level change logits by more than this weight does, and hide nothing."""
    model = onnx.load(raw_files / "native.onnx")
    (gemm,) = (node for node in model.graph.node if node.op_type == "Gemm")
    (bias,) = (one for one in model.graph.initializer if one.name == gemm.input[2])
    values = numpy_helper.to_array(bias).copy()
    values[0] += 1e-3
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "edited.onnx")
    report = verify(tmp_path / "edited.onnx", reference)
    assert not report.passed
    assert report.max_abs_error == pytest.approx(1e-3, rel=0.1)


def test_a_large_batch_that_is_wrong_is_seen_though_photos_are_of_mixed_sizes(
    raw_files: Path, reference: Reference, tmp_path: Path
) -> None:
    """Raw images of several sizes run one by one, so that batches are of images resampled to one size."""
    model = onnx.load(raw_files / "native.onnx")
    (gemm,) = (node for node in model.graph.node if node.op_type == "Gemm")
    _use(model, gemm.output[0], "wrong")
    sound = gemm.output[0]
    gemm.output[0] = "sound"
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([7]), "seven"),
            numpy_helper.from_array(np.array(5, np.float32), "five"),
        ]
    )
    steps = [
        helper.make_node("Shape", ["sound"], ["size"], end=1),
        helper.make_node("Greater", ["size", "seven"], ["is large"]),
        helper.make_node("Cast", ["is large"], ["one"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["one", "five"], ["added"]),
        helper.make_node("Add", ["sound", "added"], ["wrong"]),
        helper.make_node("Identity", ["wrong"], [sound]),
    ]
    at = list(model.graph.node).index(gemm) + 1
    for offset, node in enumerate(steps):
        model.graph.node.insert(at + offset, node)
    onnx.save(model, tmp_path / "edited.onnx")
    report = verify(tmp_path / "edited.onnx", reference)
    assert report.max_abs_error is not None
    assert report.max_abs_error < 1e-3  # on the photos as they are
    assert report.reasons[0].startswith("on images of 74 x 40: 17 of 30 images are beyond the tolerance")
    assert report.batch_sizes == (1,)  # no other passed


def test_the_manifest_says_how_images_are_resized_and_old_ones_read(
    trained_resnet: Trained, raw_files: Path
) -> None:
    for form in FORMS:
        manifest = Artifact.open(raw_files / f"{form}.onnx").require_manifest()
        assert manifest.resizing == form
        assert str(manifest.input) == "uint8 (batch, height, width, 3)"
        assert [spec.name for spec in manifest.outputs] == ["logits", "probabilities", "prepared"]
    checkpoint = Artifact.open(trained_resnet.checkpoint).require_manifest()
    assert "resizing" not in checkpoint.to_dict()
    with pytest.raises(ValueError, match="resizing"):
        type(checkpoint).from_json(json.dumps({**checkpoint.to_dict(), "resizing": "native"}))


def test_an_exported_file_is_the_same_each_time(
    trained_resnet: Trained, raw_files: Path, tmp_path: Path
) -> None:
    again = export(trained_resnet.checkpoint, "onnx", tmp_path / "again.onnx", input="image")
    assert again.sha256 == Artifact.open(raw_files / "native.onnx").sha256
    entries = {entry.key for entry in onnx.load(again.path).metadata_props}
    assert entries == {MANIFEST_KEY}


def test_torchscript_and_prepared_tensors_are_refused(
    cli: Callable[..., Result], trained_resnet: Trained, raw_files: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="only an ONNX file can take them raw"):
        export(trained_resnet.checkpoint, "torchscript", tmp_path / "resnet.torchscript", input="image")
    done = cli("export", trained_resnet.checkpoint, "--resize", "portable", "--output-dir", tmp_path)
    assert done.exit_code == 2
    assert "--resize is for files that take raw images" in done.output
    assert not list(tmp_path.iterdir())


def test_what_mistakes_cost(
    cli: Callable[..., Result],
    trained_resnet: Trained,
    raw_files: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    report = tmp_path / "what-if.json"
    done = cli("evaluate", trained_resnet.checkpoint, "--data", photos, "--what-if", "--json", report)
    assert done.exit_code == 0, done.output
    result = json.loads(report.read_text())
    assert (result["images"], result["accuracy"]) == (
        30,
        cnndeploy.evaluate(trained_resnet.checkpoint).accuracy,
    )
    mistakes = {one["name"]: one for one in result["mistakes"]}
    assert list(mistakes) == list(variants(OWN))
    assert [name for name in mistakes if name not in done.output] == []
    bgr = mistakes["BGR for RGB"]
    assert bgr["lost"] - bgr["gained"] == round(30 * (result["accuracy"] - bgr["accuracy"])) > 5
    assert 0 < bgr["loss_low_points"] < bgr["loss_points"] < bgr["loss_high_points"]
    with pytest.raises(ArtifactError, match="does its own preprocessing; ask this of its checkpoint"):
        what_if(raw_files / "native.onnx", data=photos)
    done = cli("evaluate", trained_resnet.checkpoint, "--what-if", "--batch-size", 256)
    assert done.exit_code == 2
    assert "--batch-size does not apply to --what-if" in done.output
    copy = Path(shutil.copy(trained_resnet.onnx, tmp_path))

    def replaced(done: int, of: int, text: str) -> None:
        if text.startswith("Evaluating"):
            copy.write_bytes(b"another")

    with pytest.raises(ArtifactError, match="is no longer the file that was opened"):
        what_if(copy, data=photos, images=3, progress=replaced)


@pytest.mark.parametrize(
    "own",
    [
        OWN,
        replace(OWN, interpolation="bicubic"),
        replace(OWN, antialias=False, channels=1, mean=0.5, std=1.0),
    ],
)
def test_each_mistake_explains_what_comes_of_it_and_no_other(own: Preprocessing) -> None:
    draw = np.random.default_rng(0)
    shape = (2, 70, 91, *(() if own.channels == 1 else (3,)))
    images = draw.integers(0, 256, shape, dtype=np.uint8)
    for name, prepare in variants(own).items():
        assert prepare(images).shape == own(images).shape
        assert explained(own, images, prepare(images)) == f"this mistake explains it: {name}"
    noise = draw.normal(size=own(images).shape).astype(np.float32)
    assert explained(own, images, noise) == ""
