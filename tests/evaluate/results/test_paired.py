"""Every method against every other: what `gain` is for one baseline, for all of them."""

from __future__ import annotations

from typing import Any

import galleries
import numpy as np
import pytest

from hada.evaluate.methods.combinations import mean_of_cosines, single_models
from hada.evaluate.results.measure import measure
from hada.evaluate.results.paired import FIGURES, paired_differences, resampled_figures
from hada.evaluate.results.read import ranks_of
from hada.evaluate.results.significance import Hits, draws


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("paired")
    gallery = galleries.make_gallery(folder, {"one": 0.4, "two": 0.7, "three": 1.0}, images=24)
    singles = single_models(gallery)
    methods = [*singles, mean_of_cosines(singles)]
    return measure(gallery, methods, resamples=300, seed=5, folds=3)


def test_gains_are_those_of_the_result(result: dict[str, Any]) -> None:
    found = paired_differences(result, resamples=300, seed=5)
    seen = 0
    for method in result["methods"]:
        gain = method["gain"]
        if gain is None:
            continue
        seen += 1
        again = found[gain["over"]][method["name"]]["rsum"]
        assert again["value"] == pytest.approx(gain["rsum"])
        for name in ("low", "high", "half_width", "p"):
            assert again[name] == pytest.approx(gain[name])
    assert seen == 3
    assert set(found) == {method["name"] for method in result["methods"]}
    for base, gaps in found.items():
        assert set(gaps) == set(found) - {base}


def test_both_ways_round_are_one_difference(result: dict[str, Any]) -> None:
    found = paired_differences(result, resamples=300, seed=5)
    for figure in FIGURES:
        there, back = found["one"]["two"][figure], found["two"]["one"][figure]
        assert there["value"] == pytest.approx(-back["value"])
        assert (there["low"], there["high"]) == pytest.approx((-back["high"], -back["low"]))
    assert found["one"]["two"]["t2i_R@1"]["low"] < found["one"]["two"]["t2i_R@1"]["high"]


def test_figures_of_resamples_equal_a_slow_loop(result: dict[str, Any]) -> None:
    hits, figures = [], []
    for method in result["methods"]:
        ranks, caption_to_image = ranks_of(result, method)
        hits.append(Hits.of(ranks, caption_to_image, folds=3))
        figures.append((ranks, caption_to_image))
    found = resampled_figures(hits, resamples=20, seed=1)
    (counts_RI,) = draws(24, 3, 20, 1)
    for (ranks, caption_to_image), own in zip(figures, found, strict=True):
        for number, counts in enumerate(counts_RI):
            for way, k in (("i2t", 1), ("i2t", 10), ("t2i", 5)):
                shares = []
                for fold in range(3):
                    rows = np.arange(fold * 8, fold * 8 + 8)
                    if way == "i2t":
                        values, weights = ranks.i2t_hits(k)[rows], counts[rows]
                    else:
                        inside = np.isin(caption_to_image, rows)
                        values = ranks.t2i_hits(k)[inside]
                        weights = counts[caption_to_image[inside]]
                    shares.append(100 * (values * weights).sum() / weights.sum())
                assert own[f"{way}_R@{k}"][number] == pytest.approx(np.mean(shares))
    for own in found:
        np.testing.assert_allclose(own["rsum"], sum(own[name] for name in FIGURES[:-1]))


def test_p_is_withheld_where_a_side_saw_the_split(result: dict[str, Any]) -> None:
    methods = [dict(method) for method in result["methods"]]
    methods[1]["saw_split"] = [
        {"how": "tuned on", "dataset": "tiny", "split": "val", "images": None}
    ]
    seen = {**result, "methods": methods}
    found = paired_differences(seen, resamples=100, seed=0)
    name = methods[1]["name"]
    assert found["one" if name != "one" else "two"][name]["rsum"]["p"] is None
    assert "tuned on" in found[name]["mean of cosines"]["rsum"]["withheld"]
    assert found["one"]["three"]["rsum"]["p"] is not None
    anyway = paired_differences(seen, resamples=100, seed=0, p_values_anyway=True)
    assert anyway[name]["mean of cosines"]["rsum"]["p"] is not None
