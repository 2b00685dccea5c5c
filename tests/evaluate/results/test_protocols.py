"""Folds, reciprocal ranks, comparisons, tables and the judgements of ECCV Caption."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
from click.testing import CliRunner

from hada.evaluate.cli import evaluate as command
from hada.evaluate.methods.combinations import mean_of_cosines, single_models
from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery
from hada.evaluate.methods.rank_fusion import RankFusion
from hada.evaluate.results.compare import compare
from hada.evaluate.results.measure import measure
from hada.evaluate.results.packing import unpack_ranks
from hada.evaluate.results.read import SCHEMA, read_result
from hada.extract.common.errors import UsageError
from hada.extract.spec import SideName
from hada.extract.store import open_store, write_store
from hada.fuse.ranking.ranks import rank_positives, recalls

I, E = 30, 6  # noqa: E741
RANDOM = np.random.default_rng(5)
OWNER = np.repeat(np.arange(I), RANDOM.integers(1, 5, I))
T = len(OWNER)
TRUTH = RANDOM.normal(size=(I, E))


def store(path: str, name: str, seed: int, **options: Any) -> Any:
    """Embeddings that see the truth through noise; `ids`, `caption_to_image`, `spoil` as needed."""
    random = np.random.default_rng(seed)
    caption_to_image = options.get("caption_to_image", OWNER)
    truth = options.get("truth", TRUTH)
    spec = makers.make_spec(
        name=name,
        image=None,
        caption=None,
        embedding_width=truth.shape[1],
        dtype="float32",
        rows_per_shard={"image": 5000, "caption": 25_000},
    )
    embeddings: dict[SideName, Any] = {
        "image": truth + 0.7 * random.normal(size=truth.shape),
        "caption": truth[caption_to_image]
        + 0.7 * random.normal(size=(len(caption_to_image), truth.shape[1])),
    }
    options.get("spoil", lambda _: None)(embeddings)
    ids: dict[SideName, list[str]] = options.get("ids") or {
        "image": [f"i{k}" for k in range(len(truth))],
        "caption": [f"c{k}" for k in range(len(caption_to_image))],
    }
    write_store(path, spec, ids=ids, caption_to_image=caption_to_image, embeddings=embeddings)
    return open_store(path)


@pytest.fixture
def gallery() -> Gallery:
    paths = [f"stores/tiny/val/{name}" for name in "ab"]
    return Gallery.of([store(path, path[-1], seed) for seed, path in enumerate(paths)])


@pytest.fixture
def project(tmp_path: Path, gallery: Gallery) -> Path:
    makers.make_project(tmp_path)
    text = makers.MANIFEST.replace("[one, two]", "[a, b]")
    (tmp_path / "data_manifest.yaml").write_text(text.replace("one:", "a:").replace("two:", "b:"))
    return tmp_path


def run(*words: str) -> Any:
    return CliRunner().invoke(command, words)


def test_folds_are_galleries_of_their_own(gallery: Gallery) -> None:
    method = single_models(gallery)[0]
    result = measure(gallery, [method], resamples=100, folds=5)
    tables = []
    for fold in range(5):
        images = np.arange(fold * 6, fold * 6 + 6)
        captions = np.flatnonzero(np.isin(OWNER, images))
        pair = method.pair[0][images], method.pair[1][captions]
        tables.append(recalls(rank_positives(*pair, OWNER[captions] - fold * 6)))
    for name, value in result["methods"][0]["metrics"].items():
        assert value == pytest.approx(np.mean([table[name] for table in tables]))
    assert result["protocol"]["gallery"]["t2i"] == [6] * 5
    with pytest.raises(UsageError, match="30 images cannot be cut into 4 equal parts"):
        measure(gallery, [method], folds=4)


def slow_reciprocal(gallery: Gallery) -> tuple[Any, Any]:
    """Fused scores of both directions, (I, T) each, one query at a time."""
    i2t, t2i = np.zeros((I, T)), np.zeros((I, T))
    for method in single_models(gallery):
        scores = method.pair[0] @ method.pair[1].T
        for image in range(I):
            for place, caption in enumerate(np.argsort(-scores[image])):
                i2t[image, caption] += 1 / (61 + place)
        for caption in range(T):
            for place, image in enumerate(np.argsort(-scores[:, caption])):
                t2i[image, caption] += 1 / (61 + place)
    return i2t, t2i


def test_reciprocal_ranks_equal_a_slow_loop(gallery: Gallery) -> None:
    found = RankFusion(tuple(single_models(gallery))).ranks(OWNER)
    i2t, t2i = slow_reciprocal(gallery)
    for image in range(I):
        own = np.flatnonzero(image == OWNER)
        best = i2t[image, own].max()
        others = np.delete(i2t[image], own)
        assert found.i2t_lo[image] == (others > best + 1e-12).sum()
        assert found.i2t_hi[image] == (others > best - 1e-12).sum()
    for caption in range(T):
        others = np.delete(t2i[:, caption], OWNER[caption])
        assert found.t2i_lo[caption] == (others > t2i[OWNER[caption], caption] + 1e-12).sum()


def test_constant_models_are_fused_to_chance() -> None:
    flat = EmbeddingMethod(
        "flat", "model", (np.ones((I, 2), np.float32), np.ones((T, 2), np.float32))
    )
    table = recalls(RankFusion((flat, flat)).ranks(OWNER))
    assert table["t2i_R@1"] == pytest.approx(100 / I)


def test_packed_ranks_are_the_ranks(gallery: Gallery) -> None:
    method = single_models(gallery)[0]
    result = json.loads(json.dumps(measure(gallery, [method], resamples=100)))
    again = unpack_ranks(result["methods"][0]["ranks"])
    assert recalls(again) == pytest.approx(result["methods"][0]["metrics"])
    assert np.array_equal(again.t2i_lo, method.ranks(OWNER).t2i_lo)


def test_compare_is_paired_where_the_items_are_the_same(gallery: Gallery) -> None:
    models = single_models(gallery)
    result = measure(gallery, [*models, mean_of_cosines(models)], resamples=500)
    a, mean = result["methods"][0], result["methods"][2]
    found = compare((result, a), (result, mean), resamples=500)
    assert found["paired"]
    gap = mean["metrics"]["rsum"] - a["metrics"]["rsum"]
    assert found["differences"]["rsum"] == pytest.approx(gap)
    nothing = compare((result, a), (result, a), resamples=500)
    assert (nothing["rsum"]["low"], nothing["rsum"]["high"], nothing["rsum"]["p"]) == (0, 0, 1)
    assert nothing["queries"]["i2t"] == {"better": 0, "worse": 0}
    stranger = {**result, "items": {**result["items"], "digest": "other"}}
    apart = compare((result, a), (stranger, mean), resamples=500)
    assert not apart["paired"]
    assert apart["rsum"]["half_width"] > found["rsum"]["half_width"]
    elsewhere = {**result, "protocol": {**result["protocol"], "split": "test"}}
    with pytest.raises(UsageError, match=r"split is 'val'.*'test'"):
        compare((result, a), (elsewhere, a))
    smaller = {**result, "protocol": {**result["protocol"], "images": I - 1}}
    with pytest.raises(UsageError, match="images is 30 in the first and 29 in the second"):
        compare((result, a), (smaller, a))
    reworded = {**result, "protocol": {**result["protocol"], "dataset_digest": "other"}}
    assert not compare((result, a), (reworded, mean), resamples=500)["paired"]


def test_compare_resamples_the_mean_of_folds(gallery: Gallery) -> None:
    models = single_models(gallery)
    result = measure(gallery, models, resamples=300, folds=5)
    methods = result["methods"]
    found = compare((result, methods[0]), (result, methods[1]), resamples=300)
    gap = methods[1]["metrics"]["rsum"] - methods[0]["metrics"]["rsum"]
    assert found["differences"]["rsum"] == pytest.approx(gap)
    for value, method in zip(found["intervals"], methods, strict=True):
        assert value["low"] == pytest.approx(method["rsum_interval"]["low"])
        assert value["high"] == pytest.approx(method["rsum_interval"]["high"])


def test_the_commands_compare_and_print_tables(project: Path) -> None:
    assert run("recall", "--split", "val", "--quick", "--folds", "5").exit_code == 0
    result = run("recall", "--split", "val", "--quick", "--resamples", "200")
    assert result.exit_code == 0, result.output
    file = "runs/tiny/recall-val.json"
    said = run("compare", file, "--method", "a", "--with-method", "mean of cosines")
    assert said.exit_code == 0, said.output
    assert "paired by image" in said.stdout
    assert "picked as the best" not in said.stderr
    assert "picked as the best on this very split" in run("compare", file, "--method", "a").stderr
    refused = run("compare", file, "runs/tiny/recall-val-5folds.json")
    assert refused.exit_code == 2
    assert "folds is 1 in the first and 5 in the second" in refused.stderr
    assert run("compare", file, "--method", "nobody").exit_code == 2
    rows = list(csv.DictReader(io.StringIO(run("table", file, "--format", "csv").stdout)))
    assert [row["score"] for row in rows] == ["a", "b", "mean of cosines"]
    written = json.loads(Path(file).read_text())
    assert float(rows[0]["rsum"]) == written["methods"][0]["metrics"]["rsum"]
    assert run("table", file).stdout.count("\n") == 5
    latex = run("table", file, "--format", "latex").stdout
    assert latex.count(r"\\") == 5
    assert "_" not in latex


MISFITS = [
    ("NaN", {"spoil": lambda e: e["image"].__setitem__((3, 0), np.nan)}, "NaN"),
    ("a zero row", {"spoil": lambda e: e["caption"].__setitem__(5, 0)}, "zero or not finite"),
    ("an image without captions", {"caption_to_image": OWNER[OWNER != 4]}, None),
    (
        "duplicate ids",
        {"ids": {"image": ["i0"] * I, "caption": [f"c{k}" for k in range(T)]}},
        "twice",
    ),
]


@pytest.mark.parametrize(("name", "change", "says"), MISFITS, ids=[m[0] for m in MISFITS])
def test_what_cannot_be_ranked_is_refused(
    project: Path, name: str, change: dict[str, Any], says: str | None
) -> None:
    def make() -> None:
        for model in "ab":
            path = project / "stores" / "tiny" / "val" / model
            path.rename(path.with_name(f"{model}-before"))
            store(f"stores/tiny/val/{model}", model, 1, **change)

    if says is None:
        make()
        result = run("recall", "--split", "val", "--quick")
        assert result.exit_code == 0, result.output
        written = json.loads((project / "runs/tiny/recall-val.json").read_text())
        assert written["protocol"]["left_out_images"] == 1
        return
    try:
        make()
    except Exception as error:  # the store refuses to be written that way already
        assert says in str(error)  # noqa: PT017
        return
    result = run("recall", "--split", "val", "--quick")
    assert result.exit_code in (1, 2), result.output
    assert says in result.stderr


def test_swapped_sides_and_a_wrong_split_are_refused(project: Path) -> None:
    with pytest.raises(UsageError, match="caption_to_image: expected one entry for each of 30"):
        rank_positives(np.ones((T, 2)), np.ones((I, 2)), OWNER)
    (project / "stores/tiny/train").mkdir()
    for name in "ab":
        (project / f"stores/tiny/val/{name}").rename(project / f"stores/tiny/train/{name}")
    result = run("recall", "--split", "train", "--quick")
    assert result.exit_code == 2, result.output
    assert "the store holds split 'val'" in result.stderr


def test_eccv_judgements_are_the_packages(project: Path) -> None:
    pytest.importorskip("eccv_caption", reason="the extra eccv is not installed")
    from hada.evaluate.results import eccv

    judge = eccv.metrics()
    by_image = judge.coco_gts["i2t"]
    images = sorted({int(found[0]) for found in map(judge.coco_gts["t2i"].get, judge.coco_ids)})
    captions = [caption for image in images for caption in by_image[image]]
    caption_to_image = np.repeat(np.arange(len(images)), [len(by_image[image]) for image in images])
    truth = np.random.default_rng(0).normal(size=(len(images), 24))
    ids = {
        "image": [f"COCO_val2014_{image:012d}.jpg" for image in images],
        "caption": [str(caption) for caption in captions],
    }
    gallery = Gallery.of(
        [store("coco", "a", 3, caption_to_image=caption_to_image, truth=truth, ids=ids)]
    )
    method = single_models(gallery)[0]
    result: dict[str, Any] = {"protocol": {}, "methods": [{}]}
    eccv.add(result, [method], gallery)
    assert result["protocol"]["eccv"] == "one gallery of 5,000 images and 25,000 captions"
    found = result["methods"][0]["eccv"]
    table = recalls(method.ranks(caption_to_image))
    assert found["coco_5k_r1"]["i2t"] * 100 == pytest.approx(table["i2t_R@1"])
    assert found["coco_5k_r10"]["t2i"] * 100 == pytest.approx(table["t2i_R@10"])
    assert 0 < found["eccv_map_at_r"]["t2i"] < found["eccv_rprecision"]["t2i"] < 1
    fewer = replace(
        gallery,
        image_rows=gallery.image_rows[1:],
        caption_rows=gallery.caption_rows[caption_to_image > 0],
        caption_to_image=caption_to_image[caption_to_image > 0] - 1,
    )
    with pytest.raises(UsageError, match=r"5,000 images.*1 are missing or could not be read"):
        eccv.judge(single_models(fewer)[0], fewer, judge)
    refused = run("recall", "--split", "val", "--quick", "--eccv")
    assert refused.exit_code == 2
    assert "has no COCO number" in refused.stderr


OLD = Path(__file__).parent / "recall-schema-2.json"


def test_a_result_of_schema_2_is_compared_and_printed(project: Path) -> None:
    old = json.loads(OLD.read_text())
    assert old["schema"] == 2
    said = run("compare", str(OLD), "--method", "one", "--with-method", "HADA plain")
    assert said.exit_code == 0, said.output
    assert "HADA plain is within noise of one: -18.9 RSum, 95 % interval" in said.stdout
    assert "paired by image" in said.stdout
    rows = list(csv.DictReader(io.StringIO(run("table", str(OLD), "--format", "csv").stdout)))
    assert [row["score"] for row in rows] == [line["name"] for line in old["rungs"]]
    assert [float(row["rsum"]) for row in rows] == [
        line["metrics"]["rsum"] for line in old["rungs"]
    ]


def test_an_old_result_is_read_as_the_new_one_that_it_means(project: Path) -> None:
    old = json.loads(OLD.read_text())
    new = {**old, "schema": SCHEMA, "methods": old["rungs"], "items": {**old["items"]}}
    del new["rungs"]
    new["items"]["caption_to_image"] = new["items"].pop("owner")
    Path("new.json").write_text(json.dumps(new))
    assert read_result(OLD) == read_result(Path("new.json"))
    said = run("compare", str(OLD), "new.json", "--resamples", "100")
    assert said.exit_code == 0, said.output
    assert "paired by image" in said.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 1}, "expected 3 or 2, got 1"),
        ({"schema": True}, "expected 3 or 2, got True"),
        ({"schema": 3}, "not a result"),
        ({"rungs": [{"name": "a"}]}, "rungs[0]: 'kind' is missing"),
        ({"items": {"digest": "x", "caption_to_image": "y"}}, "items: 'owner' is missing"),
    ],
)
def test_a_damaged_old_result_is_refused_by_its_own_keys(
    project: Path, change: dict[str, Any], says: str
) -> None:
    Path("bad.json").write_text(json.dumps(json.loads(OLD.read_text()) | change))
    said = run("table", "bad.json")
    assert said.exit_code == 2, said.output
    assert says in " ".join(said.stderr.split())
