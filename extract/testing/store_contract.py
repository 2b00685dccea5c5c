"""What every store format must do; a format's test class inherits this and names its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from hada.extract.common.errors import NonFiniteError, StoreError, StoreMismatchError
from hada.extract.spec import SIDES, ModelSpec, SideName, StoreSpec, TokenSpec
from hada.extract.store import Block, StoreIndex, StoreWriter, commit, open_store, write_store
from hada.extract.store.reader import shard_status

Arrays = dict[SideName, NDArray[np.float64]]


def make_spec(**changes: Any) -> StoreSpec:
    """A small spec: 3 image tokens of width 6, ragged caption tokens of width 5, E = 4."""
    model = ModelSpec(
        name=changes.pop("name", "model"),
        family="fake",
        weights_digest=changes.pop("weights_digest", "0"),
        embedding_width=changes.pop("embedding_width", 4),
        normalized=False,
        image=changes.pop("image", TokenSpec(width=6, count=3)),
        caption=changes.pop("caption", TokenSpec(width=5, count=None)),
    )
    defaults: dict[str, Any] = {
        "dataset": "tiny",
        "split": "val",
        "dataset_digest": "0",
        "rows_per_shard": {"image": 2, "caption": 4},
    }
    return StoreSpec(model=model, **(defaults | changes))


class Content:
    """Random features of 5 images and 11 captions, and what a store of them must answer."""

    def __init__(self, spec: StoreSpec, seed: int = 0, format: str | None = None) -> None:  # noqa: A002
        self.format = format
        random = np.random.default_rng(seed)
        self.spec = spec
        self.counts: dict[SideName, int] = {"image": 5, "caption": 11}
        self.caption_to_image = np.sort(random.integers(0, 5, 11))
        self.ids: dict[SideName, list[str]] = {
            "image": [f"{k}.jpg" for k in range(5)],
            "caption": [f"ç{k}" for k in range(11)],
        }
        width = spec.model.embedding_width
        self.embeddings: Arrays | None = (
            {side: random.normal(size=(n, width)) for side, n in self.counts.items()}
            if width
            else None
        )
        self.tokens: dict[SideName, list[NDArray[np.float64]]] = {}
        for side, n in self.counts.items():
            tokens = spec.model.tokens(side)
            if tokens:
                sizes = [tokens.count or int(random.integers(1, 40)) for _ in range(n)]
                self.tokens[side] = [random.normal(size=(k, tokens.width)) for k in sizes]

    def write(self, path: Path) -> None:
        write_store(
            path,
            self.spec,
            ids=self.ids,
            caption_to_image=self.caption_to_image,
            embeddings=self.embeddings,
            tokens=self.tokens,
            format=self.format,
        )

    def open(self, path: Path) -> StoreWriter:
        return StoreWriter.open(path, self.spec, self.index(), format=self.format)

    def index(self) -> StoreIndex:
        return StoreIndex(
            ids={side: tuple(self.ids[side]) for side in SIDES},
            caption_to_image=self.caption_to_image,
            lengths={
                side: np.array([len(item) for item in self.tokens[side]], np.int64)
                for side in SIDES
            },
        )

    def block(self, writer: StoreWriter, side: SideName, shard: int, **changes: Any) -> Block:
        rows = writer.rows(side, shard)
        assert self.embeddings is not None
        values: dict[str, Any] = {
            "values": np.concatenate(self.tokens[side][rows.start : rows.stop]),
            "embeddings": self.embeddings[side][rows.start : rows.stop].copy(),
        }
        return Block(**(values | changes))


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def signed(value: dict[str, Any]) -> dict[str, Any]:
    """A marker or seal with the digest that fits what it says, as docs/store.md describes it."""
    body = {key: inner for key, inner in value.items() if key != "digest"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return body | {"digest": xxhash.xxh3_128_hexdigest(text.encode())}


class StoreContract:
    """Inherit, and name the files that hold image and caption tokens."""

    format: str
    shard_glob: str
    caption_glob: str

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "stores" / "tiny" / "val" / "model"

    @pytest.fixture
    def content(self) -> Content:
        return self.make()

    def make(self, **changes: Any) -> Content:
        return Content(make_spec(**changes), format=self.format)

    @pytest.mark.parametrize("rows", [[9, 0, 3], [4, 5, 6], [], list(range(11)), [2, 2]])
    def test_rows_come_back_in_the_order_asked_for(
        self, path: Path, content: Content, rows: list[int]
    ) -> None:
        content.write(path)
        store = open_store(path)
        asked = np.array(rows, np.int64)
        expected = [content.tokens["caption"][row] for row in rows]
        np.testing.assert_array_equal(
            store.caption.tokens(asked), np.concatenate([*expected, np.zeros((0, 5))]).astype("f2")
        )
        assert store.caption.lengths[asked].tolist() == [len(item) for item in expected]
        assert content.embeddings is not None
        got = store.caption.embeddings(asked)
        np.testing.assert_array_equal(got, content.embeddings["caption"][asked].astype("f2"))

    def test_images_ids_and_slices(self, path: Path, content: Content) -> None:
        content.write(path)
        store = open_store(path)
        assert store.image.ids == tuple(content.ids["image"])
        assert store.caption.ids == tuple(content.ids["caption"])
        np.testing.assert_array_equal(store.caption_to_image, content.caption_to_image)
        np.testing.assert_array_equal(
            store.image.tokens(slice(1, 4)),
            np.concatenate(content.tokens["image"][1:4]).astype("f2"),
        )
        assert store.image.lengths.tolist() == [3] * 5
        assert not store.image.failed.any()
        assert store.spec == content.spec

    @pytest.mark.parametrize(
        "changes",
        [
            {"image": None, "caption": None},
            {"embedding_width": None},
            {"image": TokenSpec(width=6, count=None)},
            {"dtype": "float32"},
        ],
        ids=["embeddings only", "no joint space", "ragged images", "float32"],
    )
    def test_other_specs(self, path: Path, changes: dict[str, Any]) -> None:
        content = self.make(**changes)
        content.write(path)
        store = open_store(path)
        for side in SIDES:
            if content.spec.model.tokens(side):
                np.testing.assert_array_equal(
                    store.side(side).tokens(slice(None)),
                    np.concatenate(content.tokens[side]).astype(content.spec.dtype),
                )
            else:
                with pytest.raises(StoreError, match="keeps no"):
                    store.side(side).tokens(slice(None))
            got = store.side(side).embeddings()
            assert (got is None) == (content.embeddings is None)

    def test_shards_in_any_order_make_the_same_store(self, path: Path, content: Content) -> None:
        content.write(path)
        other = path.with_name("other")
        writer = content.open(other)
        for side in SIDES:
            for shard in reversed(range(writer.shards(side))):
                writer.write(side, shard, content.block(writer, side, shard))
        writer.finish()
        assert files_of(path) == files_of(other)

    def test_an_unfinished_store_is_refused_and_continued(
        self, path: Path, content: Content
    ) -> None:
        writer = content.open(path)
        writer.write("image", 1, content.block(writer, "image", 1))
        with pytest.raises(StoreError, match=r"5 of 6 shards.*not written yet.*hada-extract"):
            open_store(path)
        again = content.open(path)
        assert again.pending("image") == [0, 2]
        assert again.pending("caption") == [0, 1, 2]
        content.write(path)
        assert open_store(path).spec == content.spec

    def test_damage_is_seen_and_mended(self, path: Path, content: Content) -> None:
        content.write(path)
        whole = files_of(path)
        captions = sorted(path.glob(self.caption_glob))[0]
        captions.write_bytes(captions.read_bytes()[10:])
        shard = sorted(path.glob(self.shard_glob))[1]
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(StoreError, match="expected"):
            open_store(path)
        shard.unlink()
        with pytest.raises(StoreError, match="missing"):
            open_store(path)
        content.write(path)
        assert files_of(path) == whole

    def test_a_flipped_bit_is_found(self, path: Path, content: Content) -> None:
        content.write(path)
        shard = sorted(path.glob(self.shard_glob))[0]
        data = bytearray(shard.read_bytes())
        data[3] ^= 16
        shard.write_bytes(data)
        status = shard_status(path, content.spec, deep=True)
        assert "another checksum" in str(status["image"][0])
        with pytest.raises(StoreError, match="cannot be read"):
            open_store(path).image.tokens(slice(None))

    @pytest.mark.parametrize("damage", ["{", "[]", '{"spec": 1}', '{"files": {"../x": [1, 2]}}'])
    def test_a_broken_marker_is_no_marker(self, path: Path, content: Content, damage: str) -> None:
        content.write(path)
        marker = commit.marker_path(path, "image", 0)
        marker.write_text(damage)
        with pytest.raises(StoreError, match="not a commit marker"):
            open_store(path)
        writer = content.open(path)
        assert writer.pending("image") == [0]

    def test_a_marker_cannot_point_outside(self, path: Path, content: Content) -> None:
        content.write(path)
        marker = commit.marker_path(path, "image", 0)
        value = json.loads(marker.read_text())
        value["files"] = {"../../../../../x": [1, "2"]}
        marker.write_text(json.dumps(signed(value)))
        with pytest.raises(StoreError, match="outside the store"):
            open_store(path)

    def test_another_spec_is_refused_by_field(self, path: Path, content: Content) -> None:
        content.write(path)
        other = self.make(weights_digest="1", dtype="float32")
        with pytest.raises(
            StoreMismatchError, match=r"dtype: the store has 'float16', this call wants 'float32'; "
        ) as caught:
            other.write(path)
        assert "weights_digest" in str(caught.value)

    def test_other_ids_are_refused(self, path: Path, content: Content) -> None:
        content.write(path)
        content.ids["image"][0] = "x.jpg"
        with pytest.raises(StoreMismatchError, match="image/ids differs"):
            content.write(path)

    def test_wrong_shapes_and_numbers_are_refused(self, path: Path, content: Content) -> None:
        writer = content.open(path)
        good = content.block(writer, "image", 0)
        assert good.values is not None
        cases: list[tuple[dict[str, Any], type[Exception], str]] = [
            ({"values": good.values[:-1]}, StoreError, r"expected shape \(6, 6\), got \(5, 6\)"),
            ({"embeddings": None}, StoreError, r"expected shape \(2, 4\), got None"),
            ({"values": good.values * 1e6}, StoreError, "do not fit float16"),
            ({"values": good.values * 1e-8}, StoreError, "so small that float16 loses their dig"),
            ({"values": good.values * np.nan}, NonFiniteError, "are NaN or infinite"),
        ]
        for changes, error, message in cases:
            with pytest.raises(error, match=message):
                writer.write("image", 0, content.block(writer, "image", 0, **changes))
        assert writer.pending("image") == [0, 1, 2]

    def test_failed_items_are_marked(self, path: Path, content: Content) -> None:
        writer = content.open(path)
        block = content.block(writer, "image", 1, failed={3: "broken"})
        assert block.values is not None
        assert block.embeddings is not None
        block.values[3:] = np.nan
        block.embeddings[1] = np.nan
        writer.write("image", 1, block)
        content.write(path)
        store = open_store(path)
        assert store.image.failed.tolist() == [False, False, False, True, False]
        assert writer.failures("image") == {3: "broken"}
        assert np.isnan(store.image.tokens(np.array([3]))).all()

    def test_a_shard_has_one_writer(self, path: Path, content: Content) -> None:
        writer = content.open(path)
        second = content.open(path)
        with writer.claim("image", 0) as mine:
            assert mine
            with second.claim("image", 0) as also_mine:
                assert not also_mine
            writer.write("image", 0, content.block(writer, "image", 0))
        with second.claim("image", 0) as late:
            assert not late

    def test_a_claim_removes_leftovers_and_nothing_else(self, path: Path, content: Content) -> None:
        writer = content.open(path)
        frame = files_of(path)
        writer.write("image", 0, content.block(writer, "image", 0))
        for file in [*path.glob(self.shard_glob), commit.marker_path(path, "image", 0)]:
            file.rename(f"{file}.tmp-7")
        with writer.claim("image", 0) as mine:
            assert mine
        assert files_of(path) == frame

    def test_something_else_in_its_place_is_left_alone(self, path: Path, content: Content) -> None:
        path.mkdir(parents=True)
        (path / "thesis.txt").write_text("precious")
        with pytest.raises(StoreError, match="not a feature store"):
            content.write(path)
        assert (path / "thesis.txt").read_text() == "precious"
