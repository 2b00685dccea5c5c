"""Recall of every method on one split, with its protocol, as one plain result."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.effort import effort
from hada.evaluate.methods.gallery import Gallery, Method
from hada.evaluate.methods.seen import saw
from hada.evaluate.results.flattery import flattered
from hada.evaluate.results.packing import pack, pack_ranks
from hada.evaluate.results.read import SCHEMA
from hada.evaluate.results.significance import Hits, Interval, bootstrap_rsums, difference, interval
from hada.extract import __version__
from hada.extract.common.errors import UsageError
from hada.fuse.ranking.ranks import KS, Ranks, recalls

# Kinds of methods that combine models without a graph.
SIMPLE = ("mean", "weighted", "rrf", "linear", "cca", "late", "corrected")
Part = tuple[NDArray[np.int64], NDArray[np.int64]]
_CLIP_BENCHMARK = {"i2t": "text_retrieval_recall", "t2i": "image_retrieval_recall"}


def measure(
    gallery: Gallery,
    methods: Sequence[Method],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    folds: int = 1,
    device: str = "cpu",
    p_values_anyway: bool = False,
) -> dict[str, Any]:
    """Measure all methods on one gallery.

    Args:
        gallery: The images and captions that every method scores.
        methods: Ways of scoring; their names must differ.
        resamples: Resamples of the bootstrap over images.
        seed: Seed of the bootstrap.
        folds: Number of galleries of consecutive images; figures are means over them. Five folds
            of COCO's 5,000 images are the field's "COCO 1K".
        device: `cpu`, `cuda` or `cuda:N`, for the product of embeddings; ranks are the same.
        p_values_anyway: Give p-values also where the parameters of either side of a gain saw
            images of this split. Otherwise such a p is None and `withheld` gives the reason.

    Returns:
        Plain values, ready for JSON: `protocol` (dataset, split, sizes, score, tie rule),
        `stores` (model -> spec digest), `items` (what `compare` needs to pair two results),
        `methods` in the order given. Each method has `metrics` (percent; ranks count from 1),
        CLIP_benchmark's keys as fractions, `ranks` (packed, per item), `rsum_interval`, its
        `class`, `stages` and `multiply_adds_per_query` (`hada.evaluate.methods.effort`), its
        `gain` over the best single model and its `gain_over_simple`, over the best simple
        method, corrected ones among them: paired, by image. `fitted_on` is what its parameters
        come from, `saw_split` those of them that have images of this split (see
        `hada.evaluate.methods.seen`).

    Raises:
        UsageError: The images cannot be cut into so many folds of one size.
    """
    cut = parts_of(gallery.caption_to_image, folds)
    ranks = [ranks_in_folds(method, gallery.caption_to_image, cut, device) for method in methods]
    tables = [mean_table(rank, cut) for rank in ranks]
    resampled = bootstrap_rsums(
        [Hits.of(rank, gallery.caption_to_image, folds=folds) for rank in ranks],
        resamples=resamples,
        seed=seed,
    )
    protocol = _protocol(gallery, cut)
    past = [_past(gallery, method) for method in methods]
    why = [flattered(one, protocol) for one in past]
    best = _best(methods, tables, ("model",))
    simple = _best(methods, tables, SIMPLE)

    def gain(number: int, other: int | None) -> dict[str, Any] | None:
        if other is None or number == other:
            return None
        reasons = {methods[n].name: why[n] for n in (number, other)}
        return {
            "over": methods[other].name,
            "rsum": tables[number]["rsum"] - tables[other]["rsum"],
            **withheld(
                plain(difference(resampled[number], resampled[other])),
                {} if p_values_anyway else reasons,
            ),
        }

    sizes = len(gallery.image_rows) // folds, len(gallery.caption_rows) // folds
    return {
        **_header(gallery, resamples, seed),
        "protocol": {
            **protocol,
            "intervals": f"95 %, paired bootstrap by image, {resamples} resamples",
            "compared_with": methods[best].name if best is not None else None,
            "p_values": "all, as asked for"
            if p_values_anyway
            else "withheld where either side saw images of this split",
        },
        "methods": [
            {
                "name": method.name,
                "note": method.note,
                **past[number],
                **method.details,
                **effort(method, *sizes),
                "metrics": tables[number],
                "clip_benchmark": _clip_benchmark(tables[number]),
                "ranks": pack_ranks(ranks[number]),
                "rsum_interval": plain(interval(resampled[number]))
                | ({"flattered": why[number]} if why[number] else {}),
                "gain": gain(number, best),
                "gain_over_simple": gain(number, simple) if method.kind == "hada" else None,
            }
            for number, method in enumerate(methods)
        ],
    }


def _header(gallery: Gallery, resamples: int, seed: int) -> dict[str, Any]:
    """What a result says of itself before its protocol and methods."""
    return {
        "schema": SCHEMA,
        "task": "image_text_retrieval",
        "stores": {store.spec.model.name: store.spec.digest() for store in gallery.stores},
        "items": {
            "digest": items_digest(gallery),
            "caption_to_image": pack(gallery.caption_to_image),
        },
        "seed": seed,
        "resamples": resamples,
        "environment": {
            "hada": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
    }


def _past(gallery: Gallery, method: Method) -> dict[str, Any]:
    """What a method's parameters come from, and which of that has images of this split."""
    return {
        "kind": method.kind,
        "fitted_on": [entry.plain() for entry in method.fitted],
        "saw_split": saw(method.fitted, gallery.stores, gallery.image_rows),
    }


def parts_of(caption_to_image: NDArray[np.int64], folds: int) -> list[Part]:
    """The rows of images and captions of each fold.

    >>> [(i.tolist(), t.tolist()) for i, t in parts_of(np.array([0, 0, 1]), 2)]
    [([0], [0, 1]), ([1], [2])]
    """
    images = int(caption_to_image.max()) + 1
    if folds < 1 or images % folds:
        raise UsageError(
            f"--folds {folds}: {images} images cannot be cut into {folds} equal parts; "
            "the field's COCO 1K is 5,000 images in 5 folds"
        )
    of = caption_to_image // (images // folds)
    rows = np.split(np.arange(images), folds)
    return [(rows[fold], np.flatnonzero(of == fold)) for fold in range(folds)]


def ranks_in_folds(
    method: Method, caption_to_image: NDArray[np.int64], cut: Sequence[Part], device: str = "cpu"
) -> Ranks:
    """Each query's rank within the gallery of its own fold.

    Args:
        method: Ranks.
        caption_to_image: Entry j is the image row of caption j, e.g. `[0, 0, 1, 1]`.
        cut: The rows of images and captions of each fold.
        device: Where scores are computed.
    """
    if len(cut) == 1:
        return method.ranks(caption_to_image, device=device)
    columns: dict[str, NDArray[np.int64]] = {}
    for images, captions in cut:
        own = method.part(images, captions).ranks(
            caption_to_image[captions] - images[0], device=device
        )
        for name, values in vars(own).items():
            rows, total = (
                (images, cut_size(cut, 0)) if name[0] == "i" else (captions, len(caption_to_image))
            )
            columns.setdefault(name, np.zeros(total, np.int64))[rows] = values
    return Ranks(**columns)


def cut_size(cut: Sequence[Part], side: int) -> int:
    """How many images (side 0) or captions (side 1) all folds have together."""
    return sum(len(part[side]) for part in cut)


def items_digest(gallery: Gallery) -> str:
    """A hash of the images and captions that were ranked, in their order."""
    first = gallery.stores[0]
    ids = [[first.image.ids[i] for i in gallery.image_rows]]
    ids += [[first.caption.ids[i] for i in gallery.caption_rows]]
    return hashlib.sha256(
        json.dumps([ids, gallery.caption_to_image.tolist()]).encode()
    ).hexdigest()[:16]


def mean_table(ranks: Ranks, cut: Sequence[Part]) -> dict[str, float]:
    """Mean of the folds' figures, given ranks within them."""
    tables = []
    for part in cut:
        own = {k: v[part[0] if k[0] == "i" else part[1]] for k, v in vars(ranks).items()}
        tables.append(recalls(Ranks(**own)))
    return {name: float(np.mean([table[name] for table in tables])) for name in tables[0]}


def _protocol(gallery: Gallery, cut: Sequence[Part]) -> dict[str, Any]:
    spec = gallery.stores[0].spec
    return {
        "dataset": spec.dataset,
        "split": spec.split,
        "dataset_digest": spec.dataset_digest,
        "images": len(gallery.image_rows),
        "captions": len(gallery.caption_rows),
        "left_out_images": len(gallery.stores[0].image.ids) - len(gallery.image_rows),
        "left_out_captions": len(gallery.stores[0].caption.ids) - len(gallery.caption_rows),
        "folds": len(cut),
        "gallery": {
            "i2t": [len(captions) for _, captions in cut] if cut[1:] else len(cut[0][1]),
            "t2i": [len(images) for images, _ in cut] if cut[1:] else len(cut[0][0]),
        },
        "score": "of every image with every caption; re-ranked methods reorder the first results",
        "ties": "expected recall over random orders",
    }


def _best(
    methods: Sequence[Method], tables: Sequence[dict[str, float]], kinds: Sequence[str]
) -> int | None:
    candidates = [number for number, method in enumerate(methods) if method.kind in kinds]
    return max(candidates, key=lambda number: tables[number]["rsum"], default=None)


def _clip_benchmark(table: dict[str, float]) -> dict[str, float]:
    return {
        f"{name}@{k}": table[f"{way}_R@{k}"] / 100
        for way, name in _CLIP_BENCHMARK.items()
        for k in KS
    }


def plain(spread: Interval) -> dict[str, Any]:
    """An interval for JSON."""
    values = {"low": spread.low, "high": spread.high, "half_width": spread.half_width}
    return values if spread.p is None else values | {"p": spread.p}


def withheld(gain: dict[str, Any], why: Mapping[str, str]) -> dict[str, Any]:
    """A gain without its p-value where one of its sides is flattered. `why`: name -> reason or "".

    >>> withheld({"low": 1.0, "p": 0.02}, {"x": "tuned on val", "y": ""})
    {'low': 1.0, 'p': None, 'withheld': 'x: tuned on val'}
    """
    reasons = "; ".join(f"{name}: {reason}" for name, reason in why.items() if reason)
    return gain | {"p": None, "withheld": reasons} if reasons else gain
