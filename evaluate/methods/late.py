"""A run's whole score, node matching included, of every image with every caption.

Shape letters: I images, T captions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.first_places import FirstPlaces
from hada.evaluate.methods.seen import Fitted
from hada.fuse.ranking.blocks import rank_blocks
from hada.fuse.ranking.ranks import Ranks
from hada.fuse.scores.embedded import Embedded


@dataclass(frozen=True)
class NodeMethod:
    """A method whose score is no inner product: cosines and late interaction, exhaustively.

    Attributes:
        name: Its name in results.
        embedded: The run's embeddings and nodes.
        note: How it was made, for people.
        details: More keys for its entry in the result.
        fitted: All data that its parameters come from.
        kind: `hada`.
        first_places: For how many captions each image came first when `ranks` was last called:
            counting is nothing beside node matching, another pass over all pairs is not.
    """

    name: str
    embedded: Embedded
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    fitted: tuple[Fitted, ...] = ()
    kind: str = "hada"
    first_places: FirstPlaces = field(default_factory=FirstPlaces, compare=False, repr=False)

    def ranks(self, caption_to_image: NDArray[np.int64], *, device: str = "cpu") -> Ranks:
        """Rank of the best positive of every query; scores are made block by block."""
        penalties = self.embedded.node_penalties
        return rank_blocks(
            self.first_places.counted(
                self.embedded.scores(device=device), None if penalties is None else penalties[0]
            ),
            self.embedded.pair_scores(caption_to_image, np.arange(len(caption_to_image))),
            caption_to_image,
            len(self.embedded.fused_image),
        )

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> NodeMethod:
        """The same method on a subset: (i,) rows of images and (t,) rows of captions."""
        return replace(
            self, embedded=self.embedded.part(images, captions), first_places=FirstPlaces()
        )
