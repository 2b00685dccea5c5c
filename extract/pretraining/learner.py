"""One step of pretraining: the losses and the optimiser.

Losses: image-text contrastive over the batch; image-text matching with hard negatives (BLIP only,
CLIP has no such head); and two that guide a small model through its first steps, with linear heads
that are thrown away afterwards. The patch hint reads from each patch token which thing it shows,
the tag loss reads from either embedding which things there are. They stand in for the millions of
pictures that real models learn from, and because of the hint, patch tokens know more than the
pooled embedding does. Letters: B pictures, T captions, N tokens, D token width, K tags.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from hada.extract.common.errors import NonFiniteError
from hada.extract.pretraining.corpus import VALUES, Batch
from hada.extract.pretraining.recipes import PretrainingPlan
from hada.extract.pretraining.towers import MatchingTowers, Towers

# The summed cross-entropy of some 150 tags starts near 30; so weighted it starts near the others.
_TAG_WEIGHT = 0.2


class Learner:
    """A model, its optimiser and the losses; one `step` is one batch."""

    def __init__(
        self, towers: Towers, plan: PretrainingPlan, tag_share: NDArray[np.float64]
    ) -> None:
        self.towers, self.plan = towers, plan
        width = towers.recipe.width
        self.heads = torch.nn.ModuleDict(
            {name: torch.nn.Linear(width, 1 + len(VALUES[name])) for name, _ in towers.recipe.hints}
        ).to(towers.device)
        # One reader of tags for pictures and captions alike, so that both say them the same way.
        self.tag_head = torch.nn.Linear(towers.recipe.joint, len(tag_share)).to(towers.device)
        share = torch.from_numpy(tag_share).float().clamp(1e-3, 0.999)
        with torch.no_grad():
            self.tag_head.bias.copy_(share.logit())
        # CLIP carries its own temperature; BLIP's retrieval class has none to store it in.
        own = getattr(towers.model, "logit_scale", None)
        start = torch.tensor(math.log(1 / 0.07), device=towers.device)
        self.log_scale = own if own is not None else torch.nn.Parameter(start)
        self.parameters = [*towers.model.parameters(), *self.heads.parameters()]
        self.parameters += self.tag_head.parameters()
        if own is None:
            self.parameters.append(self.log_scale)
        matrices = [p for p in self.parameters if p.ndim > 1]
        vectors = [p for p in self.parameters if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
            lr=plan.rate,
            fused=True,
            betas=(0.9, 0.98),
        )

    def step(self, batch: Batch, progress: float, warm: float) -> dict[str, float]:
        """One update at this share of the way (0..1); `warm` (0..1) is the warm-up's factor."""
        self.towers.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.plan.rate * warm * (0.01 + 0.99 * _cosine(progress))
        loss, report = self.losses(batch, guidance=1.0 - 0.8 * progress)
        _demand_finite(report["loss"])
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        with torch.no_grad():
            self.log_scale.clamp_(0, math.log(100))
        return report

    def losses(self, batch: Batch, guidance: float) -> tuple[torch.Tensor, dict[str, float]]:
        """The summed loss, and its parts with the in-batch accuracy (caption -> picture)."""
        towers = self.towers
        tokens, image_embedding = towers.see(towers.images(batch.pixels))
        text_embedding = towers.read(batch.captions)
        cosine = normalize(image_embedding, dim=-1) @ normalize(text_embedding, dim=-1).T
        scores = self.log_scale.exp() * cosine  # (B, T)
        pictures, captions = scores.shape
        owner = torch.arange(captions, device=scores.device) // (captions // pictures)
        positive = owner[None, :] == torch.arange(pictures, device=scores.device)[:, None]
        to_text = -(scores.log_softmax(dim=1) * positive).sum(dim=1) / positive.sum(dim=1)
        contrastive = (to_text.mean() + cross_entropy(scores.T, owner)) / 2
        _demand_finite(float(contrastive.detach()))  # before negatives are drawn from the scores
        hint = self._hint_loss(tokens, batch)
        tag = self._tag_loss(image_embedding, text_embedding, batch)
        loss = contrastive + guidance * (hint + tag)
        report = {
            "contrastive": float(contrastive.detach()),
            "hint": float(hint.detach()),
            "tag": float(tag.detach()),
            "accuracy": float((scores.argmax(dim=0) == owner).float().mean()),
        }
        if isinstance(self.towers, MatchingTowers):
            matching = self._matching_loss(
                self.towers, tokens, batch.captions, scores.detach(), positive
            )
            loss = loss + matching
            report["matching"] = float(matching.detach())
        report["loss"] = float(loss.detach())
        return loss, report

    def _hint_loss(self, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
        patches = tokens[:, -(self.towers.recipe.grid**2) :]  # without CLS where there is one
        total = tokens.new_zeros(())
        for name, weight in self.towers.recipe.hints:
            target = torch.from_numpy(batch.hints[name]).to(tokens.device)
            logits = self.heads[name](patches)
            total = total + weight * cross_entropy(logits.flatten(0, 1), target.flatten())
        return total

    def _tag_loss(self, images: torch.Tensor, texts: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Tags from either embedding: all of them from the picture's, the likely from a caption's.

        A caption does not tell all, so the best it can do is each tag's chance given what it says.
        """
        target = torch.from_numpy(batch.tags).to(images.device)
        logits = self.tag_head(torch.cat([images, texts]))
        targets = torch.cat([target, target.repeat_interleave(len(texts) // len(images), dim=0)])
        summed = binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return _TAG_WEIGHT * summed / len(logits)

    @staticmethod
    def _matching_loss(
        towers: MatchingTowers,
        tokens: torch.Tensor,
        captions: list[str],
        scores: torch.Tensor,
        positive: torch.Tensor,
    ) -> torch.Tensor:
        """Right pairs against captions with a wrong picture.

        A quarter of the batch's captions take part, as the cross-attention is the dearest pass.
        Every other wrong picture is one that the embedding finds likely; the rest are drawn
        evenly, because from likely ones alone a head that knows nothing yet learns nothing.
        """
        chosen = torch.randperm(len(captions), device=tokens.device)[: max(1, len(captions) // 4)]
        weights = scores.masked_fill(positive, -torch.inf).T[chosen].softmax(dim=1)
        weights[::2] = (~positive).T[chosen[::2]].to(weights.dtype)
        wrong = torch.multinomial(weights, 1).squeeze(1)
        right = positive[:, chosen].int().argmax(dim=0)
        texts = [captions[int(number)] for number in chosen]
        logits = towers.matches(texts + texts, tokens[torch.cat([right, wrong])])
        truth = torch.arange(2 * len(texts), device=tokens.device) < len(texts)
        return cross_entropy(logits, truth.long())


def _demand_finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise NonFiniteError("the loss is no longer a number; try a lower --rate")


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
