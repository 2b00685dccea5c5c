"""A trained fusion applied to a split: what its score is made of, and stores of that."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hada.extract.common import remote
from hada.extract.common.arrays import unit_rows
from hada.extract.common.console import say
from hada.extract.common.device import choose_device
from hada.extract.common.errors import RunError, StoreMismatchError
from hada.extract.spec import SIDES, ModelSpec, SideName, StoreSpec, TokenSpec
from hada.extract.store import StoreReader, formats, write_store
from hada.extract.store.commit import COMMIT, read_markers
from hada.extract.store.pooling import ALL, describe
from hada.extract.store.reader import read_spec
from hada.fuse.fitted import fitted_on
from hada.fuse.network.config import BranchConfig
from hada.fuse.network.fuser import Fuser
from hada.fuse.network.maxsim import NodeSet
from hada.fuse.network.score_mix import ScoreMix, mixable_models
from hada.fuse.run_files.sealed import digest, digest_json
from hada.fuse.run_folder import RunFolder, weights_digest
from hada.fuse.scores.embedded import Embedded
from hada.fuse.scores.heads import Heads
from hada.fuse.scores.item_nodes import ItemNodes
from hada.fuse.tokens.prefetch import ahead, reading_threads
from hada.fuse.tokens.split import Split

__all__ = ["Embedded", "embed", "embed_split"]

NODES_PER_BLOCK = 8192
# What a side is encoded as: its fused embeddings and, where they are matched, its nodes.
SideEncoded = tuple[NDArray[np.float32], ItemNodes | None]


def embed_split(
    run: RunFolder | Path | str, stores: Sequence[StoreReader], *, device: str = "auto"
) -> Embedded:
    """Apply a run's best weights to the stores of one split, given in any order.

    Raises `RunError` where a model's store is missing or holds other features than the run
    was trained on.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    config, recipe = folder.config(), folder.recipe()
    by_name = {store.spec.model.name: store for store in stores}
    for name in config["models"]:
        if name not in by_name:
            raise RunError(
                f"{folder.path}: fuses {', '.join(config['models'])}; the store of {name!r} is "
                f"missing (got {', '.join(sorted(by_name)) or 'none'})"
            )
        check_features(
            config["features"][name],
            by_name[name],
            folder.path,
            inputs=recipe.network.inputs,
        )
    split = Split(
        [by_name[name] for name in config["models"]],
        first_tokens_only=recipe.features.first_tokens_only,
        alone=True,
    )
    fuser, mix = folder.load_best()
    return embed(fuser, mix, split, torch.device(choose_device(device)), folder.load_heads())


@torch.no_grad()
def embed(
    fuser: Fuser,
    mix: ScoreMix,
    split: Split,
    device: torch.device,
    heads: Heads | None = None,
    *,
    known: Mapping[SideName, SideEncoded] | None = None,
) -> Embedded:
    """Encode all items of a split in eval mode, as training's validation does.

    Args:
        fuser: The network.
        mix: The shares of its scores while there are no heads.
        split: What to encode.
        device: Where.
        heads: What was fitted when training was done; None leaves the score as trained.
        known: What `encode_side` gave of a side already.
    """
    was_training = fuser.training
    # Both walk through all modules, which takes longer than to encode a query.
    if any(x.device != device for x in fuser.parameters()):
        fuser.to(device)
    if was_training:
        fuser.eval()
    known = known or {}
    images, image_nodes = known.get("image") or encode_side(fuser, split, "image", device)
    captions, caption_nodes = known.get("caption") or encode_side(fuser, split, "caption", device)
    if was_training:
        fuser.train()
    own = tuple((_own(split, "image", m), _own(split, "caption", m)) for m in mixable_models(fuser))
    shares = mix.shares().tolist()
    embedded = Embedded(
        images,
        captions,
        own,
        tuple(shares[: 1 + len(own)]),
        split.image_rows,
        split.caption_rows,
        split.owner,
    )
    if image_nodes is not None and caption_nodes is not None and fuser.nodes is not None:
        embedded = replace(
            embedded,
            nodes=(image_nodes, caption_nodes),
            node_share=shares[-1] if mix.nodes else 0.0,
            mirror=fuser.nodes.settings.mirror,
        )
    return embedded if heads is None else heads.applied(embedded, split, device)


def encode_side(fuser: Fuser, split: Split, side: SideName, device: torch.device) -> SideEncoded:
    """(n, E) fused embeddings of one side, in item order, and the nodes where they are matched."""
    lengths = split.lengths(side)
    blocks = encoding_blocks(fuser.image.config, lengths)
    width = fuser.image.config.out_width
    result = np.empty((len(lengths), width), np.float32)
    sets: list[tuple[NDArray[np.int64], NodeSet]] = []

    def load(items: NDArray[np.int64]) -> Any:
        return items, split.features(side, items).to(device)

    for items, features in ahead(load, blocks, threads=reading_threads()):
        result[items] = fuser.encode(side, features).float().cpu().numpy()
        if fuser.nodes is not None:
            nodes = fuser.nodes.encode(side, features)
            sets.append((items, NodeSet(nodes.vectors_SD.half(), nodes.weights_S, nodes.lengths)))
    if fuser.nodes is None:
        return result, None
    return result, ItemNodes.joined(sets, len(lengths), fuser.nodes.settings.width)


def encoding_blocks(config: BranchConfig, lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Which items are encoded together, given how many nodes each has.

    Items of like length go together, so little is padded. Where an embedding depends on its batch
    (`second_from_first`), the batches are those of the published evaluation: in item order,
    `evaluation_batch` at a time.
    """
    if config.second_from_first:
        items = np.arange(len(lengths))
        return [
            items[start : start + config.evaluation_batch]
            for start in range(0, len(items), config.evaluation_batch)
        ]
    order = np.argsort(lengths, kind="stable")
    blocks, ends = [], np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + NODES_PER_BLOCK, "right")))
        blocks.append(order[start:stop])
        start = stop
    return blocks


def _own(split: Split, side: SideName, model: int) -> NDArray[np.float32]:
    values = split.sources[side][model].embeddings
    assert values is not None
    rows = split.image_rows if side == "image" else split.caption_rows
    x = values[rows].astype(np.float32)
    return np.asarray(unit_rows(x), np.float32)


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
    part of the score (`hada.fuse.network.maxsim`). The arguments are those of `write_embedded`.

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


def features_of(store: StoreReader) -> dict[str, Any]:
    """What of a model must be the same wherever a run is used: recorded in its config."""
    spec = store.spec.model
    kept = describe(spec.image)
    return {
        "family": spec.family,
        "weights_digest": spec.weights_digest,
        "normalized": spec.normalized,
        # Not for all of them: runs made before there was a choice said nothing.
        **({} if kept == ALL else {"tokens": kept}),
    }


def contents_of(store: StoreReader) -> str:
    """A digest of a store's spec and of what its markers say of every shard's contents.

    A copy of what was made from the store is good as long as this stays the same.
    """
    readers = dict(zip(SIDES, (store.image, store.caption), strict=True))
    places = [
        (side, shard)
        for side, reader in readers.items()
        for shard in range(-(-len(reader.ids) // store.spec.rows_per_shard[side]))
    ]
    parts: list[Any] = [store.spec.digest()]
    bound = True
    for marker in read_markers(store.path, places).values():
        if isinstance(marker, Exception):
            raise marker
        if marker is not None:
            parts.append([marker.side, marker.shard, marker.files, marker.failed])
            bound &= bool(getattr(marker, "digest", ""))
    if not bound:
        # Markers of before stores were bound say little of the contents.
        for reader in readers.values():
            values = reader.embeddings()
            parts.append(None if values is None else digest(np.ascontiguousarray(values).data))
    return digest_json(parts)


def check_features(
    recorded: dict[str, Any], store: StoreReader, run: Path, *, inputs: str = "as-is"
) -> None:
    """Raise `RunError` where a store holds another model's features than the run learned from.

    Args:
        recorded: What `features_of` said when the run was made.
        store: What is to be fused now.
        run: Named in the message.
        inputs: The run's way with its inputs. Only "as-is" sees whether embeddings are of unit
            length; runs made before that was recorded are not asked.
    """
    held = features_of(store)
    seen = [field for field in dict.fromkeys([*held, *recorded]) if field != "normalized"]
    if inputs == "as-is" and "normalized" in recorded:
        seen.append("normalized")
    for field in seen:
        if recorded.get(field) != held.get(field):
            raise RunError(
                f"{run}: model {store.spec.model.name!r}: {field}: the run was trained on "
                f"{recorded.get(field)!r}, {store.path} holds {held.get(field)!r}; extract with "
                "the same weights and --tokens, or train again"
            )


def check_raw(store: StoreReader) -> None:
    """Raise `StoreMismatchError` for a store whose embeddings were brought to unit length.

    HADA-LAVIS fuses projections as the models give them; how long those are tells it something.
    """
    model = store.spec.model
    if model.normalized and model.embedding_width is not None:
        raise StoreMismatchError(
            f"{store.path}: holds embeddings of unit length (normalized: true); HADA-LAVIS fuses "
            "projections as the model gives them, as blip and albef are stored today. Extract "
            f"{model.name!r} again (hada-extract --fresh), or, where the model has no other "
            "embedding, --set raw_embeddings=false"
        )
