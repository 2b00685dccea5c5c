"""Concatenation + linear: the fusion without a graph, as a method.

One linear layer per side over all models' embeddings side by side, trained with the symmetric
contrastive loss on image-major batches (every image once, with all its captions). HADA's graph
is worth its cost only if it beats this; the paper calls a similar baseline "Baseline_m".

Shape letters: I images, T captions, B images of a batch, C captions of a batch, E widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hada.evaluate.methods.combinations import single_models
from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery, Pair, fitted_of
from hada.evaluate.methods.seen import Fitted
from hada.extract.common.arrays import group_by_image
from hada.fuse.ranking.ranks import rank_positives, recalls


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """How the two layers are trained; epochs are chosen by RSum on the validation split."""

    width: int = 256
    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    dropout: float = 0.2
    temperature: float = 0.07
    seed: int = 0


def concatenation_linear(
    gallery: Gallery, train: Gallery, val: Gallery, config: LinearConfig | None = None
) -> EmbeddingMethod:
    """Train the two layers and score a gallery with them.

    Args:
        gallery: What is scored.
        train: The same models on the split that trains the layers.
        val: The same models on the split that chooses the epoch, by RSum.
        config: How they are trained; None for the defaults.
    """
    config = config or LinearConfig()
    parts = {name: _concatenated(part) for name, part in (("train", train), ("val", val))}
    torch.manual_seed(config.seed)
    heads = nn.ModuleList(
        nn.Sequential(nn.Dropout(config.dropout), nn.Linear(side.shape[1], config.width))
        for side in parts["train"]
    )
    optimizer = torch.optim.AdamW(
        heads.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    best, best_state = -1.0, heads.state_dict()
    for epoch in range(config.epochs):
        _epoch(heads, optimizer, parts["train"], train.caption_to_image, config, epoch)
        rsum = recalls(rank_positives(*_apply(heads, parts["val"]), val.caption_to_image))["rsum"]
        if rsum > best:
            best = rsum
            best_state = {name: value.clone() for name, value in heads.state_dict().items()}
    heads.load_state_dict(best_state)
    return EmbeddingMethod(
        "concatenation + linear",
        "linear",
        _apply(heads, _concatenated(gallery)),
        f"trained, RSum {best:.1f} on the split it was stopped by",
        fitted=(
            *fitted_of(single_models(gallery)),
            Fitted.of(train.stores, "trained on"),
            Fitted.of(val.stores, "stopped by"),
        ),
    )


def _concatenated(gallery: Gallery) -> tuple[Tensor, Tensor]:
    """Both sides' embeddings of all models side by side, (I, E) and (T, E)."""
    pairs = [method.pair for method in single_models(gallery)]
    image, caption = (
        torch.from_numpy(np.concatenate([pair[side] for pair in pairs], axis=1)) for side in (0, 1)
    )
    # Numbers of about 1, as a linear layer's usual start expects.
    return image * image.shape[1] ** 0.5, caption * caption.shape[1] ** 0.5


def _epoch(
    heads: nn.ModuleList,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor],
    caption_to_image: NDArray[np.int64],
    config: LinearConfig,
    epoch: int,
) -> None:
    heads.train()
    by_image, bounds = group_by_image(caption_to_image, len(data[0]))
    order = np.random.default_rng([config.seed, epoch]).permutation(len(data[0]))
    for start in range(0, len(order), config.batch_size):
        images = order[start : start + config.batch_size]
        captions = [by_image[bounds[i] : bounds[i + 1]] for i in images]
        rows = torch.from_numpy(np.repeat(np.arange(len(images)), [len(c) for c in captions]))
        image = nn.functional.normalize(heads[0](data[0][images]), dim=1)
        caption = nn.functional.normalize(heads[1](data[1][np.concatenate(captions)]), dim=1)
        loss = contrastive(image @ caption.T / config.temperature, rows)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def contrastive(scores_BC: Tensor, caption_to_image_C: Tensor) -> Tensor:
    """Symmetric cross-entropy in which all captions of an image share its target evenly.

    Args:
        scores_BC: Similarities divided by the temperature.
        caption_to_image_C: Entry j is the row of caption j's image.
    """
    positive_BC = caption_to_image_C == torch.arange(len(scores_BC))[:, None]
    targets_BC = positive_BC / positive_BC.sum(1, keepdim=True)
    i2t = -(targets_BC * scores_BC.log_softmax(1)).sum(1).mean()
    t2i = nn.functional.cross_entropy(scores_BC.T, caption_to_image_C)
    return (i2t + t2i) / 2


@torch.no_grad()
def _apply(heads: nn.ModuleList, data: tuple[Tensor, Tensor]) -> Pair:
    heads.eval()
    image, caption = (
        nn.functional.normalize(head(side), dim=1).numpy()
        for head, side in zip(heads, data, strict=True)
    )
    return image, caption
