"""The CCA head: equal to a plain one, invariant where it must be, and it finds what is shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hada.extract.common.errors import UsageError
from hada.fuse.closed_form.cca import CCA, choose_cca, fit_cca
from hada.fuse.ranking.ranks import rank_positives, recalls

Views = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]


def views(images: int = 60, shared: int = 4, seed: int = 0) -> Views:
    """Two views of a few shared numbers among louder ones of their own; 1 to 3 captions."""
    draw = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), draw.integers(1, 4, images))
    truth = draw.normal(size=(images, shared))
    image = np.concatenate([truth, 5 * draw.normal(size=(images, 8))], axis=1)
    caption = np.concatenate([truth[owner], 5 * draw.normal(size=(len(owner), 6))], axis=1)
    turns = [np.linalg.qr(draw.normal(size=(n, n)))[0] for n in (12, 10)]
    return (image @ turns[0] + 3).astype("f4"), (caption @ turns[1] - 2).astype("f4"), owner


def plain(image: Any, caption: Any, owner: Any, shrinkage: float, width: int) -> tuple[Any, Any]:
    """Pair by pair, by the inverse square roots of the covariances."""
    x, y = image[owner].astype("f8"), caption.astype("f8")
    x, y = x - x.mean(0), y - y.mean(0)
    roots = []
    for z in (x, y):
        c = z.T @ z / len(z)
        values, vectors = np.linalg.eigh(c + shrinkage * np.trace(c) / len(c) * np.eye(len(c)))
        roots.append(vectors @ np.diag(values**-0.5) @ vectors.T)
    u, s, v = np.linalg.svd(roots[0] @ (x.T @ y / len(x)) @ roots[1])
    maps = roots[0] @ u[:, :width], roots[1] @ v[:width].T
    sides = [
        (z.astype("f8") - mean) @ (m * np.sqrt(s[:width]))
        for z, mean, m in zip(
            (image, caption), (image[owner].mean(0), caption.mean(0)), maps, strict=True
        )
    ]
    image_unit, caption_unit = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in sides)
    return image_unit, caption_unit


@pytest.mark.parametrize(("shrinkage", "width"), [(0.01, 3), (0.3, 10), (1.0, 1)])
def test_scores_equal_the_plain_ones(shrinkage: float, width: int) -> None:
    image, caption, owner = views()
    head = fit_cca(image, caption, owner, shrinkage=shrinkage, width=width)
    one, other = plain(image, caption, owner, shrinkage, width)
    # Singular vectors have no sign of their own; the scores have.
    found = head.encode("image", image) @ head.encode("caption", caption).T
    np.testing.assert_allclose(found, one @ other.T, atol=2e-4)
    assert head.width == width


def test_it_finds_what_both_views_share() -> None:
    image, caption, owner = views(images=200)
    head = fit_cca(image[:100], caption[owner < 100], owner[owner < 100], shrinkage=0.01, width=4)
    later = owner >= 100
    pair = head.encode("image", image[100:]), head.encode("caption", caption[later])
    rsum = recalls(rank_positives(*pair, owner[later] - 100))["rsum"]
    raw = image[100:, :10], caption[later]
    assert rsum > 450 > 100 > recalls(rank_positives(*raw, owner[later] - 100))["rsum"]


def test_a_width_beyond_the_narrower_side_keeps_all() -> None:
    image, caption, owner = views()
    assert fit_cca(image, caption, owner, shrinkage=0.1, width=999).width == 10
    assert fit_cca(image[:, :7], caption, owner, shrinkage=0.1, width=999).width == 7


def test_the_choice_is_the_best_on_folds_and_fitted_on_everything() -> None:
    image, caption, owner = views(images=200)
    head, facts = choose_cca(image, caption, owner, shrinkages=(0.01, 100.0), widths=(1, 4))
    assert (facts["shrinkage"], facts["width"]) == (0.01, 4)
    whole = fit_cca(image, caption, owner, shrinkage=0.01, width=4)
    np.testing.assert_array_equal(head.image_map, whole.image_map)


def test_what_a_head_is_wanted_for_may_choose_it() -> None:
    image, caption, owner = views(images=200)
    asked = []

    def value(head: CCA) -> float:
        asked.append(head)
        return float(head.width == 2)

    head, facts = choose_cca(
        image, caption, owner, shrinkages=(0.01, 1.0), widths=(1, 2, 4), value=value
    )
    assert len(asked) == 6
    assert facts == {"shrinkage": 0.01, "width": 2}
    whole = fit_cca(image, caption, owner, shrinkage=0.01, width=2)
    np.testing.assert_allclose(head.image_map, whole.image_map, atol=1e-6)


def test_rows_that_are_all_alike_do_no_harm() -> None:
    image, caption, owner = views()
    head = fit_cca(np.ones_like(image), caption, owner, shrinkage=0.1, width=3)
    assert np.isfinite(head.encode("image", np.ones_like(image))).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"shrinkage": 0.0}, "shrinkage"), ({"shrinkage": float("nan")}, "shrinkage"),
     ({"width": 0}, "width")],
)  # fmt: skip
def test_numbers_out_of_range_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit_cca(*views(), **{"shrinkage": 0.1, "width": 2, **changes})


def test_too_few_pairs_are_told() -> None:
    image, caption, owner = views()
    with pytest.raises(UsageError, match="two captions"):
        fit_cca(image[:1], caption[:1], owner[:1], shrinkage=0.1, width=2)
    few = owner < 4
    with pytest.raises(UsageError, match=r"4 images are too few .* 3 folds of them: 6 are"):
        choose_cca(image[:4], caption[few], owner[few])
