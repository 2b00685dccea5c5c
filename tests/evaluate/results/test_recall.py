"""Methods, recall and intervals, against slow loops and the golden recall file."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
from click.testing import CliRunner

from hada.evaluate.cli import evaluate as command
from hada.evaluate.methods.combinations import (
    mean_of_cosines,
    single_models,
    tuned_sum,
    weighted_sum,
)
from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery
from hada.evaluate.results.measure import measure
from hada.evaluate.results.significance import Hits, bootstrap_rsums, difference, interval
from hada.evaluate.results.text import render, standing, verdicts
from hada.extract.common.errors import NonFiniteError, StoreMismatchError
from hada.extract.spec import SideName
from hada.extract.store import StoreReader, open_store, write_store
from hada.fuse.ranking.ranks import rank_matrix, rank_positives, recalls

I, T, E = 40, 130, 6  # noqa: E741
RANDOM = np.random.default_rng(7)
OWNER = np.sort(np.concatenate([np.arange(I), RANDOM.integers(0, I, T - I)]))
TRUTH = RANDOM.normal(size=(I, E))


def store(path: str, *, name: str, noise: float, seed: int, **changes: Any) -> StoreReader:
    """A model that sees the truth through its own noise; embeddings only."""
    random = np.random.default_rng(seed)
    spec = makers.make_spec(
        name=name, image=None, caption=None, embedding_width=E, dtype="float32", **changes
    )
    embeddings: dict[SideName, Any] = {
        "image": TRUTH + noise * random.normal(size=(I, E)),
        "caption": TRUTH[OWNER] + noise * random.normal(size=(T, E)),
    }
    ids: dict[SideName, list[str]] = {
        "image": [f"i{k}" for k in range(I)],
        "caption": [f"c{k}" for k in range(T)],
    }
    write_store(path, spec, ids=ids, caption_to_image=OWNER, embeddings=embeddings)
    return open_store(path)


@pytest.fixture
def gallery() -> Gallery:
    return Gallery.of(
        [
            store("stores/tiny/val/a", name="a", noise=0.8, seed=1),
            store("stores/tiny/val/b", name="b", noise=0.9, seed=2),
        ]
    )


def slow_recall(image: Any, caption: Any, k: int) -> tuple[float, float]:
    """R@k both ways by sorting, one query at a time."""
    scores = image @ caption.T
    i2t = [any(OWNER[j] == i for j in np.argsort(-scores[i])[:k]) for i in range(I)]
    t2i = [OWNER[j] in np.argsort(-scores[:, j])[:k] for j in range(T)]
    return 100 * float(np.mean(i2t)), 100 * float(np.mean(t2i))


def test_figures_equal_a_slow_loop(gallery: Gallery) -> None:
    methods = single_models(gallery)
    result = measure(gallery, [*methods, mean_of_cosines(methods)], resamples=200)
    for method, row in zip([*methods, mean_of_cosines(methods)], result["methods"], strict=True):
        for k in (1, 5, 10):
            expected = slow_recall(*method.pair, k)
            found = (row["metrics"][f"i2t_R@{k}"], row["metrics"][f"t2i_R@{k}"])
            assert found == pytest.approx(expected)
            assert row["clip_benchmark"][f"image_retrieval_recall@{k}"] == found[1] / 100
    assert result["protocol"]["images"] == I
    assert result["protocol"]["gallery"] == {"i2t": T, "t2i": I}


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.3, 0.7), (1.0, 0.0)])
def test_a_weighted_sum_is_the_sum_of_weighted_cosines(
    gallery: Gallery, shares: tuple[float, float]
) -> None:
    models = single_models(gallery)
    image, caption = weighted_sum(models, shares)
    expected = sum(
        share * method.pair[0] @ method.pair[1].T
        for share, method in zip(shares, models, strict=True)
    )
    np.testing.assert_allclose(image @ caption.T, expected, atol=1e-6)


def test_the_tuned_sum_is_at_least_as_good_where_it_was_tuned(gallery: Gallery) -> None:
    models = single_models(gallery)
    tuned = tuned_sum(models, gallery)
    assert tuned.note.startswith("tuned on val: a ")

    def rsum(method: EmbeddingMethod) -> float:
        return recalls(rank_positives(*method.pair, OWNER))["rsum"]

    assert rsum(tuned) >= max(rsum(method) for method in [*models, mean_of_cosines(models)])


def test_concatenation_and_linear_learns() -> None:
    from hada.evaluate.methods.linear import concatenation_linear

    gallery = Gallery.of([store("stores/x", name="a", noise=0.5, seed=5)])
    method = concatenation_linear(gallery, gallery, gallery)
    assert method.pair[0].shape == (I, 256)
    assert recalls(rank_positives(*method.pair, OWNER))["rsum"] > 300


def test_golden_recall(golden_root: Path) -> None:
    golden = np.load(golden_root / "hada" / "recall.npz")
    for case in sorted({name.partition(".")[0] for name in golden.files}):
        scores = golden[f"{case}.sims"]
        caption_to_image = np.repeat(np.arange(len(scores)), scores.shape[1] // len(scores))
        ranks = rank_matrix(scores, caption_to_image)
        for way, lo, hi in (
            ("i2t", ranks.i2t_lo, ranks.i2t_hi),
            ("t2i", ranks.t2i_lo, ranks.t2i_hi),
        ):
            official = golden[f"{case}.{way}_ranks"]
            assert ((lo <= official) & (official <= hi)).all(), f"{case} {way}"
            if (lo == hi).all():
                table = recalls(ranks)
                names = (*(f"{way}_R@{k}" for k in (1, 5, 10)), f"{way}_medr", f"{way}_meanr")
                scale = np.array([100, 100, 100, 1, 1])
                assert [table[name] for name in names] == pytest.approx(
                    scale * golden[f"{case}.{way}"]
                )


def test_the_bootstrap_equals_a_slow_loop(gallery: Gallery) -> None:
    pair = single_models(gallery)[0].pair
    hits = Hits.of(rank_positives(*pair, OWNER), OWNER)
    drawn = np.random.default_rng(3).integers(0, I, I)
    counts = np.bincount(drawn, minlength=I)[None]
    scores = pair[0] @ pair[1].T
    total = 0.0
    for k in (1, 5, 10):
        found = [any(OWNER[j] == i for j in np.argsort(-scores[i])[:k]) for i in drawn]
        captions = [j for i in drawn for j in np.flatnonzero(i == OWNER)]
        back = [OWNER[j] in np.argsort(-scores[:, j])[:k] for j in captions]
        total += 100 * float(np.mean(found) + np.mean(back))
    assert hits.rsum(counts)[0] == pytest.approx(total)


def test_intervals_are_reproducible_and_paired(gallery: Gallery) -> None:
    hits = [
        Hits.of(rank_positives(*method.pair, OWNER), OWNER) for method in single_models(gallery)
    ]
    one, two = bootstrap_rsums(hits, resamples=500, seed=1)
    again, _ = bootstrap_rsums(hits, resamples=500, seed=1)
    np.testing.assert_array_equal(one, again)
    same = difference(one, one)
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)
    assert difference(one + 50, two).p == pytest.approx(2 / 501)
    assert (
        interval(one).low < recalls(rank_positives(*single_models(gallery)[0].pair, OWNER))["rsum"]
    )


def test_verdict_and_p_never_contradict_each_other() -> None:
    random = np.random.default_rng(0)
    verdicts_seen: Counter[str] = Counter()
    for _ in range(3000):
        resamples = int(random.choice([40, 100, 101, 200, 999]))
        # Half a standard deviation around where the 95 % interval ends at 0, on either side.
        centre = random.choice([-1, 1]) * random.uniform(1.4, 2.5)
        gap = random.normal(centre, 1, resamples)
        if random.random() < 0.5:
            gap = np.round(gap, 1)  # recall comes in steps, so resamples tie with 0
        found = difference(gap, np.zeros(resamples))
        assert found.p is not None
        verdict = standing(vars(found))
        assert (found.p < 0.05) == (verdict != "within noise of"), (found, resamples)
        assert difference(-gap, np.zeros(resamples)).p == found.p
        verdicts_seen[verdict] += 1
    assert min(verdicts_seen[word] for word in ("above", "below", "within noise of")) > 300


def test_p_is_where_the_percentile_interval_ends_at_zero() -> None:
    gap = np.random.default_rng(1).normal(1.5, 1, 500)
    found = difference(gap, np.zeros(500))
    assert found.p is not None
    assert 0.05 < found.p < 0.3
    assert np.quantile(gap, found.p / 2) == pytest.approx(0, abs=1e-12)


def test_a_constant_scorer_gets_chance(gallery: Gallery) -> None:
    flat = EmbeddingMethod(
        "flat", "other", (np.ones((I, 2), np.float32), np.ones((T, 2), np.float32))
    )
    row = measure(gallery, [flat], resamples=100)["methods"][0]
    assert row["metrics"]["t2i_R@1"] == pytest.approx(100 / I)
    chance = 100 * float(
        np.mean([1 - math.comb(T - n, 5) / math.comb(T, 5) for n in np.bincount(OWNER)])
    )
    assert row["metrics"]["i2t_R@5"] == pytest.approx(chance)


def test_verdicts_name_what_is_within_noise(gallery: Gallery) -> None:
    models = single_models(gallery)
    fused = EmbeddingMethod("HADA x", "hada", models[0].pair)
    result = measure(gallery, [*models, fused], resamples=200)
    assert "within noise of the best single model" in verdicts(result)[-1]
    perfect = EmbeddingMethod(
        "HADA y", "hada", (np.eye(I, dtype="f4"), np.eye(I, dtype="f4")[OWNER])
    )
    result = measure(gallery, [*models, perfect], resamples=200)
    assert "HADA y is above the best single model" in verdicts(result)[-1]
    mean = mean_of_cosines(models)
    said = verdicts(measure(gallery, [*models, mean, perfect], resamples=200))
    assert "HADA y is above the best single model" in said[-2]
    assert "HADA y is above the best simple combination, mean of cosines: +" in said[-1]
    text = render(result)
    assert "HADA y" in text
    assert "600.0" in text


def test_what_does_not_fit_is_refused(gallery: Gallery) -> None:
    other = store("stores/tiny/test/a", name="a", noise=1, seed=1, split="test")
    with pytest.raises(StoreMismatchError, match=r"split is 'val'.*'test'"):
        Gallery.of([gallery.stores[1], other])
    with pytest.raises(StoreMismatchError, match="given twice"):
        Gallery.of([gallery.stores[0], gallery.stores[0]])
    zero = Gallery.of([store("stores/zero", name="z", noise=0, seed=1)])
    with pytest.raises(NonFiniteError, match="zero or not finite"):
        single_models(_with_a_zero_row(zero))


def _with_a_zero_row(gallery: Gallery) -> Gallery:
    reader = gallery.stores[0]
    values = np.array(reader.image.embeddings())
    values[3] = 0
    reader.image.embeddings = lambda rows=None: values  # type: ignore[method-assign]
    return gallery


def test_the_command_prints_and_writes(tmp_path: Path, gallery: Gallery) -> None:
    makers.make_project(tmp_path)
    manifest = tmp_path / "data_manifest.yaml"
    manifest.write_text(
        makers.MANIFEST.replace("[one, two]", "[a, b]").replace("one:", "a:").replace("two:", "b:")
    )
    result = CliRunner().invoke(command, ["recall", "--split", "val", "--resamples", "200"])
    assert result.exit_code == 0, result.output
    assert "mean of cosines" in result.stdout
    assert "left out what needs more stores" in result.stderr
    written = json.loads((tmp_path / "runs" / "tiny" / "recall-val.json").read_text())
    assert [method["name"] for method in written["methods"]] == [
        "a",
        "b",
        "mean of cosines",
        "reciprocal ranks",
        "weighted sum",
    ]
    printed = CliRunner().invoke(
        command, ["recall", "--split", "val", "--resamples", "200", "--quick", "--json"]
    )
    assert json.loads(printed.stdout)["protocol"]["dataset"] == "tiny"
