"""Stored features in, one embedding per image and per caption out.

Per branch (image, caption), with h the packed nodes of M models, p their embeddings, and
d1..d3 the dropouts of nodes, graph and head:

    h_m = project_m(x_m)                              D_m -> W
    g   = norm(mix(GATv2(h_1 .. h_M)))                W -> H * C -> G, at the global nodes
    out = head([g_1, p_1 .. p_M, g_2 .. g_M])         -> E; for M = 2 the paper's g1, p1, p2, g2
                                                      and, with `use_globals`, x_m at those nodes
    embedding = out / |out|

`hada.fuse.network.config` names the published orders of norm and dropout; with `norm="batch"` there
is one more BatchNorm over all nodes after `mix`.

Shape letters: B items, M models, S packed rows, D token width, W node width, H heads, C width of
a head, G graph width, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hada.extract.spec import SideName
from hada.fuse.network.attention import GlobalAttention
from hada.fuse.network.config import BranchConfig, Inputs, ModelShape, Norm
from hada.fuse.network.graph import Layout
from hada.fuse.network.layers import Dense
from hada.fuse.network.packed import PackedGraph

__all__ = ["Branch", "BranchConfig", "Features", "Fuser", "ModelShape", "Norm", "prepare"]

# The two scalars the authors standardise every unit-length feature with, text and image alike.
PUBLISHED_MEAN, PUBLISHED_STD = -0.0006847491604276001, 0.036077868193387985


@dataclass(frozen=True)
class Features:
    """One side of a batch: B items as M models see them.

    nodes: per model (S_m, D_m) packed tokens, or its embeddings where it keeps no tokens: then
        each item has one node, which is its global node.
    layouts: where those rows belong.
    embeddings: per model (B, E_m), or None where it has no joint space.
    """

    nodes: tuple[Tensor, ...]
    layouts: tuple[Layout, ...]
    embeddings: tuple[Tensor | None, ...]

    def __len__(self) -> int:
        return len(self.layouts[0].lengths_B)

    def to(self, device: torch.device | str) -> Self:
        """The same features on a device, as float32."""
        # From pinned memory the GPU copies by itself; on its way back it must be waited for.
        alone = torch.device(device).type == "cuda"
        return type(self)(
            tuple(x.to(device, non_blocking=alone).float() for x in self.nodes),
            tuple(layout.to(device) for layout in self.layouts),
            tuple(None if x is None else x.to(device).float() for x in self.embeddings),
        )


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
    for some in _alike(share_NH > 0):
        share_H = share_NH[some[0]]
        weight_GW, bias_G = torch.tensordot(share_H, joint_HGW, dims=1), share_H @ shift_HG
        part = h_SW.index_select(0, rows_N.index_select(0, some))
        parts.append(F.linear(part, weight_GW, bias_G + constant_G))
    return parts


def _alike(kept_NH: Tensor) -> list[Tensor]:
    """The numbers of the rows of a table of booleans, those of equal rows together."""
    heads_H = torch.arange(kept_NH.shape[1], device=kept_NH.device)
    which_N, order_N = torch.sort((kept_NH << heads_H).sum(1), stable=True)
    counts_P = torch.unique_consecutive(which_N, return_counts=True)[1]
    return list(torch.split(order_N, counts_P.tolist()))


class Branch(nn.Module):
    """One side's encoder: stored features of B items -> (B, E), not yet of unit length.

    With `second_from_first` the second model's node of item i is row i of the first model's
    tokens of the whole batch. HADA-LAVIS computes this, so its published numbers depend on it;
    an item's embedding then depends on which others are in its batch.
    """

    def __init__(self, config: BranchConfig) -> None:
        super().__init__()
        self.config = config
        self.graph: GraphLayer | PackedGraph | None = None
        graph_width = 0
        if config.convolution != "none":
            graph_width = config.graph_width
            self.project = nn.ModuleList(
                Dense(
                    m.node_width, config.node_width, config.norm, config.dropout_nodes,
                    config.node_hidden, config.activation,
                )
                for m in config.models
            )  # fmt: skip
            self.graph = GraphLayer(config) if config.dense else PackedGraph(config)
        wide = len(config.models) * graph_width + sum(config.passing_widths)
        self.head = Dense(
            wide, config.out_width, config.norm, config.dropout_head,
            config.head_hidden, config.activation,
        )  # fmt: skip

    def forward(self, features: Features) -> Tensor:
        """Encode a batch; the order of the head's input is in this file's first lines."""
        parts = []
        if self.config.use_embeddings:
            kept = [p for p in features.embeddings if p is not None]
            parts = [prepare(p, self.config.inputs) for p in kept]
        if self.graph is not None:
            g_BMG = self._graph(features)
            parts = [g_BMG[:, 0], *parts, g_BMG[:, 1:].flatten(1)]
        if self.config.use_globals:
            both = zip(features.nodes, features.layouts, strict=True)
            parts += [prepare(x[layout.rows_B], self.config.inputs) for x, layout in both]
        out: Tensor = self.head(torch.cat(parts, dim=1))
        return out

    def _graph(self, features: Features) -> Tensor:
        """(B, M, G) states of the global nodes."""
        if isinstance(self.graph, GraphLayer) and self.graph.norm is None:
            layers = [self._foldable(project) for project in self.project]
            rows = [
                x if layer is not None else project(x)
                for x, layer, project in zip(
                    self.inputs(features), layers, self.project, strict=True
                )
            ]
            folded: Tensor = self.graph(rows, features.layouts, layers)
            return folded
        assert self.graph is not None
        found: Tensor = self.graph(self.nodes(features), features.layouts)
        return found

    def _foldable(self, project: nn.Module) -> nn.Linear | None:
        """A projection's linear layer, if it is nothing more and folding it into the keys pays."""
        assert isinstance(project, Dense)
        wide_in, width = project.linear.in_features, self.config.node_width
        flat = self.config.heads * self.config.head_width
        plain = not project.before and not (project.dropout and self.training)
        pays = wide_in * flat < wide_in * width + width * flat
        return project.linear if plain and pays else None

    def inputs(self, features: Features) -> list[Tensor]:
        """Per model (S_m, D_m) nodes as the projections take them."""
        rows = list(features.nodes)
        if self.config.second_from_first:
            rows[1] = rows[0][: len(features)]
        return [prepare(x, self.config.inputs) for x in rows]

    def nodes(self, features: Features) -> list[Tensor]:
        """Per model (S_m, W) projected nodes."""
        return [project(x) for project, x in zip(self.project, self.inputs(features), strict=True)]


class Fuser(nn.Module):
    """Both branches: what a trained fusion is, and all that retrieval needs."""

    def __init__(self, image: BranchConfig, caption: BranchConfig) -> None:
        super().__init__()
        if image.out_width != caption.out_width:
            raise ValueError(f"out_width: got {image.out_width} and {caption.out_width}")
        self.image, self.caption = Branch(image), Branch(caption)

    def encode(self, side: SideName, features: Features, *, bf16: bool = False) -> Tensor:
        """(B, E) embeddings of unit length; with `bf16` their products are computed in it."""
        branch = self.image if side == "image" else self.caption
        with torch.autocast(features.nodes[0].device.type, torch.bfloat16, enabled=bf16):
            out = branch(features)
        return F.normalize(out.float(), dim=-1)


def prepare(x_SD: Tensor, inputs: Inputs) -> Tensor:
    """Stored features as a branch takes them.

    `unit` gives every row length sqrt(D), so its numbers are about 1 whatever the model;
    `published` gives it length 1 and standardises with the authors' two scalars, which at the
    paper's width of 768 is nearly the same.
    """
    if inputs == "as-is":
        return x_SD
    unit = F.normalize(x_SD, dim=-1)
    if inputs == "unit":
        return unit * math.sqrt(x_SD.shape[-1])
    return (unit - PUBLISHED_MEAN) / PUBLISHED_STD
