"""Plan and State: what decides the weights of a training, how far it is, and where it starts or goes on."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.architectures._recipe import Recipe, usual
from cnndeploy.artifact import Artifact
from cnndeploy.errors import CnndeployError, TrainingError, UnknownNameError
from cnndeploy.files import write_file
from cnndeploy.serial import jsonable, structure
from cnndeploy.specs import Manifest

Precision = Literal["float32", "bfloat16"]

_JSON = "cnndeploy.training"
_BEGIN_AGAIN = "To begin again instead, train with overwrite=True and without resume=True."


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the weights, except the machine and its number of threads.

    ``recipe_name`` is the recipe that ``recipe`` was made from; ``dataset_sha256`` is of each file, by name.
    ``images``: how many of the first images to train on; None for all. ``start`` is the SHA-256 of the weights that it
    started from, or their name if they came with the network's; None for fresh ones.
    """

    architecture: str
    recipe_name: str
    recipe: Recipe
    seed: int = 0
    precision: Precision = "float32"
    compiled: bool = False
    images: int | None = None
    dataset_sha256: Mapping[str, str] = field(default_factory=dict)
    start: str | None = None

    @classmethod
    def recorded(cls, values: Mapping[str, Any], where: object) -> Self:
        """Read a plan from a state or a checkpoint's manifest; raise TrainingError if it records none."""
        if "limit" in values:  # an older file's word; its "images" are how many were trained on
            precision = "bfloat16" if values.get("precision") == "bf16" else values.get("precision")
            values = {**values, "images": values["limit"], "precision": precision}
        try:
            known = {field.name: values[field.name] for field in fields(cls) if field.name != "start"}
            known["start"] = values.get("start")  # older files have none
            Recipe(**known["recipe"])  # which knows no other words
            return structure(cls, known)
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{where} does not say how it was trained, or says it in the words of another version"
            ) from error

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Change fields, the recipe's too, but not to None; raise TrainingError if the recipe makes no sense."""
        changes = {key: value for key, value in changes.items() if value is not None}
        of_recipe = {field.name for field in fields(Recipe)} & changes.keys()
        recipe = replace(self.recipe, **{key: changes.pop(key) for key in of_recipe})
        if recipe.epochs < 0 or recipe.batch_size < 1 or not 0 < recipe.learning_rate < math.inf:
            raise TrainingError(f"epochs from 0, batch size from 1, learning rate above 0, but got {recipe}")
        if (
            recipe.shift < 0
            or not 0 <= recipe.label_smoothing <= 1
            or not 0 <= recipe.weight_decay < math.inf
        ):
            raise TrainingError(f"shift and weight decay from 0, label smoothing 0 to 1, but got {recipe}")
        return replace(self, recipe=recipe, **changes)

    def require(self, wanted: Plan, output: Path) -> None:
        """Raise TrainingError, which names what differs, if the training at ``output`` should go on by another plan."""
        if self != wanted:
            own, other = ({**asdict(plan.recipe), **asdict(plan)} for plan in (self, wanted))
            keys = [key for key in own if key != "recipe" and own[key] != other[key]]
            differences = ", ".join(f"{key} {own[key]}, not {other[key]}" for key in keys)
            raise TrainingError(f"{output} was begun otherwise: {differences}. {_BEGIN_AGAIN}")


def require_same(begun: Manifest, wanted: Manifest, output: Path) -> None:
    """Raise TrainingError, which names what differs, if another network, or with other labels, should go on."""
    pairs = {
        "arguments": (begun.source.arguments, wanted.source.arguments),
        "the file of the source, by its SHA-256,": (begun.source.sha256, wanted.source.sha256),
        "preprocessing": (begun.preprocessing, wanted.preprocessing),
        "labels": (begun.labels, wanted.labels),
    }
    texts = [
        f"{name} {own!s:.200}, not {other!s:.200}" for name, (own, other) in pairs.items() if own != other
    ]
    if texts:
        raise TrainingError(f"{output} was begun otherwise: {'; '.join(texts)}. {_BEGIN_AGAIN}")


@dataclass(frozen=True, slots=True)
class Step:
    """The point that training has reached: ``step`` of ``steps`` in ``epoch`` of ``epochs``, all from 1.

    ``loss`` and ``accuracy`` are means over the ``images`` of the epoch so far; with several processes, over
    those of the first. ``images_per_s`` is over all processes, since the epoch was begun or resumed. On a GPU a
    single process updates these three at the first step, every 50 steps and at the end of an epoch.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_s: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """A completed epoch; ``test_accuracy`` is on ``test_images`` images that were not trained on.

    ``test_top5_accuracy`` is the share of them whose class is among the five likeliest; None if there are no more.
    """

    epoch: int
    epochs: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float
    test_images: int
    learning_rate: float
    seconds: float
    test_top5_accuracy: float | None = None


@dataclass(slots=True)
class State:
    """A training after ``step`` steps of the epoch after the completed ones, whose records are ``epochs``.

    ``sums`` are of the epoch under way: loss, right answers and images. ``confusion`` is of the last completed one.
    ``pixels_sha256`` is of the images to train on as they were decoded; None if they were not, as Fashion-MNIST's.
    ``manifest`` describes the network, or the one that a new training repeats; None if nothing is recorded.
    """

    plan: Plan
    device: str = "cpu"
    threads: int | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    step: int = 0
    sums: tuple[float, ...] = (0.0, 0.0, 0.0)
    network: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    pixels_sha256: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether no epoch is left, so that only the checkpoint has the weights."""
        return 0 < len(self.epochs) == self.plan.recipe.epochs and not self.network

    def require_sense(self) -> None:
        """Raise ValueError if a training could not have left such a state, as far as that is known here."""
        epochs = [structure(Epoch, epoch) for epoch in self.epochs]
        if [epoch.epoch for epoch in epochs] != list(range(1, len(epochs) + 1)):
            raise ValueError("its epochs are not those of a training")
        numbers = (self.step, self.threads or 1, *self.sums)
        if len(self.sums) != 3 or not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError("it counts less than nothing")
        if self.step > 0 and not self.sums[2] > 0:
            raise ValueError("it made steps without images")
        if not all(torch.is_tensor(value) for value in self.network.values()):
            raise ValueError("its weights are not tensors")

    def require_pixels(self, sha256: str, output: Path) -> None:
        """Raise TrainingError if a training is gone on with on other images than it was begun on."""
        if self.pixels_sha256 not in (None, sha256):
            raise TrainingError(
                f"{output} was begun on other images: some have changed since, though their names and sizes are the "
                f"same, or another version of Pillow reads them. {_BEGIN_AGAIN}"
            )
        self.pixels_sha256 = sha256

    def save(self, output: Path) -> None:
        """Write the state beside the checkpoint ``output``, whole or not at all; raise ArtifactError if that fails."""
        tensors = {"network": self.network, "optimizer": self.optimizer}
        facts = json.dumps(jsonable(replace(self, network={}, optimizer={})))
        buffer = io.BytesIO()
        torch.save({_JSON: facts, **tensors}, buffer)
        write_file(state_path(output), buffer.getvalue())

    @classmethod
    def load(cls, output: Path) -> State:
        """Read the state beside ``output``, running nothing in it; raise TrainingError if it is damaged or not ours."""
        path = state_path(output)
        try:
            if not path.is_file():  # a named pipe would never end
                raise ValueError(f"{path} is not a regular file")
            content = torch.load(path, map_location="cpu", weights_only=True)
            facts = json.loads(content.pop(_JSON))
            state = structure(cls, {**facts, "plan": Plan.recorded(facts["plan"], path), **content})
            state.require_sense()
            return state
        except TrainingError:
            raise
        except Exception as error:  # whatever a damaged file makes torch raise
            raise TrainingError(
                f"{path} cannot be resumed from: it is damaged, or of another program. Train with overwrite=True "
                "to begin again."
            ) from error


def state_path(output: str | os.PathLike[str]) -> Path:
    """Return where the state is for a training that writes ``output``."""
    return Path(f"{os.fspath(output)}.resume")


def log_path(output: str | os.PathLike[str]) -> Path:
    """Return where the epochs are listed for a training that writes ``output``."""
    return Path(f"{os.fspath(output)}.jsonl")


def resolve(
    output: Path,
    architecture: str,
    recipe: str | None,
    changes: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    recipe_of: str | os.PathLike[str] | None,
) -> State:
    """Return the state to train from.

    With ``resume`` that is the training at ``output``, if there is one. Otherwise a new training takes its plan, device
    and threads from the checkpoint ``recipe_of``, if it is given. ``recipe`` is a name; None means the recipe of the
    training that is resumed or repeated, else the default. ``changes`` are fields of the plan and its recipe.

    Raises TrainingError if what lies at ``output`` or ``recipe_of`` does not fit, or if neither ``resume`` nor
    ``overwrite`` says what to do with it.
    """
    if resume and overwrite:
        raise TrainingError("resume=True goes on with a training, overwrite=True begins it again; choose one")
    unfinished = resume and state_path(output).exists()
    previous = State.load(output) if unfinished else None
    if resume and not unfinished and output.exists():
        previous = _completed(output, architecture, f". {_BEGIN_AGAIN}")
        if previous is not None and not previous.is_complete:
            raise TrainingError(
                f"{output} is unfinished, and {state_path(output)} is not there. {_BEGIN_AGAIN}"
            )
    like = previous if recipe_of is None else _completed(recipe_of, architecture)
    if not resume and not overwrite:
        _refuse_to_replace(output)
    if (
        like is not None
        and like.plan.architecture == architecture
        and recipe in (None, like.plan.recipe_name)
    ):
        plan = like.plan
    else:
        registered = architecture in ARCHITECTURES.names()
        recipes = ARCHITECTURES.get(architecture).recipes if registered else usual()
        name = recipe or "tuned"
        if name not in recipes:
            raise UnknownNameError("recipe", name, sorted(recipes))
        plan = Plan(architecture, name, recipes[name])
    plan = plan.changed(changes)
    state = previous or State(replace(plan, dataset_sha256={}))
    state.plan.require(replace(plan, dataset_sha256=state.plan.dataset_sha256), output)
    if like is not None:
        state.device, state.threads = like.device, like.threads
        state.manifest = state.manifest or like.manifest
    return state


def _refuse_to_replace(output: Path) -> None:
    """Raise TrainingError if an unfinished training, trained weights or somebody's file lie at ``output``."""
    if (state := state_path(output)).exists():
        raise TrainingError(
            f"{state} holds an unfinished training. Train with resume=True to go on with it, or with overwrite=True to "
            "begin again."
        )
    if not output.is_file() or output.stat().st_size == 0:  # what cannot be written to is found out later
        return
    artifact: Artifact | None
    try:
        artifact = Artifact.open(output)
    except CnndeployError:  # some other file
        artifact = None
    if artifact is None or artifact.format != "checkpoint":
        raise TrainingError(
            f"{output} exists, and it is not a checkpoint of cnndeploy. Choose another output, or train with "
            "overwrite=True to replace it."
        )
    if (
        training := artifact.require_manifest().training
    ):  # else its weights are untrained, and a seed makes them again
        accuracy = training.get("test_accuracy")
        known = "" if accuracy is None else f", with a test accuracy of {accuracy:.4f}"
        raise TrainingError(
            f"{output} exists and holds trained weights{known}. To replace them, train with overwrite=True; to keep "
            "them, choose another output."
        )


def _completed(path: str | os.PathLike[str], architecture: str, to_resume: str = "") -> State | None:
    """Return the training that a checkpoint records; None if it has none and ``to_resume``, the advice, is given."""
    manifest = Artifact.open(path).require_manifest()
    if manifest.architecture != architecture:
        raise TrainingError(f"{path} is a {manifest.architecture}, not a {architecture}{to_resume}")
    if to_resume and not manifest.training:
        return None
    training = manifest.training
    plan = Plan.recorded(training, path)
    described = replace(manifest, training={}, versions={})
    try:
        names = ("device", "threads", "epochs")
        return structure(
            State, {"plan": plan, "manifest": described, **{name: training[name] for name in names}}
        )
    except (KeyError, ValueError) as error:
        raise TrainingError(f"{path} does not say where it was trained") from error
