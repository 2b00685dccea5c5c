"""Stored features as the networks take them."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from hada.fuse.settings import Inputs

# The two scalars the authors standardise every unit-length feature with, text and image alike.
PUBLISHED_MEAN, PUBLISHED_STD = -0.0006847491604276001, 0.036077868193387985


def prepare(x_SD: Tensor, inputs: Inputs) -> Tensor:
    """Stored features as a branch takes them.

    `as-is` takes them as they are (HADA-LAVIS), `l2` gives every row length 1 (Baseline_m).
    `unit` gives it length sqrt(D), so its numbers are about 1 whatever the model; `published`
    (HADA_m) gives it length 1 and standardises with the authors' two scalars, which at the
    paper's width of 768 is nearly the same.
    """
    if inputs == "as-is":
        return x_SD
    unit = F.normalize(x_SD, dim=-1)
    if inputs == "l2":
        return unit
    if inputs == "unit":
        return unit * math.sqrt(x_SD.shape[-1])
    return (unit - PUBLISHED_MEAN) / PUBLISHED_STD
