"""Hubs: images that come first for far more captions than they have, before and after correction.

Shape letters: I images, T captions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.first_places import shares
from hada.evaluate.methods.gallery import EmbeddingMethod, Pair
from hada.evaluate.methods.late import NodeMethod
from hada.evaluate.pages.charts import Spec

CAPTIONS_AT_ONCE = 256


@dataclass(frozen=True)
class Hubs:
    """How often each image comes first under a method, (I,), without its correction and with it.

    Where several images tie for a caption's first place, each has its share of it.
    """

    method: str
    before: NDArray[np.float64]
    after: NDArray[np.float64]


def hubs(method: EmbeddingMethod | NodeMethod) -> Hubs | None:
    """The hubs of a method with and without its correction; None where it corrects nothing."""
    if isinstance(method, EmbeddingMethod):
        if method.uncorrected is None:
            return None
        return Hubs(
            method.name,
            first_places(method.uncorrected),
            first_places(method.pair),
        )
    if method.embedded.node_penalties is None:
        return None
    if method.first_places.after is None:
        method.ranks(method.embedded.caption_to_image)
    before, after = method.first_places.before, method.first_places.after
    return None if before is None or after is None else Hubs(method.name, before, after)


def first_places(pair: Pair) -> NDArray[np.float64]:
    """(I,) for how many captions each image comes first under an inner product."""
    image, caption = pair
    starts = range(0, len(caption), CAPTIONS_AT_ONCE)
    blocks = (image @ caption[start : start + CAPTIONS_AT_ONCE].T for start in starts)
    return np.asarray(sum(map(shares, blocks)), np.float64)


def bins(counts: NDArray[np.float64]) -> list[tuple[str, int]]:
    """How many images come first never, once, twice, 3 to 4, 5 to 8 times, and so on.

    >>> bins(np.array([0.0, 1.0, 4.0, 4.0]))
    [('0', 1), ('1', 1), ('2', 0), ('3 to 4', 2)]
    """
    whole = np.ceil(counts).astype(np.int64)
    named = [("0", int((whole == 0).sum())), ("1", int((whole == 1).sum()))]
    top = 2
    while top // 2 < max(int(whole.max(initial=0)), 2):
        low = top // 2 + 1
        name = str(top) if low == top else f"{low} to {top}"
        named.append((name, int(((whole >= low) & (whole <= top)).sum())))
        top *= 2
    return named


def hub_bars(found: Hubs) -> Spec:
    """How many images come first how often, without the correction and with it, as a chart."""
    before, after = bins(found.before), bins(found.after)
    longest = before if len(before) > len(after) else after
    states = ["without correction", "corrected"]
    rows = [
        {"times": times, "images": count, "state": state}
        for state, binned in zip(states, (before, after), strict=True)
        for times, count in binned
    ]
    return {
        "width": "container",
        "height": 240,
        "data": {"values": rows},
        "mark": {"type": "bar"},
        "encoding": {
            "x": {
                "field": "times",
                "type": "ordinal",
                "sort": [times for times, _ in longest],
                "title": "captions for which an image comes first",
                "axis": {"labelAngle": 0, "labelOverlap": True},
            },
            "xOffset": {"field": "state", "sort": states},
            "y": {
                "field": "images",
                "type": "quantitative",
                "title": "images (log scale)",
                "scale": {"type": "symlog"},
                "axis": {"values": [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 100000]},
            },
            "color": {
                "field": "state",
                "type": "nominal",
                "title": None,
                "scale": {"domain": states, "range": ["$same", "$hada"]},
            },
            "tooltip": [
                {"field": "state", "title": "score"},
                {"field": "times", "title": "first for so many captions"},
                {"field": "images", "title": "images", "format": ","},
            ],
        },
    }
