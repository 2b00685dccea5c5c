"""The correction of hubs: equal to slow loops, taken where it helps and refused where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hada.extract.common.errors import UsageError
from hada.fuse.closed_form import correction
from hada.fuse.closed_form.correction import (
    as_cosine,
    choose_correction,
    folded,
    popularities,
    popularity,
)
from hada.fuse.ranking.ranks import rank_matrix, rank_positives, recalls


def unit(draw: Any, *shape: int) -> NDArray[np.float32]:
    x = draw.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("f4")


@pytest.mark.parametrize("k", [1, 3, 7, 50])
@pytest.mark.parametrize("numbers", [1, 20, 1 << 20])
def test_popularity_equals_sorting(k: int, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correction, "BLOCK_NUMBERS", numbers)
    draw = np.random.default_rng(0)
    gallery, bank = unit(draw, 9, 5), unit(draw, 7, 5)
    slow = [np.sort([float(b @ g) for b in bank])[::-1][:k].mean() for g in gallery]
    np.testing.assert_allclose(popularity(gallery, bank, k), slow, atol=1e-6)
    together = popularities(gallery, bank, [2, k, 90])
    assert set(together) == {2, k, 90}
    np.testing.assert_array_equal(together[k], popularity(gallery, bank, k))


def test_an_empty_bank_is_told() -> None:
    draw = np.random.default_rng(0)
    with pytest.raises(UsageError, match="bank of 0"):
        popularity(unit(draw, 3, 5), unit(draw, 0, 5), 1)


def test_one_product_serves_both_directions() -> None:
    draw = np.random.default_rng(0)
    image, caption = unit(draw, 6, 4), unit(draw, 12, 4)
    owner = np.repeat(np.arange(6), 2)
    paid_I, paid_T = draw.normal(size=6), draw.normal(size=12)
    found = rank_positives(*folded(image, caption, paid_I, paid_T), owner)
    scores = image @ caption.T
    by_image = rank_matrix(scores - paid_I[:, None], owner)
    by_caption = rank_matrix(scores - paid_T[None], owner)
    np.testing.assert_array_equal(found.t2i, by_image.t2i)
    np.testing.assert_array_equal(found.i2t, by_caption.i2t)


def with_hubs(images: int = 200, seed: int = 0) -> dict[str, Any]:
    """A gallery in which some images are near to every caption, and a bank that shows it."""
    draw = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), 2)
    truth = unit(draw, images, 16)
    common = unit(draw, 16)
    image = truth + (draw.random((images, 1)) < 0.2) * common
    caption = truth[owner] + 0.2 * draw.normal(size=(2 * images, 16)) + 0.5 * common
    bank = unit(draw, 500, 16) + 0.2 * draw.normal(size=(500, 16)) + 0.5 * common
    return {"image": image, "caption": caption, "bank": bank, "owner": owner}


def test_hubs_are_corrected() -> None:
    world = with_hubs()
    scores = world["image"] @ world["caption"].T
    popular = {k: popularity(world["image"], world["bank"], k) for k in (4, 16)}
    unpopular = {4: np.zeros(len(world["owner"]))}
    found = choose_correction(scores, popular, unpopular, world["owner"])
    assert found.alpha_image > 0
    assert found.alpha_caption == 0
    paid = found.alpha_image * popular[found.k_image]
    before, after = (
        recalls(rank_matrix(x, world["owner"])) for x in (scores, scores - paid[:, None])
    )
    assert after["t2i_R@1"] > before["t2i_R@1"] + 5


def test_a_bank_of_another_kind_is_refused() -> None:
    """Its popularities say nothing of this gallery."""
    for seed in range(5):
        world, draw = with_hubs(seed=seed), np.random.default_rng(seed)
        scores = world["image"] @ world["caption"].T
        foreign = unit(draw, 500, 16) - world["bank"].mean(axis=0)
        wrong = {k: popularity(world["image"], foreign, k) for k in (4, 16)}
        noise = {4: draw.normal(size=len(world["owner"]))}
        found = choose_correction(scores, wrong, noise, world["owner"])
        assert (found.alpha_image, found.alpha_caption) == (0, 0)


def test_the_choice_of_the_likelihood_is_that_of_the_whole_split() -> None:
    """Where likelihood decides, the best of all queries, by a loop, is what is chosen."""
    world = with_hubs()
    scores, owner = world["image"] @ world["caption"].T, world["owner"]
    popular = {k: popularity(world["image"], world["bank"], k) for k in (4, 16)}
    found = choose_correction(scores, popular, {4: np.zeros(len(owner))}, owner)

    def likelihood(alpha: float, k: int, scale: float) -> float:
        logits = scale * (scores - alpha * popular[k][:, None]).astype("f8")
        chances = [logits[o, t] - np.log(np.exp(logits[:, t]).sum()) for t, o in enumerate(owner)]
        return float(np.mean(chances))

    scales = correction.SCALES / scores.std()
    scale = max(scales, key=lambda scale: likelihood(0.0, 4, scale))
    keys = [(k, alpha) for k in popular for alpha in correction.ALPHAS if alpha]
    best = max(keys, key=lambda key: likelihood(key[1], key[0], scale))
    assert (found.k_image, found.alpha_image) == best


def test_help_in_first_places_alone_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    world = with_hubs()
    scores = world["image"] @ world["caption"].T
    popular = {k: popularity(world["image"], world["bank"], k) for k in (4, 16)}
    both = (scores, popular, {4: np.zeros(len(world["owner"]))}, world["owner"])
    monkeypatch.setitem(correction.LEAST_GAIN, "likelihood", np.inf)
    assert choose_correction(*both).alpha_image > 0
    monkeypatch.setitem(correction.LEAST_GAIN, "reciprocal rank", np.inf)
    assert choose_correction(*both).alpha_image == 0
    monkeypatch.setitem(correction.LEAST_GAIN, "likelihood", 1e-3)
    assert choose_correction(*both).alpha_image > 0


@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_handful_of_images_is_no_error(images: int) -> None:
    scores = np.eye(images, dtype="f4")
    paid = {4: np.zeros(images)}
    assert choose_correction(scores, paid, paid, np.arange(images)).alpha_image == 0


def test_without_alphas_nothing_is_paid() -> None:
    world = with_hubs()
    scores = world["image"] @ world["caption"].T
    popular = {4: popularity(world["image"], world["bank"], 4)}
    other = {4: np.zeros(len(world["owner"]))}
    found = choose_correction(scores, popular, other, world["owner"], alphas=(0.0,))
    assert (found.alpha_image, found.alpha_caption) == (0, 0)


def test_cosines_rank_as_the_inner_product_does() -> None:
    draw = np.random.default_rng(0)
    owner = np.repeat(np.arange(20), 2)
    pair = folded(unit(draw, 20, 8), unit(draw, 40, 8), draw.random(20), draw.random(40))
    image, caption = as_cosine(*pair)
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(caption, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(image @ caption.T, pair[0] @ pair[1].T / 2.5**2, atol=1e-6)
    np.testing.assert_array_equal(
        rank_positives(image, caption, owner).t2i, rank_positives(*pair, owner).t2i
    )
    with pytest.raises(UsageError, match="longer than"):
        as_cosine(*pair, longest=0.5)
