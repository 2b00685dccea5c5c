"""Any published graph on edge lists: several layers, other convolutions, more kinds of edges.

Where tokens hear others, or are heard after they have heard, every node needs its state and the
dense form of `hada.fuse.network.attention` does not hold; here PyTorch Geometric does the work. One
directed GATv2 layer gives the same either way, which a test holds it to.

Shape letters: B graphs, M models, S rows of all models, W node width, G graph width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hada.fuse.batch import Layout
from hada.fuse.network import pyg
from hada.fuse.network.config import BranchConfig
from hada.fuse.network.graph import Loops, edge_list
from hada.fuse.network.layers import ACTIVATIONS, Dense

CONVOLUTIONS = {"gatv2": "GATv2Conv", "gcn": "GCNConv", "transformer": "TransformerConv"}


class PackedLayer(nn.Module):
    """One graph layer: convolution, the linear layer behind its heads, norm, activation."""

    def __init__(
        self, config: BranchConfig, wide_in: int, head_width: int, wide_out: int, last: bool
    ) -> None:
        super().__init__()
        self.batch_norm = config.norm == "batch"
        self.weighted = config.convolution == "gcn"
        self.skip = config.skip and bool(config.graph_hidden)
        self.activation = None if last else config.activation
        make = pyg.layer(CONVOLUTIONS[config.convolution])
        if self.weighted:
            self.conv, self.mix = make(wide_in, wide_out), None
        else:
            self.conv = make(
                wide_in, head_width, heads=config.heads, edge_dim=1, dropout=config.dropout_graph
            )
            flat = config.heads * head_width
            self.mix = Dense(flat, wide_out, config.norm, config.dropout_graph)
        self.norm: nn.Module | None = None
        if self.batch_norm:
            self.norm = nn.BatchNorm1d(wide_out)
        elif not last:
            self.norm = pyg.layer("LayerNorm")(wide_out)

    def forward(
        self, x_SW: Tensor, edges: Tensor, weights: Tensor, graph_S: Tensor, graphs: int
    ) -> Tensor:
        """(S, W) -> (S, G); `graph_S` says which graph each row is a node of."""
        out = self.conv(x_SW, edges, weights if self.weighted else weights[:, None])
        if self.mix is not None:
            out = self.mix(out)
        if self.batch_norm:  # HADA_m: norm, activation, then the shortcut
            assert self.norm is not None
            out = self._activated(self.norm(out))
            return x_SW + out if self.skip else out
        out = self._activated(x_SW + out if self.skip else out)
        return out if self.norm is None else self.norm(out, graph_S, graphs)

    def _activated(self, x_SX: Tensor) -> Tensor:
        return x_SX if self.activation is None else ACTIVATIONS[self.activation](x_SX)


class PackedGraph(nn.Module):
    """All graph layers over all nodes, read out at the global ones."""

    def __init__(self, config: BranchConfig) -> None:
        super().__init__()
        self.edges = config.edges
        self.global_last = tuple(m.global_last for m in config.models)
        # GATv2 replaces the self loops it is given, the others take them as they are.
        self.loops: Loops = "none" if config.convolution == "gatv2" else "given"
        widths = [config.node_width, *config.graph_hidden, config.graph_width]
        heads = [*config.graph_hidden, config.head_width]
        self.layers = nn.ModuleList(
            PackedLayer(config, a, head, b, last=number == len(heads) - 1)
            for number, (a, head, b) in enumerate(zip(widths[:-1], heads, widths[1:], strict=True))
        )

    def forward(self, nodes: Sequence[Tensor], layouts: Sequence[Layout]) -> Tensor:
        """M tensors (S_m, W) -> (B, M, G) states of the global nodes."""
        lengths_BM = np.stack([layout.lengths_B.cpu().numpy() for layout in layouts], axis=1)
        # Rows are numbered as they lie here: model after model, then graph after graph.
        starts_BM = (lengths_BM.T.cumsum() - lengths_BM.T.ravel()).reshape(-1, len(lengths_BM)).T
        index, values = edge_list(
            lengths_BM,
            self.edges,
            global_last=self.global_last,
            loops=self.loops,
            starts_BM=starts_BM,
        )
        x_SW = torch.cat(list(nodes))
        edges = torch.from_numpy(index).to(x_SW.device)
        weights = torch.from_numpy(values).to(x_SW)
        graphs = len(lengths_BM)
        owner = np.repeat(np.tile(np.arange(graphs), len(layouts)), lengths_BM.T.ravel())
        graph_S = torch.from_numpy(owner).to(x_SW.device)
        for layer in self.layers:
            x_SW = layer(x_SW, edges, weights, graph_S, graphs)
        last_M = np.array(self.global_last)
        globals_BM = starts_BM + np.where(last_M, lengths_BM - 1, 0)
        rows = torch.from_numpy(globals_BM.ravel()).to(x_SW.device)
        return x_SW.index_select(0, rows).view(graphs, len(layouts), -1)
