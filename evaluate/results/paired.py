"""Every method of a result against every other: paired differences with intervals.

Shape letters: R resamples, I images, K figures of a direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.results.flattery import flattered
from hada.evaluate.results.measure import plain, withheld
from hada.evaluate.results.read import ranks_of
from hada.evaluate.results.significance import Hits, bootstrap_rsums, difference, draws, interval
from hada.fuse.ranking.ranks import KS

WAYS = ("i2t", "t2i")
FIGURES = (*(f"{way}_R@{k}" for way in WAYS for k in KS), "rsum")


def paired_differences(
    result: Mapping[str, Any], *, resamples: int, seed: int, p_values_anyway: bool = False
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """How much each method is above each other one, in every figure.

    Args:
        result: What `hada.evaluate.results.measure.measure` gave, with its packed ranks.
        resamples: Resamples of the bootstrap over images.
        seed: Seed of the bootstrap; that of the result gives the intervals of its `gain`.
        p_values_anyway: Give p-values also where a method's parameters saw the split.

    Returns:
        Baseline -> method -> figure (`i2t_R@1` to `t2i_R@10`, and `rsum`) -> `value`, the
        difference in percent points, and its 95 % interval, `low` and `high`. That of `rsum` has
        `p`, too, or None and the reason under `withheld`.
    """
    methods = result["methods"]
    found = [ranks_of(dict(result), method) for method in methods]
    folds = result["protocol"]["folds"]
    hits = [Hits.of(ranks, caption_to_image, folds=folds) for ranks, caption_to_image in found]
    drawn = resampled_figures(hits, resamples=resamples, seed=seed)
    why = {method["name"]: flattered(method, result["protocol"]) for method in methods}
    return {
        base["name"]: {
            method["name"]: {
                figure: _gap(
                    (method, drawn[row][figure]),
                    (base, drawn[column][figure]),
                    figure,
                    {} if p_values_anyway else why,
                )
                for figure in FIGURES
            }
            for row, method in enumerate(methods)
            if row != column
        }
        for column, base in enumerate(methods)
    }


def resampled_figures(
    hits: Sequence[Hits], *, resamples: int, seed: int
) -> list[dict[str, NDArray[np.float64]]]:
    """(R,) percent of every resample for each of `FIGURES`, for every method: the same draws.

    All recalls of all methods are one product with the draws. RSum is computed as the result's
    gains are: a difference of exactly 0 stays one, which a p-value counts.
    """
    first = hits[0]
    # (I, methods x K) of each direction.
    i2t, t2i = (np.concatenate([getattr(one, way) for one in hits], axis=1) for way in WAYS)
    blocks = []
    for counts_RI in draws(len(first.captions), first.folds, resamples, seed):
        counts = counts_RI.astype(np.float64)
        total = np.zeros((len(counts), len(WAYS), i2t.shape[1]))
        for part in np.split(np.arange(len(i2t)), first.folds):
            drawn = counts[:, part[0] : part[-1] + 1]
            total[:, 0] += drawn @ i2t[part] / drawn.sum(axis=1)[:, None]
            total[:, 1] += drawn @ t2i[part] / (drawn @ first.captions[part])[:, None]
        blocks.append(100 * total / first.folds)
    values = np.concatenate(blocks).reshape(resamples, len(WAYS), len(hits), len(KS))
    rsums = bootstrap_rsums(hits, resamples=resamples, seed=seed)
    return [
        dict(zip(FIGURES, [*values[:, :, number].reshape(resamples, -1).T, rsum], strict=True))
        for number, rsum in enumerate(rsums)
    ]


def _gap(
    method: tuple[Mapping[str, Any], NDArray[np.float64]],
    base: tuple[Mapping[str, Any], NDArray[np.float64]],
    figure: str,
    why: Mapping[str, str],
) -> dict[str, Any]:
    value = method[0]["metrics"][figure] - base[0]["metrics"][figure]
    if figure != "rsum":
        spread = interval(method[1] - base[1])
        return {"value": value, "low": spread.low, "high": spread.high}
    names = (method[0]["name"], base[0]["name"])
    gap = plain(difference(method[1], base[1]))
    return {"value": value, **withheld(gap, {name: why.get(name, "") for name in names})}
