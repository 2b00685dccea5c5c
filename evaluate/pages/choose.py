"""Which queries a page shows: true wins and losses of a fusion, and random ones beside them.

A query is won where the fusion brings a match to the first place, or among the first ten, and no
single model does: each query is compared with the model that is best for it. No choice among the
models that is made before the query is known reaches that, so a win is the fusion's own. Where
scores tie, a place counts as reached only if every order of the tie reaches it, and as missed only
if none does.

Shape letters: Q queries of a direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hada.fuse.ranking.ranks import Ranks

WAYS = ("i2t", "t2i")
# A query's outcome: what the fusion reached (or missed) and no single model did (or one did).
TO_FIRST, INTO_TEN, SAME, OUT_OF_TEN, OUT_OF_FIRST = 2, 1, 0, -1, -2
OUTCOMES = (TO_FIRST, INTO_TEN, SAME, OUT_OF_TEN, OUT_OF_FIRST)
# Of a direction's wins, and of its losses: the largest changes, and others drawn from the rest.
EXTREMES, DRAWN = 8, 8
# Queries of a direction drawn from all, whatever their outcome; more where there are few others.
ANY = 8
LEAST = 64  # cases of a page, where the split has so many queries


@dataclass(frozen=True)
class Chosen:
    """A query that is shown: its direction, row and outcome, and why it was chosen.

    `how` has `extreme`, `drawn` (from the other wins or losses), `any` (drawn from all queries).
    """

    way: str
    query: int
    outcome: int
    how: tuple[str, ...]


def places(ranks: Ranks, way: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(Q,) the best and the worst place of every query's match over all orders of its ties."""
    return (ranks.i2t_lo, ranks.i2t_hi) if way == "i2t" else (ranks.t2i_lo, ranks.t2i_hi)


def outcomes(run: Ranks, members: Sequence[Ranks], way: str) -> NDArray[np.int64]:
    """(Q,) each query's outcome against the best of several methods for that query.

    Args:
        run: Ranks of the fusion.
        members: Ranks of what it is compared with, at least one.
        way: `i2t` or `t2i`.
    """
    low, high = places(run, way)
    best_low = np.min([places(one, way)[0] for one in members], axis=0)
    best_high = np.min([places(one, way)[1] for one in members], axis=0)
    found = np.zeros(len(low), np.int64)
    for k, size in ((10, 1), (1, 2)):
        found[(high < k) & (best_low >= k)] = size
        found[(low >= k) & (best_high < k)] = -size
    return found


def counted(run: Ranks, members: Sequence[Ranks]) -> dict[str, dict[int, int]]:
    """Per direction, how many queries have each outcome."""
    return {
        way: {outcome: int((found == outcome).sum()) for outcome in OUTCOMES}
        for way in WAYS
        for found in [outcomes(run, members, way)]
    }


def choose(run: Ranks, members: Sequence[Ranks], *, seed: int = 0) -> list[Chosen]:
    """The queries of a page: the largest changes first, then what was drawn.

    Args:
        run: Ranks of the fusion.
        members: Ranks of the single models, at least one.
        seed: Seed of what is drawn.
    """
    random = np.random.default_rng(seed)
    why: dict[tuple[str, int], list[str]] = {}
    found = {way: outcomes(run, members, way) for way in WAYS}
    for way in WAYS:
        change = _change(run, members, way)
        for sign in (1, -1):
            # The outcome goes before the ratio: to the first place is more than into ten.
            able = np.flatnonzero(sign * found[way] > 0)
            able = able[np.lexsort((able, sign * change[able], -np.abs(found[way][able])))]
            drawn = random.permutation(able[EXTREMES:])[:DRAWN]
            for how, queries in (("extreme", able[:EXTREMES]), ("drawn", drawn)):
                why.update(((way, query), [how]) for query in queries.tolist())
    # From all queries, so that those stand for the split; one that is there already is both.
    orders = {way: random.permutation(len(found[way])).tolist() for way in WAYS}
    for place in range(max(map(len, orders.values()))):
        if place >= ANY and len(why) >= LEAST:
            break
        for way in WAYS:
            if place < len(orders[way]):
                why.setdefault((way, orders[way][place]), []).append("any")
    return [
        Chosen(way, query, int(found[way][query]), tuple(how)) for (way, query), how in why.items()
    ]


def _change(run: Ranks, members: Sequence[Ranks], way: str) -> NDArray[np.float64]:
    """(Q,) log ratio of the ranks; below 0 where the fusion's is better.

    Ratios count, not differences: from 40th to 1st is more than from 400th to 300th.
    """
    best = np.min([getattr(one, way) for one in members], axis=0)
    return np.asarray(np.log(getattr(run, way) + 1) - np.log(best + 1))
