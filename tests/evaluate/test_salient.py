"""WCA against the official outputs, LGCA against the specification's, and their special cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hada.evaluate.crops import weighting
from hada.evaluate.crops.weighting import CLIP, Rules
from hada.extract.common.errors import UsageError

WCA = Rules()


@pytest.fixture
def wca(golden_root: Path) -> Any:
    return np.load(golden_root / "wca" / "wca_small.npz")


@pytest.fixture
def lgca(golden_root: Path) -> Any:
    return np.load(golden_root / "wca" / "lgca_inferred_small.npz")


def texts(golden: Any, rules: Rules) -> Any:
    return weighting.describe(
        golden["label_text_feature"], golden["desc_feature"], golden["desc_mask"], rules
    )


def test_wca_is_the_official_one(wca: Any) -> None:
    for run, chosen in enumerate(wca["run_crop_index"]):
        crops = wca["crop_feature"][:, None, chosen]
        image = weighting.look(wca["image_feature"], crops, WCA)
        scores = image @ texts(wca, WCA).T
        np.testing.assert_allclose(scores, wca["score_official_runs"][run], atol=1e-6)
        plain = Rules(normalize="none")
        scores = weighting.look(wca["image_feature"], crops, plain) @ texts(wca, plain).T
        np.testing.assert_allclose(scores, wca["score_double_sum_runs"][run], atol=1e-12)


def test_the_double_sum_is_what_it_says(wca: Any) -> None:
    rules = Rules(normalize="none")
    crops = wca["crop_feature"][:, None]
    found = weighting.look(wca["image_feature"], crops, rules) @ texts(wca, rules).T
    image, label = 2, 1
    total = 0.0
    likeness = wca["crop_feature"][image] @ wca["image_feature"][image]
    w = np.exp(np.exp(4) * likeness) / np.exp(np.exp(4) * likeness).sum()
    count = int(wca["desc_count"][label])
    near = wca["desc_feature"][label][:count] @ wca["label_text_feature"][label]
    v = np.exp(np.exp(2) * near) / np.exp(np.exp(2) * near).sum()
    for i in range(len(w)):
        for j in range(count):
            crop, text = wca["crop_feature"][image, i], wca["desc_feature"][label, j]
            total += w[i] * v[j] * float(crop @ text)
    assert found[image, label] == pytest.approx(total, abs=1e-12)


def test_clip_and_cupl_are_special_cases(wca: Any) -> None:
    image = weighting.look(wca["image_feature"], None, CLIP)
    cupl = image @ texts(wca, CLIP).T
    np.testing.assert_allclose(cupl, wca["score_cupl_official"], atol=1e-6)
    prompt = wca["label_text_feature"]
    one = np.ones((len(prompt), 1), bool)
    clip = image @ weighting.describe(prompt, prompt[:, None], one, CLIP).T
    np.testing.assert_allclose(clip, wca["score_clip_official"], atol=1e-6)
    weighed = image @ texts(wca, Rules(whole=1.0)).T
    np.testing.assert_allclose(weighed, wca["score_global_weighted_text_official"], atol=1e-6)


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
@pytest.mark.parametrize(("normalize", "name"), [("official", "official"), ("none", "sum")])
def test_lgca_is_the_specification(lgca: Any, rounds: int, normalize: Any, name: str) -> None:
    rules = Rules(rounds=rounds, normalize=normalize)
    image = weighting.look(lgca["image_feature"], lgca["ladder_feature"], rules)
    np.testing.assert_allclose(image, lgca[f"image_vector_T{rounds}_{name}"], atol=1e-10)
    scores = image @ texts(lgca, rules).T
    np.testing.assert_allclose(scores, lgca[f"score_T{rounds}_{name}"], atol=1e-10)


def test_the_order_of_the_crops_does_not_matter(lgca: Any) -> None:
    rules = Rules(rounds=3)
    order = np.random.default_rng(0).permutation(20)
    crops = lgca["ladder_feature"]
    np.testing.assert_allclose(
        weighting.look(lgca["image_feature"], crops[:, :, order], rules),
        weighting.look(lgca["image_feature"], crops, rules),
        atol=1e-12,
    )


def test_what_was_not_extracted_is_asked_for(lgca: Any) -> None:
    with pytest.raises(UsageError, match="expanded 3 times, 4 are asked for"):
        weighting.look(lgca["image_feature"], lgca["ladder_feature"], Rules(rounds=4))
    with pytest.raises(UsageError, match="--crops lgca"):
        weighting.look(lgca["image_feature"], None, WCA)
    for wrong in ({"keep": 0.0}, {"whole": 1.5}, {"rounds": 2, "round_weights": (1.0,)}):
        with pytest.raises(UsageError):
            Rules(**wrong)
