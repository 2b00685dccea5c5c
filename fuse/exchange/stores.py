"""A run's fused embeddings and nodes as stores, like those of any frozen model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hada.extract.common import remote
from hada.extract.common.console import say
from hada.extract.common.errors import RunError
from hada.extract.spec import SIDES, ModelSpec, SideName, StoreSpec, TokenSpec
from hada.extract.store import StoreReader, formats, write_store
from hada.extract.store.commit import COMMIT
from hada.extract.store.reader import read_spec
from hada.fuse.fitted import fitted_on
from hada.fuse.run_files.features import contents_of
from hada.fuse.run_folder import RunFolder, weights_digest
from hada.fuse.scores.embedded import Embedded


def write_embedded(
    path: Path | str,
    name: str,
    run: RunFolder,
    embedded: Embedded,
    stores: Sequence[StoreReader],
    *,
    anew: bool = False,
) -> None:
    """Write fused embeddings as a store like any other; its cosine is the run's score.

    Of a run that corrects hubs the cosine is the corrected score over a constant, and of one that
    matches nodes it is the first stage's; `write_nodes` keeps the second's.

    Args:
        path: Where.
        name: The model's name in it.
        run: What made them.
        embedded: What it made.
        stores: What it made them of; the store says which, so a copy of others is told.
        anew: Whether a store of this run there that is of other weights or stores is replaced.

    Raises:
        StoreMismatchError: Another store is there.
    """
    images, captions = embedded.unit()
    facts = {"shares": list(embedded.shares)}
    spec = _spec(name, run, stores, facts, embedding_width=images.shape[1])
    sides: dict[SideName, Any] = {"image": images, "caption": captions}
    _write(path, spec, embedded, stores[0], anew=anew, embeddings=sides)


def write_nodes(
    path: Path | str,
    name: str,
    run: RunFolder,
    embedded: Embedded,
    stores: Sequence[StoreReader],
    *,
    anew: bool = False,
) -> None:
    """Write a run's nodes as the tokens of an ordinary store, float16 and ragged.

    Every row is a node's vector times its weight: its length is the weight, and the sum over a
    caption's rows of the largest product with an image's rows, brought to unit length, is the first
    part of the score (`hada.fuse.network.maxsim`).

    Args:
        path: As for `write_embedded`.
        name: As for `write_embedded`.
        run: As for `write_embedded`.
        embedded: As for `write_embedded`.
        stores: As for `write_embedded`.
        anew: As for `write_embedded`.

    Raises:
        StoreMismatchError: Another store is there.
        RunError: The run matches no nodes.
    """
    if embedded.nodes is None:
        raise RunError(f"{run.path}: matches no nodes; train one that does: --recipe fast")
    width = embedded.nodes[0].vectors_SW.shape[1]
    facts = {"node_share": embedded.node_share, "mirror": embedded.mirror}
    spec = _spec(name, run, stores, facts, node_width=width)
    tokens = {side: n.weighted() for side, n in zip(SIDES, embedded.nodes, strict=True)}
    _write(path, spec, embedded, stores[0], anew=anew, tokens=tokens)


def _write(
    path: Path | str,
    spec: StoreSpec,
    embedded: Embedded,
    like: StoreReader,
    *,
    anew: bool,
    tokens: Mapping[SideName, Any] | None = None,
    embeddings: Mapping[SideName, Any] | None = None,
) -> None:
    """A store of the items of `embedded`, whose ids are those of `like`."""
    if anew:
        _remove_stale(remote.place(path), spec)
    write_store(
        path,
        spec,
        ids=_ids(embedded, like),
        caption_to_image=embedded.caption_to_image,
        tokens=tokens,
        embeddings=embeddings,
    )


def _ids(embedded: Embedded, store: StoreReader) -> dict[SideName, list[str]]:
    return {
        "image": [store.image.ids[i] for i in embedded.image_rows],
        "caption": [store.caption.ids[i] for i in embedded.caption_rows],
    }


def _spec(
    name: str,
    run: RunFolder,
    stores: Sequence[StoreReader],
    facts: dict[str, Any],
    *,
    embedding_width: int | None = None,
    node_width: int | None = None,
) -> StoreSpec:
    """What a store of a run's embeddings or nodes says of itself."""
    config, like = run.config(), stores[0].spec
    tokens = None if node_width is None else TokenSpec(width=node_width, count=None)
    model = ModelSpec(
        name=name,
        family="hada",
        weights_digest=weights_digest(run.path),
        embedding_width=embedding_width,
        normalized=embedding_width is not None,
        image=tokens,
        caption=tokens,
        preprocessing={
            "models": config["models"],
            **facts,
            "fitted_on": fitted_on(config),
            "stores": {s.spec.model.name: contents_of(s) for s in stores},
        },
        libraries={"torch": torch.__version__},
    )
    return StoreSpec(
        model=model,
        dataset=like.dataset,
        split=like.split,
        dataset_digest=like.dataset_digest,
        dtype="float32" if node_width is None else "float16",
    )


def _remove_stale(folder: Path, spec: StoreSpec) -> None:
    """Remove fused embeddings of the same run that other weights or stores gave, saying so."""
    if not folder.exists():
        return
    there = read_spec(folder)
    same = (there.model.family, there.model.name) == (spec.model.family, spec.model.name)
    if same and there.digest() != spec.digest():
        say(f"{folder}: stale: it is of other weights or stores. It is made anew")
        for name in (COMMIT, *formats.folders()):  # markers first: without them nothing counts
            if not (folder / name).exists():
                continue
            if remote.is_remote(folder):
                remote.remove_folder(folder / name)
            else:
                shutil.rmtree(folder / name)
        if not remote.is_remote(folder) and not any(folder.iterdir()):
            folder.rmdir()
