"""A network made from a recipe and the shapes of what the stores hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hada.extract.spec import SIDES
from hada.fuse.batch import ModelShape
from hada.fuse.network.config import BranchConfig
from hada.fuse.network.fuser import Fuser
from hada.fuse.recipes import Recipe


def branch_config(recipe: Recipe, models: Sequence[ModelShape]) -> BranchConfig:
    """One branch's configuration for models of these shapes.

    Raises `UsageError` where the recipe's network cannot fuse such models.
    """
    settings = dict(vars(recipe.network))
    if recipe.network.second_from_first:
        # The published code evaluates in batches of half the training's size.
        settings["evaluation_batch"] = max(1, recipe.training.batch_size // 2)
    return BranchConfig(models=tuple(models), **settings)


def build_fuser(recipe: Recipe, shapes: Mapping[str, Sequence[ModelShape]]) -> Fuser:
    """A fresh network for models of these shapes on each side; torch's seed decides its weights."""
    image, caption = (branch_config(recipe, shapes[side]) for side in SIDES)
    return Fuser(image, caption, recipe.nodes)
