"""One vector and one weight for every node, so that images and captions are matched node by node.

Per side, with x the stored tokens of M models and their embeddings, each a node:

    z_n = project_m(x_n)                                        D_m -> hidden -> W
    h_n = read_m(x_n) + model_m + place_n                       D_m -> G
    v_n = (z_n + gate * speak(attention(norm(h_1 .. h_N))))     G -> W, brought to unit length
    a_n = softmax over the item of weigh_m(x_n)

The attention is the graph: every node of an item hears every other, of its own model and of the
others, with a learned weight an edge for each pair of models where the paper's graph has its
constants (`own`, `other`, `between`). The gate starts at 0, so that a node begins as its projection
alone: message passing adds to what a token says and does not blur it. Without a graph v_n is z_n.

Shape letters: B items, M models, L padded nodes, S packed nodes, D token width, W node width,
G graph width, H heads, C width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hada.extract.spec import SideName
from hada.fuse.batch import Features, ModelShape
from hada.fuse.network.inputs import prepare
from hada.fuse.network.layers import Dropout
from hada.fuse.network.maxsim import NodeSet, node_scores
from hada.fuse.network.set_attention import attend
from hada.fuse.settings import NodeSettings

# Later tokens of a model share one learned place.
PLACES = 256


class NodeMatcher(nn.Module):
    """Both sides' nodes in one space, and the score of two sets of them."""

    def __init__(
        self, settings: NodeSettings, image: Sequence[ModelShape], caption: Sequence[ModelShape]
    ) -> None:
        super().__init__()
        self.settings = settings
        self.image, self.caption = NodeEncoder(settings, image), NodeEncoder(settings, caption)

    def encode(self, side: SideName, features: Features) -> NodeSet:
        """The nodes of B items; in training some of them are dropped (`drop_tokens`)."""
        encoder = self.image if side == "image" else self.caption
        nodes: NodeSet = encoder(features)
        return nodes

    def scores(self, image: NodeSet, caption: NodeSet) -> Tensor:
        """(B, T) scores, between -1 and 1."""
        return node_scores(image, caption, self.settings.mirror)


class NodeEncoder(nn.Module):
    """One side: stored features of B items -> their nodes."""

    def __init__(self, settings: NodeSettings, models: Sequence[ModelShape]) -> None:
        super().__init__()
        self.settings = settings
        self.tokens = nn.ModuleList(_Kind(settings, model.node_width) for model in models)
        # A model without tokens is one node, its embedding, already.
        self.embeddings = nn.ModuleDict(
            {
                str(number): _Kind(settings, model.embedding_width)
                for number, model in enumerate(models)
                if model.has_tokens and model.embedding_width is not None
            }
        )
        self.graph = NodeGraph(settings, len(models)) if settings.graph == "attention" else None

    def forward(self, features: Features) -> NodeSet:
        """Encode a batch; its nodes are model after model, each model's embedding behind it."""
        parts: list[_Part] = []
        for number, (kind, x_SD, layout) in enumerate(
            zip(self.tokens, features.nodes, features.layouts, strict=True)
        ):
            assert isinstance(kind, _Kind)
            outputs = [None if x is None else layout.pad(x) for x in kind(x_SD)]
            longest = layout.tokens_BL.shape[1]
            numbers_L = torch.arange(longest, device=layout.lengths_B.device)
            parts.append(_Part(number, numbers_L < layout.lengths_B[:, None], *outputs))
        for name, kind in self.embeddings.items():
            x_BD = features.embeddings[int(name)]
            assert x_BD is not None
            outputs = [None if x is None else x[:, None] for x in kind(x_BD)]
            real_B1 = torch.ones(len(x_BD), 1, dtype=torch.bool, device=x_BD.device)
            parts.append(_Part(int(name), real_B1, *outputs))
        real_BL = torch.cat([part.real for part in parts], dim=1)
        vectors_BLW = torch.cat([part.vectors for part in parts if part.vectors is not None], dim=1)
        logits_BL = torch.cat([part.logits for part in parts if part.logits is not None], dim=1)
        if self.graph is not None:
            states = [part.states for part in parts if part.states is not None]
            models = [part.model for part in parts for _ in range(part.real.shape[1])]
            places = [place for part in parts for place in range(part.real.shape[1])]
            vectors_BLW = vectors_BLW + self.graph(
                torch.cat(states, dim=1), models, places, real_BL
            )
        kept_BL = self._kept(real_BL, logits_BL[..., 0])
        weights_BL = logits_BL[..., 0].masked_fill(~kept_BL, float("-inf")).softmax(dim=1)
        return NodeSet(
            F.normalize(vectors_BLW[kept_BL], dim=1),
            weights_BL[kept_BL],
            tuple(kept_BL.sum(1).tolist()),
        )

    def _kept(self, real_BL: Tensor, logits_BL: Tensor) -> Tensor:
        """Which nodes take part: in training not all, and at most `most`, those that weigh most."""
        kept_BL = real_BL
        if self.training and self.settings.drop_tokens:
            drawn_BL = torch.rand(real_BL.shape, device=real_BL.device)
            kept_BL = real_BL & (drawn_BL >= self.settings.drop_tokens)
            # An item keeps a node at least: one whose nodes all fell out keeps all.
            kept_BL = torch.where(kept_BL.any(1, keepdim=True), kept_BL, real_BL)
        if 0 < self.settings.most < real_BL.shape[1]:
            masked_BL = logits_BL.masked_fill(~kept_BL, float("-inf"))
            first = masked_BL.topk(self.settings.most, dim=1).indices
            heavy_BL = torch.zeros_like(real_BL).scatter(1, first, torch.ones_like(first).bool())
            kept_BL = kept_BL & heavy_BL
        return kept_BL


class _Part:
    """The nodes of one kind, padded: (B, L) which are real, then what `_Kind` gives."""

    def __init__(
        self,
        model: int,
        real: Tensor,
        vectors: Tensor | None,
        logits: Tensor | None,
        states: Tensor | None,
    ) -> None:
        self.model, self.real = model, real
        self.vectors, self.logits, self.states = vectors, logits, states


class _Kind(nn.Module):
    """What nodes of one kind (a model's tokens, a model's embeddings) pass through."""

    def __init__(self, settings: NodeSettings, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(
            Dropout(settings.dropout),
            nn.Linear(width, settings.hidden),
            nn.GELU(),
            Dropout(settings.dropout),
            nn.Linear(settings.hidden, settings.width),
        )
        self.weigh = nn.Linear(width, 1)
        # All nodes count alike at first.
        nn.init.zeros_(self.weigh.weight)
        nn.init.zeros_(self.weigh.bias)
        self.read = None
        if settings.graph == "attention":
            self.read = nn.Sequential(
                Dropout(settings.dropout), nn.Linear(width, settings.graph_width)
            )

    def forward(self, x_SD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(S, W) projections, (S, 1) logits of weights and, where there is a graph, (S, G)."""
        x_SD = prepare(x_SD, "unit")
        states = None if self.read is None else self.read(x_SD)
        return self.project(x_SD), self.weigh(x_SD), states


class NodeGraph(nn.Module):
    """One round of messages among all nodes of an item, as what is added to each."""

    def __init__(self, settings: NodeSettings, models: int) -> None:
        super().__init__()
        width, self.heads = settings.graph_width, settings.graph_heads
        self.dropout = settings.dropout
        self.models = nn.Parameter(0.02 * torch.randn(models, width))
        self.places = nn.Parameter(0.02 * torch.randn(models, PLACES, width))
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        # The logarithm of an edge's weight, by head, model of the hearer and model of the heard.
        self.edges = nn.Parameter(torch.zeros(self.heads, models, models))
        self.speak = nn.Linear(width, settings.width)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(
        self, states_BLG: Tensor, models: Sequence[int], places: Sequence[int], real_BL: Tensor
    ) -> Tensor:
        """(B, L, G) states of nodes of the given models, at places in them -> (B, L, W)."""
        batch, longest, width = states_BLG.shape
        models_L = torch.tensor(models, device=states_BLG.device)
        places_L = torch.tensor(places, device=states_BLG.device).clamp_max(PLACES - 1)
        state = self.norm(states_BLG + self.models[models_L] + self.places[models_L, places_L])
        heads = self.query_key_value(state).view(batch, longest, 3, self.heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        heard = attend(
            query,
            key,
            value,
            self.edges,
            models_L,
            real_BL,
            dropout=self.dropout if self.training else 0.0,
        )
        said: Tensor = self.speak(F.gelu(heard.transpose(1, 2).reshape(batch, longest, width)))
        return self.gate * said
