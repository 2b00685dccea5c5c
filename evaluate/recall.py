"""Recall of every rung on one split, with its protocol, as one plain result."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from hada.evaluate.rungs import Gallery, Rung
from hada.evaluate.significance import Hits, Interval, bootstrap_rsums, difference, interval
from hada.extract import __version__
from hada.fuse.ranking import KS, rank_positives, recalls

SCHEMA = 1
_CLIP_BENCHMARK = {"i2t": "text_retrieval_recall", "t2i": "image_retrieval_recall"}


def evaluate(
    gallery: Gallery, rungs: Sequence[Rung], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Measure all rungs on one gallery.

    Returns:
        Plain values, ready for JSON: `protocol` (dataset, split, sizes, score, tie rule),
        `stores` (model -> spec digest), `rungs` in the order given. Each rung has `metrics`
        (percent; ranks count from 1), CLIP_benchmark's keys as fractions, `rsum_interval`
        and its `gain` over the best single model: paired, by image.
    """
    ranks = [rank_positives(*rung.pair, gallery.owner) for rung in rungs]
    tables = [recalls(rank) for rank in ranks]
    resampled = bootstrap_rsums(
        [Hits.of(rank, gallery.owner) for rank in ranks], resamples=resamples, seed=seed
    )
    best = _best_single(rungs, tables)
    spec = gallery.stores[0].spec
    return {
        "schema": SCHEMA,
        "task": "image_text_retrieval",
        "protocol": {
            "dataset": spec.dataset,
            "split": spec.split,
            "dataset_digest": spec.dataset_digest,
            "images": len(gallery.image_rows),
            "captions": len(gallery.caption_rows),
            "left_out_images": len(gallery.stores[0].image.ids) - len(gallery.image_rows),
            "gallery": {"i2t": len(gallery.caption_rows), "t2i": len(gallery.image_rows)},
            "score": "cosine, single stage",
            "ties": "expected recall over random orders",
            "intervals": f"95 %, paired bootstrap by image, {resamples} resamples",
            "compared_with": rungs[best].name if best is not None else None,
        },
        "stores": {store.spec.model.name: store.spec.digest() for store in gallery.stores},
        "seed": seed,
        "environment": {
            "hada": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "rungs": [
            {
                "name": rung.name,
                "kind": rung.kind,
                "note": rung.note,
                **rung.details,
                "metrics": table,
                "clip_benchmark": _clip_benchmark(table),
                "rsum_interval": _plain(interval(values)),
                "gain": None
                if best is None or number == best
                else {
                    "rsum": table["rsum"] - tables[best]["rsum"],
                    **_plain(difference(values, resampled[best])),
                },
            }
            for number, (rung, table, values) in enumerate(
                zip(rungs, tables, resampled, strict=True)
            )
        ],
    }


def _best_single(rungs: Sequence[Rung], tables: Sequence[dict[str, float]]) -> int | None:
    singles = [number for number, rung in enumerate(rungs) if rung.kind == "model"]
    return max(singles, key=lambda number: tables[number]["rsum"], default=None)


def _clip_benchmark(table: dict[str, float]) -> dict[str, float]:
    return {
        f"{name}@{k}": table[f"{way}_R@{k}"] / 100
        for way, name in _CLIP_BENCHMARK.items()
        for k in KS
    }


def _plain(found: Interval) -> dict[str, float]:
    plain = {"low": found.low, "high": found.high, "half_width": found.half_width}
    return plain if found.p is None else plain | {"p": found.p}
