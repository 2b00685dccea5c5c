"""ECCV Caption and CxC: COCO's test split judged with the matches that its captions leave out.

The judgements and metrics are those of the `eccv_caption` package (Chun et al., ECCV 2022), which
knows COCO's own ids. Shape letters: I images, T captions.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery, Method
from hada.extract.common.errors import UsageError

METRICS = ("eccv_map_at_r", "eccv_rprecision", "eccv_r1", "cxc_recalls", "coco_5k_recalls")
# The longest list of matches in the package (48) is shorter than this, so no metric looks further.
DEPTH = 100
BLOCK_NUMBERS = 1 << 22


def metrics() -> Any:
    """The package's judge; raises `UsageError` with the pip line where it is not installed."""
    try:
        with warnings.catch_warnings():  # it recommends a faster JSON reader
            warnings.simplefilter("ignore", UserWarning)
            from eccv_caption import Metrics
    except ModuleNotFoundError as error:
        raise UsageError(
            "--eccv needs the package eccv_caption, which is not installed: "
            "pip install 'hada[eccv]'"
        ) from error
    return Metrics()


def coco_ids(gallery: Gallery) -> tuple[list[int], list[int]]:
    """COCO's numbers of the gallery's images and captions, from the ids of a Karpathy file.

    Raises:
        UsageError: The ids are not COCO's.
    """
    first = gallery.stores[0]
    images = [first.image.ids[i] for i in gallery.image_rows]
    captions = [first.caption.ids[i] for i in gallery.caption_rows]
    numbers = [re.fullmatch(r"(?:COCO_\w+?_)?0*(\d+)(?:\.\w+)?", name) for name in images]
    for name, number in zip(images, numbers, strict=True):
        if number is None:
            raise UsageError(f"--eccv: image {name!r} has no COCO number; it is for COCO's test")
    for name in captions:
        if not name.isdigit():
            raise UsageError(f"--eccv: caption {name!r} has no COCO number; it is for COCO's test")
    return [int(number[1]) for number in numbers if number], [int(name) for name in captions]


def add(result: dict[str, Any], methods: Sequence[Method], gallery: Gallery) -> None:
    """Put the figures of every method that has embeddings into its part of the result.

    They are always of one gallery, whatever the folds of recall; the protocol states it.

    Raises:
        UsageError: The gallery is not the whole of COCO's test split.
    """
    judge_ = metrics()
    images, captions = len(gallery.image_rows), len(gallery.caption_rows)
    result["protocol"]["eccv"] = f"one gallery of {images:,} images and {captions:,} captions"
    for method, part in zip(methods, result["methods"], strict=True):
        if isinstance(method, EmbeddingMethod):
            part["eccv"] = judge(method, gallery, judge_)


def judge(method: EmbeddingMethod, gallery: Gallery, judge_: Any) -> dict[str, Any]:
    """The package's figures for a method, as it names them (fractions, not percent)."""
    image_ids, caption_ids = coco_ids(gallery)
    for what, found_ids, wanted in (
        ("images", image_ids, judge_.coco_gts["i2t"]),
        ("captions", caption_ids, judge_.coco_gts["t2i"]),
    ):
        missing, foreign = len(set(wanted) - set(found_ids)), len(set(found_ids) - set(wanted))
        if missing or foreign:
            raise UsageError(
                f"--eccv: expected the {len(wanted):,} {what} of COCO's test split (Karpathy's); "
                f"{missing:,} are missing or could not be read and {foreign:,} are others: figures "
                "of another gallery are not comparable. Extract that split whole"
            )
    image, caption = method.pair
    figures: dict[str, Any] = judge_.compute_all_metrics(
        retrieved(image, caption, image_ids, caption_ids),
        retrieved(caption, image, caption_ids, image_ids),
        target_metrics=METRICS,
        Ks=(1, 5, 10),
        verbose=False,
    )
    return figures


def retrieved(
    query: NDArray[Any], gallery: NDArray[Any], query_ids: list[int], gallery_ids: list[int]
) -> dict[int, list[int]]:
    """Query id -> ids of its first `DEPTH` results, best first; block of queries by block.

    >>> retrieved(np.eye(2), np.array([[0, 1.0], [1, 0], [0.5, 0]]), [7, 8], [1, 2, 3])[7]
    [2, 3, 1]

    Args:
        query: (Q, E) embeddings.
        gallery: (N, E) embeddings.
        query_ids: ECCV Caption's ids of the queries.
        gallery_ids: Those of the gallery.
    """
    names = np.asarray(gallery_ids)
    depth = min(DEPTH, len(names))
    result: dict[int, list[int]] = {}
    step = max(1, BLOCK_NUMBERS // len(names))
    for start in range(0, len(query), step):
        scores = query[start : start + step] @ gallery.T
        candidates = np.sort(np.argpartition(-scores, depth - 1, axis=1)[:, :depth], axis=1)
        best = np.argsort(-np.take_along_axis(scores, candidates, axis=1), axis=1, kind="stable")
        order = np.take_along_axis(candidates, best, axis=1)
        result.update(zip(query_ids[start : start + step], names[order].tolist(), strict=True))
    return result
