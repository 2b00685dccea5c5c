"""Late interaction over a frozen model's stored tokens: of all pairs, or of the first results.

`hada.fuse.scores.stored_tokens` says which tokens are matched and where.

Shape letters: I images, T captions, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery, Method
from hada.evaluate.methods.rerank import Reranked
from hada.evaluate.methods.seen import Fitted
from hada.extract.common.errors import UsageError
from hada.fuse.ranking.blocks import rank_blocks
from hada.fuse.ranking.ranks import Ranks
from hada.fuse.scores.item_nodes import ItemNodes, pair_node_scores, score_blocks
from hada.fuse.scores.stored_tokens import TokenSpace, trained_for_it

LATE = "late:"
Nodes = tuple[ItemNodes, ItemNodes]


@dataclass(frozen=True)
class TokenMethod:
    """MaxSim of every caption with every image: exhaustive, in bounded memory.

    Attributes:
        name: Its name in results.
        nodes: The tokens of the images and of the captions.
        mirror: See `hada.fuse.network.maxsim`.
        note: How it was made, for people.
        details: More keys for its entry in the result.
        fitted: The data that the map of the tokens comes from.
        kind: `late`.
    """

    name: str
    nodes: Nodes
    mirror: float = 0.0
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    fitted: tuple[Fitted, ...] = ()
    kind: str = "late"

    def ranks(self, caption_to_image: NDArray[np.int64], *, device: str = "cpu") -> Ranks:
        """Rank of the best positive of every query; scores are made block by block."""
        captions = np.arange(len(caption_to_image))
        own = pair_node_scores(*self.nodes, caption_to_image, captions, self.mirror, device=device)
        blocks = score_blocks(*self.nodes, self.mirror, device=device)
        return rank_blocks(blocks, own, caption_to_image, len(self.nodes[0]))

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> TokenMethod:
        """The same method on a subset: (i,) rows of images and (t,) rows of captions."""
        nodes = self.nodes[0].take(images), self.nodes[1].take(captions)
        return replace(self, nodes=nodes)


@dataclass(frozen=True)
class LateHead:
    """The same score as a second stage."""

    model: str
    nodes: Nodes
    mirror: float = 0.0
    fitted: tuple[Fitted, ...] = ()
    stage: str = "late interaction"
    seconds_per_pair: float | None = None

    @property
    def name(self) -> str:
        """How a method is called that ends with it."""
        return f"{self.model}'s late interaction"

    @property
    def description(self) -> str:
        """For the note of a method that is re-ranked by it."""
        return f"{self.name}, over stored tokens"

    def logits(
        self, images_P: NDArray[np.int64], captions_P: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(P,) scores of pairs, by their rows in the gallery."""
        return pair_node_scores(*self.nodes, images_P, captions_P, self.mirror)

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> LateHead:
        """The same head on a subset: (i,) rows of images and (t,) rows of captions."""
        return replace(self, nodes=(self.nodes[0].take(images), self.nodes[1].take(captions)))


def late_model(rerank_with: str | None, gallery: Gallery) -> str | None:
    """The model whose late interaction is the second stage that was asked for; None if none."""
    if rerank_with is None:
        return None
    if rerank_with.startswith(LATE):
        return rerank_with.removeprefix(LATE)
    trained = [s.spec.model.name for s in gallery.stores if trained_for_it(s.spec.model)]
    return rerank_with if rerank_with in trained else None


def late_method(gallery: Gallery, space: TokenSpace, fitted: tuple[Fitted, ...]) -> TokenMethod:
    """Late interaction of all pairs as a method of its own."""
    details: dict[str, Any] = {"mirror": space.mirror}
    if space.projections is not None:
        details["explained"] = [round(one.explained, 4) for one in space.projections]
    return TokenMethod(
        f"{space.model}, late interaction",
        _nodes(gallery, space),
        space.mirror,
        f"the mean over caption tokens of the best image token{_told(space)}",
        details,
        fitted,
    )


def late_reranked(
    methods: Sequence[Method],
    gallery: Gallery,
    depth: int,
    model: str,
    made: tuple[TokenSpace, tuple[Fitted, ...]],
) -> list[Reranked]:
    """Two stages: the model itself, the mean of cosines, and every run, each re-ranked.

    Where there is none of these, every model with a joint space is.

    Args:
        methods: All first stages.
        gallery: What is evaluated.
        depth: So many first results of a query are reordered.
        model: Whose tokens are matched.
        made: How they are matched, and what that was fitted on.

    Raises:
        UsageError: There is no model with a joint space.
    """
    space, fitted = made
    head = LateHead(model, _nodes(gallery, space), space.mirror, fitted)
    products = [method for method in methods if isinstance(method, EmbeddingMethod)]
    first = [m for m in products if m.kind in ("hada", "mean") or m.name == model]
    first = first or [m for m in products if m.kind == "model"]
    if not first:
        raise UsageError(
            f"--rerank-with {model}: nothing brings the first results: {model} has no embeddings; "
            "add --model with a model that has a joint space, or a run"
        )
    return [Reranked(method, head, depth) for method in first]


def _nodes(gallery: Gallery, space: TokenSpace) -> Nodes:
    (store,) = (store for store in gallery.stores if store.spec.model.name == space.model)
    return space.nodes(store, gallery.image_rows, gallery.caption_rows)


def _told(space: TokenSpace) -> str:
    if space.projections is None:
        return ""
    image, caption = (f"{100 * one.explained:.0f} %" for one in space.projections)
    return (
        f"; tokens mapped to the joint space by least squares on train ({image} and {caption} of "
        "the embeddings' variance)"
    )
