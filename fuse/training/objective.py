"""One training step's forward pass: both encoders, their slow copies, the queues, the losses.

Shape letters: B images and T captions of a batch, K keys (batch first, then queue),
E embedding width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hada.fuse.batch import Batch, Features
from hada.fuse.network.fuser import Fuser
from hada.fuse.network.layers import Dense
from hada.fuse.network.score_mix import ScoreMix, mixable_models
from hada.fuse.settings import LossSettings, Norm, Precision, ScoreSettings
from hada.fuse.training import losses
from hada.fuse.training.momentum import MomentumQueue, follow


class Discriminator(nn.Module):
    """Does this caption belong to this image: one logit from both embeddings."""

    def __init__(self, width: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.head = Dense(4 * width, 1, norm, dropout)

    def forward(self, image_QE: Tensor, caption_QE: Tensor) -> Tensor:
        """(Q,) logits.

        Args:
            image_QE: Fused embeddings of Q images.
            caption_QE: Fused embeddings of as many captions, row by row.
        """
        logit: Tensor = self.head(losses.pair_features(image_QE, caption_QE))
        return logit[:, 0]


class Objective(nn.Module):
    """Everything that learns or remembers during training; `fuser` and `mix` are what stays."""

    def __init__(
        self,
        fuser: Fuser,
        loss: LossSettings,
        scores: ScoreSettings | None = None,
        *,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        scores = scores or ScoreSettings()
        self.fuser, self.loss, self.scores = fuser, loss, scores
        self.bf16 = precision == "bf16"
        branch = fuser.image.config
        self.mixable = mixable_models(fuser)
        self.mix = ScoreMix(
            scores.mode,
            scores.weights,
            len(self.mixable),
            scores.learn,
            nodes=fuser.nodes is not None,
        )
        self.temperature = nn.Parameter(torch.tensor(loss.temperature))
        if fuser.nodes is not None:
            self.node_temperature = nn.Parameter(torch.tensor(loss.temperature))
        dropped = loss.dropout_match if branch.norm == "none" or loss.drop_logit else 0.0
        self.discriminator = (
            Discriminator(branch.out_width, branch.norm, dropped) if loss.weight_itm else None
        )
        self.slow = copy.deepcopy(fuser).requires_grad_(False) if loss.momentum else None
        self.mixing = scores.mode != "fused" and scores.in_loss
        # The models whose own cosine the loss sees.
        mixed = self.mixable[:1] if scores.mode == "first" else self.mixable
        self.mixed = mixed if self.mixing else []
        widths = [branch.out_width, *(branch.models[m].embedding_width or 0 for m in self.mixed)]
        self.image_queue = MomentumQueue(loss.queue, widths, noise=loss.queue_noise)
        self.caption_queue = MomentumQueue(loss.queue, widths, noise=loss.queue_noise)
        self._unpushed: list[tuple[MomentumQueue, list[Tensor], Tensor]] = []

    def train(self, mode: bool = True) -> Self:
        """Training mode; the slow encoders stay in eval mode unless theirs is noisy too."""
        super().train(mode)
        if self.slow is not None:
            self.slow.train(mode and self.loss.momentum_dropout)
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters an optimiser updates, by name."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}

    def forward(
        self, batch: Batch, distill: float = 0.0, negatives: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The losses of a batch; `total` is the one to minimise. Also moves the slow encoders.

        The batch enters the queues with `remember`, which comes after the backward pass: that
        still reads the queues, and a copy of them would cost more than all else. `negatives`
        fixes the matching head's draw (images per caption, captions per pair).
        """
        settings = self.loss
        self.remember()
        with torch.no_grad():
            self.temperature.clamp_(settings.temperature_low, settings.temperature_high)
            self.mix.clamp()
            if self.fuser.nodes is not None:
                low, high = settings.temperature_low, settings.temperature_high
                self.node_temperature.clamp_(low, high)
        image_BE = self.fuser.encode("image", batch.image, bf16=self.bf16)
        caption_TE = self.fuser.encode("caption", batch.caption, bf16=self.bf16)
        slow_image, slow_caption = self._slow(batch, image_BE, caption_TE)
        ids_T = batch.ids_B[batch.caption_to_image_T]
        image_ids = torch.cat([batch.ids_B, self.image_queue.known_ids()])
        caption_ids = torch.cat([ids_T, self.caption_queue.known_ids()])
        i2t_BK = self._logits(image_BE, slow_caption, self.caption_queue)
        t2i_TK = self._logits(caption_TE, slow_image, self.image_queue)
        i2t_target = losses.positive_targets(batch.ids_B, caption_ids)
        t2i_target = losses.positive_targets(ids_T, image_ids)
        if distill > 0:
            with torch.no_grad():
                teacher_BK = self._logits(slow_image, slow_caption, self.caption_queue)
                teacher_TK = self._logits(slow_caption, slow_image, self.image_queue)
            i2t_target = losses.distilled(i2t_target, teacher_BK, distill)
            t2i_target = losses.distilled(t2i_target, teacher_TK, distill)
        own_image, own_caption = self._own(batch.image), self._own(batch.caption)
        mixed_BK = self._mixed(i2t_BK, own_image, own_caption, self.caption_queue)
        mixed_TK = self._mixed(t2i_TK, own_caption, own_image, self.image_queue)
        result = {
            "i2t": losses.soft_cross_entropy(mixed_BK, i2t_target),
            "t2i": losses.soft_cross_entropy(mixed_TK, t2i_target),
        }
        share = settings.image_share
        result["nce"] = share * result["i2t"] + (1 - share) * result["t2i"]
        encoded = losses.Encoded(
            image_BE, caption_TE, batch.ids_B, batch.caption_to_image_T, self.temperature
        )
        weights = settings.weights()
        for name, pair_loss in losses.PAIR_LOSSES.items():
            if weights[name]:
                result[name] = pair_loss(encoded, settings)
        if self.fuser.nodes is not None:
            result["nodes"] = self._match_nodes(batch, ids_T)
        if self.discriminator is not None:
            near_BT, near_TB = i2t_BK[:, : len(caption_TE)], t2i_TK[:, : len(image_BE)]
            result["itm"] = self._match(image_BE, caption_TE, near_BT, near_TB, batch, negatives)
        result["total"] = weights["nce"] * result["nce"]
        for name in (*losses.PAIR_LOSSES, "itm"):
            if name in result:
                result["total"] = result["total"] + weights[name] * result[name]
        if "nodes" in result:
            weight = self.fuser.nodes.settings.weight if self.fuser.nodes is not None else 0.0
            result["total"] = result["total"] + weight * result["nodes"]
        self._unpushed = [
            (self.image_queue, [slow_image.detach(), *own_image], batch.ids_B),
            (self.caption_queue, [slow_caption.detach(), *own_caption], ids_T),
        ]
        return result

    def remember(self) -> None:
        """Put the last batch's embeddings into the queues, once."""
        for queue, parts, ids in self._unpushed:
            queue.push(parts, ids)
        self._unpushed = []

    def _logits(
        self, query_QE: Tensor, keys_NE: Tensor, queue: MomentumQueue, part: int = 0
    ) -> Tensor:
        """(Q, N + queue) similarities over the temperature: the batch's keys first."""
        # The few queries are divided, not their many products.
        scaled_QE = query_QE / self.temperature
        return torch.cat([scaled_QE @ keys_NE.T, scaled_QE @ queue.values(part).T], dim=1)

    def _match_nodes(self, batch: Batch, ids_T: Tensor) -> Tensor:
        """The contrastive loss of node matching, on some captions of every image."""
        matcher = self.fuser.nodes
        assert matcher is not None
        captions_N = _some_of_each(
            batch.caption_to_image_T, len(batch.ids_B), matcher.settings.captions
        )
        image = matcher.encode("image", batch.image)
        caption = matcher.encode("caption", batch.caption.take(captions_N))
        scores_BN = matcher.scores(image, caption) / self.node_temperature
        ids_N = ids_T[captions_N]
        i2t = losses.soft_cross_entropy(scores_BN, losses.positive_targets(batch.ids_B, ids_N))
        t2i = losses.soft_cross_entropy(scores_BN.T, losses.positive_targets(ids_N, batch.ids_B))
        share = self.loss.image_share
        return share * i2t + (1 - share) * t2i

    def _slow(self, batch: Batch, image_BE: Tensor, caption_TE: Tensor) -> tuple[Tensor, Tensor]:
        """The keys of this batch: from the slow encoders, or the encodings themselves."""
        if self.slow is None:
            return image_BE, caption_TE
        with torch.no_grad():
            if self.training:
                follow(self.slow, self.fuser, self.loss.momentum)
            image = self.slow.encode("image", batch.image, bf16=self.bf16)
            return image, self.slow.encode("caption", batch.caption, bf16=self.bf16)

    def _own(self, side: Features) -> list[Tensor]:
        """Each mixable model's own embeddings at unit length, where the loss sees them."""
        found = [side.embeddings[m] for m in self.mixed]
        return [F.normalize(p, dim=1) for p in found if p is not None]

    def _mixed(
        self,
        fused_QK: Tensor,
        query: Sequence[Tensor],
        key: Sequence[Tensor],
        queue: MomentumQueue,
    ) -> Tensor:
        """The weighted similarity of retrieval: fused and the models' own."""
        if not query:
            return fused_QK
        shares = self.mix.shares()
        mixed = shares[0] * fused_QK
        for k, (q, own) in enumerate(zip(query, key, strict=True), start=1):
            mixed = mixed + shares[k] * self._logits(q, own, queue, k)
        return mixed

    def _match(
        self,
        image_BE: Tensor,
        caption_TE: Tensor,
        near_BT: Tensor,
        near_TB: Tensor,
        batch: Batch,
        negatives: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Binary cross entropy of pairs, hard negative images and hard negative captions."""
        assert self.discriminator is not None
        caption_to_image_T, ids_T = batch.caption_to_image_T, batch.ids_B[batch.caption_to_image_T]
        if negatives is None:
            image_T, found_T = losses.draw_negatives(near_TB, ids_T[:, None] == batch.ids_B)
            # One caption per pair, not per image: an image with five captions meets five.
            near_TT = near_BT[caption_to_image_T]
            caption_T, _ = losses.draw_negatives(near_TT, ids_T[:, None] == ids_T)
        else:
            image_T, caption_T = negatives
            found_T = torch.ones_like(ids_T, dtype=torch.bool)
        own_TE, matched = image_BE[caption_to_image_T], len(caption_to_image_T)
        left = torch.cat([own_TE, image_BE[image_T[found_T]], own_TE[found_T]])
        right = torch.cat([caption_TE, caption_TE[found_T], caption_TE[caption_T[found_T]]])
        truth = torch.zeros(len(left), device=left.device)
        truth[:matched] = 1
        return F.binary_cross_entropy_with_logits(self.discriminator(left, right), truth)


def _some_of_each(caption_to_image_T: Tensor, images: int, count: int) -> Tensor:
    """Captions drawn at random, at most `count` of each image, image after image."""
    order_T = torch.randperm(len(caption_to_image_T)).to(caption_to_image_T.device)
    image_T, by_image_T = torch.sort(caption_to_image_T[order_T], stable=True)
    captions_B = torch.bincount(image_T, minlength=images)
    starts_B = captions_B.cumsum(0) - captions_B
    turn_T = torch.arange(len(image_T), device=image_T.device) - starts_B[image_T]
    return order_T[by_image_T[turn_T < count]]
