"""Ranks of the positives against a slow loop, the golden file and the rule for ties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fuse_golden import load_npz

from hada.extract.common.errors import NonFiniteError, UsageError
from hada.fuse.ranking.ranks import Ranks, rank_matrix, rank_positives, recalls

CASES = ["rand100", "mid100", "good100", "good37", "scaled_temp100", "ties100", "const20"]


def slow_bounds(scores, owner):
    """Best and worst rank of the best positive, by sorting twice in plain Python."""
    found = {}
    images, captions = scores.shape
    for name, queries, gallery, get, mine in (
        ("i2t", images, captions, lambda q, g: scores[q, g], lambda q, g: owner[g] == q),
        ("t2i", captions, images, lambda q, g: scores[g, q], lambda q, g: owner[q] == g),
    ):
        bounds = []
        for q in range(queries):
            for favour in (0, 1):
                # Sorting by (score down, friend or foe) puts ties all before or all behind.
                order = sorted(
                    range(gallery), key=lambda g: (-get(q, g), mine(q, g) != (favour == 0))
                )
                bounds.append(next(i for i, g in enumerate(order) if mine(q, g)))
        found[name] = np.array(bounds).reshape(-1, 2).T
    return found


def same(a: Ranks, b: Ranks) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in a.__dataclass_fields__)


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_equal_a_slow_loop(ties):
    rng = np.random.default_rng(3)
    owner = rng.permutation(np.repeat(np.arange(7), [1, 2, 3, 1, 5, 2, 4]))
    scores = rng.normal(size=(7, len(owner)))
    scores = np.round(scores) if ties else scores
    expected = slow_bounds(scores, owner)
    for block in (1, 40, 10**6):
        ranks = rank_matrix(scores, owner, block_numbers=block)
        assert np.array_equal([ranks.i2t_lo, ranks.i2t_hi], expected["i2t"])
        assert np.array_equal([ranks.t2i_lo, ranks.t2i_hi], expected["t2i"])


@pytest.mark.parametrize("case", CASES)
def test_golden_ranks(case):
    golden = load_npz("recall.npz")
    scores = golden[f"{case}.sims"]
    owner = np.arange(scores.shape[1]) // 5
    ranks = rank_matrix(scores, owner)
    clear = True
    for side in ("i2t", "t2i"):
        lo, hi = getattr(ranks, f"{side}_lo"), getattr(ranks, f"{side}_hi")
        official = golden[f"{case}.{side}_ranks"]
        assert np.all(golden[f"{case}.{side}_rank_lo"] <= lo)
        assert np.all(hi <= golden[f"{case}.{side}_rank_hi"])
        assert np.array_equal(lo[lo == hi], official[lo == hi])
        assert np.all((lo <= official) & (official <= hi))
        clear = clear and bool(np.all(lo == hi))
    assert clear == (case not in ("ties100", "const20"))
    if clear:
        table = recalls(ranks)
        for side in ("i2t", "t2i"):
            got = [table[f"{side}_{k}"] for k in ("R@1", "R@5", "R@10", "medr", "meanr")]
            want = golden[f"{case}.{side}"] * np.array([100, 100, 100, 1, 1])
            np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_constant_scorer_gets_chance():
    for images, per in ((20, 5), (8, 1)):
        owner = np.repeat(np.arange(images), per)
        table = recalls(rank_matrix(np.zeros((images, images * per)), owner))
        assert table["t2i_R@1"] == pytest.approx(100 / images)
        assert table["t2i_R@5"] == pytest.approx(500 / images)
        assert table["i2t_R@1"] == pytest.approx(100 / images)
        # Both through the matrix and through embeddings that are all alike.
        same_rows = np.full((images, 3), 0.57735)
        assert recalls(rank_positives(same_rows, same_rows.repeat(per, 0), owner)) == table


def test_collapsed_embeddings_tie_whatever_the_block():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 67)).astype(np.float32)
    owner = np.repeat(np.arange(31), 3)
    for block in (93, 500, 10**6):
        ranks = rank_positives(one.repeat(31, 0), one.repeat(93, 0), owner, block_numbers=block)
        assert (ranks.i2t_hi == 90).all()
        assert (ranks.t2i_hi == 30).all()
        assert (ranks.i2t_tied == 3).all()
        assert not ranks.i2t_lo.any()


def test_expected_recall_is_the_mean_over_all_orders_of_the_ties():
    scores = np.array([[0.5, 0.5, 0.5, 0.9, 0.5]])
    scores = np.vstack([scores, [[0.1, 0.2, 0.3, 0.4, 0.5]]])
    ranks = rank_matrix(scores, [0, 0, 1, 1, 1])
    found = []
    for order in itertools.permutations(range(5)):
        ranked = sorted(order, key=lambda g: -scores[0, g])  # stable: ties keep the order
        found.append(next(i for i, g in enumerate(ranked) if g in (0, 1)))
    for k in range(1, 6):
        assert ranks.i2t_hits(k)[0] == pytest.approx(np.mean([r < k for r in found]))
    assert ranks.i2t[0] == pytest.approx(np.mean(found))


def test_embeddings_and_their_product_agree():
    rng = np.random.default_rng(1)
    image, caption = rng.normal(size=(30, 16)), rng.normal(size=(90, 16))
    owner = rng.permutation(np.repeat(np.arange(30), 3))
    whole = rank_matrix(image @ caption.T, owner)
    for block in (100, 1000, 10**7):
        assert same(rank_positives(image, caption, owner, block_numbers=block), whole)


def test_torch_tensors_are_welcome():
    torch = pytest.importorskip("torch")
    image, caption = torch.eye(4, requires_grad=True), torch.eye(4).half()
    assert recalls(rank_positives(image, caption, torch.arange(4)))["rsum"] == 600.0


@pytest.mark.parametrize(
    ("image", "caption", "owner", "says"),
    [
        (np.eye(2), np.eye(2), [0], "one entry for each of 2 captions"),
        (np.eye(2), np.eye(2), [0, 2], "image rows 0 to 1"),
        (np.eye(2), np.eye(2), [0, 0], "image row 1 has no caption"),
        (np.eye(2), np.eye(3), [0, 1, 1], "one width E"),
    ],
)
def test_wrong_input_is_named(image, caption, owner, says):
    with pytest.raises(UsageError, match=says):
        rank_positives(image, caption, owner)


def test_rows_that_are_not_finite_are_refused():
    with pytest.raises(NonFiniteError, match="row 1"):
        rank_positives(np.array([[1.0], [np.nan]]), np.ones((2, 1)), [0, 1])
    with pytest.raises(NonFiniteError, match="NaN"):
        rank_matrix([[np.nan, 1.0], [1.0, 1.0]], [0, 1])


@pytest.mark.parametrize("kind", ["random", "near ties", "collapsed", "huge", "half"])
# "cpu:0" takes the way of other devices, on this one.
@pytest.mark.parametrize("device", ["cpu", "cpu:0", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_screening_in_float32_changes_nothing(kind, device):
    rng = np.random.default_rng(11)
    images, per, width = 300, 3, 64
    owner = rng.permutation(np.repeat(np.arange(images), per))
    image = rng.normal(size=(images, width))
    caption = 0.3 * image[owner] + rng.normal(size=(images * per, width))
    if kind == "near ties":  # closer than a float32 product can tell
        image[1::2] = image[::2] * (1 + 1e-7 * rng.choice([-1, 1], size=(images // 2, 1)))
    elif kind == "collapsed":
        image[5:] = image[:1]
    elif kind == "huge":
        image *= 1e200
    image, caption = (x / np.linalg.norm(x[0]) if kind != "huge" else x for x in (image, caption))
    if kind == "half":
        image, caption = image.astype(np.float16), caption.astype(np.float16)
    scores = image.astype(np.float64) @ caption.astype(np.float64).T
    scale = np.abs(scores[owner, np.arange(len(owner))]).max()
    whole = rank_matrix(np.round(scores / scale, 13), owner)
    for block in (10_007, None):
        assert same(
            rank_positives(image, caption, owner, device=device, block_numbers=block), whole
        )


def test_memory_is_one_tile_whatever_the_size():
    import tracemalloc

    rng = np.random.default_rng(0)
    image = rng.normal(size=(1500, 16)).astype(np.float32)
    caption = rng.normal(size=(30_000, 16)).astype(np.float32)
    owner = np.repeat(np.arange(1500), 20)
    tracemalloc.start()
    rank_positives(image, caption, owner, block_numbers=1 << 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6  # all scores would be 180 MB


def test_recall_is_torchmetrics_hit_rate():
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("torchmetrics.retrieval", reason="needs torchmetrics")
    rng = np.random.default_rng(4)
    owner = rng.permutation(np.repeat(np.arange(12), rng.integers(1, 5, 12)))
    scores = rng.normal(size=(12, len(owner)))
    scores[owner, np.arange(len(owner))] += 1
    match = owner == np.arange(12)[:, None]
    table = recalls(rank_matrix(scores, owner))
    for way, values, truth in (("i2t", scores, match), ("t2i", scores.T, match.T)):
        queries = np.repeat(np.arange(len(values)), values.shape[1])
        for k in (1, 5, 10):
            metric = metrics.RetrievalHitRate(top_k=k)
            given = (values.ravel(), truth.ravel(), queries)
            found = metric(*(torch.from_numpy(np.ascontiguousarray(x)) for x in given))
            assert 100 * float(found) == pytest.approx(table[f"{way}_R@{k}"], abs=1e-4)


@pytest.mark.filterwarnings("ignore:unsafe cast from uint64")  # numba's, on ranx's own code
def test_recall_is_ranx_hit_rate():
    ranx = pytest.importorskip("ranx", reason="needs ranx")
    rng = np.random.default_rng(5)
    owner = rng.permutation(np.repeat(np.arange(12), rng.integers(1, 5, 12)))
    image = rng.normal(size=(12, 6))
    caption = image[owner] + rng.normal(size=(len(owner), 6))
    match, scores = owner == np.arange(12)[:, None], image @ caption.T
    table = recalls(rank_positives(image, caption, owner))
    for way, values, truth in (("i2t", scores, match), ("t2i", scores.T, match.T)):
        rows, columns = (range(size) for size in values.shape)
        right = {f"q{q}": {f"g{g}": 1 for g in columns if truth[q, g]} for q in rows}
        found = {f"q{q}": {f"g{g}": float(values[q, g]) for g in columns} for q in rows}
        names = [f"hit_rate@{k}" for k in (1, 5, 10)]
        given = ranx.evaluate(ranx.Qrels(right), ranx.Run(found), names)
        for k in (1, 5, 10):
            assert 100 * given[f"hit_rate@{k}"] == pytest.approx(table[f"{way}_R@{k}"])


def test_the_median_rank_is_floored_and_ranks_count_from_1():
    """Ranks 0 and 1 of two images: the field prints a median of 1, not of 1.5."""
    table = recalls(rank_matrix([[0.9, 0.1], [0.8, 0.2]], [0, 1]), ks=(1,))
    assert (table["i2t_medr"], table["i2t_meanr"]) == (1.0, 1.5)
    assert (table["t2i_medr"], table["t2i_meanr"], table["i2t_R@1"]) == (1.0, 1.0, 50.0)


def test_large_embeddings_whose_sum_overflows_are_ranked():
    image = np.full((2, 8), 1e38, np.float32)
    image[1, 4:] = -1e38
    ranks = rank_positives(image, image / np.float32(1e30), [0, 1])
    assert ranks.i2t_lo.tolist() == ranks.t2i_hi.tolist() == [0, 0]


def test_a_copy_of_a_positive_ties_with_it_and_does_not_beat_it():
    """Among so many others that the few near scores are computed again one by one."""
    random = np.random.default_rng(0)
    image = random.normal(size=(400, 16)).astype(np.float32)
    caption = image + 0.1 * random.normal(size=image.shape).astype(np.float32)
    image[399], caption[399] = image[7], caption[7]
    ranks = rank_positives(image, caption, np.arange(400))
    for row in (7, 399):
        assert (ranks.t2i_lo[row], ranks.t2i_hi[row]) == (0, 1)
        assert (ranks.i2t_lo[row], ranks.i2t_hi[row]) == (0, 1)
    slow = rank_matrix(image.astype(float) @ caption.astype(float).T, np.arange(400))
    assert (ranks.i2t_lo >= slow.i2t_lo).all()
    assert (ranks.i2t_hi >= slow.i2t_hi).all()
