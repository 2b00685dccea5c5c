"""Attention among the nodes of a set, for many sets padded to one length.

With e_h(a, b) a learned number for every head and every pair of models (of who hears and of who is
heard), m the model of a node, and j over the real nodes of i's set:

    out_i = sum_j softmax_j(q_i . k_j / sqrt(C) + e_h(m_i, m_j)) v_j

There are two ways. `biased` adds a table (B, H, L, L) of e and of -inf at padding. `folded` writes
both into the inner product, which is the same number:

    q'_i = [q_i, sqrt(C) e_h(m_i, .), sqrt(C) LOWEST]
    k'_j = [k_j, one-hot of m_j, whether j is padding]

so that nothing is left to add, and every fused kernel takes it, with a gradient for e. The table
and its gradient, 1.3 GiB each for 64 images of two models with 577 tokens, are never made. Forward
and back on a CPU without dropout, 16 such images take 113 MiB in place of 1,106 and a quarter of
the time; with dropout a CPU has no fused kernel. A CPU keeps `biased` all the same: runs of earlier
versions were trained with it, to the bit.

The kernels for packed sets serve no recipe, so padding stays. `torch.nn.attention.varlen` takes
half precision alone and has no dropout, and nodes are matched in float32; `flex_attention` has no
dropout, and no gradient on a CPU (its forward pass is a reference in the tests); SDPA on nested
tensors is a prototype. They would save little: the tokens of images are alike in number, and
padding captions of 20 to 40 nodes costs a thousandth of what the attention of their images does.

Shape letters: B sets, H heads, L padded nodes, C width of a head, M models.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# What padding adds to a score: far below any score, and far from the end of half precision.
LOWEST = -1e4
# Fused kernels take widths in multiples of this.
WIDTH_STEP = 8

Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]


def attend(
    query_BHLC: Tensor,
    key_BHLC: Tensor,
    value_BHLC: Tensor,
    edges_HMM: Tensor,
    models_L: Tensor,
    real_BL: Tensor,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """What every node hears from its set.

    Args:
        query_BHLC: Of whoever hears.
        key_BHLC: Of whoever is heard.
        value_BHLC: What is heard.
        edges_HMM: e: head, model that hears, model that is heard.
        models_L: (L,) the model of each place, the same in all sets.
        real_BL: Which places hold a node.
        dropout: The share of weights that are dropped.

    Returns:
        (B, H, L, C); at padding, and in a set without nodes, numbers without meaning.
    """
    way = WAYS.get(query_BHLC.device.type, folded)
    return way(query_BHLC, key_BHLC, value_BHLC, edges_HMM, models_L, real_BL, dropout)


def biased(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edges_HMM: Tensor,
    models_L: Tensor,
    real_BL: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """`attend` with a table of what is added to the scores."""
    edges_HLL = edges_HMM[:, models_L[:, None], models_L[None, :]]
    table_BHLL = edges_HLL.masked_fill(~real_BL[:, None, None, :], float("-inf"))
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=table_BHLL, dropout_p=dropout
    )


def folded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edges_HMM: Tensor,
    models_L: Tensor,
    real_BL: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """`attend` with everything inside the inner product."""
    batch, heads, longest, width = query.shape
    models = len(edges_HMM[0])
    shape = (batch, heads, longest)
    root = math.sqrt(width)
    rest = query.new_zeros(()).expand(*shape, -(width + models + 1) % WIDTH_STEP)
    lowest = query.new_full((), root * LOWEST).expand(*shape, 1)
    edges = (root * edges_HMM[:, models_L]).to(query.dtype).expand(*shape, models)
    one_hot = torch.eye(models, dtype=key.dtype, device=key.device)[models_L].expand(*shape, models)
    padding = (~real_BL)[:, None, :, None].to(key.dtype).expand(*shape, 1)
    wide = torch.cat([query, edges, lowest, rest], dim=-1)
    # As wide as queries and keys, or the flash kernels do not take it.
    beside = query.new_zeros(()).expand(*shape, wide.shape[-1] - width)
    heard = F.scaled_dot_product_attention(
        wide,
        torch.cat([key, one_hot, padding, rest], dim=-1),
        torch.cat([value, beside], dim=-1),
        dropout_p=dropout,
        scale=1 / root,
    )
    return heard[..., :width]


# By the type of the device; elsewhere `folded`.
WAYS: dict[str, Way] = {"cpu": biased}
