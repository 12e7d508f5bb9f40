"""Plan: all that decides the weights of a training, but the machine and its number of threads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.architectures._recipe import Recipe
from cnndeploy.errors import TrainingError, UnknownNameError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Plan:
    """``recipe_name`` is the recipe that ``recipe`` was made from; ``dataset_sha256`` is of each file, by name.

    ``images``: train on the first so many only; None for all.
    """

    architecture: str
    recipe_name: str
    recipe: Recipe
    seed: int = 0
    precision: Precision = "float32"
    compiled: bool = False
    images: int | None = None
    dataset_sha256: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, architecture: str, recipe_name: str | None) -> Self:
        """Make the plan of an architecture's recipe, ``tuned`` by default; raises UnknownNameError."""
        recipes = ARCHITECTURES.get(architecture).recipes
        name = recipe_name or "tuned"
        if name not in recipes:
            raise UnknownNameError("recipe", name, sorted(recipes))
        return cls(architecture, name, recipes[name])

    @classmethod
    def recorded(cls, values: Mapping[str, Any], where: object) -> Self:
        """Read a plan from a state or a checkpoint's manifest; raises TrainingError if it records none."""
        if "limit" in values:  # an older file's word; its "images" are how many were trained on
            precision = "bfloat16" if values.get("precision") == "bf16" else values.get("precision")
            values = {**values, "images": values["limit"], "precision": precision}
        try:
            known = {field.name: values[field.name] for field in fields(cls)}
            return cls(**{**known, "recipe": Recipe(**known["recipe"])})
        except (KeyError, TypeError) as error:
            raise TrainingError(
                f"{where} does not say how it was trained, or in another version's words"
            ) from error

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Change fields, of the recipe too; None leaves a field as it is.

        Raises:
            TrainingError: The recipe makes no sense.
        """
        changes = {key: value for key, value in changes.items() if value is not None}
        of_recipe = {field.name for field in fields(Recipe)} & changes.keys()
        recipe = replace(self.recipe, **{key: changes.pop(key) for key in of_recipe})
        if recipe.epochs < 0 or recipe.batch_size < 1 or not 0 < recipe.learning_rate < math.inf:
            raise TrainingError(f"epochs from 0, batch size from 1, learning rate above 0, but got {recipe}")
        return replace(self, recipe=recipe, **changes)

    def differences(self, other: Plan) -> str:
        """Say in words what differs in ``other``."""
        own, others = ({**asdict(plan.recipe), **asdict(plan)} for plan in (self, other))
        keys = [key for key in own if key != "recipe" and own[key] != others[key]]
        return ", ".join(f"{key} {own[key]}, not {others[key]}" for key in keys)
