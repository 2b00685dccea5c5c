"""The square transform of ALBEF and BLIP against numbers made pixel by pixel."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from hada.extract.backbones.preprocessing import Squash

# OpenAI's, which ALBEF's and BLIP's authors took over.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def test_a_plain_picture_becomes_its_standardised_colour() -> None:
    picture = PIL.Image.new("RGB", (7, 5), (255, 51, 0))
    found = Squash(4)(picture)
    assert (found.shape, found.dtype) == ((3, 4, 4), np.float32)
    for channel, value in enumerate((1.0, 0.2, 0.0)):
        want = (value - MEAN[channel]) / STD[channel]
        np.testing.assert_allclose(found[channel], want, rtol=1e-5)


@pytest.mark.parametrize("size", [(9, 6), (3, 8)])
def test_a_picture_is_squashed_bicubically_and_not_cropped(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    picture = PIL.Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
    want = np.asarray(picture.resize((6, 6), PIL.Image.Resampling.BICUBIC)) / 255.0
    found = Squash(6)(picture)
    for row in range(6):
        for column in range(6):
            colour = (want[row, column] - MEAN) / STD
            np.testing.assert_allclose(found[:, row, column], colour, atol=1e-5)
    other = np.asarray(picture.resize((6, 6), PIL.Image.Resampling.BILINEAR)) / 255.0
    assert np.abs(other - want).max() > 0.02
