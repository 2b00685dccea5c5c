"""A trained fusion applied to a split: the embeddings and nodes that its score is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hada.extract.common.arrays import unit_rows
from hada.extract.common.device import choose_device
from hada.extract.common.errors import RunError
from hada.extract.spec import SIDES, SideName
from hada.extract.store import StoreReader
from hada.fuse.network.config import BranchConfig
from hada.fuse.network.fuser import Fuser
from hada.fuse.network.maxsim import NodeSet
from hada.fuse.network.score_mix import ScoreMix, mixable_models
from hada.fuse.run_files.features import check_features
from hada.fuse.run_folder import RunFolder
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
    """Apply a run's best weights to the stores of one split.

    Args:
        run: The run, or its folder.
        stores: Of the run's models, in any order; others are not read.
        device: Where the network runs.

    Raises:
        RunError: A model's store is missing or holds other features than the run was trained on.
        StoreError: A store is incomplete or does not fit the others.
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
    nodes: bool = True,
) -> Embedded:
    """Encode all items of a split in eval mode, as training's validation does.

    Args:
        fuser: The network.
        mix: The shares of its scores while there are no heads.
        split: What to encode.
        device: Where.
        heads: What was fitted when training was done; None leaves the score as trained.
        known: What `encode_side` gave of a side already.
        nodes: Whether nodes are encoded too, where the network matches any.
    """
    was_training = fuser.training
    # "cuda" and "cuda:0" are one device and not equal; a tensor's own is the second.
    here = torch.empty(0, device=device).device
    # Both walk through all modules, which takes longer than to encode a query.
    if any(x.device != here for x in fuser.parameters()):
        fuser.to(device)
    if was_training:
        fuser.eval()
    known = known or {}
    (images, image_nodes), (captions, caption_nodes) = (
        known.get(side) or encode_side(fuser, split, side, device, nodes=nodes) for side in SIDES
    )
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
        split.caption_to_image,
    )
    if image_nodes is not None and caption_nodes is not None and fuser.nodes is not None:
        embedded = replace(
            embedded,
            nodes=(image_nodes, caption_nodes),
            node_share=shares[-1] if mix.nodes else 0.0,
            mirror=fuser.nodes.settings.mirror,
        )
    return embedded if heads is None else heads.applied(embedded, split, device)


def encode_side(
    fuser: Fuser, split: Split, side: SideName, device: torch.device, *, nodes: bool = True
) -> SideEncoded:
    """Encode one side of a split.

    Args:
        fuser: The network, in eval mode, on `device`.
        split: Its n images and captions.
        side: Which of them.
        device: Where to compute.
        nodes: Whether nodes are encoded too, where the network matches any.

    Returns:
        (n, E) float32 embeddings of unit length, in item order; and their nodes, or None where
        there are none.
    """
    matcher = fuser.nodes if nodes else None
    lengths = split.lengths(side)
    blocks = encoding_blocks(fuser.image.config, lengths)
    width = fuser.image.config.out_width
    result = np.empty((len(lengths), width), np.float32)
    sets: list[tuple[NDArray[np.int64], NodeSet]] = []

    def load(items: NDArray[np.int64]) -> Any:
        return items, split.features(side, items).to(device)

    for items, features in ahead(load, blocks, threads=reading_threads()):
        result[items] = fuser.encode(side, features).float().cpu().numpy()
        if matcher is not None:
            found = matcher.encode(side, features)
            sets.append((items, NodeSet(found.vectors_SD.half(), found.weights_S, found.lengths)))
    if matcher is None:
        return result, None
    return result, ItemNodes.joined(sets, len(lengths), matcher.settings.width)


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
