"""Kernel CCA: its features are the kernel's, its moments the whole ones', and it bends."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hada.extract.common.arrays import unit_rows
from hada.extract.common.errors import UsageError
from hada.extract.spec import SIDES
from hada.fuse.closed_form import kernel_cca
from hada.fuse.closed_form.cca import Moments, choose_cca, fit_cca
from hada.fuse.closed_form.kernel_cca import FeatureMap, KernelCCA, choose_kernel_cca
from hada.fuse.ranking.ranks import rank_positives, recalls

Views = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]


def bent_views(images: int = 400, seed: int = 0) -> Views:
    """Points of a square: a caption knows them as they are, an image only their waves."""
    draw = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), draw.integers(1, 4, images))
    place = draw.uniform(-1, 1, (images, 2))
    waves = np.concatenate([np.cos(3 * place), np.sin(3 * place)], axis=1)
    image = np.concatenate([waves, 0.05 * draw.normal(size=(images, 4))], axis=1)
    said = place[owner] + 0.01 * draw.normal(size=(len(owner), 2))
    caption = np.concatenate([said, 0.05 * draw.normal(size=(len(owner), 4))], axis=1)
    return (image + 3).astype("f4"), (caption - 2).astype("f4"), owner


def part(views: Views, images: slice) -> Views:
    image, caption, owner = views
    kept = np.arange(len(image))[images]
    captions = np.flatnonzero(np.isin(owner, kept))
    return image[kept], caption[captions], np.searchsorted(kept, owner[captions])


def rsum(head: Any, views: Views) -> float:
    image, caption, owner = views
    pair = head.encode("image", image), head.encode("caption", caption)
    return float(recalls(rank_positives(*pair, owner))["rsum"])


def fitted(views: Views, **options: Any) -> KernelCCA:
    """The head of one shrinkage and width, by default."""
    single = {"shrinkages": (0.1,), "widths": (16,)} | options
    return choose_kernel_cca(*views, value=lambda _: 0.0, **single)[0]


def test_the_features_are_the_kernel() -> None:
    values = bent_views()[0][:50]
    found = FeatureMap.of(values, scale=1.5, waves=20_000, seed=0)
    y = unit_rows((values - found.mean) @ found.directions)
    squared = np.square(y[:, None] - y[None]).sum(-1)
    z = found.features(values)
    np.testing.assert_allclose(z @ z.T, np.exp(-squared / (2 * 1.5**2)) + y @ y.T / 4, atol=0.05)


def test_the_directions_are_whitened_principal_ones() -> None:
    """Compared with the covariance's own eigenvectors; a direction has no sign of its own."""
    draw = np.random.default_rng(0)
    values = (draw.normal(size=(300, 6)) * [9, 7, 5, 3, 2, 1]).astype("f4")
    found = FeatureMap.of(values, scale=1.0, waves=4, seed=0)
    variances, vectors = np.linalg.eigh(np.cov(values.T, bias=True))
    floor = kernel_cca.FLOOR * variances.mean()
    plain = vectors[:, ::-1] / np.sqrt(variances[::-1] + floor)
    np.testing.assert_allclose(np.abs(found.directions), np.abs(plain), atol=2e-3)


def test_moments_by_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few images; some images have no caption, and captions come in any order."""
    monkeypatch.setattr(kernel_cca, "ITEMS_AT_ONCE", 16)
    image, caption, owner = bent_views(images=60)
    mixed = np.random.default_rng(1).permutation(len(owner))[: len(owner) - 20]
    caption, owner = caption[mixed], owner[mixed]
    assert len(np.unique(owner)) < 60
    maps = FeatureMap.of(image, 1.0, 32, 0), FeatureMap.of(caption, 1.0, 32, 1)
    blocks = list(kernel_cca._pairs(*maps, image, caption, owner))
    assert len(blocks) > 3
    whole = fit_cca(
        maps[0].features(image), maps[1].features(caption), owner, shrinkage=0.1, width=8
    )
    summed = Moments.summed(iter(blocks)).cca(0.1, 8)
    scores = [
        head.encode("image", maps[0].features(image))
        @ head.encode("caption", maps[1].features(caption)).T
        for head in (whole, summed)
    ]
    np.testing.assert_allclose(scores[1], scores[0], atol=2e-4)


def test_it_finds_what_no_linear_map_does() -> None:
    views = bent_views()
    train, val, test = (part(views, s) for s in (slice(240), slice(240, 320), slice(320, 400)))
    bent, _ = choose_kernel_cca(*train, value=lambda head: rsum(head, val), scale=1.5)
    straight, _ = choose_cca(*train, value=lambda head: rsum(head, val))
    assert rsum(bent, test) > 300 > 250 > rsum(straight, test)


def test_the_choice_is_the_one_of_most_value() -> None:
    views = part(bent_views(), slice(100))
    seen: list[tuple[int, float]] = []

    def value(head: KernelCCA) -> float:
        seen.append((head.cca.width, rsum(head, views)))
        return -abs(head.cca.width - 8)

    head, facts = choose_kernel_cca(*views, value=value, widths=(4, 8, 16), shrinkages=(0.1, 1.0))
    assert head.cca.width == facts["width"] == 8
    assert [width for width, _ in seen] == [4, 8, 16, 4, 8, 16]
    assert facts["shrinkage"] == 0.1, "the first of equals"


def test_it_comes_back_from_its_arrays_to_the_bit() -> None:
    views = part(bent_views(), slice(50))
    head = fitted(views)
    again = KernelCCA.from_arrays(head.arrays())
    for side, values in zip(SIDES, views, strict=False):
        np.testing.assert_array_equal(again.encode(side, values), head.encode(side, values))
    assert all(x.dtype == np.float32 for x in astuple(again.image))


def test_many_items_are_encoded_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    views = part(bent_views(), slice(50))
    head = fitted(views)
    whole = head.encode("caption", views[1])
    monkeypatch.setattr(kernel_cca, "ITEMS_AT_ONCE", 7)
    np.testing.assert_allclose(head.encode("caption", views[1]), whole, atol=1e-6)
    assert head.encode("caption", views[1][:0]).shape == (0, head.cca.width)


def test_the_same_seed_gives_the_same_head_and_leaves_the_random_numbers_alone() -> None:
    import torch

    views = part(bent_views(), slice(50))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, second, other = fitted(views), fitted(views), fitted(views, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(first.cca.image_map, second.cca.image_map)
    assert not np.array_equal(first.image.frequencies, other.image.frequencies)
    assert not np.array_equal(first.image.phases, first.caption.phases)


def test_items_that_are_all_alike_give_finite_numbers() -> None:
    image, caption, owner = part(bent_views(), slice(30))
    head = fitted((np.ones_like(image), caption, owner))
    for side, values in zip(SIDES, (image, caption), strict=True):
        assert np.isfinite(head.encode(side, values)).all()


def test_two_images_are_enough_and_one_caption_is_refused() -> None:
    image, caption, owner = part(bent_views(), slice(2))
    assert np.isfinite(fitted((image, caption, owner)).encode("image", image)).all()
    with pytest.raises(UsageError, match="two captions at least, got 1"):
        fitted((image, caption[:1], owner[:1]))
    with pytest.raises(UsageError, match="images of captions"):
        fitted((image, caption, owner[:-1]))
