"""Two stages: rank by cosine, then reorder the first results by a match head.

The head is a run's own, on its fused embeddings; a frozen model's (`model_head`), on its stored
image tokens and the captions themselves; or late interaction over stored tokens (`token_matching`).

Shape letters: I images, T captions, E embedding width, Q queries, K candidates, P pairs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hada.evaluate.methods.combinations import embed_gallery
from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery
from hada.evaluate.methods.seen import Fitted, of_run
from hada.extract.common.errors import RunError, UsageError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import Manifest
from hada.extract.store import StoreReader
from hada.fuse.ranking.ranks import Ranks
from hada.fuse.run_files.config import branch_from_json
from hada.fuse.run_folder import RunFolder
from hada.fuse.training.objective import Discriminator

# Of every query: best rank, worst rank and tied positives; see `Ranks`.
Way = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
PAIRS_AT_ONCE = 1 << 15
BLOCK_NUMBERS = 1 << 21
# Logits are float32, and the same pair rounds differently in another batch.
SAME = 1e-6


class Head(Protocol):
    """What gives a logit to a pair of an image and a caption: the higher, the likelier a match."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def stage(self) -> str:
        """What it computes of a pair, in a word or two."""
        ...

    @property
    def fitted(self) -> tuple[Fitted, ...]: ...

    @property
    def seconds_per_pair(self) -> float | None:
        """What scoring one takes, where that is kept beside the scores."""
        ...

    def logits(
        self, images_P: NDArray[np.int64], captions_P: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(P,) logits of pairs, by their rows in the gallery."""
        ...

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Head:
        """The same head on a subset: (i,) rows of images and (t,) rows of captions."""
        ...


@dataclass(frozen=True)
class RunHead:
    """A run's head. `fused` are the fusion's embeddings alone, what it was trained on."""

    fused: tuple[Tensor, Tensor]
    network: Discriminator
    name: str = "match head"
    description: str = "the run's match head"
    stage: str = "match head"
    fitted: tuple[Fitted, ...] = ()
    seconds_per_pair: float | None = None

    @torch.no_grad()
    def logits(
        self, images_P: NDArray[np.int64], captions_P: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(P,) logits of pairs, by their rows in the gallery."""
        parts = [
            self.network(self.fused[0][i], self.fused[1][t])
            for start in range(0, len(images_P), PAIRS_AT_ONCE)
            for i in [torch.from_numpy(images_P[start : start + PAIRS_AT_ONCE].copy())]
            for t in [torch.from_numpy(captions_P[start : start + PAIRS_AT_ONCE].copy())]
        ]
        return np.asarray(torch.cat(parts).numpy(), np.float32)

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> RunHead:
        """The same head on a subset: (i,) rows of images and (t,) rows of captions."""
        return replace(self, fused=(self.fused[0][images], self.fused[1][captions]))


@dataclass(frozen=True)
class Reranked:
    """A method whose first `depth` results are reordered; the rest stays where it was.

    details: More keys for its entry in the result; `ranks` adds `second_stage`: the pairs of a
        query, and the milliseconds that they took, a mean over all queries. Of scores that were
        kept, what making them took.
    """

    first: EmbeddingMethod
    head: Head
    depth: int
    kind: str = "itm"
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The names of the first stage and of the head."""
        return f"{self.first.name} + {self.head.name}"

    @property
    def note(self) -> str:
        """How it was made."""
        return f"two stages: the first {self.depth} by cosine, re-ranked by {self.head.description}"

    @property
    def fitted(self) -> tuple[Fitted, ...]:
        """What either stage was fitted on."""
        return self.first.fitted + self.head.fitted

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Reranked:
        """The same method on a subset: (i,) rows of images and (t,) rows of captions."""
        return Reranked(
            self.first.part(images, captions),
            self.head.part(images, captions),
            self.depth,
            self.kind,
            self.details,
        )

    def ranks(self, caption_to_image: NDArray[np.int64], *, device: str = "cpu") -> Ranks:
        """Where the best positive of every query stands."""
        before = self.first.ranks(caption_to_image, device=device)
        image, caption = self.first.pair
        i2t = (before.i2t_lo, before.i2t_hi, before.i2t_tied)
        t2i = (before.t2i_lo, before.t2i_hi, before.t2i_tied)
        began = time.perf_counter()
        i2t = self._way(image, caption, caption_to_image, i2t, captions_found=True)
        t2i = self._way(caption, image, caption_to_image, t2i, captions_found=False)
        spent = time.perf_counter() - began
        pairs = {"i2t": min(self.depth, len(caption)), "t2i": min(self.depth, len(image))}
        if (each := self.head.seconds_per_pair) is not None:
            spent = each * (pairs["i2t"] * len(image) + pairs["t2i"] * len(caption))
        self.details["second_stage"] = {
            "pairs_per_query": pairs,
            "milliseconds_per_query": round(1000 * spent / (len(image) + len(caption)), 3),
        }
        return Ranks(*i2t, *t2i)

    def _way(
        self,
        query: NDArray[Any],
        gallery: NDArray[Any],
        caption_to_image: NDArray[np.int64],
        before: Way,
        *,
        captions_found: bool,
    ) -> Way:
        lo, hi, tied = (values.copy() for values in before)
        depth = min(self.depth, len(gallery))
        step = max(1, BLOCK_NUMBERS // len(gallery))
        for start in range(0, len(query), step):
            rows = np.arange(start, min(start + step, len(query)))
            scores = query[rows] @ gallery.T
            found_QK = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
            asked_QK = np.broadcast_to(rows[:, None], found_QK.shape)
            pair = (asked_QK, found_QK) if captions_found else (found_QK, asked_QK)
            logit_QK = self.head.logits(*(side.reshape(-1) for side in pair)).reshape(
                found_QK.shape
            )
            own_QK = caption_to_image[pair[1]] == pair[0]
            best_Q = np.where(own_QK, logit_QK, -np.inf).max(axis=1)
            in_QK = own_QK.any(axis=1)
            better = ((logit_QK > best_Q[:, None] + SAME) & ~own_QK).sum(axis=1)
            near_QK = np.abs(logit_QK - best_Q[:, None]) <= SAME
            level = (near_QK & ~own_QK).sum(axis=1)
            # A match that the first stage did not bring stays behind all that it did.
            # Those that tied with it there tie with it still.
            lo[rows] = np.where(in_QK, better, np.maximum(lo[rows], depth))
            hi[rows] = np.where(in_QK, better + level, np.maximum(hi[rows], depth))
            same = (near_QK & own_QK).sum(axis=1)
            tied[rows] = np.where(in_QK, same, tied[rows])
        return lo, hi, tied


def read_data(manifest: Manifest, store: StoreReader, rerank_with: str) -> CaptionDataset:
    """The images and captions that a second stage reads, as a store has them.

    Args:
        manifest: Names the data set.
        store: What was extracted from it.
        rerank_with: What stands behind --rerank-with, for messages.

    Raises:
        UsageError: The captions on this machine are not those of the store.
        DatasetError: The captions or images are not on this machine.
    """
    data = read_dataset(manifest.dataset(store.spec.dataset), store.spec.split)
    data = data.as_stored(store.spec.dataset_digest)
    if data.digest() != store.spec.dataset_digest:
        raise UsageError(
            f"--rerank-with {rerank_with}: the captions here are not those of {store.path}"
        )
    return data


def reranked(
    run: Path, first: EmbeddingMethod, gallery: Gallery, depth: int, device: str
) -> Reranked:
    """The second stage of a run.

    Args:
        run: Its folder.
        first: The first stage.
        gallery: What is evaluated.
        depth: So many first results of a query are reordered.
        device: Where the network runs.

    Raises:
        RunError: It was trained without a match head, or is damaged.
    """
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
    try:
        head.load_state_dict(own)
    except RuntimeError as error:
        raise RunError(
            f"{folder.path}: its match head does not fit config.json; train again with --fresh"
        ) from error
    _, embedded = embed_gallery(folder, gallery, device)
    fused = torch.from_numpy(embedded.fused_image), torch.from_numpy(embedded.fused_caption)
    return Reranked(first, RunHead(fused, head.eval(), fitted=of_run(config)), depth)
