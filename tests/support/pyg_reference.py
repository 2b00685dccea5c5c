"""The graph layer through PyTorch Geometric: what the dense form must equal.

Slow; PyG is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hada.fuse.batch import Layout
from hada.fuse.network import pyg
from hada.fuse.network.attention import GlobalAttention
from hada.fuse.network.graph import edge_list


class PygAttention(nn.Module):
    """PyG's GATv2Conv over all nodes with the parameters of a `GlobalAttention`."""

    def __init__(self, dense: GlobalAttention, global_last: Sequence[bool]) -> None:
        super().__init__()
        heads, head_width = dense.att.shape[1:]
        self.weights, self.global_last = dense.weights, tuple(global_last)
        self.conv = pyg.layer("GATv2Conv")(
            dense.lin_l.in_features, head_width, heads=heads, edge_dim=1, dropout=dense.dropout
        )
        self.conv.to(dense.att.device, dense.att.dtype)
        self.conv.load_state_dict(dense.state_dict())

    def all_nodes(self, nodes: Sequence[Tensor], lengths_BM: Tensor) -> Tensor:
        """M tensors (S_m, W) -> (nodes, HC), graph after graph, model after model."""
        parts = [torch.split(h, lengths_BM[:, m].tolist()) for m, h in enumerate(nodes)]
        h = torch.cat([part for graph in zip(*parts, strict=True) for part in graph])
        index, attr = edge_list(
            lengths_BM.cpu(), self.weights, global_last=self.global_last, loops="none"
        )
        edges = torch.from_numpy(index).to(h.device)
        out: Tensor = self.conv(h, edges, torch.from_numpy(attr).to(h)[:, None])
        return out

    def forward(self, nodes: Sequence[Tensor], layouts: Sequence[Layout]) -> Tensor:
        """As `GlobalAttention.forward`: (B, M, HC) at the global nodes."""
        lengths_BM = torch.stack([layout.lengths_B for layout in layouts], dim=1)
        out = self.all_nodes(nodes, lengths_BM)
        firsts_BM = lengths_BM.flatten().cumsum(0).view_as(lengths_BM) - lengths_BM
        last_M = torch.tensor(self.global_last, device=out.device)
        return out[firsts_BM + (lengths_BM - 1) * last_M]
