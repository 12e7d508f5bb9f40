"""Broken artifacts: each made by a small function from a good one, with the words that must name the defect.

Used by test_broken.py and by benchmarks/verification_rates.py. The weights' defects are made in both formats,
the others in the file of one, as they come about in the field.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from cnndeploy.artifact import Artifact
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.errors import CnndeployError
from cnndeploy.exporters import export
from cnndeploy.formats.torchscript import MANIFEST_FILE
from cnndeploy.machine import quiet
from cnndeploy.progress import Progress, silent
from cnndeploy.run import Run
from cnndeploy.simplification import simplify
from cnndeploy.verification.reference import Reference
from cnndeploy.verification.verify import verify
from edits import edit_manifest, fix_batch, manifest_of
from helpers import Trained, train_for_a_moment

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Attempt:
    """What a user would try to have verified; ``during`` is called with the images run and to run. ``module`` is the
    one that is broken, where it is one.
    """

    path: Path
    runtime: str = ""
    during: Progress | None = None
    module: str | None = None


@dataclass(frozen=True)
class Defect:
    """``make`` breaks a copy in a new folder; ``reason`` is a pattern of the words that name the defect."""

    name: str
    format: str
    reason: str
    make: Callable[[Trained, Path], Attempt]
    architectures: tuple[str, ...] = ("lenet", "vgg11_small", "googlenet")

    def outcome(self, good: Trained, folder: Path, images: int, against: Reference | None = None) -> Outcome:
        """Verify the broken artifact, against a reference of the good one's checkpoint if there is one."""
        attempt = self.make(good, folder)
        try:
            report = verify(
                attempt.path,
                against or good.checkpoint,
                run=Run(attempt.runtime),
                images=images,
                progress=attempt.during or silent,
            )
            reasons = report.reasons
        except CnndeployError as error:
            reasons = (str(error),)
        place = "" if attempt.module is None else f" {attempt.module} ("
        named = any(re.search(self.reason, reason) and place in reason for reason in reasons)
        return Outcome(reasons, named)


@dataclass(frozen=True)
class Outcome:
    """What verification has against an artifact, empty where it is fooled, and whether that names the defect."""

    reasons: tuple[str, ...]
    named: bool


DEFECTS: list[Defect] = []


def good_files(architecture: str, seed: int, folder: Path, formats: Sequence[str]) -> Trained:
    """A network and its exported files.

    LeNet is trained for a moment, because its first logits hardly depend on the image. The others are not; their
    biases, which begin at zero, are made random.
    """
    path = folder / f"{architecture}-{seed}.pt"
    if architecture == "lenet":
        train_for_a_moment(path, seed)
    else:
        fresh = Checkpoint.untrained(architecture, seed)
        draw = torch.Generator().manual_seed(seed)
        biases = {
            name: 0.1 * torch.randn(value.shape, generator=draw)
            for name, value in fresh.weights.items()
            if name.endswith("bias")
        }
        replace(fresh, weights={**fresh.weights, **biases}).save(path)
    for each in formats:
        export(path, each)
    return Trained(path, path.with_suffix(".onnx"), path.with_suffix(".torchscript"))


def _scripted(
    module: torch.jit.ScriptModule, good: Trained, folder: Path, rewrites: tuple[str, ...] = ()
) -> Path:
    """As our exporter saves, but without its checks, which some defects do not pass."""
    path = folder / "broken.torchscript"
    manifest = replace(Artifact.open(good.torchscript).require_manifest(), rewrites=rewrites)
    torch.jit.save(module, path, {MANIFEST_FILE: manifest.to_json()})
    return path


# Defects of weights, in either format.


def weights_defect(name: str, reason: str) -> Callable[[Callable[[Weights], None]], None]:
    def register(edit: Callable[[Weights], None]) -> None:
        def in_onnx(good: Trained, folder: Path) -> Attempt:
            model = onnx.load(good.onnx)
            tensors = {each.name: each for each in model.graph.initializer if each.data_type == 1}
            weights = {name: numpy_helper.to_array(each).copy() for name, each in tensors.items()}
            edit(weights)
            for each, values in weights.items():
                tensors[each].CopyFrom(numpy_helper.from_array(values, each))
            return Attempt(_saved(model, folder), module=_broken_module(weights, reason))

        def in_torchscript(good: Trained, folder: Path) -> Attempt:
            network, rewrites = simplify(Checkpoint.load(good.checkpoint).network())
            weights = {name: value.numpy() for name, value in network.state_dict().items()}  # share memory
            edit(weights)
            with quiet():
                frozen = torch.jit.freeze(torch.jit.script(network))
            path = _scripted(frozen, good, folder, tuple(map(str, rewrites)))
            return Attempt(path, module=_broken_module(weights, reason))

        DEFECTS.append(Defect(name, "onnx", reason, in_onnx))
        DEFECTS.append(Defect(name, "torchscript", reason, in_torchscript))

    return register


def _broken_module(weights: Weights, reason: str) -> str | None:
    return _middle_filter(weights).removesuffix(".weight") if "departs first" in reason else None


def _middle_filter(weights: Weights) -> str:
    filters = [name for name, values in weights.items() if values.ndim == 4]
    return filters[len(filters) // 2]


@weights_defect("one filter off by a thousandth", r"departs first in \S+ \(Conv2d\): output channel 1 off by")
def one_filter_off_by_a_thousandth(weights: Weights) -> None:
    weights[_middle_filter(weights)][1] += 1e-3


@weights_defect(
    "one bias dropped", r"departs first in \S+ \(Conv2d\): .*each by a constant, as by another bias"
)
def one_bias_dropped(weights: Weights) -> None:
    weights[_middle_filter(weights).replace("weight", "bias")][:] = 0


@weights_defect(
    "two output channels swapped",
    r"departs first in \S+ \(Conv2d\): output channels 0, 3 are in another order",
)
def two_output_channels_swapped(weights: Weights) -> None:
    name = _middle_filter(weights)
    for each in (name, name.replace("weight", "bias")):
        weights[each][[0, 3]] = weights[each][[3, 0]]


@weights_defect("weights nan", r"departs first in \S+ \(Conv2d\): it gives NaN or infinite values")
def weights_nan(weights: Weights) -> None:
    weights[_middle_filter(weights)][0] = np.nan


@weights_defect("weights of float16 passed off as float32", r"with its weights rounded to float16")
def weights_of_float16_passed_off_as_float32(weights: Weights) -> None:
    for values in weights.values():
        values[:] = values.astype(np.float16)


# Defects of the network, in TorchScript files.


def network_defect(
    name: str, reason: str, **more: Any
) -> Callable[[Callable[[torch.nn.Module], None]], None]:
    def register(edit: Callable[[torch.nn.Module], None]) -> None:
        def make(good: Trained, folder: Path) -> Attempt:
            network = Checkpoint.load(good.checkpoint).network()
            edit(network)
            return Attempt(_scripted(torch.jit.script(network), good, folder))

        DEFECTS.append(Defect(name, "torchscript", reason, make, **more))

    return register


def _first(network: torch.nn.Module, *kinds: type[torch.nn.Module]) -> tuple[torch.nn.Module, str]:
    """The parent of the first module of these kinds, and its name there."""
    path = next(name for name, module in network.named_modules() if isinstance(module, kinds))
    parent, _, name = path.rpartition(".")
    return network.get_submodule(parent), name


@network_defect(
    "activation removed", r"departs first in \S+ \((ReLU|Sigmoid)\): the file computes nothing of that kind"
)
def activation_removed(network: torch.nn.Module) -> None:
    parent, name = _first(network, torch.nn.ReLU, torch.nn.Sigmoid)
    setattr(parent, name, torch.nn.Identity())


@network_defect("pool padding counted otherwise", r"departs first in \S+ \(MaxPool2d\)")
def pool_padding_counted_otherwise(network: torch.nn.Module) -> None:
    parent, name = _first(network, torch.nn.MaxPool2d)
    pool = copy.copy(getattr(parent, name))
    pad = 1 - int(pool.padding)
    setattr(parent, name, torch.nn.MaxPool2d(pool.kernel_size, pool.stride, padding=pad, ceil_mode=False))


@network_defect(
    "dropout left active",
    "something random is active, as dropout",
    architectures=("vgg11_small", "nin"),
)
def dropout_left_active(network: torch.nn.Module) -> None:
    network.train()


# Defects of ONNX files.


def onnx_defect(name: str, reason: str) -> Callable[[Callable[[onnx.ModelProto], None]], None]:
    def register(edit: Callable[[onnx.ModelProto], None]) -> None:
        def make(good: Trained, folder: Path) -> Attempt:
            model = onnx.load(good.onnx)
            edit(model)
            return Attempt(_saved(model, folder))

        DEFECTS.append(Defect(name, "onnx", reason, make))

    return register


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    del model.graph.value_info[:]  # shapes that were inferred before the edit
    path = folder / "broken.onnx"
    onnx.save(model, path)
    return path


def _node(model: onnx.ModelProto, *kinds: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.op_type in kinds)
    return found


def _insert_before(model: onnx.ModelProto, place: int, node: onnx.NodeProto) -> None:
    """Put a node of one input into the edge that enters the node at ``place``."""
    follower = model.graph.node[place]
    node.input.insert(0, follower.input[0])
    node.output.append("inserted")
    follower.input[0] = "inserted"
    model.graph.node.insert(place, node)


@onnx_defect(
    "activation removed", r"departs first in \S+ \((ReLU|Sigmoid)\): the file computes nothing of that kind"
)
def activation_removed_from_onnx(model: onnx.ModelProto) -> None:
    node = _node(model, "Relu", "Sigmoid")
    for other in model.graph.node:
        other.input[:] = [node.input[0] if name == node.output[0] else name for name in other.input]
    model.graph.node.remove(node)


@onnx_defect("pool padding counted otherwise", r"departs first in \S+ \(MaxPool2d\)")
def pool_padding_counted_otherwise_in_onnx(model: onnx.ModelProto) -> None:
    pads = next(each for each in _node(model, "MaxPool").attribute if each.name == "pads").ints
    pads[:] = [2, 2, 0, 0] if any(pads) else [1, 1, 0, 0]


@onnx_defect("dropout left active", r"something random is active, as dropout")
def dropout_left_active_in_onnx(model: onnx.ModelProto) -> None:
    last = max(place for place, node in enumerate(model.graph.node) if node.op_type in ("Gemm", "Conv"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "ratio"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "training"))
    _insert_before(model, last, helper.make_node("Dropout", ["ratio", "training"], []))


@onnx_defect("scale left to the graph too", r"departs first in features\.0\S* \(Conv2d\)")
def scale_left_to_the_graph_too(model: onnx.ModelProto) -> None:
    """The graph divides by 255 although its input has been scaled."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"))
    _insert_before(model, 0, helper.make_node("Mul", ["scale"], []))


@onnx_defect("scale of 255 forgotten", r"preprocessing\.scale is 1\.0, the checkpoint's 0\.0039")
def scale_of_255_forgotten(model: onnx.ModelProto) -> None:
    edit_manifest(model, preprocessing=replace(manifest_of(model).preprocessing, scale=1.0))


@onnx_defect("labels permuted", r"labels\[0\] is 'Trouser', the checkpoint's 'T-shirt/top'")
def labels_permuted(model: onnx.ModelProto) -> None:
    first, second, *rest = manifest_of(model).labels
    edit_manifest(model, labels=(second, first, *rest))


@onnx_defect("made from another checkpoint", "exported from another checkpoint")
def made_from_another_checkpoint(model: onnx.ModelProto) -> None:
    edit_manifest(model, checkpoint_sha256="0" * 64)


@onnx_defect("batch axis fixed", "the batch axis is fixed")
def batch_axis_fixed(model: onnx.ModelProto) -> None:
    fix_batch(model, 1)


@onnx_defect("batch axis secretly fixed", r"batch of 2|output is logits float32 \(1, 10\)")
def batch_axis_secretly_fixed(model: onnx.ModelProto) -> None:
    """The input says "batch", but a Reshape inside takes one image only."""
    place = next(at for at, node in enumerate(model.graph.node) if node.op_type == "Reshape")
    node = model.graph.node[place]
    columns = 10 if node.output[0] == model.graph.output[0].name else -1
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, columns], np.int64), "one_image"))
    node.input[1] = "one_image"


@onnx_defect("images leak into each other", "depend on its batch")
def images_leak_into_each_other(model: onnx.ModelProto) -> None:
    """Each image's logits take a little of the batch's mean, as batch normalisation in training does."""
    graph = model.graph
    graph.node[-1].output[0] = "own"
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "over_batch"))
    graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "little"))
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["own", "over_batch"], ["over_images"]),
            helper.make_node("Mul", ["over_images", "little"], ["leak"]),
            helper.make_node("Add", ["own", "leak"], ["logits"]),
        ]
    )


@onnx_defect("output renamed", "the graph's output is scores")
def output_renamed(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"


@onnx_defect("probabilities instead of logits", "beyond the tolerance")
def probabilities_instead_of_logits(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Softmax", ["before"], ["logits"]))


@onnx_defect("opset that the runtime cannot open", "Opset 999")
def opset_that_the_runtime_cannot_open(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


@onnx_defect("ir version that the runtime cannot open", "Unsupported model IR version: 999")
def ir_version_that_the_runtime_cannot_open(model: onnx.ModelProto) -> None:
    model.ir_version = 999


# Defects of files and runtimes.


def defect(name: str, model_format: str, reason: str) -> Callable[[Callable[[Trained, Path], Attempt]], None]:
    def register(make: Callable[[Trained, Path], Attempt]) -> None:
        DEFECTS.append(Defect(name, model_format, reason, make))

    return register


@defect("truncated", "onnx", "damaged")
def truncated(good: Trained, folder: Path) -> Attempt:
    content = good.onnx.read_bytes()
    path = folder / "broken.onnx"
    path.write_bytes(content[: len(content) * 2 // 3])
    return Attempt(path)


@defect("truncated", "torchscript", "damaged")
def truncated_(good: Trained, folder: Path) -> Attempt:
    content = good.torchscript.read_bytes()
    path = folder / "broken.torchscript"
    path.write_bytes(content[: len(content) * 2 // 3])
    return Attempt(path)


@defect("file of another checkpoint", "torchscript", "exported from another checkpoint")
def file_of_another_checkpoint(good: Trained, folder: Path) -> Attempt:
    checkpoint = Checkpoint.load(good.checkpoint)
    other = {name: value * 1.5 for name, value in checkpoint.weights.items()}
    saved = replace(checkpoint, weights=other).save(folder / "other.pt").path
    return Attempt(export(saved, "torchscript").path)


@defect("file replaced during the run", "onnx", "was replaced while it was verified")
def file_replaced_during_the_run(good: Trained, folder: Path) -> Attempt:
    path = folder / "broken.onnx"
    path.write_bytes(good.onnx.read_bytes())

    def replace_it(done: int, total: int, _text: str) -> None:
        if done == total:
            with path.open("ab") as file:
                file.write(b"\0")

    return Attempt(path, during=replace_it)


_RUNTIME = """
import numpy as np
from cnndeploy.devices import DeviceStatus
from cnndeploy.runtimes import Session

class _Session(Session):
    buffer = np.zeros((256, 10), np.float32)

    def _run(self, feeds):
        (image,) = feeds.values()
        if {given_back}:
            return {{"logits": image.reshape(len(image), -1)[:, :10]}}
        self.buffer[:len(image)] = image.reshape(len(image), -1)[:, 300:310]
        return {{"logits": self.buffer[:len(image)]}}

    def placement(self):
        return {{"all": "cpu"}}

class _Runtime:
    formats = ("onnx",)
    package = "numpy"
    options = {{}}

    def devices(self):
        return {{"cpu": DeviceStatus(True)}}

    def open(self, artifact, run):
        manifest = artifact.require_manifest()
        return _Session(artifact, run, inputs=(manifest.input,), outputs=(manifest.output,), placed_on="cpu")

RUNTIME = _Runtime()
"""


@defect("runtime returns its input buffer", "onnx", "gives its input's memory back")
def runtime_returns_its_input_buffer(good: Trained, folder: Path) -> Attempt:
    install_runtime(folder, _RUNTIME.format(given_back=True))
    return Attempt(good.onnx, runtime="broken")


@defect("runtime overwrites its output buffer", "onnx", "overwrites the logits that it gave before")
def runtime_overwrites_its_output_buffer(good: Trained, folder: Path) -> Attempt:
    install_runtime(folder, _RUNTIME.format(given_back=False))
    return Attempt(good.onnx, runtime="broken")


def install_runtime(folder: Path, source: str) -> None:
    """Put a package into ``folder`` that registers the runtime ``broken``; see :func:`importable`."""
    (folder / "broken_runtime.py").write_text(source)
    facts = folder / "broken_runtime-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-runtime\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[cnndeploy.runtimes]\nbroken = broken_runtime:RUNTIME\n")


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Lets the worker processes import what lies in ``folder``."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), before)))
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before or ""
