"""One directed GATv2 layer, dense, of which only the global nodes are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hada.fuse.batch import Layout
from hada.fuse.network.attention import GlobalAttention
from hada.fuse.network.config import BranchConfig
from hada.fuse.network.layers import Dense


class GraphLayer(nn.Module):
    """One directed GATv2 layer, dense, the linear layer behind it, and the norm behind that.

    `hada.fuse.network.packed.PackedGraph` has the same `forward` for every other graph.
    """

    def __init__(self, config: BranchConfig) -> None:
        super().__init__()
        self.attention = GlobalAttention(
            config.node_width, config.heads, config.head_width, config.edges, config.dropout_graph
        )
        flat = config.heads * config.head_width
        self.mix = Dense(flat, config.graph_width, config.norm, config.dropout_graph)
        self.norm = nn.BatchNorm1d(config.graph_width) if config.norm == "batch" else None

    def forward(
        self,
        nodes: Sequence[Tensor],
        layouts: Sequence[Layout],
        through: Sequence[nn.Linear | None] | None = None,
    ) -> Tensor:
        """M tensors (S_m, W) -> (B, M, G) states of the global nodes."""
        global_BMX = self.attention(nodes, layouts, through)
        batch, models, flat = global_BMX.shape
        if self.norm is None:
            mixed: Tensor = self.mix(global_BMX)
            return mixed
        states = self.mix.linear(global_BMX.view(batch * models, flat))
        if self.training:
            # BatchNorm counts every node, though only the global ones are read afterwards.
            states = torch.cat([states, *self._others(nodes, layouts)])
        normed: Tensor = self.norm(self.mix.after(states))
        return normed[: batch * models].view(batch, models, -1)

    def _others(self, nodes: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        """(n, G) parts: the linear layer's output at all tokens but the global ones, in any order.

        Such a node hears only itself, so it leaves GATv2 as a_h (W_l h + b_l) + bias, where the
        dropout on its one weight makes a_h 0 or 1 / (1 - p) for each head.
        """
        attention, found = self.attention, []
        count = sum(len(h) - len(layout.rows_B) for h, layout in zip(nodes, layouts, strict=True))
        composite = self._composite_pays(count) and self._composite()
        for h, layout in zip(nodes, layouts, strict=True):
            token_S = torch.ones(len(h), dtype=torch.bool, device=h.device)
            token_S[layout.rows_B] = False
            rows_N = token_S.nonzero()[:, 0]
            share_NH: Tensor | None = None
            if attention.dropout:
                keep = 1 - attention.dropout
                kept_NH = torch.rand(len(rows_N), attention.heads, device=h.device) < keep
                share_NH = kept_NH.to(h.dtype) / keep
            if composite:
                found += _through(h, rows_N, share_NH, *composite)
                continue
            keys_NX = attention.lin_l(h.index_select(0, rows_N))
            if share_NH is not None:
                width = keys_NX.shape[1] // attention.heads
                keys_NX = keys_NX * share_NH.repeat_interleave(width, dim=1)
            found.append(self.mix.linear(keys_NX + attention.bias))
        return found

    def _composite_pays(self, rows: int) -> bool:
        """Whether `_composite` takes less time than two linear maps, one after the other.

        In multiplications, those that make it counted twice: at the paper's widths both ways were
        measured to take as long at 600 rows.
        """
        flat, wide_in = self.attention.lin_l.weight.shape
        wide_out = len(self.mix.linear.weight)
        ways = 2**self.attention.heads if self.attention.dropout else 1
        fixed = wide_out * flat * wide_in + ways * self.attention.heads * wide_out * wide_in
        return 2 * fixed + rows * wide_in * wide_out < rows * flat * (wide_in + wide_out)

    def _composite(self) -> tuple[Tensor, Tensor, Tensor]:
        """Both linear maps as one, H times smaller: (H, G, W) a head, (H, G) and (G,) biases."""
        attention, linear = self.attention, self.mix.linear
        heads, wide_in = attention.heads, attention.lin_l.in_features
        weight_HGC = linear.weight.view(len(linear.weight), heads, -1).transpose(0, 1)
        joint_HGW = weight_HGC @ attention.lin_l.weight.view(heads, -1, wide_in)
        shift_HG = (weight_HGC @ attention.lin_l.bias.view(heads, -1, 1))[..., 0]
        return joint_HGW, shift_HG, linear.weight @ attention.bias + linear.bias


def _through(
    h_SW: Tensor,
    rows_N: Tensor,
    share_NH: Tensor | None,
    joint_HGW: Tensor,
    shift_HG: Tensor,
    constant_G: Tensor,
) -> list[Tensor]:
    """(n, G) parts of some rows through the composite: one product a way of dropping heads."""
    if share_NH is None:
        rest_NW = h_SW.index_select(0, rows_N)
        return [F.linear(rest_NW, joint_HGW.sum(0), shift_HG.sum(0) + constant_G)]
    parts = []
    for some in _group_equal_rows(share_NH > 0):
        share_H = share_NH[some[0]]
        weight_GW, bias_G = torch.tensordot(share_H, joint_HGW, dims=1), share_H @ shift_HG
        part = h_SW.index_select(0, rows_N.index_select(0, some))
        parts.append(F.linear(part, weight_GW, bias_G + constant_G))
    return parts


def _group_equal_rows(kept_NH: Tensor) -> list[Tensor]:
    """The numbers of the rows of a table of booleans, those of equal rows together."""
    heads_H = torch.arange(kept_NH.shape[1], device=kept_NH.device)
    which_N, order_N = torch.sort((kept_NH << heads_H).sum(1), stable=True)
    counts_P = torch.unique_consecutive(which_N, return_counts=True)[1]
    return list(torch.split(order_N, counts_P.tolist()))
