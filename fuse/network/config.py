"""The configuration of a branch: widths, graph, norms and the order of operations.

The published code orders its layers in three ways, which `norm` names:

    batch   HADA_m                  linear, BatchNorm, activation, dropout
    none    HADA_m_extend, LAVIS    dropout, linear, activation, LayerNorm
    layer   Baseline_m              linear, LayerNorm, activation, dropout

The last layer of a stack has no activation, and a norm only in the first of these orders, so
stacks of one layer (all published configurations) contain no LayerNorm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hada.extract.common.errors import UsageError
from hada.fuse.batch import ModelShape
from hada.fuse.network.graph import EdgeWeights

Norm = Literal["batch", "none", "layer"]
Inputs = Literal["as-is", "l2", "unit", "published"]
Convolution = Literal["gatv2", "gcn", "transformer", "none"]
Activation = Literal["gelu", "relu", "swish", "tanh", "elu", "id"]


@dataclass(frozen=True, kw_only=True)
class BranchConfig:
    """All that decides a branch's arithmetic; widths are the paper's by default.

    `node_hidden`, `graph_hidden` and `head_hidden` are the widths of layers before the last one
    of each part; `use_embeddings` and `use_globals` take the models' embeddings and the global
    tokens' own features past the graph to the head; `skip` adds a graph layer's input to its
    output where there are several.
    `convolution` "none" leaves the graph out: the head sees the embeddings alone.
    `second_from_first` repeats a published mistake; see `hada.fuse.network.fuser.Branch`. What it
    gives depends on the batch, so evaluation takes items in order, `evaluation_batch` at a time.
    """

    models: tuple[ModelShape, ...]
    node_width: int = 512
    heads: int = 4
    head_width: int = 512
    graph_width: int = 512
    out_width: int = 512
    norm: Norm = "batch"
    inputs: Inputs = "as-is"
    use_embeddings: bool = True
    use_globals: bool = False
    dropout_nodes: float = 0.0
    dropout_graph: float = 0.0
    dropout_head: float = 0.0
    edges: EdgeWeights = field(default_factory=EdgeWeights)
    convolution: Convolution = "gatv2"
    node_hidden: tuple[int, ...] = ()
    graph_hidden: tuple[int, ...] = ()
    head_hidden: tuple[int, ...] = ()
    skip: bool = False
    activation: Activation = "gelu"
    second_from_first: bool = False
    evaluation_batch: int = 20

    def __post_init__(self) -> None:
        if self.convolution == "none" and not self.passing_widths:
            raise UsageError(
                "convolution none: without a graph there must be embeddings to fuse; use models "
                "that have them, with use_embeddings=true"
            )
        if self.skip and self.graph_hidden:
            widths = {self.node_width, *self.graph_hidden, self.graph_width}
            if len(widths) > 1:
                raise UsageError(
                    f"skip: needs node_width, graph_hidden and graph_width alike, got {widths}; "
                    "make them alike, or set skip=false"
                )
        if self.second_from_first:
            fits = (
                len(self.models) == 2
                and not self.models[1].has_tokens
                and self.models[0].node_width == self.models[1].node_width
            )
            if not fits:
                raise UsageError(
                    "second_from_first: needs two models of one width, the second without tokens"
                )

    @property
    def embedding_widths(self) -> list[int]:
        """Widths of the embeddings that enter the head, model after model."""
        widths = (m.embedding_width for m in self.models)
        return [w for w in widths if w is not None] if self.use_embeddings else []

    @property
    def passing_widths(self) -> list[int]:
        """Widths of all that reaches the head past the graph."""
        nodes = [m.node_width for m in self.models] if self.use_globals else []
        return self.embedding_widths + nodes

    @property
    def dense(self) -> bool:
        """Whether the global nodes' attention alone decides the result."""
        one = self.convolution == "gatv2" and not self.graph_hidden
        return one and self.edges.global_only
