"""How a training begins: from what its caller wants, what lies at its output, and what it is to be like."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cnndeploy.artifact import Artifact
from cnndeploy.errors import TrainingError
from cnndeploy.training.plan import Plan
from cnndeploy.training.state import State, state_path

_BEGIN_ANEW = "Train with resume=False to begin anew."


def resolve(
    output: Path,
    architecture: str,
    recipe: str | None,
    changes: Mapping[str, Any],
    *,
    resume: bool,
    recipe_of: str | os.PathLike[str] | None,
) -> State:
    """Return the state from which to train; its device and threads are those of what it goes on with or is like.

    Args:
        output: The checkpoint file; a training that lies there is gone on with if ``resume``.
        architecture: The network's name.
        recipe: The recipe's name; None for that of the training it is like, else the default.
        changes: Fields of the plan and its recipe; None leaves a field as it is.
        resume: Whether to go on with what lies at ``output``.
        recipe_of: A checkpoint of which plan, device and threads are taken.

    Raises:
        TrainingError: What lies at ``output`` or ``recipe_of`` does not fit.
    """
    if state_path(output).exists() and not resume:
        raise TrainingError(
            f"{state_path(output)} holds an unfinished training. Train with resume=True to go on with it, "
            "or remove it to begin anew."
        )
    previous = _previous(output, architecture) if resume else None
    like = previous if recipe_of is None else _like(recipe_of, architecture)
    plan = _plan(architecture, recipe, like).changed(changes)
    state = previous or State(replace(plan, dataset_sha256={}))
    _require_same(state.plan, replace(plan, dataset_sha256=state.plan.dataset_sha256), output)
    if like is not None:
        state.device, state.threads = like.device, like.threads
    return state


def bind(state: State, dataset_sha256: Mapping[str, str], output: Path) -> None:
    """Note the data set that a training is on; raises TrainingError if it was begun on another."""
    plan = replace(state.plan, dataset_sha256=dict(dataset_sha256))
    if state.plan.dataset_sha256:
        _require_same(state.plan, plan, output)
    state.plan = plan


def _require_same(begun: Plan, wanted: Plan, output: Path) -> None:
    if begun != wanted:
        raise TrainingError(f"{output} was begun otherwise: {begun.differences(wanted)}. {_BEGIN_ANEW}")


def _plan(architecture: str, recipe: str | None, like: State | None) -> Plan:
    """Return the plan of ``like``, unless that is of another network or recipe; then the recipe's own."""
    if like is None or like.plan.architecture != architecture or recipe not in (None, like.plan.recipe_name):
        return Plan.of(architecture, recipe)
    return like.plan


def _previous(output: Path, architecture: str) -> State | None:
    """Return the training that lies at ``output``, unfinished or complete."""
    if state_path(output).exists():
        return State.load(output)
    if not output.exists():
        return None
    manifest = Artifact.open(output).require_manifest()
    if manifest.architecture != architecture:
        raise TrainingError(f"{output} is a {manifest.architecture}, not a {architecture}. {_BEGIN_ANEW}")
    if not manifest.training:  # untrained
        return None
    state = _recorded(manifest.training, output)
    if not state.is_complete:
        raise TrainingError(f"{output} is unfinished, and {state_path(output)} is not there. {_BEGIN_ANEW}")
    return state


def _like(path: str | os.PathLike[str], architecture: str) -> State:
    """Return the beginning of a training like that of a checkpoint."""
    manifest = Artifact.open(path).require_manifest()
    if manifest.architecture != architecture:
        raise TrainingError(f"{path} is a {manifest.architecture}, not a {architecture}")
    return replace(_recorded(manifest.training, path), epochs=[])


def _recorded(training: Mapping[str, Any], where: object) -> State:
    plan = Plan.recorded(training, where)
    return State(plan, training["device"], training["threads"], list(training["epochs"]))
