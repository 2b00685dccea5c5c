"""What `hada-fuse train` and `hada-fuse embed` do, as functions.

`from hada.fuse import train, embed` are these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hada.extract.common.console import say
from hada.extract.manifest import Manifest, load_manifest
from hada.fuse.job import train_run
from hada.fuse.plan import plan_training
from hada.fuse.recipes import DEFAULT_RECIPE, Recipe
from hada.fuse.recipes import recipe as named_recipe
from hada.fuse.run_folder import RunFolder

if TYPE_CHECKING:
    from hada.fuse.tokens.placement import Mode


def train(
    models: Sequence[str] = (),
    *,
    dataset: str | None = None,
    manifest: Manifest | Path | str | None = None,
    recipe: str | Recipe = DEFAULT_RECIPE,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    train_split: str = "train",
    val_split: str = "val",
    allow_same_split: bool = False,
    run: Path | str | None = None,
    device: str = "auto",
    reading: Mode = "auto",
    memory: float | None = None,
    report_to: Sequence[str] = (),
    init: Path | str | None = None,
    fresh: bool = False,
) -> RunFolder:
    """Train a fusion of frozen models on their feature stores, or go on with an interrupted run.

    Args:
        models: Names of the models whose stores are fused, in this order; none takes the
            manifest's defaults.
        dataset: A dataset of the manifest; None takes the manifest's default.
        manifest: The manifest, or its file; None reads `./data_manifest.yaml`, or else the
            manifest that HADA ships.
        recipe: A named recipe (`hada.fuse.recipes.RECIPES`) or one of your own.
        settings: Changes of the recipe by name, such as `{"epochs": 3, "loss.queue": 4096}`.
        seed: Of weights, shuffling and dropout.
        train_split: The split to learn from.
        val_split: The split that chooses the epoch and the scores' shares.
        allow_same_split: Whether both may be one split, which flatters what is chosen.
        run: The run's folder; None takes `RUNS/DATASET/MODELS-RECIPE-sSEED`.
        device: Where to train: `auto`, `cpu`, `cuda` or `cuda:N`.
        reading: Where tokens come from (`hada.fuse.tokens.placement`).
        memory: Bytes that tokens may take; None for half of what is free.
        report_to: Trackers of `hada.fuse.training.trackers`, such as `["tensorboard"]`.
        init: A run whose weights a new one begins with: the published second step.
        fresh: Whether to throw away what the run's folder holds.

    Returns:
        The run's folder. Its `load_best()` gives the trained networks.

    Raises:
        UsageError: A name or setting is wrong, or the tokens do not fit `memory` in the way that
            was asked for.
        StoreError: A store is missing, incomplete or does not fit the others.
        RunError: The folder holds another run.
        NonFiniteError: The loss is not finite; the last good state is kept.

    Example:
        `docs/python.md` trains so, and a test runs that page::

            run = train(["blip", "clip"], manifest=manifest, settings={"epochs": 2})
    """
    chosen = named_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = chosen.with_settings({key: _as_text(value) for key, value in (settings or {}).items()})
    data = manifest if isinstance(manifest, Manifest) else load_manifest(_path(manifest))
    plan = plan_training(
        data,
        data.dataset(dataset).name,
        data.chosen_models(tuple(models)),
        chosen,
        seed=seed,
        train_split=train_split,
        val_split=val_split,
        allow_same_split=allow_same_split,
        folder=_path(run),
    )
    return train_run(
        plan,
        device=device,
        reading=reading,
        memory=memory,
        report_to=report_to,
        init=_path(init),
        fresh=fresh,
    )


def embed(
    run: RunFolder | Path | str,
    splits: str | Sequence[str],
    *,
    dataset: str | None = None,
    manifest: Manifest | Path | str | None = None,
    device: str = "auto",
    output: Path | str | None = None,
) -> list[str]:
    """Write a run's fused embeddings of splits as feature stores.

    A store holds (I, E) float32 image embeddings and (T, E) caption embeddings whose inner
    product is the run's score; items that a model could not read are NaN. A run that matches nodes
    gets a second store beside it, PATH-nodes, with a vector a node: what its second stage needs.

    Args:
        run: The run, its folder, an exported folder, or `hf-hub:ORG/NAME`.
        splits: Splits whose stores exist; one text is one split.
        dataset: Whose splits; None takes the run's. Images or texts alone will do.
        manifest: The manifest, or its file; None reads `./data_manifest.yaml`, or else the
            manifest that HADA ships.
        device: Where to compute: `auto`, `cpu`, `cuda` or `cuda:N`.
        output: Where the store of a single split goes; None puts it among the manifest's stores,
            under the run's name, and makes it anew where the run or its stores have changed.

    Returns:
        The path or URL of each store, in the order of `splits`.

    Raises:
        UsageError: `output` names one store for several splits.
        RunError: The run is not trained, or damaged.
        StoreError: A store is missing, or holds other features than the run was trained on.
    """
    from hada.extract.common.errors import UsageError
    from hada.extract.store import open_store
    from hada.fuse.embedding import embed_split
    from hada.fuse.exchange.stores import write_embedded, write_nodes

    names = (splits,) if isinstance(splits, str) else tuple(splits)
    if output is not None and len(names) > 1:
        raise UsageError("--output names one store: give one --split with it")
    data = manifest if isinstance(manifest, Manifest) else load_manifest(_path(manifest))
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    config = folder.config()
    entry = data.dataset(dataset or config["dataset"])
    written = []
    for split in names:
        entry.split(split)
        stores = [
            open_store(data.store_path(entry.name, split, model)) for model in config["models"]
        ]
        embedded = embed_split(folder, stores, device=device)
        path = output or data.store_path(entry.name, split, folder.name)
        write_embedded(path, folder.name, folder, embedded, stores, anew=output is None)
        say(
            f"{len(embedded.image_rows)} images and {len(embedded.caption_rows)} captions of "
            f"{entry.name}/{split} in {path}"
        )
        written.append(str(path))
        if embedded.nodes is not None and embedded.node_share:
            beside = f"{path}-nodes"
            write_nodes(
                beside, f"{folder.name}-nodes", folder, embedded, stores, anew=output is None
            )
            say(f"their nodes in {beside}")
    return written


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value)


def _as_text(value: Any) -> str:
    """A setting's value as the command line writes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
