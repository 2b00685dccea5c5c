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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hada.extract.spec import SideName
from hada.fuse.batch import Features
from hada.fuse.network.config import BranchConfig
from hada.fuse.network.global_layer import GraphLayer
from hada.fuse.network.inputs import prepare
from hada.fuse.network.layers import Dense
from hada.fuse.network.nodes import NodeMatcher
from hada.fuse.network.packed import PackedGraph
from hada.fuse.settings import NodeSettings


class Branch(nn.Module):
    """One side's encoder: stored features of B items -> (B, E), not yet of unit length.

    With `second_from_first` the second model's node of item i is row i of the first model's
    tokens of the whole batch. HADA-LAVIS computes this, so its published numbers depend on it;
    an item's embedding then depends on which others are in its batch (`evaluation_batch`).
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
    """Both branches: what a trained fusion is, and all that retrieval needs.

    `nodes` matches node by node, where the recipe asks for it.
    """

    def __init__(
        self, image: BranchConfig, caption: BranchConfig, nodes: NodeSettings | None = None
    ) -> None:
        super().__init__()
        if image.out_width != caption.out_width:
            raise ValueError(f"out_width: got {image.out_width} and {caption.out_width}")
        self.image, self.caption = Branch(image), Branch(caption)
        self.nodes: NodeMatcher | None = None
        if nodes is not None and nodes.width:
            self.nodes = NodeMatcher(nodes, image.models, caption.models)

    def encode(self, side: SideName, features: Features, *, bf16: bool = False) -> Tensor:
        """(B, E) embeddings of unit length; with `bf16` their products are computed in it."""
        branch = self.image if side == "image" else self.caption
        with torch.autocast(features.nodes[0].device.type, torch.bfloat16, enabled=bf16):
            out = branch(features)
        return F.normalize(out.float(), dim=-1)
