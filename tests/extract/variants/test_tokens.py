"""Fewer tokens than the model gives: what is averaged, what a store says of it, what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
from calls import call
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hada.extract.cli import extract
from hada.extract.common.errors import RunError, UsageError
from hada.extract.spec import StoreSpec, TokenSpec
from hada.extract.store import open_store
from hada.extract.store.maintain import convert, describe
from hada.extract.store.pooling import groups, pool, pool_size, pooled_lengths, reduced_spec
from hada.extract.store_cli import store
from hada.extract.testing.store_contract import Content, files_of


def plainly_pooled(item: NDArray[Any], kept: int, last: bool) -> NDArray[np.float64]:
    """One item the slow way: cell by cell, in Python's own arithmetic of indices."""
    if len(item) <= kept:
        return np.asarray(item, np.float64)
    others, whole = (item[:-1], item[-1:]) if last else (item[1:], item[:1])
    count, cells = len(others), kept - 1
    side, cell = round(count**0.5), round(cells**0.5)
    bins: list[list[int]] = [[] for _ in range(cells)]
    for token in range(count if cells else 0):
        if side * side == count and cell * cell == cells:
            row, column = divmod(token, side)
            bins[(row * cell // side) * cell + column * cell // side].append(token)
        else:
            bins[token * cells // count].append(token)
    averages = [np.mean(others[part].astype(np.float64), axis=0) for part in bins]
    parts = [*averages, whole[0]] if last else [whole[0], *averages]
    return np.stack(parts)


@given(
    lengths=st.lists(st.sampled_from([1, 2, 3, 5, 10, 17, 26, 37]), min_size=1, max_size=6),
    kept=st.integers(1, 40),
    last=st.booleans(),
)
@settings(derandomize=True, deadline=None)
def test_pooling_equals_the_slow_loop(lengths: list[int], kept: int, last: bool) -> None:
    values = np.random.default_rng(0).normal(size=(sum(lengths), 3)).astype(np.float32)
    items = np.split(values, np.cumsum(lengths)[:-1])
    got = pool(values, np.array(lengths), kept, global_last=last)
    expected = np.concatenate([plainly_pooled(item, kept, last) for item in items])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    # What an item gets is the same, bit by bit, whatever lies beside it in the batch.
    alone = [pool(item, np.array([len(item)]), kept, global_last=last) for item in items]
    np.testing.assert_array_equal(got, np.concatenate(alone))


@given(count=st.integers(0, 200), cells=st.integers(0, 60))
@settings(derandomize=True, deadline=None)
def test_every_token_is_in_exactly_one_group(count: int, cells: int) -> None:
    cells = min(cells, count)
    parts = groups(count, cells)
    assert len(parts) == cells
    assert all(len(part) for part in parts)
    if cells:
        assert np.sort(np.concatenate(parts)).tolist() == list(range(count))


def test_a_square_grid_is_pooled_in_two_directions() -> None:
    # Token (row, column) of a 24 x 24 grid holds its place: averages are the cells' middles.
    grid = np.stack(np.mgrid[:24, :24], axis=-1).reshape(-1, 2).astype(np.float32)
    got = pool(np.concatenate([[[99, 99]], grid]), np.array([577]), 17)
    assert got[0].tolist() == [99, 99]
    middles = [2.5, 8.5, 14.5, 20.5]
    assert got[1:].tolist() == [[row, column] for row in middles for column in middles]


@pytest.mark.parametrize(
    "text", ["", "some", "pool", "pool:", "pool:0", "pool:-1", "pool:x", "pool:²"]
)
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected all, none or pool:K"):
        pool_size(text)


def test_lengths_and_specs() -> None:
    assert pooled_lengths(np.array([1, 5, 9]), 4).tolist() == [1, 4, 4]
    model = makers.make_spec().model
    assert reduced_spec(model, "all") == reduced_spec(model, "pool:3") == model
    pooled = reduced_spec(model, "pool:2")
    assert pooled.image == TokenSpec(width=6, count=2, pooled=2)
    assert pooled.caption == model.caption
    ragged = dataclasses.replace(model, image=TokenSpec(width=6, count=None))
    assert reduced_spec(ragged, "pool:9").image == TokenSpec(width=6, count=None, pooled=9)
    without = reduced_spec(model, "none")
    assert (without.image, without.caption) == (None, None)
    with pytest.raises(UsageError, match="no joint space"):
        reduced_spec(dataclasses.replace(model, embedding_width=None), "none")


def test_specs_of_before_keep_their_digest() -> None:
    """A store written when there were only whole ones is still what it was."""
    spec = makers.make_spec()
    value = spec.to_json()
    assert "pooled" not in value["model"]["image"]
    assert spec.digest() == "25fc2e7c7d34c318"
    pooled = dataclasses.replace(spec, model=reduced_spec(spec.model, "pool:2"))
    assert StoreSpec.from_json(pooled.to_json()) == pooled
    assert pooled.digest() != spec.digest()


@pytest.mark.parametrize("model", ["one", "two"])
def test_extracting_and_converting_give_the_same_averages(tmp_path: Path, model: str) -> None:
    makers.make_project(tmp_path)
    common = ("--split", "val", "--model", model, "--shard-size", 2, "--store-dtype", "float32")
    places: dict[str, Path] = {}
    for tokens in ("all", "pool:3", "none"):
        root = tmp_path / tokens
        code, output = call(extract, *common, "--root", f"stores={root}", "--tokens", tokens)
        assert code == 0, output
        places[tokens] = root / "tiny" / "val" / model
    whole = open_store(places["all"])
    assert whole.spec.model.image is not None
    for tokens in ("pool:3", "none"):
        target = tmp_path / "converted" / tokens
        code, output = call(store, "convert", places["all"], target, "--tokens", tokens)
        assert code == 0, output
        for path in (places[tokens], target):
            got = open_store(path)
            assert got.spec.model == reduced_spec(whole.spec.model, tokens)
            np.testing.assert_array_equal(got.image.embeddings(), whole.image.embeddings())
            if tokens == "none":
                assert got.image.tokens_spec is got.caption.tokens_spec is None
                continue
            expected = pool(whole.image.tokens(slice(None)), whole.image.lengths, 3)
            np.testing.assert_array_equal(got.image.tokens(slice(None)), expected)
            np.testing.assert_array_equal(
                got.caption.tokens(slice(None)), whole.caption.tokens(slice(None))
            )
        features = "features.zarr"
        assert files_of(places[tokens] / features) == files_of(target / features)
    assert "3 tokens of width" in call(store, "info", places["pool:3"])[1]
    assert "averaged to 3" in call(store, "info", places["pool:3"])[1]


def test_another_choice_is_refused_by_field(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    common = ("--split", "val", "--model", "one")
    assert call(extract, *common, "--tokens", "pool:3")[0] == 0
    assert "complete already" in call(extract, *common, "--tokens", "pool:3")[1]
    for tokens in ("all", "pool:2", "none"):
        code, output = call(extract, *common, "--tokens", tokens)
        assert code == 2
        assert "holds other features" in output
        assert "model.image" in output
    assert call(extract, *common, "--tokens", "pool:many")[0] == 2


def test_a_dry_run_counts_what_is_kept(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    common = ("--split", "val", "--model", "one", "--dry-run")
    sizes = {t: call(extract, *common, "--tokens", t)[1] for t in ("all", "pool:2", "none")}
    # 5 images, 5 or 2 tokens of 16 halves each.
    assert "image/tokens" in sizes["all"]
    assert "800 B" in sizes["all"]
    assert "320 B" in sizes["pool:2"]
    assert "tokens" not in sizes["none"]
    assert not (tmp_path / "stores").exists()


def test_averages_of_averages_are_refused(tmp_path: Path) -> None:
    spec = makers.make_spec(image=TokenSpec(width=6, count=10))
    content = Content(spec)
    content.write(tmp_path / "a")
    list(convert(tmp_path / "a", tmp_path / "b", tokens="pool:5"))
    with pytest.raises(UsageError, match="averages of averages"):
        list(convert(tmp_path / "b", tmp_path / "c", tokens="pool:2"))
    # The global token alone is what it was, and a larger K changes nothing.
    for tokens, rows in (("pool:1", 1), ("pool:7", 5), ("all", 5)):
        list(convert(tmp_path / "b", tmp_path / tokens, tokens=tokens))
        assert open_store(tmp_path / tokens).image.lengths.tolist() == [rows] * 5
    first = np.stack(content.tokens["image"])[:, 0].astype("f2")
    np.testing.assert_array_equal(open_store(tmp_path / "pool:1").image.tokens(slice(None)), first)


def test_failed_images_stay_failed(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    (tmp_path / "data" / "images" / "val_001.jpg").write_bytes(b"no picture")
    assert call(extract, "--split", "val", "--model", "one", "--tokens", "pool:3")[0] == 0
    got = open_store(tmp_path / "stores" / "tiny" / "val" / "one")
    assert got.image.failed.tolist() == [False, True, False, False, False]
    assert np.isnan(got.image.tokens(np.array([1]))).all()
    assert np.isfinite(got.image.tokens(np.array([0, 2, 3, 4]))).all()
    assert describe(got.path)["failed"] == {"image": 1, "caption": 0}


def test_a_run_refuses_stores_of_other_tokens(tmp_path: Path) -> None:
    from hada.fuse.run_files.features import check_features, features_of

    spec = makers.make_spec(image=TokenSpec(width=6, count=10))
    Content(spec).write(tmp_path / "all")
    list(convert(tmp_path / "all", tmp_path / "five", tokens="pool:5"))
    every, five = open_store(tmp_path / "all"), open_store(tmp_path / "five")
    check_features(features_of(five), five, tmp_path)
    for recorded, held in ((every, five), (five, every)):
        with pytest.raises(RunError, match="tokens: the run was trained on"):
            check_features(features_of(recorded), held, tmp_path)
