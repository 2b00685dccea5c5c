"""Which queries a page shows: true wins and losses, extremes, and random ones beside them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from hada.evaluate.pages.choose import LEAST, WAYS, choose, counted, outcomes, places
from hada.fuse.ranking.ranks import Ranks, rank_matrix


def some_ranks(images: int, seed: int, noise: float, *, levels: int = 0) -> Ranks:
    """Ranks of a noisy score with three captions an image; `levels` make scores tie."""
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), 3)
    scores = noise * random.normal(size=(images, len(owner)))
    scores[owner, np.arange(len(owner))] += 1
    return rank_matrix(np.round(scores * levels) / levels if levels else scores, owner)


def slow_outcome(run: tuple[int, int], members: list[tuple[int, int]]) -> int:
    """Every place that a tie allows, tried: reached is in all of them, missed in all of them."""
    able = [range(low, high + 1) for low, high in (run, *members)]
    found = 0
    for k, size in ((10, 1), (1, 2)):
        won = all(own < k and min(rest) >= k for own, *rest in itertools.product(*able))
        # Which member has it may differ from order to order; that one has it in all is more.
        lost = all(own >= k for own in able[0]) and any(
            all(place < k for place in member) for member in able[1:]
        )
        found = size if won else -size if lost else found
    return found


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("way", WAYS)
def test_outcomes_are_those_of_every_order_of_the_ties(way: str, levels: int) -> None:
    run = some_ranks(15, 0, 0.6, levels=levels)
    members = [some_ranks(15, seed, 0.9, levels=levels) for seed in (1, 2)]
    found = outcomes(run, members, way)
    assert len(set(found.tolist())) > 2

    def place(ranks: Ranks, query: int) -> tuple[int, int]:
        low, high = places(ranks, way)
        return int(low[query]), int(high[query])

    for query, outcome in enumerate(found.tolist()):
        others = [place(member, query) for member in members]
        assert outcome == slow_outcome(place(run, query), others)


def test_a_query_is_compared_with_the_model_that_is_best_for_it() -> None:
    """The second model has it first, the first one has the better sum."""

    def ranks(i2t: list[int]) -> Ranks:
        low = np.array(i2t)
        return Ranks(low, low, np.ones_like(low), low, low, np.ones_like(low))

    run, one, two = ranks([0, 0, 20, 3]), ranks([5, 2, 0, 30]), ranks([0, 12, 40, 15])
    assert outcomes(run, [one, two], "i2t").tolist() == [0, 2, -2, 1]
    assert outcomes(run, [one], "i2t").tolist() == [2, 2, -2, 1]
    assert counted(run, [one, two])["t2i"] == {2: 1, 1: 1, 0: 1, -1: 0, -2: 1}


def test_only_true_wins_and_losses_are_chosen_as_such() -> None:
    run, members = some_ranks(200, 0, 0.5), [some_ranks(200, seed, 0.6) for seed in (1, 2)]
    chosen = choose(run, members, seed=3)
    assert len(chosen) >= LEAST
    assert len({(case.way, case.query) for case in chosen}) == len(chosen)
    for way in WAYS:
        found = outcomes(run, members, way)
        for sign in (1, -1):
            able = np.flatnonzero(sign * found > 0)
            extreme = [
                case.query
                for case in chosen
                if case.way == way and "extreme" in case.how and sign * case.outcome > 0
            ]
            assert len(extreme) == min(8, len(able))
            change = ratio(run, members, way)
            first = [q for q in extreme if abs(found[q]) == 2]
            rest = [q for q in able if q not in extreme and abs(found[q]) == 2]
            if first and rest:  # none that was left out changed more
                worst = min(-sign * change[q] for q in first)
                assert worst >= max(-sign * change[q] for q in rest)
    for case in chosen:
        assert case.outcome == outcomes(run, members, case.way)[case.query]
        assert case.outcome != 0 or case.how == ("any",)
    assert choose(run, members, seed=3) == chosen
    assert choose(run, members, seed=4) != chosen


def ratio(run: Ranks, members: list[Ranks], way: str) -> NDArray[np.float64]:
    best = np.minimum(*(getattr(member, way) for member in members))
    return np.asarray(np.log((getattr(run, way) + 1) / (best + 1)))


def test_the_random_sample_is_of_all_queries() -> None:
    """Over many seeds every query is drawn as often as any other, those chosen otherwise too."""
    run, members = some_ranks(60, 0, 0.4), [some_ranks(60, seed, 0.5) for seed in (1, 2)]
    drawn = np.zeros(60)
    rounds = 600
    for seed in range(rounds):
        for case in choose(run, members, seed=seed):
            if case.way == "i2t":
                drawn[case.query] += "any" in case.how
    share = drawn / drawn.sum() * 60
    assert share.min() > 0.5
    assert share.max() < 1.6
    won = outcomes(run, members, "i2t") != 0
    assert share[won].mean() == pytest.approx(1, abs=0.15)


def test_a_small_split_is_shown_whole() -> None:
    run, members = some_ranks(5, 0, 0.4), [some_ranks(5, 1, 0.5)]
    assert len(choose(run, members)) == 5 + 15
