"""Results of `hada-evaluate recall` read back: their shape and their packed ranks checked.

Only what `compare` and `table` use is looked at; what else a result holds is let pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from hada.evaluate.results.packing import unpack, unpack_ranks
from hada.extract.common.documents import LARGE_BYTES, read_json
from hada.extract.common.errors import UsageError, nearest
from hada.extract.common.shapes import conform
from hada.fuse.ranking.ranks import KS, Ranks

SCHEMA = 2
_AGAIN = "Make it again: hada-evaluate recall"
_FIGURES = (
    *(f"{way}_R@{k}" for way in ("i2t", "t2i") for k in KS),
    *(f"{way}_{what}" for way in ("i2t", "t2i") for what in ("medr", "meanr")),
    "rsum",
)
_Figure = Annotated[float, Meta(ge=0, le=1e12)]
_Count = Annotated[int, Meta(ge=1, le=2**26)]


class _Spread(TypedDict):
    half_width: _Figure


class _Fitted(TypedDict):
    split: str | None


class _Seen(TypedDict):
    how: str
    dataset: str
    split: str
    images: int | None


class _Rung(TypedDict):
    fitted_on: NotRequired[list[_Fitted]]
    saw_split: NotRequired[list[_Seen] | None]
    name: str
    kind: str
    metrics: dict[str, _Figure]
    ranks: dict[str, str]
    rsum_interval: _Spread


class _Protocol(TypedDict):
    dataset: str
    split: str
    images: _Count
    captions: _Count
    folds: _Count
    dataset_digest: NotRequired[str | None]


class _Items(TypedDict):
    digest: str
    owner: str


class _Result(TypedDict):
    protocol: _Protocol
    items: _Items
    rungs: Annotated[list[_Rung], Meta(min_length=1)]


def read_result(path: Path) -> dict[str, Any]:
    """A result of `hada-evaluate recall`; raises `UsageError` for any other file."""
    result = read_json(
        path, most=LARGE_BYTES, absent="Make it first: hada-evaluate recall", remedy=_AGAIN
    )
    if not isinstance(result, dict) or not {"protocol", "rungs", "schema"} <= set(result):
        raise UsageError(f"{path}: not a result of hada-evaluate recall")
    if result["schema"] != SCHEMA:
        raise UsageError(
            f"{path}: schema: expected {SCHEMA}, got {result['schema']!r}; run hada-evaluate "
            "recall again"
        )
    conform(result, _Result, str(path), remedy=_AGAIN)
    images, folds = result["protocol"]["images"], result["protocol"]["folds"]
    if images % folds:
        raise UsageError(f"{path}: protocol: {images:,} images in {folds:,} folds. {_AGAIN}")
    for number, rung in enumerate(result["rungs"]):
        for name in _FIGURES:
            if name not in rung["metrics"]:
                raise UsageError(
                    f"{path}: rungs[{number}].metrics: {name!r} is missing. "
                    f"{nearest(name, rung['metrics'])} {_AGAIN}"
                )
    return result


def ranks_of(result: dict[str, Any], rung: dict[str, Any]) -> tuple[Ranks, NDArray[np.int64]]:
    """A rung's ranks and the image row of every caption; raises `UsageError` if they cannot be."""
    images, captions = result["protocol"]["images"], result["protocol"]["captions"]
    owner = unpack(result["items"]["owner"], captions)
    if owner.min() < 0 or owner.max() >= images or len(np.unique(owner)) != images:
        raise UsageError(f"a result's captions do not belong to its {images:,} images. {_AGAIN}")
    ranks = unpack_ranks(rung["ranks"], images, captions)
    for way, gallery in (("i2t", captions), ("t2i", images)):
        low, high, tied = (getattr(ranks, f"{way}_{name}") for name in ("lo", "hi", "tied"))
        fit = (low >= 0) & (low <= high) & (high < gallery) & (tied >= 1) & (tied <= captions)
        if not fit.all():
            raise UsageError(
                f"the packed ranks of {rung['name']!r} ({way}) are none of {gallery:,} places. "
                f"{_AGAIN}"
            )
    return ranks, owner
