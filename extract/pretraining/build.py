"""The two small models, made from a recipe or from their weights."""

from __future__ import annotations

from pathlib import Path

from hada.extract.pretraining.recipes import Recipe
from hada.extract.pretraining.towers import Towers


def build(recipe: Recipe) -> Towers:
    """A model of this recipe with random weights (torch's global seed decides them)."""
    if recipe.name == "blip":
        from hada.extract.pretraining.towers_blip import BlipTowers

        return BlipTowers(recipe)
    from hada.extract.pretraining.towers_clip import ClipTowers

    return ClipTowers(recipe)


def load(recipe: Recipe, folder: Path) -> Towers:
    """A model with the weights that `save` left in a folder, in float32."""
    from safetensors.torch import load_file

    (file,) = folder.glob("*.safetensors")
    towers = build(recipe)
    towers.model.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    return towers
