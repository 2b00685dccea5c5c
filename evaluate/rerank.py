"""Two stages: the first places by cosine, then those alone in the order of the matching head.

Shape letters: I images, T captions, E embedding width, Q queries, K candidates, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hada.evaluate.rungs import Gallery, Rung
from hada.extract.errors import RunError
from hada.extract.store import StoreReader
from hada.fuse.checkpoint import RunFolder, branch_from_json
from hada.fuse.embed import embed_split
from hada.fuse.objective import Discriminator
from hada.fuse.ranking import Ranks

PAIRS_AT_ONCE = 1 << 15
BLOCK_NUMBERS = 1 << 21
# Logits are float32, and the same pair rounds differently in another batch.
SAME = 1e-6


@dataclass(frozen=True)
class Reranked:
    """A rung whose first `depth` places are ordered anew; the rest stays where it was.

    `fused` are the fusion's embeddings alone, which is what its head was trained on.
    """

    first: Rung
    fused: tuple[Tensor, Tensor]
    head: Discriminator
    depth: int
    kind: str = "itm"
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The first stage's name, and that there is a second."""
        return f"{self.first.name} + match head"

    @property
    def note(self) -> str:
        """How it was made."""
        return f"two stages: the first {self.depth} by cosine, re-ranked by the run's match head"

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Reranked:
        """The same rung on some of the images and captions."""
        fused = self.fused[0][images], self.fused[1][captions]
        return Reranked(self.first.part(images, captions), fused, self.head, self.depth)

    def ranks(self, owner: NDArray[np.int64], *, device: str = "cpu") -> Ranks:
        """Where the best positive of every query stands."""
        before = self.first.ranks(owner, device=device)
        image, caption = self.first.pair
        i2t = self._way(image, caption, owner, before.i2t_lo, captions_found=True)
        t2i = self._way(caption, image, owner, before.t2i_lo, captions_found=False)
        return Ranks(*i2t, *t2i)

    def _way(
        self,
        query: NDArray[Any],
        gallery: NDArray[Any],
        owner: NDArray[np.int64],
        before: NDArray[np.int64],
        *,
        captions_found: bool,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        lo, tied = np.array(before), np.ones(len(query), np.int64)
        depth = min(self.depth, len(gallery))
        hi = lo.copy()
        step = max(1, BLOCK_NUMBERS // len(gallery))
        for start in range(0, len(query), step):
            rows = np.arange(start, min(start + step, len(query)))
            scores = query[rows] @ gallery.T
            found_QK = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
            asked_QK = np.broadcast_to(rows[:, None], found_QK.shape)
            pair = (asked_QK, found_QK) if captions_found else (found_QK, asked_QK)
            logit_QK = self._logits(*(side.reshape(-1) for side in pair)).reshape(found_QK.shape)
            own_QK = owner[pair[1]] == pair[0]
            best_Q = np.where(own_QK, logit_QK, -np.inf).max(axis=1)
            in_QK = own_QK.any(axis=1)
            better = ((logit_QK > best_Q[:, None] + SAME) & ~own_QK).sum(axis=1)
            near_QK = np.abs(logit_QK - best_Q[:, None]) <= SAME
            level = (near_QK & ~own_QK).sum(axis=1)
            # A match that the first stage did not bring stays behind all that it did.
            lo[rows] = np.where(in_QK, better, np.maximum(before[rows], depth))
            hi[rows] = np.where(in_QK, better + level, lo[rows])
            same = (near_QK & own_QK).sum(axis=1)
            tied[rows] = np.where(in_QK, same, 1)
        return lo, hi, tied

    @torch.no_grad()
    def _logits(self, images_P: NDArray[Any], captions_P: NDArray[Any]) -> NDArray[np.float32]:
        parts = [
            self.head(self.fused[0][i], self.fused[1][t])
            for start in range(0, len(images_P), PAIRS_AT_ONCE)
            for i in [torch.from_numpy(images_P[start : start + PAIRS_AT_ONCE].copy())]
            for t in [torch.from_numpy(captions_P[start : start + PAIRS_AT_ONCE].copy())]
        ]
        return np.asarray(torch.cat(parts).numpy(), np.float32)


def reranked(run: Path, first: Rung, gallery: Gallery, depth: int, device: str) -> Reranked:
    """The second stage of a run; raises `RunError` where it was trained without a match head."""
    folder = RunFolder(run)
    config = folder.config()
    tensors = folder.load_tensors()
    own = {
        name.removeprefix("discriminator."): value
        for name, value in tensors.items()
        if name.startswith("discriminator.")
    }
    if not own:
        raise RunError(
            f"{folder.path}: has no match head to re-rank with; train with --set weight_itm=1"
        )
    branch = branch_from_json(config["branches"]["image"])
    head = Discriminator(branch.out_width, branch.norm, 0.0)
    head.load_state_dict(own)
    stores: list[StoreReader] = [
        store for store in gallery.stores if store.spec.model.name in config["models"]
    ]
    found = embed_split(folder, stores, device=device)
    images = np.searchsorted(found.image_rows, gallery.image_rows)
    captions = np.searchsorted(found.caption_rows, gallery.caption_rows)
    fused = (
        torch.from_numpy(found.fused_image[images]),
        torch.from_numpy(found.fused_caption[captions]),
    )
    return Reranked(first, fused, head.eval(), depth)
