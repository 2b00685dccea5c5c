"""Late interaction: the score of two sets of nodes, exact, in bounded memory, with its gradient.

With unit vectors c_t of a caption's nodes and v_s of an image's, and weights a_t and b_s that sum
to 1 over a caption and over an image (Khattab and Zaharia 2020, ColBERT, there without weights;
Yao et al. 2022, FILIP, for both directions):

    score = (1 - m) sum_t a_t max_s <c_t, v_s>  +  m sum_s b_s max_t <c_t, v_s>

All products of a batch are far more numbers than inputs and results are. One caption's products
with a block of images stay in a CPU's cache, both maxima are taken there, and nothing of them is
kept: the backward pass makes them again.

Shape letters: B images and T captions, L padded nodes of an image, S packed nodes of all captions,
D width of a node, N nodes of one caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Products of one caption with a block of images: 1 MiB of float32 stays in a CPU's second cache,
# while a GPU wants few large pieces.
BLOCK_NUMBERS = {"cpu": 1 << 18}
BLOCK_NUMBERS_ELSEWHERE = 1 << 26
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
        for some, images in _blocks(image_BLD, image_BL, image_lengths, caption_lengths):
            start = 0
            for t, length in enumerate(caption_lengths):
                rows = slice(start, start + length)
                product_NLB = images.products(caption_SD[rows])
                score_B = (1 - mirror) * (caption_S[rows] @ product_NLB.amax(1))
                if mirror:
                    score_B += mirror * (images.weights_LB * product_NLB.amax(0)).sum(0)
                scores_BT[some, t] = score_B
                start += length
        return scores_BT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BT: Tensor) -> tuple[Tensor | None, ...]:
        image_BLD, image_BL, caption_SD, caption_S = ctx.saved_tensors
        image_lengths, caption_lengths, mirror = ctx.sizes
        width = image_BLD.shape[2]
        grad_image, grad_image_weight = torch.zeros_like(image_BLD), torch.zeros_like(image_BL)
        grad_caption, grad_weight = torch.zeros_like(caption_SD), torch.zeros_like(caption_S)
        for some, images in _blocks(image_BLD, image_BL, image_lengths, caption_lengths):
            grad_MD = torch.zeros_like(images.rows_MD)
            grad_LB = torch.zeros_like(images.weights_LB)
            start = 0
            for t, length in enumerate(caption_lengths):
                rows = slice(start, start + length)
                start += length
                vectors_ND, grad_B = caption_SD[rows], grad_BT[some, t]
                product_NLB = images.products(vectors_ND)
                best_NB = product_NLB.amax(1)
                first_B = (1 - mirror) * grad_B
                grad_weight[rows] += best_NB @ first_B
                part_NB = caption_S[rows, None] * first_B
                flow_NLB = _to_largest(product_NLB, best_NB[:, None], part_NB[:, None], 1)
                if mirror:
                    best_LB = product_NLB.amax(0)
                    second_B = mirror * grad_B
                    grad_LB += best_LB * second_B
                    part_LB = images.weights_LB * second_B
                    flow_NLB += _to_largest(product_NLB, best_LB, part_LB, 0)
                flow_NM = flow_NLB.view(length, -1)
                grad_caption[rows] += flow_NM @ images.rows_MD
                grad_MD.addmm_(flow_NM.T, vectors_ND)
            grad_image[some] = grad_MD.view(-1, len(grad_LB[0]), width).transpose(0, 1)
            grad_image_weight[some] = grad_LB.T
        return grad_image, grad_image_weight, grad_caption, grad_weight, None, None, None


def _to_largest(product: Tensor, best: Tensor, amount: Tensor, dim: int) -> Tensor:
    """`amount` at the places of the largest numbers along a dimension, shared where they tie."""
    largest = (product == best).to(product.dtype)
    count = largest.sum(dim, keepdim=True)
    return largest.mul_(amount / count)


@dataclass(frozen=True)
class _Images:
    """A block of images: nodes in the order (L, B), so that both maxima run along memory.

    rows_MD: (L * B, D). mask_LB: what is added to products, None where nothing is padded.
    """

    rows_MD: Tensor
    weights_LB: Tensor
    mask_LB: Tensor | None

    def products(self, caption_ND: Tensor) -> Tensor:
        """(N, L, B) products of a caption's nodes with all nodes of the images."""
        product = (caption_ND @ self.rows_MD.T).view(len(caption_ND), *self.weights_LB.shape)
        return product if self.mask_LB is None else product.add_(self.mask_LB)


def _blocks(
    image_BLD: Tensor,
    image_BL: Tensor,
    image_lengths: Sequence[int],
    caption_lengths: Sequence[int],
) -> list[tuple[slice, _Images]]:
    """The images in blocks whose products with one caption have about the size that is fast."""
    batch, longest, width = image_BLD.shape
    numbers = BLOCK_NUMBERS.get(image_BLD.device.type, BLOCK_NUMBERS_ELSEWHERE)
    step = max(1, numbers // (longest * max(caption_lengths)))
    lengths_B = torch.tensor(image_lengths, device=image_BL.device)
    padding_BL = torch.arange(longest, device=lengths_B.device) >= lengths_B[:, None]
    even = min(image_lengths) == longest
    blocks = []
    for first in range(0, batch, step):
        some = slice(first, min(first + step, batch))
        rows_MD = image_BLD[some].transpose(0, 1).reshape(-1, width)
        mask_LB = None if even else padding_BL[some].T.to(image_BLD.dtype) * PADDING
        blocks.append((some, _Images(rows_MD, image_BL[some].T.contiguous(), mask_LB)))
    return blocks
