"""The configuration of a branch: widths, graph, norms and the order of operations.

The published code orders its layers in three ways, which `norm` names:

    batch   HADA_m                  linear, BatchNorm, activation, dropout
    none    HADA_m_extend, LAVIS    dropout, linear, activation, LayerNorm
    layer   Baseline_m              linear, LayerNorm, activation, dropout

The last layer of a stack has no activation, and a norm only in the first of these orders, so
stacks of one layer (all published configurations) contain no LayerNorm.
"""

from __future__ import annotations

from dataclasses import dataclass

from hada.extract.common.errors import UsageError
from hada.fuse.batch import ModelShape
from hada.fuse.settings import NetworkSettings


@dataclass(frozen=True, kw_only=True)
class BranchConfig(NetworkSettings):
    """All that decides a branch's arithmetic: the network's settings and the models' shapes.

    What `second_from_first` gives depends on the batch, so evaluation takes items in order,
    `evaluation_batch` at a time.
    """

    models: tuple[ModelShape, ...]
    evaluation_batch: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
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
