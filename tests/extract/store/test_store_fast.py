"""Reading by byte range equals reading through the library, and knows when it must not."""

from __future__ import annotations

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import makers
import numpy as np
import pytest
import zarr

from hada.extract.common.errors import StoreError
from hada.extract.store import check, digests, formats, open_store
from hada.extract.store.hdf5_part import read_through
from hada.extract.store.open_file import OpenFile
from hada.extract.store.row_reader import RowReader
from hada.extract.store.side_reader import SideReader
from hada.extract.testing.store_contract import Content, files_of

FORMATS = pytest.mark.parametrize("form", ["zarr", "hdf5"])
ARRAYS = ("image/tokens", "image/embeddings", "caption/tokens", "caption/embeddings")


def make(path: Path, form: str, **changes: Any) -> Content:
    content = Content(makers.make_spec(**changes), format=form)
    content.write(path)
    return content


def source(path: Path, form: str, name: str) -> formats.ArraySource:
    return formats.get(form).source(path / formats.features_folder(form), name)


def written(path: Path, name: str, rows: int) -> Any:
    """(n, 2) first and last rows of what lies together: the others were never written."""
    if name != "caption/tokens":
        return np.array([[0, rows]])
    spans = open_store(path).caption._spans
    joints = np.flatnonzero(spans[1:, 0] != spans[:-1, 1])
    return np.stack([spans[[0, *(joints + 1)], 0], spans[[*joints, -1], 1]], axis=1)


def no_library(_self: object, start: int, stop: int) -> None:
    raise AssertionError(f"rows {start} to {stop} went through the library")


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of several shards in each format, to be read only."""
    folder = tmp_path_factory.mktemp("many")
    for form in ("zarr", "hdf5"):
        make(folder / form, form, rows_per_shard={"image": 3, "caption": 4})
    return {form: folder / form for form in ("zarr", "hdf5")}


@FORMATS
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("verified", [False, True])
@pytest.mark.parametrize("mapped", [0, 30, 1 << 17])
def test_any_rows_equal_the_library_s(
    many_shards: dict[str, Path],
    form: str,
    name: str,
    verified: bool,
    mapped: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # From the file's pages, by calls to the system, or some this way and some that.
    monkeypatch.setattr("hada.extract.store.chunks.MAPPED", mapped)
    path = many_shards[form]
    array = source(path, form, name)
    whole = array.library(0, array.shape[0])
    monkeypatch.setattr(type(array), "library", no_library)
    reader = RowReader(array)
    runs = written(path, name, len(whole))
    if verified:
        for start, stop in runs:
            np.testing.assert_array_equal(reader.slice(start, stop), whole[start:stop])
    random = np.random.default_rng([verified, mapped])
    for _ in range(12):
        rows = random.choice(np.concatenate([np.arange(*run) for run in runs]), 9)
        rows = rows[: random.integers(0, 9)]
        np.testing.assert_array_equal(
            reader.ranges(np.stack([rows, rows + 1], axis=1)), whole[rows]
        )
        chosen = runs[random.integers(0, len(runs), random.integers(0, 5))]
        cuts = np.sort(random.integers(0, 1 + chosen[:, 1:] - chosen[:, :1], (len(chosen), 2)), 1)
        spans = chosen[:, :1] + cuts
        expected = [whole[:0], *(whole[start:stop] for start, stop in spans)]
        np.testing.assert_array_equal(reader.ranges(spans), np.concatenate(expected))
        np.testing.assert_array_equal(RowReader(array).ranges(spans), np.concatenate(expected))


def test_a_shard_is_written_byte_for_byte_as_zarr_python_does(tmp_path: Path) -> None:
    content = make(tmp_path / "s", "zarr", rows_per_shard={"image": 4, "caption": 8})
    ours = tmp_path / "s" / "features.zarr"
    theirs = tmp_path / "theirs"
    shutil.copytree(ours, theirs)
    group = zarr.open_group(theirs, mode="r+")
    for name in ARRAYS:
        values = zarr.open_array(ours / name, mode="r")[:]
        shutil.rmtree(theirs / name / "c")
        group[name][:] = values
        written = sorted(p.relative_to(theirs) for p in (theirs / name / "c").rglob("*"))
        assert written
        for path in written:
            if (theirs / path).is_file():
                assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path
    assert content.spec.rows_per_shard["image"] == 4


@pytest.mark.parametrize("compressors", [["crc32c", "gzip"], ["gzip"], []], ids="+".join)
def test_other_codecs_go_through_zarr(tmp_path: Path, compressors: list[str]) -> None:
    content = make(tmp_path / "s", "zarr")
    group = zarr.open_group(tmp_path / "s" / "features.zarr", mode="r+")
    values = group["image/tokens"][:]
    known = {
        "crc32c": {"name": "crc32c"},
        "gzip": {"name": "gzip", "configuration": {"level": 1}},
    }
    group.create_array(
        "image/tokens",
        data=values,
        chunks=(1, 3, 6),
        shards=(2, 3, 6),
        compressors=[known[name] for name in compressors],
        fill_value=np.nan,
        overwrite=True,
    )
    array = source(tmp_path / "s", "zarr", "image/tokens")
    assert array.raw(0) is None
    reader = RowReader(array)
    spans = np.array([[4, 5], [0, 1], [1, 2], [1, 2]])
    np.testing.assert_array_equal(reader.ranges(spans), values[[4, 0, 1, 1]])
    np.testing.assert_array_equal(reader.slice(0, 5), values)
    assert len(content.ids["image"]) == 5


@FORMATS
def test_a_chunk_that_is_missing_is_damage_and_no_fill_value(tmp_path: Path, form: str) -> None:
    make(tmp_path / "s", form)
    if form == "zarr":  # which leaves out what is all NaN
        array = zarr.open_array(tmp_path / "s" / "features.zarr" / "image" / "tokens", mode="r+")
        array[1] = np.nan
    else:
        part = next(iter(_tokens(tmp_path / "s", "hdf5")))
        with h5py.File(part, "r+") as file:
            whole, crcs = file["tokens"][...], file["crc32c/tokens"][...]
            del file["tokens"]
            tokens = file.create_dataset(
                "tokens", whole.shape, whole.dtype, chunks=(1, 3, 6), fletcher32=True
            )
            tokens[:1] = whole[:1]
            assert len(crcs) == 2
    found = source(tmp_path / "s", form, "image/tokens")
    raw = found.raw(0)
    assert raw is not None
    assert (raw.offsets < 0).tolist() == [False, True]
    assert len(RowReader(found).slice(0, 1)) == 1
    for rows in (slice(1, 2), slice(0, 5)):
        with pytest.raises(StoreError, match="chunk 1 is missing"):
            RowReader(found).slice(rows.start, rows.stop)
    if form == "hdf5":
        with pytest.raises(ValueError, match="chunks are missing"):
            found.library(0, 5)


def test_chunks_may_lie_in_any_order_and_with_gaps(tmp_path: Path) -> None:
    content = make(tmp_path / "s", "zarr", rows_per_shard={"image": 5, "caption": 11})
    (shard,) = _tokens(tmp_path / "s", "zarr")
    raw, size = shard.read_bytes(), 3 * 6 * 2 + 4
    table = np.frombuffer(raw[5 * size : -4], "<u8").reshape(5, 2).copy()
    body, places = b"", {}
    for chunk in (1, 2, 0, 4, 3):
        # Chunks 1 and 2 follow each other; between the others lies something else.
        body += b"" if chunk == 2 else b"gap" * chunk
        places[chunk] = len(body)
        body += raw[chunk * size : (chunk + 1) * size]
    table[:, 0] = [places[chunk] for chunk in range(5)]
    index = table.tobytes()
    shard.write_bytes(body + index + google_crc32c.value(index).to_bytes(4, "little"))
    expected = np.stack(content.tokens["image"]).astype("f2")
    reader = RowReader(source(tmp_path / "s", "zarr", "image/tokens"))
    for _ in range(2):
        for start in range(5):
            for stop in range(start, 6):
                np.testing.assert_array_equal(reader.slice(start, stop), expected[start:stop])


def test_an_hdf5_part_of_another_writer_goes_through_h5py(tmp_path: Path) -> None:
    content = make(tmp_path / "s", "hdf5")
    part = tmp_path / "s" / "features.hdf5" / "image" / "000000.h5"
    values = np.stack(content.tokens["image"]).astype("f2")
    with h5py.File(part, "w") as file:
        file.create_dataset("tokens", data=values[:2], compression="gzip")
    array = source(tmp_path / "s", "hdf5", "image/tokens")
    assert array.raw(0) is None
    np.testing.assert_array_equal(RowReader(array).slice(0, 5), values)


@FORMATS
def test_the_size_of_checked_blocks_changes_nothing(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "whole", form)
    # 36 bytes of an image are then five blocks, the last of one byte.
    for module in ("chunks", "digests", "zarr_shard"):
        monkeypatch.setattr(f"hada.extract.store.{module}.HOT", 7)
    content = make(tmp_path / "parts", form)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    read = open_store(tmp_path / "parts").image.tokens(slice(None))
    np.testing.assert_array_equal(read, np.concatenate(content.tokens["image"]).astype("f2"))
    assert check.check(tmp_path / "parts", deep=True).whole
    shard = _tokens(tmp_path / "parts", form)[1]
    at = shard.read_bytes().index(content.tokens["image"][3].astype("<f2").tobytes())
    _flip(shard, at + 35)
    assert not check.check(tmp_path / "parts", deep=True).whole
    with pytest.raises(StoreError, match="chunk 1 has the crc32c"):
        open_store(tmp_path / "parts").image.tokens(slice(None))


@pytest.mark.parametrize("size", [0, 1, digests.HOT - 1, digests.HOT, 2 * digests.HOT + 5])
def test_the_crc32c_of_a_copy_is_that_of_the_bytes(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    assert digests.crc32c(data) == google_crc32c.value(data.tobytes())


def test_a_file_is_read_through_once_with_gaps_and_chunks_in_any_order(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(2 * digests.HOT + 100)
    (tmp_path / "file").write_bytes(data)
    file = OpenFile(tmp_path / "file")
    chunks = [(digests.HOT + 60, digests.HOT + 40), (3, 50), (53, 7)]
    digest, crcs = read_through(file, chunks)
    assert digest == digests.of_file(tmp_path / "file")
    assert crcs == [google_crc32c.value(data[a : a + n]) for a, n in chunks]
    for wrong in ([(3, 50), (52, 7)], [(0, len(data) + 1)], [(-1, 3)]):
        with pytest.raises(ValueError, match="overlap"):
            read_through(file, wrong)


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def _tokens(path: Path, form: str) -> list[Path]:
    glob = {"zarr": "features.zarr/image/tokens/c/*/0/0", "hdf5": "features.hdf5/image/*.h5"}
    return sorted(path.glob(glob[form]))


@FORMATS
@pytest.mark.parametrize("mapped", [0, 1 << 17])
def test_damage_in_any_byte_is_never_returned(
    tmp_path: Path, form: str, mapped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hada.extract.store.chunks.MAPPED", mapped)
    content = make(tmp_path / "s", form)
    shard = _tokens(tmp_path / "s", form)[1]
    whole = shard.read_bytes()
    expected = np.concatenate(content.tokens["image"][2:4]).astype("f2")
    named = 0
    for place in range(0, len(whole), 1 if form == "zarr" else 97):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        shard.write_bytes(data)
        try:
            got = open_store(tmp_path / "s").image.tokens(slice(2, 4))
        except StoreError as error:
            named += "cannot be read" in str(error)
        else:
            # HDF5 has bytes that mean nothing; they are found by `verify --deep` alone.
            np.testing.assert_array_equal(got, expected)
    assert named == len(whole) if form == "zarr" else named


@FORMATS
@pytest.mark.parametrize("mapped", [0, 1 << 17])
def test_a_damaged_chunk_is_refused_each_time_and_its_neighbours_are_read(
    tmp_path: Path, form: str, mapped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hada.extract.store.chunks.MAPPED", mapped)
    content = make(tmp_path / "s", form, rows_per_shard={"image": 5, "caption": 11})
    images = [values.astype("<f2").tobytes() for values in content.tokens["image"]]
    (shard,) = _tokens(tmp_path / "s", form)
    _flip(shard, shard.read_bytes().index(images[3]) + 35)
    raw = source(tmp_path / "s", form, "image/tokens").raw(0)
    assert raw is not None
    file, out = OpenFile(raw.path), np.zeros(3 * len(images[0]), np.uint8)
    for _ in range(2):
        with pytest.raises(ValueError, match="chunk 3 has the crc32c"):
            raw.read(file, [(1, 2, 0), (3, 4, 1), (0, 1, 2)], out)
        assert list(raw.verified) == [0, 1, 0, 0, 0]
    raw.read(file, [(2, 3, 1), (0, 1, 0), (4, 5, 2)], out)
    assert out.tobytes() == images[0] + images[2] + images[4]
    assert list(raw.verified) == [1, 1, 1, 0, 1]


@FORMATS
@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_file_that_is_cut_is_an_error(tmp_path: Path, form: str, keep: int) -> None:
    make(tmp_path / "s", form)
    store = open_store(tmp_path / "s")
    shard = _tokens(tmp_path / "s", form)[0]
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(StoreError, match="cannot be read"):
        store.image.tokens(slice(0, 2))
    shard.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        open_reader(store.image).slice(0, 2)


@FORMATS
def test_a_file_that_is_cut_while_it_is_open_is_an_error(tmp_path: Path, form: str) -> None:
    make(tmp_path / "s", form)
    store = open_store(tmp_path / "s")
    glob = {"zarr": "features.zarr/caption/tokens/c/0/0", "hdf5": "features.hdf5/caption/000000.h5"}
    (shard,) = (tmp_path / "s").glob(glob[form])
    store.caption.tokens(slice(0, 4))  # its pages are mapped now
    os.truncate(shard, 0)
    with pytest.raises(StoreError, match="cannot be read"):
        store.caption.tokens(slice(0, 4))


def open_reader(side: SideReader) -> RowReader:
    return RowReader(side._token_rows._source)


@FORMATS
def test_a_mended_shard_is_verified_anew(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hada.extract.store.row_reader.OPEN_FILES", 1)
    content = make(tmp_path / "s", form)
    store = open_store(tmp_path / "s")
    whole = store.image.tokens(slice(None))
    shard = _tokens(tmp_path / "s", form)[0]
    raw = source(tmp_path / "s", form, "image/tokens").raw(0)
    assert raw is not None
    _flip(shard, int(raw.offsets[0]) + 3)
    with pytest.raises(StoreError, match="cannot be read"):
        store.image.tokens(slice(0, 2))
    shard.unlink()
    content.write(tmp_path / "s")
    np.testing.assert_array_equal(store.image.tokens(slice(None)), whole)


@FORMATS
def test_threads_and_pickles_share_a_reader(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hada.extract.store.row_reader.OPEN_FILES", 2)
    make(tmp_path / "s", form, rows_per_shard={"image": 1, "caption": 2})
    store = open_store(tmp_path / "s")
    whole = store.image.tokens(slice(None)).reshape(5, 3, 6)
    orders = [np.random.default_rng(k).permutation(5) for k in range(60)]
    with ThreadPoolExecutor(4) as pool:
        for order, got in zip(orders, pool.map(store.image.tokens, orders), strict=True):
            np.testing.assert_array_equal(got.reshape(5, 3, 6), whole[order])
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.image.tokens(slice(None)).reshape(5, 3, 6), whole)


@FORMATS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_array_may_be_recycled(tmp_path: Path, form: str, dtype: str) -> None:
    make(tmp_path / "s", form, dtype=dtype)
    store = open_store(tmp_path / "s")
    for side in (store.image, store.caption):
        rows = np.array([3, 0, 1])
        out = np.empty((int(side.lengths[rows].sum()), 6 if side is store.image else 5), side.dtype)
        got = side.tokens(rows, out=out)
        assert np.shares_memory(got, out)
        np.testing.assert_array_equal(out, side.tokens(rows))
    with pytest.raises(ValueError, match="out: expected"):
        open_reader(store.image).slice(0, 2, np.empty((2, 3, 6), "f8"))


@FORMATS
def test_bfloat16_is_the_nearest_and_nan_stays_nan(tmp_path: Path, form: str) -> None:
    content = make(tmp_path / "s", form, dtype="bfloat16")
    got = open_store(tmp_path / "s").image.tokens(slice(None))
    wanted = np.concatenate(content.tokens["image"]).astype("f4")
    assert got.dtype == np.float32
    assert (np.abs(got - wanted) <= np.abs(wanted) * 2.0**-8).all()
    content.tokens["image"][0][0, 0] = 1e39
    with pytest.raises(StoreError, match=r"1 values .* do not fit bfloat16"):
        content.write(tmp_path / "t")
