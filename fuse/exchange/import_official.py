"""An official checkpoint as a run folder, ready to embed and to evaluate: `hada-fuse import`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from hada.extract.common.errors import RunError
from hada.extract.store import StoreReader
from hada.fuse import run_folder
from hada.fuse.exchange import official
from hada.fuse.network.fuser import Fuser
from hada.fuse.network.score_mix import ScoreMix, mixable_models
from hada.fuse.recipes import Recipe
from hada.fuse.run_files.features import check_raw, features_of
from hada.fuse.tokens.split import Split


def import_checkpoint(
    path: Path,
    stores: Sequence[StoreReader],
    folder: Path,
    *,
    settings: Mapping[str, str] | None = None,
) -> run_folder.RunFolder:
    """Make a run of an official checkpoint and the stores of its models, in its order.

    Widths of the stores' features must be those it was trained on. HADA-LAVIS's second model is
    one node and its features are taken as the models give them, whatever the store of CLIP holds
    beside; its published mistake (`second_from_first`), with which it was trained, is kept.

    Args:
        path: The checkpoint.
        stores: Stores of its models on one split, in its order.
        folder: The run to make.
        settings: Settings of the recipe, by name, that the checkpoint's tensors do not tell.

    Returns:
        The run's folder.

    Raises:
        CheckpointError: Not a checkpoint of HADA, unsafe to load, or of other models.
        StoreMismatchError: HADA-LAVIS's models have stores of unit-length embeddings.
        RunError: The folder holds a run already.
    """
    # Without weights it is this import's, killed halfway, or `claim` tells whose it is.
    if (folder / run_folder.BEST).exists():
        raise RunError(f"{folder}: holds a run already; choose another folder with --run")
    found = official.read_official(path)
    given = settings or {}
    recipe = found.recipe.changed(name="imported").with_settings(given)
    mistaken = found.lavis and recipe.features.first_tokens_only and len(stores) == 2
    if mistaken and not {"second_from_first", "network.second_from_first"} & set(given):
        recipe = recipe.changed(second_from_first=True)
    if recipe.features.raw_embeddings:
        for store in stores:
            check_raw(store)
    split = Split(stores, in_memory=False, first_tokens_only=recipe.features.first_tokens_only)
    shapes = {side: split.shapes(side) for side in ("image", "caption")}
    fuser = official.build(found, shapes, recipe)
    run = run_folder.RunFolder(folder)
    run.claim(_config(path, split, recipe, fuser))
    mix = ScoreMix(recipe.scores.mode, recipe.scores.weights, len(mixable_models(fuser)), False)
    tensors = {f"fuser.{k}": v for k, v in fuser.state_dict().items()}
    tensors |= {f"mix.{k}": v for k, v in mix.state_dict().items()}
    tensors |= {f"discriminator.{k}": v for k, v in found.discriminator.items()}
    run.save_tensors({**tensors, "temperature": found.temperature})
    return run


def _config(path: Path, split: Split, recipe: Recipe, fuser: Fuser) -> dict[str, object]:
    specs = [store.spec for store in split.stores]
    return {
        "format": run_folder.FORMAT,
        "dataset": specs[0].dataset,
        "models": [spec.model.name for spec in specs],
        "recipe": recipe.to_json(),
        "seed": 0,
        "branches": {
            "image": run_folder.branch_to_json(fuser.image.config),
            "caption": run_folder.branch_to_json(fuser.caption.config),
        },
        "features": {s.spec.model.name: features_of(s) for s in split.stores},
        "imported": {
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
    }
