"""The search for shares: never worse than equal ones, and it finds what is plainly there."""

from __future__ import annotations

import numpy as np

from hada.fuse.embed import Embedded
from hada.fuse.ranking import rank_positives, recalls
from hada.fuse.shares import tuned_shares


def embedded(noises, images=60, captions=2, seed=0):
    """Scores that see one truth through their own noise; the first is the fused one."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=(images, 8))
    owner = np.repeat(np.arange(images), captions)
    pairs = []
    for noise in noises:
        sides = (truth, truth[owner])
        noisy = [side + noise * random.normal(size=side.shape) for side in sides]
        pairs.append(
            tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype("f4") for x in noisy)
        )
    equal = (1 / len(noises),) * len(noises)
    rows = np.arange(images), np.arange(len(owner))
    return Embedded(*pairs[0], tuple(pairs[1:]), equal, *rows, owner)


def rsum(found, shares):
    from dataclasses import replace

    image, caption = replace(found, shares=shares)
    return recalls(rank_positives(image, caption, found.caption_to_image))["rsum"]


def test_shares_sum_to_one_and_are_never_worse_than_equal_ones():
    for seed in range(3):
        found = embedded([0.9, 1.2, 0.7], seed=seed)
        shares = tuned_shares(found)
        assert abs(sum(shares) - 1) < 1e-9
        assert rsum(found, shares) >= rsum(found, found.shares) - 1e-6


def test_a_score_that_is_noise_gets_little():
    shares = tuned_shares(embedded([0.6, 50.0]))
    assert shares[0] > 0.7
    shares = tuned_shares(embedded([50.0, 0.6]))
    assert shares[0] < 0.3


def test_one_score_alone():
    assert tuned_shares(embedded([0.5])) == (1.0,)
