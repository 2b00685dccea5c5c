"""GATv2 attention of the global nodes over all nodes of their graph, dense.

Only the global nodes are read out, so only they ask. For a node i that reads node j over an edge
of weight e, with one head's parameters (Brody et al. 2022, equation 7, with an edge term):

    score_ij = att . leaky(K_j + Q_i + e_ij w)      K = W_l h + b_l,  Q = W_r h + b_r
    out_i    = sum_j softmax_j(score_ij) K_j + bias

Nothing is scattered and there is no edge list: the tokens of one model share one edge weight, so
Q_i + e w is one row per (reader, model). The activation, by far the largest tensor, is built
chunk by chunk in cache and built again in the backward pass; only K is kept.
The same layer through PyG stands in the tests; one of them holds outputs and gradients
equal.

Shape letters: B graphs, M models (one global node each), R readers (= M), L padded tokens,
S packed rows, W node width, H heads, C width of a head, HC = H * C flattened head after head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hada.fuse.batch import Layout
from hada.fuse.network.graph import self_loops
from hada.fuse.settings import EdgeWeights

# Numbers of one chunk of activations: 1 MiB of float32 stays in a CPU's second cache, while a
# GPU wants few large pieces.
CHUNK_NUMBERS = {"cpu": 1 << 18}
CHUNK_NUMBERS_ELSEWHERE = 1 << 27


class GlobalAttention(nn.Module):
    """GATv2 with edge weights, read out at the global nodes. Parameter names are PyG's."""

    def __init__(
        self, width: int, heads: int, head_width: int, weights: EdgeWeights, dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.weights, self.dropout, self.slope = heads, weights, dropout, 0.2
        flat = heads * head_width
        self.lin_l = nn.Linear(width, flat)
        self.lin_r = nn.Linear(width, flat)
        self.lin_edge = nn.Linear(1, flat, bias=False)
        self.att = nn.Parameter(torch.empty(1, heads, head_width))
        self.bias = nn.Parameter(torch.zeros(flat))
        for weight in (self.lin_l.weight, self.lin_r.weight, self.lin_edge.weight, self.att):
            # Glorot as PyG draws it: the last two sizes are fan in and fan out, for att too.
            bound = math.sqrt(6.0 / (weight.shape[-2] + weight.shape[-1]))
            nn.init.uniform_(weight, -bound, bound)

    def forward(
        self,
        nodes: Sequence[Tensor],
        layouts: Sequence[Layout],
        through: Sequence[nn.Linear | None] | None = None,
    ) -> Tensor:
        """M tensors (S_m, W) of packed node states -> (B, M, HC) at the global nodes.

        `through` is as `attend` has it.
        """
        alpha, key_BMX, keys = self.attend(nodes, layouts, through)
        alpha = F.dropout(alpha, self.dropout, self.training)
        return self._gather(alpha, key_BMX, keys) + self.bias

    def attend(
        self,
        nodes: Sequence[Tensor],
        layouts: Sequence[Layout],
        through: Sequence[nn.Linear | None] | None = None,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What every global node attends to, and the keys.

        `through` holds, per model, a linear layer D -> W that its nodes, (S_m, D), have yet to
        pass. With the keys' layer it makes one product over all tokens instead of two.

        Returns (B, R, H, M + L_1 + ... + L_M) weights that sum to 1: first the global nodes, then
        each model's padded tokens, 0 at padding and at the global node's own place (a model whose
        graphs all have no token but the global one has no such part); then (B, M, HC) and per
        part (B, L, HC) keys.
        """
        layers = list(through or [None] * len(nodes))
        at_global = [
            h.index_select(0, layout.rows_B) for h, layout in zip(nodes, layouts, strict=True)
        ]
        global_BMW = torch.stack(
            [x if layer is None else layer(x) for x, layer in zip(at_global, layers, strict=True)],
            dim=1,
        )
        query_BRX, key_BMX = self.lin_r(global_BMW), self.lin_l(global_BMW)
        att_HC, edge_X = self.att[0], self.lin_edge.weight[:, 0]
        keys = []
        scores = [self._between(query_BRX, key_BMX, layouts)]
        for model, (h, layout) in enumerate(zip(nodes, layouts, strict=True)):
            if layout.tokens_BL.shape[1] == 1:  # nothing but the global node
                continue
            weight_R1 = query_BRX.new_full((len(nodes), 1), self.weights.other)
            weight_R1[model] = self.weights.own
            key_BLX = layout.pad(self._keys(h, layers[model]))
            reader_BRX = (query_BRX + weight_R1 * edge_X).to(key_BLX.dtype)
            score_BRHL = _Scores.apply(key_BLX, reader_BRX, att_HC.to(key_BLX.dtype), self.slope)
            hidden_BL = ~layout.tokens_BL[:, None, None, :]
            lowest = torch.finfo(score_BRHL.dtype).min
            scores.append(score_BRHL.masked_fill(hidden_BL, lowest))
            keys.append(key_BLX)
        # The global nodes always take part, so no softmax is over nothing.
        return torch.softmax(torch.cat(scores, dim=-1), dim=-1), key_BMX, keys

    def _keys(self, x_SD: Tensor, layer: nn.Linear | None) -> Tensor:
        """(S, HC) keys of nodes, behind the layer that they have yet to pass."""
        if layer is None:
            keys: Tensor = self.lin_l(x_SD)
            return keys
        weight_XD = self.lin_l.weight @ layer.weight
        return F.linear(x_SD, weight_XD, self.lin_l(layer.bias))

    def _between(self, query_BRX: Tensor, key_BMX: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """(B, R, H, M) scores of the global nodes among themselves, self loops included."""
        lengths_BM = torch.stack([layout.lengths_B for layout in layouts], dim=1)
        loops_BM = self_loops(lengths_BM, self.weights).to(query_BRX.dtype)
        weight_BRM = torch.diag_embed(loops_BM - self.weights.between) + self.weights.between
        edge_X = self.lin_edge.weight[:, 0]
        z = query_BRX[:, :, None] + key_BMX[:, None] + weight_BRM[..., None] * edge_X
        z = F.leaky_relu(z, self.slope).view(*z.shape[:3], self.heads, -1)
        return (z * self.att[0]).sum(-1).transpose(2, 3)

    def _gather(self, alpha: Tensor, key_BMX: Tensor, keys: Sequence[Tensor]) -> Tensor:
        """(B, R, HC) weighted sums of the keys: globals first, then the models' tokens."""
        widths = [key_BMX.shape[1], *(key.shape[1] for key in keys)]
        total: Tensor | int = 0
        for part, key in zip(torch.split(alpha, widths, dim=-1), [key_BMX, *keys], strict=True):
            total = total + _Values.apply(part.to(key.dtype), key)
        assert isinstance(total, Tensor)
        return total


def _chunks(key_BLX: Tensor) -> Iterator[slice]:
    """Slices of graphs whose activations have about the size that the device likes."""
    numbers = CHUNK_NUMBERS.get(key_BLX.device.type, CHUNK_NUMBERS_ELSEWHERE)
    step = max(1, numbers // max(1, key_BLX[0].numel()))
    for first in range(0, len(key_BLX), step):
        yield slice(first, min(first + step, len(key_BLX)))


def _block_diagonal(att_HC: Tensor) -> Tensor:
    """(H, C) -> (HC, H): one matrix product then sums each head on its own."""
    heads, width = att_HC.shape
    own = torch.eye(heads, dtype=att_HC.dtype, device=att_HC.device)
    return (att_HC[:, :, None] * own[:, None, :]).view(heads * width, heads)


def _by_head(x_BLX: Tensor, heads: int) -> tuple[Tensor, ...]:
    """(B, L, HC) -> H views (B, L, C)."""
    return x_BLX.view(*x_BLX.shape[:2], heads, -1).unbind(2)


class _Scores(torch.autograd.Function):
    """att . leaky(K + r) for every token, reader and head, without keeping the activation."""

    @staticmethod
    def forward(
        ctx: Any, key_BLX: Tensor, reader_BRX: Tensor, att_HC: Tensor, slope: float
    ) -> Tensor:
        """(B, L, HC), (B, R, HC), (H, C) -> (B, R, H, L)."""
        ctx.save_for_backward(key_BLX, reader_BRX, att_HC)
        ctx.slope = slope
        batch, length, flat = key_BLX.shape
        att_XH = _block_diagonal(att_HC)
        score = key_BLX.new_empty(batch, reader_BRX.shape[1], len(att_HC), length)
        for some in _chunks(key_BLX):
            for reader in range(reader_BRX.shape[1]):
                z = key_BLX[some] + reader_BRX[some, reader, None]
                z = F.leaky_relu_(z, slope).view(-1, flat) @ att_XH
                score[some, reader] = z.view(-1, length, len(att_HC)).transpose(1, 2)
        return score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BRHL: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        key_BLX, reader_BRX, att_HC = ctx.saved_tensors
        flat = key_BLX.shape[2]
        heads, head_width = att_HC.shape
        att_HX = _block_diagonal(att_HC).T
        grad_key, grad_reader = torch.empty_like(key_BLX), torch.empty_like(reader_BRX)
        # Chunk after chunk is added to it: in bfloat16 the sum would stand still at 256 like ones.
        wide = torch.promote_types(att_HC.dtype, torch.float32)
        grad_att = att_HC.new_zeros(heads, flat, dtype=wide)
        for some in _chunks(key_BLX):
            total: Tensor | None = None
            for reader in range(reader_BRX.shape[1]):
                z = key_BLX[some] + reader_BRX[some, reader, None]
                grad_NH = grad_BRHL[some, reader].transpose(1, 2).reshape(-1, heads)
                grad_att += grad_NH.T @ F.leaky_relu(z, ctx.slope).view(-1, flat)
                upstream = (grad_NH @ att_HX).view_as(z)
                grad_z = torch.ops.aten.leaky_relu_backward(upstream, z, ctx.slope, False)
                grad_reader[some, reader] = grad_z.sum(dim=1)
                total = grad_z if total is None else total.add_(grad_z)
            assert total is not None
            grad_key[some] = total
        own = torch.arange(heads, device=att_HC.device)
        grad_HC = grad_att.view(heads, heads, head_width)[own, own].to(att_HC.dtype)
        return grad_key, grad_reader, grad_HC, None


class _Values(torch.autograd.Function):
    """sum_j alpha_j K_j per head, straight on the (B, L, HC) keys: no head is copied apart."""

    @staticmethod
    def forward(ctx: Any, alpha_BRHL: Tensor, key_BLX: Tensor) -> Tensor:
        """(B, R, H, L), (B, L, HC) -> (B, R, HC)."""
        ctx.save_for_backward(alpha_BRHL, key_BLX)
        heads = alpha_BRHL.shape[2]
        keys = _by_head(key_BLX, heads)
        out = [torch.bmm(alpha_BRHL[:, :, h], key) for h, key in enumerate(keys)]
        return torch.cat(out, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BRX: Tensor) -> tuple[Tensor, Tensor]:
        alpha_BRHL, key_BLX = ctx.saved_tensors
        heads = alpha_BRHL.shape[2]
        keys, grads = _by_head(key_BLX, heads), _by_head(grad_BRX, heads)
        grad_alpha = torch.stack(
            [torch.bmm(g, k.transpose(1, 2)) for g, k in zip(grads, keys, strict=True)], dim=2
        )
        grad_key = torch.cat(
            [torch.bmm(alpha_BRHL[:, :, h].transpose(1, 2), g) for h, g in enumerate(grads)], -1
        )
        return grad_alpha, grad_key
