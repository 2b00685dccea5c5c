"""The embeddings of a split, as other programs take them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hada.extract.common.arrays import unit_rows
from hada.fuse.scores.embedded import Embedded


@pytest.mark.parametrize("node_share", [0.0, 0.84])
@pytest.mark.parametrize("corrected", [False, True])
def test_what_is_stored_as_of_unit_length_is(node_share: float, corrected: bool) -> None:
    """And it ranks as the inner products do, whatever part of the score the nodes have."""
    random = np.random.default_rng(0)
    sides = [unit_rows(random.standard_normal((n, 8)).astype("f4")) for n in (5, 10, 5, 10)]
    owner = np.repeat(np.arange(5), 2)
    rest = 1 - node_share
    found = Embedded(
        sides[0], sides[1], ((sides[2], sides[3]),), (0.6 * rest, 0.4 * rest),
        np.arange(5), np.arange(10), owner, node_share=node_share,
    )  # fmt: skip
    if corrected:
        paid = random.random(5).astype("f4") / 10, random.random(10).astype("f4") / 10
        found = replace(found, penalties=paid)
    image, caption = found.unit()
    for rows in (image, caption):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    plain = found.image_IE @ found.caption_TE.T
    cosine = image @ caption.T
    ratio = np.polyfit(cosine.ravel(), plain.ravel(), 1)
    np.testing.assert_allclose(np.polyval(ratio, cosine), plain, atol=1e-5)
