"""Late interaction: the score of two sets of nodes, exact, in bounded memory, with its gradient.

With unit vectors c_t of a caption's nodes and v_s of an image's, and weights a_t and b_s that sum
to 1 over a caption and over an image (Khattab and Zaharia 2020, ColBERT, there without weights;
Yao et al. 2022, FILIP, for both directions):

    score = (1 - m) sum_t a_t max_s <c_t, v_s>  +  m sum_s b_s max_t <c_t, v_s>

All products of a batch are far more numbers than inputs and results are. The products of a few
captions of like length with a block of images stay in a CPU's caches, and both maxima are taken
there. The backward pass makes the products again, unless they are few enough to be kept.

Shape letters: B images and T captions, L padded nodes of an image, S packed nodes of all captions,
D width of a node, G captions of a group, N their padded nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Products of a group of captions with a block of images: 4 MiB of float32 stay in a CPU's caches
# and are enough for two threads, while a GPU wants few large pieces.
BLOCK_NUMBERS = {"cpu": 1 << 20}
BLOCK_NUMBERS_ELSEWHERE = 1 << 26
# Images of a block: fewer than 32 leave no run of numbers for the maxima, and more leave few
# captions in a group, whose product then reads all of the block for each.
BLOCK_IMAGES = {"cpu": 64}
# Products that are kept for the backward pass: 128 MiB of float32.
KEPT_NUMBERS = {"cpu": 1 << 25}
# Added to the products of padding. Those of unit vectors lie between -1 and 1.
PADDING = -8.0


@dataclass(frozen=True)
class NodeSet:
    """The nodes of some items: packed rows, item after item.

    vectors_SD: Unit length.
    weights_S: At least 0; they sum to 1 over an item.
    lengths: Nodes of each item, at least one.
    """

    vectors_SD: Tensor
    weights_S: Tensor
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    def part(self, first: int, last: int) -> Self:
        """Items `first` to `last`, the last one left out."""
        start = sum(self.lengths[:first])
        stop = start + sum(self.lengths[first:last])
        return type(self)(
            self.vectors_SD[start:stop], self.weights_S[start:stop], self.lengths[first:last]
        )

    def padded(self) -> tuple[Tensor, Tensor]:
        """(B, L, D) vectors and (B, L) weights; padding has weight 0 and vectors of zeros."""
        longest, batch = max(self.lengths), len(self.lengths)
        if min(self.lengths) == longest:
            return self.vectors_SD.view(batch, longest, -1), self.weights_S.view(batch, longest)
        lengths_B = torch.tensor(self.lengths, device=self.weights_S.device)
        real_BL = torch.arange(longest, device=lengths_B.device) < lengths_B[:, None]
        slots_S = real_BL.flatten().nonzero()[:, 0]
        vectors = self.vectors_SD.new_zeros(batch * longest, self.vectors_SD.shape[1])
        weights = self.weights_S.new_zeros(batch * longest)
        return (
            vectors.index_copy(0, slots_S, self.vectors_SD).view(batch, longest, -1),
            weights.index_copy(0, slots_S, self.weights_S).view(batch, longest),
        )


def node_scores(image: NodeSet, caption: NodeSet, mirror: float = 0.5) -> Tensor:
    """(B, T) scores of images and captions by their nodes; differentiable in vectors and weights.

    Args:
        image: Nodes of B images.
        caption: Nodes of T captions.
        mirror: m, the share of the sum over image nodes; 0 leaves it out.

    Where several nodes have the same largest product, the gradient is shared among them evenly.
    """
    vectors_BLD, weights_BL = image.padded()
    scores: Tensor = _MaxSim.apply(
        vectors_BLD,
        weights_BL,
        caption.vectors_SD,
        caption.weights_S,
        image.lengths,
        caption.lengths,
        mirror,
    )
    return scores


class _MaxSim(torch.autograd.Function):
    """`node_scores` on padded images."""

    @staticmethod
    def forward(
        ctx: Any,
        image_BLD: Tensor,
        image_BL: Tensor,
        caption_SD: Tensor,
        caption_S: Tensor,
        image_lengths: Sequence[int],
        caption_lengths: Sequence[int],
        mirror: float,
    ) -> Tensor:
        """Shapes as their names say -> (B, T)."""
        ctx.save_for_backward(image_BLD, image_BL, caption_SD, caption_S)
        ctx.sizes = image_lengths, caption_lengths, mirror
        scores_BT = image_BLD.new_empty(len(image_lengths), len(caption_lengths))
        images = _image_blocks(image_BLD, image_BL, image_lengths, max(caption_lengths))
        captions = _caption_groups(caption_SD, caption_S, caption_lengths, images[0])
        numbers = image_BL.numel() * sum(group.rows_GN.numel() for group in captions)
        keep = any(ctx.needs_input_grad) and numbers <= KEPT_NUMBERS.get(image_BL.device.type, 0)
        ctx.kept = []
        for block in images:
            for group in captions:
                product_GNLB = block.products(group)
                if keep:
                    ctx.kept.append(product_GNLB)
                best_GNB = product_GNLB.amax(2)
                score_GB = (1 - mirror) * (group.weights_GN[..., None] * best_GNB).sum(1)
                if mirror:
                    best_GLB = product_GNLB.amax(1)
                    score_GB += mirror * (block.weights_LB * best_GLB).sum(1)
                scores_BT[block.items, group.items_G] = score_GB.T
        return scores_BT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BT: Tensor) -> tuple[Tensor | None, ...]:
        image_BLD, image_BL, caption_SD, caption_S = ctx.saved_tensors
        image_lengths, caption_lengths, mirror = ctx.sizes
        width = image_BLD.shape[2]
        grad_image, grad_image_weight = torch.zeros_like(image_BLD), torch.zeros_like(image_BL)
        # One row more, for padding.
        grad_caption = caption_SD.new_zeros(len(caption_SD) + 1, width)
        grad_weight = caption_S.new_zeros(len(caption_S) + 1)
        images = _image_blocks(image_BLD, image_BL, image_lengths, max(caption_lengths))
        captions = _caption_groups(caption_SD, caption_S, caption_lengths, images[0])
        # They are read once, and freed one after the other.
        kept = ctx.kept[::-1]
        ctx.kept = []
        for block in images:
            grad_MD = torch.zeros_like(block.rows_MD)
            grad_LB = torch.zeros_like(block.weights_LB)
            for group in captions:
                grad_GB = grad_BT[block.items, group.items_G].T
                product_GNLB = kept.pop() if kept else block.products(group)
                best_GNB = product_GNLB.amax(2)
                first_GB = (1 - mirror) * grad_GB
                grad_weight[group.rows_GN] += (best_GNB @ first_GB[..., None])[..., 0]
                part_GNB = group.weights_GN[..., None] * first_GB[:, None]
                flow = _to_largest(product_GNLB, best_GNB[:, :, None], part_GNB[:, :, None], 2)
                if mirror:
                    best_GLB = product_GNLB.amax(1)
                    second_GB = mirror * grad_GB
                    grad_LB += (best_GLB * second_GB[:, None]).sum(0)
                    part_GLB = block.weights_LB * second_GB[:, None]
                    flow += _to_largest(product_GNLB, best_GLB[:, None], part_GLB[:, None], 1)
                flow_KM = flow.view(-1, len(grad_MD))
                grad_caption[group.rows_GN] += (flow_KM @ block.rows_MD).view(
                    *group.rows_GN.shape, width
                )
                grad_MD.addmm_(flow_KM.T, group.vectors_KD)
            grad_image[block.items] = grad_MD.view(-1, len(grad_LB[0]), width).transpose(0, 1)
            grad_image_weight[block.items] = grad_LB.T
        return grad_image, grad_image_weight, grad_caption[:-1], grad_weight[:-1], None, None, None


def _to_largest(product: Tensor, best: Tensor, amount: Tensor, dim: int) -> Tensor:
    """`amount` at the places of the largest numbers along a dimension, shared where they tie."""
    # Floats in place of truth values: comparing, summing and multiplying them is several times
    # faster on a CPU than `torch.where` is.
    largest = torch.eq(product, best, out=torch.empty_like(product))
    return largest.mul_(amount / largest.sum(dim, keepdim=True))


@dataclass(frozen=True)
class _Captions:
    """Captions of about one length, padded to the longest.

    items_G: which they are. rows_GN: their packed rows; the row behind the last one is padding.
    vectors_KD: (G * N, D), zeros at padding. mask_GN: what is added to products, None where nothing
    is padded.
    """

    items_G: Tensor
    rows_GN: Tensor
    vectors_KD: Tensor
    weights_GN: Tensor
    mask_GN: Tensor | None


@dataclass(frozen=True)
class _Images:
    """A block of images: nodes in the order (L, B), so that both maxima run along memory.

    items: which they are. rows_MD: (L * B, D). mask_LB: as in `_Captions`.
    """

    items: slice
    rows_MD: Tensor
    weights_LB: Tensor
    mask_LB: Tensor | None

    def products(self, captions: _Captions) -> Tensor:
        """(G, N, L, B) products of the nodes of captions with all nodes of the images."""
        product = captions.vectors_KD @ self.rows_MD.T
        product = product.view(*captions.rows_GN.shape, *self.weights_LB.shape)
        if self.mask_LB is not None:
            product += self.mask_LB
        if captions.mask_GN is not None:
            product += captions.mask_GN[..., None, None]
        return product


def _image_blocks(
    image_BLD: Tensor, image_BL: Tensor, lengths: Sequence[int], longest_caption: int
) -> list[_Images]:
    """The images in blocks whose products with one caption fit into `BLOCK_NUMBERS`."""
    batch, longest, width = image_BLD.shape
    step = max(1, _numbers(image_BLD) // (longest * longest_caption))
    step = min(step, BLOCK_IMAGES.get(image_BLD.device.type, step))
    lengths_B = torch.tensor(lengths, device=image_BL.device)
    padding_BL = torch.arange(longest, device=lengths_B.device) >= lengths_B[:, None]
    even = min(lengths) == longest
    blocks = []
    for first in range(0, batch, step):
        items = slice(first, min(first + step, batch))
        rows_MD = image_BLD[items].transpose(0, 1).reshape(-1, width)
        mask_LB = None if even else padding_BL[items].T.to(image_BLD.dtype) * PADDING
        blocks.append(_Images(items, rows_MD, image_BL[items].T.contiguous(), mask_LB))
    return blocks


def _caption_groups(
    caption_SD: Tensor, caption_S: Tensor, lengths: Sequence[int], images: _Images
) -> list[_Captions]:
    """The captions in groups of like length whose products fit into `BLOCK_NUMBERS`."""
    lengths_T = np.array(lengths)
    starts_T = np.cumsum(lengths_T) - lengths_T
    order_T = np.argsort(lengths_T, kind="stable")
    packed, width = caption_SD.shape
    vectors_SD = torch.cat([caption_SD, caption_SD.new_zeros(1, width)])
    weights_S = torch.cat([caption_S, caption_S.new_zeros(1)])
    groups, last = [], len(order_T)
    while last:
        longest = int(lengths_T[order_T[last - 1]])
        count = max(1, _numbers(caption_SD) // (longest * images.weights_LB.numel()))
        items_G = order_T[max(0, last - count) : last]
        last -= len(items_G)
        real_GN = np.arange(longest) < lengths_T[items_G, None]
        rows_GN = np.where(real_GN, starts_T[items_G, None] + np.arange(longest), packed)
        rows = torch.from_numpy(rows_GN).to(caption_SD.device)
        mask = torch.from_numpy(~real_GN).to(caption_SD) * PADDING
        groups.append(
            _Captions(
                torch.from_numpy(items_G).to(caption_SD.device),
                rows,
                vectors_SD[rows.view(-1)],
                weights_S[rows],
                None if real_GN.all() else mask,
            )
        )
    return groups


def _numbers(like: Tensor) -> int:
    return BLOCK_NUMBERS.get(like.device.type, BLOCK_NUMBERS_ELSEWHERE)
