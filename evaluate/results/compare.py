"""Two results side by side: paired by image where both hold ranks of the same items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hada.evaluate.results.flattery import flattered
from hada.evaluate.results.measure import plain, withheld
from hada.evaluate.results.read import ranks_of
from hada.evaluate.results.significance import Hits, bootstrap_rsums, difference, interval
from hada.evaluate.results.text import judged
from hada.extract.common.errors import UsageError, unknown
from hada.fuse.ranking.ranks import KS, Ranks


def choose_method(result: dict[str, Any], name: str | None, path: Path) -> dict[str, Any]:
    """Choose one method of a result.

    Args:
        result: As `hada.evaluate.results.read.read_result` returns it.
        name: The name of a method, or of a run without "HADA"; None for the last fusion, or the
            method with the best RSum where there is none.
        path: The file of the result, for messages.

    Raises:
        UnknownNameError: The result has no method of that name.
    """
    methods = {method["name"]: method for method in result["methods"]}
    if name is None:
        fused = [method for method in result["methods"] if method["kind"] == "hada"]
        best = max(result["methods"], key=lambda method: method["metrics"]["rsum"])
        chosen: dict[str, Any] = fused[-1] if fused else best
        return chosen
    for known in (name, f"HADA {name}"):
        if known in methods:
            named: dict[str, Any] = methods[known]
            return named
    raise unknown(f"method of {path}:", name, methods)


def compare(
    first: tuple[dict[str, Any], dict[str, Any]],
    second: tuple[dict[str, Any], dict[str, Any]],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    p_values_anyway: bool = False,
) -> dict[str, Any]:
    """How two methods differ, each given with the result that it is from.

    Args:
        first: A result (`hada.evaluate.results.read.read_result`) and one of its methods.
        second: Likewise; both may be of the same result.
        resamples: Resamples of the bootstrap over images.
        seed: Seed of the bootstrap.
        p_values_anyway: Give p-values also where a method's parameters saw the split.

    Returns:
        `paired`, `differences` (second minus first; percent points) of every recall and of RSum,
        and `rsum`: the interval and p-value of its difference. Unpaired results are resampled
        independently, which gives wider intervals. `flattered` says for each side whether its
        parameters saw the split; then p is None, unless `p_values_anyway`.

    Raises:
        UsageError: The two are of other datasets, splits or protocols, or of other galleries.
    """
    (result_a, method_a), (result_b, method_b) = first, second
    _check_comparable(result_a["protocol"], result_b["protocol"])
    paired = _identity(result_a) == _identity(result_b)
    ranks_a, caption_to_image_a = ranks_of(result_a, method_a)
    ranks_b, caption_to_image_b = ranks_of(result_b, method_b)
    if paired and not np.array_equal(caption_to_image_a, caption_to_image_b):
        raise UsageError(
            "these results say that they are of the same items, but their captions belong to "
            "other images: one of the files was changed. Make it again: hada-evaluate recall"
        )
    hits = [
        Hits.of(ranks, caption_to_image, folds=result["protocol"]["folds"])
        for ranks, caption_to_image, result in (
            (ranks_a, caption_to_image_a, result_a),
            (ranks_b, caption_to_image_b, result_b),
        )
    ]
    if paired:
        one, two = bootstrap_rsums(hits, resamples=resamples, seed=seed)
    else:
        one = bootstrap_rsums(hits[:1], resamples=resamples, seed=seed)[0]
        two = bootstrap_rsums(hits[1:], resamples=resamples, seed=seed + 1)[0]
    why = {
        method["name"]: flattered(method, result["protocol"]) for result, method in (first, second)
    }
    gap = withheld(plain(difference(two, one)), {} if p_values_anyway else why)
    names = [f"{way}_R@{k}" for way in ("i2t", "t2i") for k in KS] + ["rsum"]
    table_a, table_b = method_a["metrics"], method_b["metrics"]
    return {
        "first": method_a["name"],
        "second": method_b["name"],
        "paired": paired,
        "differences": {name: table_b[name] - table_a[name] for name in names},
        "rsum": gap,
        "flattered": [flattered(method, result["protocol"]) for result, method in (first, second)],
        "intervals": [
            {"low": spread.low, "high": spread.high} for spread in (interval(one), interval(two))
        ],
        "queries": _won_and_lost(ranks_a, ranks_b) if paired else None,
    }


def _check_comparable(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Raise `UsageError` where two protocols rank in other galleries."""
    for field in ("dataset", "split", "folds", "images", "captions"):
        if first[field] != second[field]:
            raise UsageError(
                f"these results cannot be compared: {field} is {first[field]!r} in the first and "
                f"{second[field]!r} in the second; recall depends on the gallery"
            )


def sentences(comparison: dict[str, Any]) -> list[str]:
    """A comparison in words."""
    gap, rsum = comparison["rsum"], comparison["differences"]["rsum"]
    pairing = "paired by image" if comparison["paired"] else "not paired: the items differ"
    sides = (comparison["first"], comparison["second"])
    why = dict(zip(sides, comparison["flattered"], strict=True))
    lines = [
        judged(sides[1], sides[0], {**gap, "rsum": rsum}, why, pairing),
        ", ".join(f"{k} {v:+.1f}" for k, v in comparison["differences"].items() if k != "rsum"),
    ]
    for way, what in (("i2t", "image"), ("t2i", "caption")):
        if comparison["queries"]:
            won, lost = (comparison["queries"][way][name] for name in ("better", "worse"))
            lines.append(f"{what} queries: {won:,} rank better, {lost:,} rank worse")
    return lines


def _identity(result: dict[str, Any]) -> tuple[str, str | None]:
    """What makes the queries of two results the same: ids in their order, and captions."""
    return result["items"]["digest"], result["protocol"].get("dataset_digest")


def _won_and_lost(a: Ranks, b: Ranks) -> dict[str, dict[str, int]]:
    return {
        way: {
            "better": int(np.sum(getattr(b, way) < getattr(a, way))),
            "worse": int(np.sum(getattr(b, way) > getattr(a, way))),
        }
        for way in ("i2t", "t2i")
    }
