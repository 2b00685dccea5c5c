"""What is fitted when training is done: closed-form heads, shares of all scores, the correction.

All of it lies among a run's weights, so that whoever loads a run has it. What an item pays for its
popularity is found by its scores with a bank of items of the training split, which lies there, too.

Shape letters: I images, T captions, E embedding width, b items of the bank, S packed nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hada.extract.spec import SIDES, SideName
from hada.fuse.closed_form.cca import CCA
from hada.fuse.closed_form.correction import Correction, popularity, top_means
from hada.fuse.closed_form.kernel_cca import KernelCCA
from hada.fuse.scores.embedded import Embedded, Pair
from hada.fuse.scores.item_nodes import ItemNodes, score_blocks
from hada.fuse.scores.pooled_tokens import pooled_blocks
from hada.fuse.scores.stored_tokens import TokenSpace
from hada.fuse.tokens.split import Split

PREFIX = "heads."
_CCA = ("image_mean", "image_map", "caption_mean", "caption_map")
_CORRECTION = ("k_image", "alpha_image", "k_caption", "alpha_caption")


@dataclass(frozen=True)
class Bank:
    """Items of the training split, as the run's score sees them.

    cosines: (b, E) images and (b, E) captions whose inner product is the sum of cosines.
    nodes: those of the first items of each side, where nodes are matched.
    """

    cosines: Pair
    nodes: tuple[ItemNodes, ItemNodes] | None = None


@dataclass(frozen=True)
class Heads:
    """Everything behind the network.

    shares: of the fused cosine, of the models' own, of the closed-form heads' where there are
        such (`cca`, then `kernel`), and of the node matching's score where there is one; at least
        0.
    cca: the closed-form head on the models' embeddings side by side; kernel: the one on their
        pooled tokens.
    correction: of the sum of cosines, which the whole score pays, too; node_correction: of the
        node matching's part of the whole score.
    bank: what popularity is measured against.
    late: how the stored tokens of a model are matched, in a network that matches no nodes itself.
    """

    shares: tuple[float, ...]
    cca: CCA | None = None
    correction: Correction | None = None
    node_correction: Correction | None = None
    bank: Bank | None = None
    late: TokenSpace | None = None
    kernel: KernelCCA | None = None

    def applied(self, embedded: Embedded, split: Split, device: torch.device | str) -> Embedded:
        """The embeddings of a split with the heads' part in the score."""
        if self.cca is not None:
            pair = cca_pair(self.cca, split)
            embedded = replace(embedded, own=(*embedded.own, pair))
        if self.kernel is not None:
            pair = kernel_pair(self.kernel, split)
            embedded = replace(embedded, own=(*embedded.own, pair))
        if self.late is not None:
            embedded = with_tokens(embedded, split, self.late)
        cosines = 1 + len(embedded.own)
        embedded = replace(
            embedded,
            shares=self.shares[:cosines],
            node_share=self.shares[cosines] if len(self.shares) > cosines else 0.0,
        )
        if self.bank is None:
            return embedded
        if self.correction is not None:
            near = cosine_popularity(
                embedded, self.bank, self.correction.k_image, self.correction.k_caption
            )
            embedded = replace(embedded, penalties=_paid(self.correction, near))
        if embedded.nodes is None or not embedded.node_share:
            return embedded
        # The whole score pays what its cosines pay, by a large bank, and for its nodes beside that.
        paid = embedded.penalties
        if self.node_correction is not None:
            near = _node_popularity_of_payers(embedded, self.bank, self.node_correction, device)
            more = _paid(self.node_correction, near)
            paid = more if paid is None else (paid[0] + more[0], paid[1] + more[1])
        return replace(embedded, node_penalties=paid)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors by name, for the file of weights."""
        found: dict[str, NDArray[np.generic]] = {"shares": np.array(self.shares, np.float64)}
        if self.cca is not None:
            found |= {f"cca.{name}": getattr(self.cca, name) for name in _CCA}
        if self.kernel is not None:
            found |= {f"kernel.{name}": value for name, value in self.kernel.arrays().items()}
        for name in ("correction", "node_correction"):
            correction = getattr(self, name)
            if correction is not None:
                values = [float(getattr(correction, field)) for field in _CORRECTION]
                found[name] = np.array(values, np.float64)
        if self.late is not None:
            found |= {f"late.{name}": value for name, value in self.late.arrays().items()}
        if self.bank is not None:
            for number, side in enumerate(SIDES):
                # float16 is what stores hold, and a popularity is a mean over many.
                found[f"bank.{side}"] = self.bank.cosines[number].astype(np.float16)
                if self.bank.nodes is not None:
                    nodes = self.bank.nodes[number]
                    found[f"bank.{side}.vectors"] = nodes.vectors_SW
                    found[f"bank.{side}.weights"] = nodes.weights_S
                    found[f"bank.{side}.lengths"] = nodes.lengths
        return {
            PREFIX + name: torch.from_numpy(np.ascontiguousarray(value))
            for name, value in found.items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self | None:
        """Back from `tensors`, among a run's other weights; None where there are none."""
        found = {
            name.removeprefix(PREFIX): value.cpu().numpy()
            for name, value in tensors.items()
            if name.startswith(PREFIX)
        }
        if "shares" not in found:
            return None
        cca = CCA(*(found[f"cca.{name}"] for name in _CCA)) if "cca.image_map" in found else None
        return cls(
            tuple(found["shares"].tolist()),
            cca,
            _correction(found.get("correction")),
            _correction(found.get("node_correction")),
            _bank(found),
            TokenSpace.from_arrays(_below(found, "late.")) if "late.model" in found else None,
            KernelCCA.from_arrays(_below(found, "kernel."))
            if "kernel.cca.image_map" in found
            else None,
        )


def _below(found: Mapping[str, NDArray[np.generic]], start: str) -> dict[str, NDArray[np.generic]]:
    return {name.removeprefix(start): x for name, x in found.items() if name.startswith(start)}


def _correction(values: NDArray[np.float64] | None) -> Correction | None:
    if values is None:
        return None
    k_image, alpha_image, k_caption, alpha_caption = values.tolist()
    return Correction(int(k_image), alpha_image, int(k_caption), alpha_caption)


def _bank(found: Mapping[str, NDArray[np.generic]]) -> Bank | None:
    if "bank.image" not in found:
        return None
    image, caption = (found[f"bank.{side}"].astype(np.float32) for side in SIDES)
    nodes = [
        ItemNodes(*(found[f"bank.{side}.{name}"] for name in ("vectors", "weights", "lengths")))  # type: ignore[arg-type]
        for side in SIDES
        if f"bank.{side}.vectors" in found
    ]
    return Bank((image, caption), (nodes[0], nodes[1]) if nodes else None)


def _paid(correction: Correction, popularities: Pair) -> Pair:
    by_image, by_caption = popularities
    return (
        (correction.alpha_image * by_image).astype(np.float32),
        (correction.alpha_caption * by_caption).astype(np.float32),
    )


def side_by_side(split: Split, side: SideName) -> NDArray[np.float32] | None:
    """(n, D) the models' stored embeddings side by side; None where no model has any."""
    rows = split.rows(side)
    parts = [s.embeddings[rows] for s in split.sources[side] if s.embeddings is not None]
    return np.concatenate(parts, axis=1).astype(np.float32) if parts else None


def cca_pair(cca: CCA, split: Split) -> Pair:
    """(I, K) and (T, K) of a split in the CCA head's space."""
    image, caption = (side_by_side(split, side) for side in SIDES)
    assert image is not None, "the head was fitted on these models"
    assert caption is not None
    return cca.encode("image", image), cca.encode("caption", caption)


def kernel_pair(kernel: KernelCCA, split: Split) -> Pair:
    """(I, K) and (T, K) of a split in the kernel head's space.

    Args:
        kernel: The head.
        split: Of the models that it was fitted on, in that order.
    """
    image, caption = (_kernel_side(kernel, split, side) for side in SIDES)
    return image, caption


def _kernel_side(kernel: KernelCCA, split: Split, side: SideName) -> NDArray[np.float32]:
    blocks = [kernel.encode(side, block) for block in pooled_blocks(split, side)]
    return np.concatenate(blocks or [np.empty((0, kernel.cca.width), np.float32)])


def with_tokens(embedded: Embedded, split: Split, space: TokenSpace) -> Embedded:
    """The embeddings of a split with the stored tokens of a model as what is matched."""
    (store,) = (store for store in split.stores if store.spec.model.name == space.model)
    nodes = space.nodes(store, split.rows("image"), split.rows("caption"))
    return replace(embedded, nodes=nodes, mirror=space.mirror)


def cosine_popularity(embedded: Embedded, bank: Bank, k_image: int, k_caption: int) -> Pair:
    """(I,) of images among the bank's captions, (T,) of captions among its images: by cosines."""
    image, caption = embedded.cosines()
    bank_image, bank_caption = bank.cosines
    return (
        popularity(image, bank_caption, k_image).astype(np.float32),
        popularity(caption, bank_image, k_caption).astype(np.float32),
    )


def node_popularity(
    embedded: Embedded,
    bank: Bank,
    ks_image: Sequence[int],
    ks_caption: Sequence[int],
    *,
    device: str,
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """The same by the node matching's part of the score, for every k of images and of captions.

    A side without a k is not matched with the bank.
    """
    assert embedded.nodes is not None
    assert bank.nodes is not None
    images, captions = embedded.nodes
    bank_images, bank_captions = bank.nodes
    share, mirror = embedded.node_share, embedded.mirror
    of_images: list[NDArray[np.float32]] = []
    # Images and texts alone have an empty side, which no block is made of.
    if ks_image:
        by_image = np.empty((len(images), len(bank_captions)), np.float32)
        for some, block in score_blocks(images, bank_captions, mirror, device=device):
            by_image[:, some] = share * block
        of_images = top_means(by_image, ks_image)
    of_captions = [np.empty(len(captions), np.float32) for _ in ks_caption]
    if ks_caption:
        for some, block in score_blocks(bank_images, captions, mirror, device=device):
            for found, mean in zip(
                of_captions, top_means(share * block.T, ks_caption), strict=True
            ):
                found[some] = mean
    return of_images, of_captions


def _node_popularity_of_payers(
    embedded: Embedded, bank: Bank, correction: Correction, device: torch.device | str
) -> Pair:
    """The same at the correction's k; 0 for a side that pays nothing."""
    assert embedded.nodes is not None
    ks_image = [correction.k_image] if correction.alpha_image else []
    ks_caption = [correction.k_caption] if correction.alpha_caption else []
    found = node_popularity(embedded, bank, ks_image, ks_caption, device=str(device))
    by_image, by_caption = (
        means[0] if means else np.zeros(len(nodes), np.float32)
        for means, nodes in zip(found, embedded.nodes, strict=True)
    )
    return by_image, by_caption
