"""The fit of shares: no others are more likely, and it finds what is plainly there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hada.fuse.embedding import Embedded
from hada.fuse.scores import shares as shares_module
from hada.fuse.scores.shares import ScoreTable, fit, matching_loss, score_loss, tuned_shares


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


def loss(found, weights):
    owner = torch.from_numpy(found.caption_to_image)
    weights = np.array(weights, np.float32)
    pairs = [(found.fused_image, found.fused_caption), *found.own]
    scores = torch.stack([torch.from_numpy(image @ caption.T) for image, caption in pairs])
    return float(matching_loss(torch.from_numpy(weights), scores, owner))


def test_the_loss_is_the_cross_entropy_of_both_directions():
    found = embedded([0.9, 1.2])
    scores = 5.0 * found.fused_image @ found.fused_caption.T
    scores += 2.0 * found.own[0][0] @ found.own[0][1].T
    owner, probability = found.caption_to_image, np.exp(scores)
    i2t = t2i = 0.0
    for caption, image in enumerate(owner):
        p = probability[image, caption]
        i2t -= np.log(p / probability[image].sum()) / len(owner)
        t2i -= np.log(p / probability[:, caption].sum()) / len(owner)
    assert loss(found, [5.0, 2.0]) == pytest.approx((i2t + t2i) / 2, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_no_weights_of_a_grid_are_better(seed):
    found = embedded([0.9, 1.2, 0.7], seed=seed)
    fitted, least = tuned_shares(ScoreTable.of(found))
    shares = np.array(fitted)
    assert abs(shares.sum() - 1) < 1e-9
    scales = np.linspace(2, 40, 39)
    best = min(loss(found, (scale * shares).tolist()) for scale in scales)
    assert least == pytest.approx(best, abs=0.01)
    tenths = [(a / 10, b / 10, (10 - a - b) / 10) for a in range(11) for b in range(11 - a)]
    for other in tenths:
        assert best <= min(loss(found, [s * w for w in other]) for s in scales[::4]) + 1e-3


def test_a_score_that_is_noise_gets_little():
    shares, _ = tuned_shares(ScoreTable.of(embedded([0.6, 50.0])))
    assert shares[0] > 0.7
    shares, _ = tuned_shares(ScoreTable.of(embedded([50.0, 0.6])))
    assert shares[0] < 0.3


def test_one_score_alone():
    found = embedded([0.5])
    shares, loss = tuned_shares(ScoreTable.of(found))
    assert shares == (1.0,)
    assert loss == score_loss(ScoreTable.of(found), shares)


def test_a_negligible_share_is_none():
    """The shares are those of the fit, but what is below half a percent is left out."""
    dropped = 0
    for seed in range(3):
        found = embedded([0.4, 300.0, 0.6], seed=seed, images=400)
        weights, _ = fit(ScoreTable.of(found))
        whole = (weights.double() / weights.sum()).tolist()
        kept = [share if share >= 0.005 else 0.0 for share in whole]
        shares, _ = tuned_shares(ScoreTable.of(found))
        assert shares == pytest.approx([share / sum(kept) for share in kept], abs=1e-6)
        dropped += shares[1] == 0.0 < whole[1]
    assert dropped


@pytest.mark.parametrize("images", [1, 2, 3, 40])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scores_that_are_all_right_or_all_wrong_have_shares(images, sign):
    """The likeliest weights would lie at infinity, or at 0, where no share can be had of them."""
    owner = torch.arange(images).repeat_interleave(2)
    scores = sign * torch.stack([torch.eye(images)[:, owner], 0.3 * torch.eye(images)[:, owner]])
    rows = np.arange(images), np.arange(len(owner))
    table = ScoreTable(scores, owner, *rows)
    shares, least = tuned_shares(table)
    assert sum(shares) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares)
    assert np.isfinite(table.total(shares)).all()
    # An image's two captions share its target: no score tells them apart.
    blind = np.log(2) / 2 if sign > 0 else (np.log(2 * images) + np.log(images)) / 2
    assert least == pytest.approx(blind, abs=1e-3)


def test_a_step_into_the_void_is_taken_back():
    """Of few images nearly all weights are as likely, and the search jumps as far as it can."""
    scores = torch.tensor([
        [[0.2508, 0.2751, 0.0863, 0.2445, 0.2896], [0.2569, 0.2622, 0.1392, 0.2907, 0.3053],
         [0.1875, 0.1958, 0.1004, 0.3274, 0.3331]],
        [[0.9926, 0.9995, 0.8585, 0.4197, 0.7651], [0.9482, 0.8901, 0.9955, 0.5877, 0.7757],
         [0.3553, 0.3064, 0.4418, 0.9782, 0.8576]],
        [[0.8720, 0.9390, 0.9782, 0.3038, 0.4045], [0.2458, 0.4154, 0.8224, -0.1749, 0.0594],
         [0.1949, 0.3363, 0.3139, 0.7769, 0.8983]],
        [[0.3772, 0.3697, 0.3571, 0.4056, 0.3951], [0.3746, 0.3570, 0.3669, 0.4110, 0.3901],
         [0.3713, 0.3664, 0.3641, 0.4212, 0.4107]],
    ])  # fmt: skip
    owner = torch.tensor([0, 0, 1, 2, 2])
    weights, least = fit(ScoreTable(scores, owner, np.arange(3), np.arange(5)))
    assert weights.isfinite().all()
    assert least < float(matching_loss(torch.full((4,), shares_module.START), scores, owner))


def test_an_even_choice_of_images_is_looked_at(monkeypatch):
    """The first images alone would say that the second score is the better one."""
    monkeypatch.setattr(shares_module, "MOST_IMAGES", 20)
    good, bad = embedded([0.4], images=60), embedded([4.0], images=60, seed=1)
    first = np.arange(60) < 20
    sides = []
    for rows in (first, first[good.caption_to_image]):
        name = "fused_image" if len(rows) == 60 else "fused_caption"
        x, y = getattr(good, name), getattr(bad, name)
        sides.append((np.where(rows[:, None], y, x), np.where(rows[:, None], x, y)))
    found = replace(
        good,
        fused_image=sides[0][0], fused_caption=sides[1][0],
        own=((sides[0][1], sides[1][1]),), shares=(0.5, 0.5),
    )  # fmt: skip
    shares, _ = tuned_shares(ScoreTable.of(found))
    assert shares[0] > 0.55
