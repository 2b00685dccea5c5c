"""What a training is to be, as plain names and paths: it can be printed, or sent elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict

from hada.extract.common import remote
from hada.extract.common.errors import UsageError
from hada.extract.common.shapes import conform
from hada.fuse.recipes import Recipe

if TYPE_CHECKING:
    from hada.extract.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train. `paths`: split -> the stores of `models`, in their order."""

    dataset: str
    train_split: str
    val_split: str
    models: tuple[str, ...]
    recipe: Recipe
    seed: int
    paths: dict[str, list[str]]
    folder: Path

    def request(self) -> dict[str, Any]:
        """The part that makes the run what it is, wherever it runs, as plain JSON values."""
        return {
            "dataset": self.dataset,
            "train_split": self.train_split,
            "val_split": self.val_split,
            "models": list(self.models),
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
        }

    def to_json(self) -> dict[str, Any]:
        """All of the plan as plain JSON values."""
        return {**self.request(), "paths": self.paths, "folder": str(self.folder)}

    @classmethod
    def from_json(cls, values: Any, where: str = "a plan", remedy: str = "") -> Self:
        """Back from `to_json`.

        Args:
            values: What `to_json` gave, also after a journey as JSON text.
            where: What the values are, for messages.
            remedy: The end of messages.

        Raises:
            UsageError: The values are no plan of this version.
        """
        conform(values, _PlanValues, where, UsageError, remedy)
        return cls(
            **{
                **values,
                "models": tuple(values["models"]),
                "recipe": Recipe.from_json(values["recipe"]),
                "folder": Path(values["folder"]),
            }
        )


class _PlanValues(TypedDict):
    dataset: str
    train_split: str
    val_split: str
    models: list[str]
    recipe: dict[str, Any]
    seed: int
    paths: dict[str, list[str]]
    folder: str


def plan_training(
    manifest: Manifest,
    dataset: str,
    models: Sequence[str],
    recipe: Recipe,
    *,
    seed: int = 0,
    train_split: str = "train",
    val_split: str = "val",
    folder: Path | None = None,
    allow_same_split: bool = False,
) -> Plan:
    """Resolve the names of a training to paths.

    Args:
        manifest: Where data sets, stores and runs are.
        dataset: Its name there.
        models: The models to fuse, by name; their stores need not be there yet.
        recipe: What is trained, and how.
        seed: Of the weights and of the order of batches.
        train_split: The split to train on.
        val_split: The split that chooses the epoch and fits the shares of the scores.
        folder: The run's folder; None for RUNS/DATASET/MODELS-RECIPE-sSEED.
        allow_same_split: Allow the two splits to be one, for trying things out.

    Returns:
        The plan; nothing is read or written.

    Raises:
        UnknownNameError: Nobody knows the dataset, a split or a model.
        UsageError: Training and validation are one split, and `allow_same_split` is False.
    """
    entry = manifest.dataset(dataset)
    splits = (train_split, val_split)
    if train_split == val_split and not allow_same_split:
        raise UsageError(
            f"train and val are both {train_split!r}: what is chosen and fitted on the data that "
            "was trained on promises too much. Extract with --split-by 0.8,0.1,0.1, name another "
            "split, or say --allow-same-split"
        )
    for split in splits:
        entry.split(split)
    for name in models:
        # A model that was named on hada-extract's command line has a store and no entry.
        if not remote.place(manifest.store_path(entry.name, train_split, name)).exists():
            manifest.model(name)
    default = Path(manifest.runs) / entry.name / f"{'+'.join(models)}-{recipe.name}-s{seed}"
    return Plan(
        dataset=entry.name,
        train_split=train_split,
        val_split=val_split,
        models=tuple(models),
        recipe=recipe,
        seed=seed,
        paths={
            split: [manifest.store_path(entry.name, split, name) for name in models]
            for split in splits
        },
        folder=folder or default,
    )
