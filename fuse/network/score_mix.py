"""Shares of the fused cosine and of the models' own cosines in the score."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hada.extract.common.errors import UsageError
from hada.fuse.network.fuser import Fuser
from hada.fuse.settings import ScoreMode


class ScoreMix(nn.Module):
    """How much the fused cosine and the models' own cosines count in retrieval.

    `first`: (1 - w) fused + w model_1. `all`: w_0 fused + w_1 model_1 + ..., over their sum, and
    with `nodes` the score of node matching as the last one.
    """

    def __init__(
        self,
        mode: ScoreMode,
        weights: Sequence[float],
        models: int,
        learn: bool,
        *,
        nodes: bool = False,
    ) -> None:
        super().__init__()
        self.nodes = nodes and mode == "all"
        count = {"fused": 0, "first": 1, "all": models + 1 + self.nodes}[mode]
        # Untuned, every score counts once: the fused one like any model's.
        default = [0.5] if mode == "first" else [1.0] * count
        values = list(weights) or default[:count]
        if len(values) != count:
            raise UsageError(
                f"score_weights: scores={mode} takes {count} numbers here, got {values}"
            )
        if mode == "all" and sum(values) <= 0:
            raise UsageError("score_weights: at least one must be above 0")
        self.mode, self.models = mode, models
        self.values = nn.ParameterList(
            nn.Parameter(torch.tensor(float(v)), requires_grad=learn) for v in values
        )

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep learned weights in the published bounds; 0.01 for the last of three."""
        for k, value in enumerate(self.values):
            if value.requires_grad and self.mode == "first":
                value.clamp_(0.1, 0.9)
            elif value.requires_grad:
                value.clamp_(0.1 if k < 2 else 0.01, 1e4)

    @torch.no_grad()
    def set(self, shares: Sequence[float]) -> None:
        """Replace the weights of mode `all`."""
        for value, share in zip(self.values, shares, strict=True):
            value.fill_(share)

    def shares(self) -> Tensor:
        """(1 + models,) weights that sum to 1: fused first, then the models; then of the nodes."""
        if self.mode == "all":
            values = torch.stack(list(self.values))
            return values / values.sum()
        w = self.values[0] if self.mode == "first" else torch.zeros(())
        rest = [w * 0] * max(self.models - 1, 0)
        return torch.stack([1 - w, w, *rest][: self.models + 1])


def mixable_models(fuser: Fuser) -> list[int]:
    """The models whose own cosine exists: an embedding on both sides, of one width."""
    pairs = zip(fuser.image.config.models, fuser.caption.config.models, strict=True)
    return [
        m
        for m, (a, b) in enumerate(pairs)
        if a.embedding_width is not None and a.embedding_width == b.embedding_width
    ]
