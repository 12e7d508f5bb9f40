"""Plan: all that decides the weights of a training, but the machine and its number of threads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

from cnndeploy.architectures import ARCHITECTURES
from cnndeploy.architectures._recipe import Recipe
from cnndeploy.errors import TrainingError, UnknownNameError

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True, slots=True)
class Plan:
    """``recipe_name`` is the recipe that ``recipe`` was made from; ``dataset_sha256`` is of each file, by name."""

    architecture: str
    recipe_name: str
    recipe: Recipe
    seed: int = 0
    precision: Precision = "float32"
    compiled: bool = False
    limit: int | None = None
    dataset_sha256: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, architecture: str, recipe_name: str | None) -> Self:
        """By a recipe of the architecture, ``tuned`` by default; raises UnknownNameError."""
        recipes = ARCHITECTURES.get(architecture).recipes
        name = recipe_name or "tuned"
        if name not in recipes:
            raise UnknownNameError("recipe", name, sorted(recipes))
        return cls(architecture, name, recipes[name])

    @classmethod
    def recorded(cls, values: Mapping[str, Any], where: object) -> Self:
        """As a state or a checkpoint's manifest records it; raises TrainingError where it does not."""
        try:
            known = {each.name: values[each.name] for each in fields(cls)}
            return cls(**{**known, "recipe": Recipe(**known["recipe"])})
        except (KeyError, TypeError) as error:
            raise TrainingError(
                f"{where} does not say how it was trained, or in another version's words"
            ) from error

    def changed(self, asked: Mapping[str, Any]) -> Self:
        """With what is asked for, of the recipe too; None leaves a field as it is.

        Raises:
            TrainingError: The recipe makes no sense.
        """
        asked = {key: value for key, value in asked.items() if value is not None}
        of_recipe = {each.name for each in fields(Recipe)} & asked.keys()
        recipe = replace(self.recipe, **{key: asked.pop(key) for key in of_recipe})
        if recipe.epochs < 0 or recipe.batch_size < 1 or not 0 < recipe.learning_rate < math.inf:
            raise TrainingError(f"epochs from 0, batch size from 1, learning rate above 0, but got {recipe}")
        return replace(self, recipe=recipe, **asked)

    def differences(self, other: Plan) -> str:
        """In words, what differs in ``other``."""
        ours, theirs = ({**asdict(plan.recipe), **asdict(plan)} for plan in (self, other))
        keys = [key for key in ours if key != "recipe" and ours[key] != theirs[key]]
        return ", ".join(f"{key} {ours[key]}, not {theirs[key]}" for key in keys)
