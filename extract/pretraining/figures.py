"""Recall of the small models on the test split of `scenes`, for their model cards.

`python -m hada.extract.pretraining.figures` prints them for the weights that HADA ships.
The figures a user reads come from `hada.evaluate`; these are for the person who trains. Letters:
I pictures, T captions, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray

from hada.extract.common.console import HadaCommand, tell
from hada.extract.pretraining.recipes import RECIPES
from hada.extract.scenes.draw import render
from hada.extract.scenes.world import sample_scene
from hada.extract.scenes.write import captions_of

if TYPE_CHECKING:
    from hada.extract.pretraining.towers import Towers

CUTOFFS = (1, 5, 10)
_BATCH = 200


def cosines(
    towers: Towers, split: str = "test", count: int = 1000, seed: int = 0
) -> NDArray[np.float32]:
    """(I, T) cosine of every picture with every caption of the first pictures of a split.

    Args:
        towers: The model.
        split: Of the scenes that are drawn.
        count: How many pictures, each with its five captions.
        seed: Of the scenes.
    """
    import torch

    towers.model.eval()
    scenes = [sample_scene(seed, split, index) for index in range(count)]
    captions = [text for index in range(count) for text in captions_of(seed, split, index)]
    with torch.inference_mode():
        images = [
            towers.see(towers.images(np.stack([render(s) for s in scenes[i : i + _BATCH]])))[1]
            for i in range(0, count, _BATCH)
        ]
        texts = [
            towers.read(captions[i : i + 5 * _BATCH]) for i in range(0, len(captions), 5 * _BATCH)
        ]
        unit = [
            torch.nn.functional.normalize(torch.cat(x).float(), dim=-1) for x in (images, texts)
        ]
    return np.asarray((unit[0] @ unit[1].T).cpu().numpy(), dtype=np.float32)


def recalls(scores: NDArray[np.float32]) -> dict[str, float]:
    """R@1, 5, 10 both ways in percent, of scores (I, T) with T/I captions per picture in order.

    A tie counts against us: a wrong entry with the same score stands before the right one.

    >>> recalls(np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32))["i2t R@1"]
    100.0
    """
    pictures, captions = scores.shape
    owner = np.repeat(np.arange(pictures), captions // pictures)
    right = scores[owner, np.arange(captions)]
    t2i = (scores >= right[None, :]).sum(axis=0) - 1
    wrong = np.where(owner[None, :] == np.arange(pictures)[:, None], -np.inf, scores)
    best = right.reshape(pictures, -1).max(axis=1)
    i2t = (wrong >= best[:, None]).sum(axis=1)
    return {
        f"{way} R@{k}": round(100 * float((ranks < k).mean()), 2)
        for way, ranks in (("i2t", i2t), ("t2i", t2i))
        for k in CUTOFFS
    }


def table(rows: Sequence[tuple[str, dict[str, float]]]) -> str:
    """A Markdown table of named recalls."""
    keys = list(rows[0][1])
    lines = ["| | " + " | ".join(keys) + " |", "| --- |" + " ---: |" * len(keys)]
    for name, values in rows:
        lines.append(f"| {name} | " + " | ".join(f"{values[k]:.1f}" for k in keys) + " |")
    return "\n".join(lines)


@click.command(cls=HadaCommand)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(__file__).parents[1] / "scenes" / "weights",
    help="The folder that holds blip/ and clip/. [default: those that HADA ships]",
)
@click.option("--count", default=1000, show_default=True, type=click.IntRange(2))
@click.option("--split", default="test", show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(weights: Path, count: int, split: str, seed: int) -> None:
    """Print the recall of both small models and of the mean of their cosines."""
    from hada.extract.pretraining.build import load

    scores = {
        name: cosines(load(recipe, weights / name), split, count, seed)
        for name, recipe in RECIPES.items()
    }
    rows = [(name, recalls(values)) for name, values in scores.items()]
    mean = np.asarray(np.mean(list(scores.values()), axis=0), dtype=np.float32)
    tell(table([*rows, ("mean of cosines", recalls(mean))]), lines=True)


if __name__ == "__main__":
    main()
