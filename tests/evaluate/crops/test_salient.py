"""WCA against the official outputs, LGCA against the specification's, and their special cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hada.evaluate.crops import weighting
from hada.evaluate.crops.weighting import CLIP, Rules
from hada.extract.common.arrays import unit_rows
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


def test_equal_crops_are_kept_in_their_order_and_odd_numbers_are_rounded_up() -> None:
    """Of five crops the best three stay, of equal ones the first, then the best two of those."""
    image = np.array([[1.0, 0.0]])
    first, second = [0.5, 0.9, 0.5, 0.1, 0.5], [0.2, 0.3, 0.3, 0.9, 0.9]
    ladder = np.zeros((1, 3, 5, 2))
    ladder[0, 0, :, 0], ladder[0, 1, :, 0] = first, second
    kept = weighting.selected(image, ladder, Rules(rounds=2, keep=0.5))
    assert [k[0].tolist() for k in kept] == [[0, 1, 2, 3, 4], [1, 0, 2], [1, 2]]
    thirds = weighting.selected(image, ladder, Rules(rounds=1, keep=0.2))
    assert thirds[1][0].tolist() == [1]


@pytest.mark.parametrize("normalize", ["official", "none"])
@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_an_image_is_its_whole_and_its_rounds_by_their_weights(
    normalize: Any, weights: tuple[float, ...]
) -> None:
    random = np.random.default_rng(0)
    image, ladder = (unit_rows(random.normal(size=s)) for s in ((3, 4), (3, 2, 4, 4)))
    rules = Rules(rounds=1, whole=0.3, crop_scale=2.0, round_weights=weights, normalize=normalize)
    shares = (0.35, 0.35) if not weights else (0.175, 0.525)
    found = weighting.look(image, ladder, rules)
    for row in range(3):
        want = 0.3 * image[row]
        order = sorted(range(4), key=lambda n: -float(image[row] @ ladder[row, 0, n]))
        for step, kept in ((0, range(4)), (1, order[:2])):
            scale = [np.exp(2.0 * image[row] @ ladder[row, step, n]) for n in kept]
            total = sum(w * ladder[row, step, n] for w, n in zip(scale, kept, strict=True))
            total = total / sum(scale)
            length = np.linalg.norm(total) if normalize == "official" else 1.0
            want = want + shares[step] * total / length
        np.testing.assert_allclose(found[row], want, atol=1e-12)


def test_the_published_scales() -> None:
    assert pytest.approx(54.598150033) == Rules().crop_scale
    assert pytest.approx(7.389056099) == Rules().text_scale


def test_a_class_is_its_own_descriptions_by_their_likeness_to_the_prompt() -> None:
    random = np.random.default_rng(1)
    label, lines = (unit_rows(random.normal(size=s)) for s in ((2, 4), (2, 3, 4)))
    mask = np.array([[True, True, False], [True, True, True]])
    for scale, normalize in ((0.0, "official"), (3.0, "official"), (3.0, "none")):
        rules: Any = Rules(text_scale=scale, normalize=normalize)  # type: ignore[arg-type]
        found = weighting.describe(label, lines, mask, rules)
        for row, count in ((0, 2), (1, 3)):
            weights = np.exp(scale * lines[row, :count] @ label[row])
            want = weights @ lines[row, :count] / weights.sum()
            want /= np.linalg.norm(want) if normalize == "official" else 1.0
            np.testing.assert_allclose(found[row], want, atol=1e-12)
