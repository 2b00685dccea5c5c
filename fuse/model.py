"""Stored features in, one embedding per image and per caption out.

Per branch (image, caption), with h the packed nodes of M models, p their embeddings, and
d1..d3 the dropouts of nodes, graph and head:

    h_m = project_m(x_m)                              D_m -> W
    g   = norm(mix(GATv2(h_1 .. h_M)))                W -> H * C -> G, at the global nodes
    out = head([g_1, p_1 .. p_M, g_2 .. g_M])         -> E; for M = 2 the paper's g1, p1, p2, g2
    embedding = out / |out|

Two published orders exist. `norm="batch"` (HADA_m): linear, BatchNorm, dropout, and one more
BatchNorm over all nodes after `mix`. `norm="none"` (HADA_m_extend, LAVIS): dropout, linear.

Shape letters: B items, M models, S packed rows, D token width, W node width, H heads, C width of
a head, G graph width, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hada.extract.spec import SideName
from hada.fuse.attention import GlobalAttention
from hada.fuse.graph import EdgeWeights, Layout

Norm = Literal["batch", "none"]
Inputs = Literal["as-is", "unit", "published"]
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


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What one frozen model brings to one side: widths, and which token is global."""

    node_width: int
    embedding_width: int | None
    has_tokens: bool = True
    global_last: bool = False


@dataclass(frozen=True, kw_only=True)
class BranchConfig:
    """All that decides a branch's arithmetic; widths are the paper's by default."""

    models: tuple[ModelShape, ...]
    node_width: int = 512
    heads: int = 4
    head_width: int = 512
    graph_width: int = 512
    out_width: int = 512
    norm: Norm = "batch"
    inputs: Inputs = "as-is"
    use_embeddings: bool = True
    dropout_nodes: float = 0.0
    dropout_graph: float = 0.0
    dropout_head: float = 0.0
    edges: EdgeWeights = field(default_factory=EdgeWeights)

    @property
    def embedding_widths(self) -> list[int]:
        """Widths of the embeddings that enter the head, model after model."""
        widths = (m.embedding_width for m in self.models)
        return [w for w in widths if w is not None] if self.use_embeddings else []


class Dense(nn.Module):
    """One linear layer with its norm and dropout in one of the two published orders."""

    def __init__(self, wide_in: int, wide_out: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(wide_in, wide_out)
        nn.init.kaiming_normal_(self.linear.weight)
        self.norm = nn.BatchNorm1d(wide_out) if norm == "batch" else None
        self.dropout = dropout

    def forward(self, x_SD: Tensor) -> Tensor:
        """(S, in) -> (S, out)."""
        if self.norm is None:
            dropped: Tensor = self.linear(F.dropout(x_SD, self.dropout, self.training))
            return dropped
        return self.after(self.linear(x_SD))

    def after(self, x_SX: Tensor) -> Tensor:
        """What follows the linear map."""
        if self.norm is None:
            return x_SX
        normed: Tensor = self.norm(x_SX)
        return F.dropout(normed, self.dropout, self.training)


class GraphLayer(nn.Module):
    """GATv2, the linear layer behind it, and the norm behind that.

    Other convolutions and deeper graphs are further classes with this `forward`.
    """

    def __init__(self, config: BranchConfig) -> None:
        super().__init__()
        self.attention = GlobalAttention(
            config.node_width, config.heads, config.head_width, config.edges, config.dropout_graph
        )
        flat = config.heads * config.head_width
        self.mix = Dense(flat, config.graph_width, config.norm, config.dropout_graph)
        self.norm = nn.BatchNorm1d(config.graph_width) if config.norm == "batch" else None

    def forward(self, nodes: Sequence[Tensor], layouts: Sequence[Layout]) -> Tensor:
        """M tensors (S_m, W) -> (B, M, G) states of the global nodes."""
        global_BMX = self.attention(nodes, layouts)
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
        """Per model (S_m - B, G): the linear layer's output at all tokens but the global ones.

        Such a node hears only itself (alpha = 1), so it leaves GATv2 as W_l h + b_l + bias. The
        two linear maps are one, four times smaller, unless dropout on alpha stands between.
        """
        attention, linear = self.attention, self.mix.linear
        found = []
        for h, layout in zip(nodes, layouts, strict=True):
            keep = torch.ones(len(h), dtype=torch.bool, device=h.device)
            keep[layout.rows_B] = False
            rest = h[keep]
            if attention.dropout > 0:
                key = attention.lin_l(rest).view(len(rest), attention.heads, -1)
                alpha = F.dropout(key.new_ones(*key.shape[:2], 1), attention.dropout)
                found.append(linear((key * alpha).flatten(1) + attention.bias))
            else:
                weight = linear.weight @ attention.lin_l.weight
                shift = linear.weight @ (attention.lin_l.bias + attention.bias) + linear.bias
                found.append(F.linear(rest, weight, shift))
        return found


class Branch(nn.Module):
    """One side's encoder: stored features of B items -> (B, E), not yet of unit length."""

    def __init__(self, config: BranchConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.ModuleList(
            Dense(m.node_width, config.node_width, config.norm, config.dropout_nodes)
            for m in config.models
        )
        self.graph = GraphLayer(config)
        wide = len(config.models) * config.graph_width + sum(config.embedding_widths)
        self.head = Dense(wide, config.out_width, config.norm, config.dropout_head)

    def forward(self, features: Features) -> Tensor:
        """Encode a batch; the order of the head's input is in this file's first lines."""
        nodes = [
            project(prepare(x, self.config.inputs))
            for project, x in zip(self.project, features.nodes, strict=True)
        ]
        g_BMG = self.graph(nodes, features.layouts)
        parts = [g_BMG[:, 0]]
        if self.config.use_embeddings:
            kept = [p for p in features.embeddings if p is not None]
            parts += [prepare(p, self.config.inputs) for p in kept]
        parts.append(g_BMG[:, 1:].flatten(1))
        out: Tensor = self.head(torch.cat(parts, dim=1))
        return out


class Fuser(nn.Module):
    """Both branches: what a trained fusion is, and all that retrieval needs."""

    def __init__(self, image: BranchConfig, caption: BranchConfig) -> None:
        super().__init__()
        if image.out_width != caption.out_width:
            raise ValueError(f"out_width: got {image.out_width} and {caption.out_width}")
        self.image, self.caption = Branch(image), Branch(caption)

    def encode(self, side: SideName, features: Features) -> Tensor:
        """(B, E) embeddings of unit length."""
        branch = self.image if side == "image" else self.caption
        return F.normalize(branch(features), dim=-1)


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
