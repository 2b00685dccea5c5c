"""Exports hold the store's rows, are whole or absent, and load by the code of their README."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
from pathlib import Path
from typing import Any

import galleries
import makers
import numpy as np
import pytest
from click.testing import CliRunner

from hada.extract.cli import extract, store
from hada.extract.common.arrays import unit_rows
from hada.extract.common.errors import StoreError, UsageError
from hada.extract.datasets.read import read_dataset
from hada.extract.exporters.cli import FORMATS as OFFERED
from hada.extract.exporters.rows import Rows
from hada.extract.exporters.write import FORMATS, export_store
from hada.extract.manifest import load_manifest
from hada.extract.store import StoreReader, open_store

NEEDS = {
    "parquet": ("pyarrow", "parquet"),
    "faiss": ("faiss", "faiss"),
    "lancedb": ("lancedb", "lancedb"),
    "qdrant": ("qdrant_client", "qdrant"),
}


def need(form: str) -> None:
    package, extra = NEEDS.get(form, ("numpy", ""))
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: pip install 'hada[{extra}]'")


@pytest.fixture
def project(tmp_path: Path) -> StoreReader:
    """Features of the tiny data set; its stores have three shards of images."""
    makers.make_project(tmp_path, splits={"train": [2] * 3, "val": [2, 1, 3, 2, 2] * 4})
    words = ["--split", "val", "--model", "one", "--shard-size", "8"]
    assert CliRunner().invoke(extract, words).exit_code == 0
    return open_store("stores/tiny/val/one")


def rows_of(form: str, folder: Path, side: str) -> tuple[list[str], np.ndarray, dict[str, Any]]:
    """Ids, vectors and the other columns of an export, by the formats' own libraries."""
    if form in ("npy", "safetensors", "faiss"):
        ids = (folder / f"{side}_ids.txt").read_text().splitlines()
        if form == "npy":
            return ids, np.load(folder / f"{side}.npy", allow_pickle=False), {}
        if form == "safetensors":
            from safetensors.numpy import load_file

            return ids, load_file(folder / f"{side}.safetensors")["embeddings"], {}
        import faiss

        index = faiss.read_index(str(folder / f"{side}.faiss"))
        assert index.metric_type == faiss.METRIC_INNER_PRODUCT
        return ids, index.reconstruct_n(0, index.ntotal), {}
    if form == "qdrant":
        from qdrant_client import QdrantClient

        client = QdrantClient(path=str(folder))
        count = client.count(side).count
        points = client.retrieve(side, ids=[*range(count)], with_vectors=True)
        client.close()
        table: dict[str, Any] = {key: [p.payload[key] for p in points] for key in points[0].payload}
        vectors = np.array([point.vector for point in points], np.float32)
    else:
        if form == "parquet":
            import pyarrow.parquet as pq

            arrow = pq.read_table(folder / f"{side}.parquet")
        else:
            import lancedb

            arrow = lancedb.connect(str(folder)).open_table(side).to_arrow()
        assert arrow.schema.field("embedding").type.list_size > 0
        table = {name: arrow[name].to_pylist() for name in arrow.column_names}
        vectors = np.array(table.pop("embedding"), np.float32)
    return table.pop("id"), vectors, table


def test_the_command_offers_what_there_is() -> None:
    assert set(OFFERED) == set(FORMATS)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_back_ids_rows_captions_and_files(
    form: str, project: StoreReader, tmp_path: Path
) -> None:
    need(form)
    done = CliRunner().invoke(store, ["export", str(project.path), "out/here", "--format", form])
    assert done.exit_code == 0, done.output
    assert done.stdout == "out/here\n"
    data = read_dataset(load_manifest(None).dataset("tiny"), "val")
    for side in ("image", "caption"):
        reader = project.side(side)  # type: ignore[arg-type]
        ids, values, columns = rows_of(form, tmp_path / "out/here", side)
        assert ids == list(reader.ids)
        want = np.asarray(reader.embeddings(), np.float32)
        if not project.spec.model.normalized:
            want = unit_rows(want)
        np.testing.assert_allclose(values, want, atol=1e-7)
        if not columns:
            continue
        owners = data.caption_to_image if side == "caption" else np.arange(len(ids))
        assert columns["file"] == [str(data.image_paths[row]) for row in owners]
        if side == "caption":
            assert columns["caption"] == list(data.captions)
            assert columns["image_id"] == [data.image_ids[row] for row in owners]
        else:
            slow = [
                [
                    data.captions[j]
                    for j in range(len(data.captions))
                    if data.caption_to_image[j] == i
                ]
                for i in range(len(ids))
            ]
            assert columns["captions"] == slow
    leftovers = [path.name for path in (tmp_path / "out").iterdir()]
    assert leftovers == ["here"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_the_code_of_its_readme_finds_the_nearest(
    form: str, project: StoreReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(form)
    export_store(project, tmp_path / "out", form)
    (code,) = re.findall(
        r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(), re.DOTALL
    )
    monkeypatch.chdir(tmp_path / "out")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    images, captions = (
        unit_rows(np.asarray(side.embeddings(), np.float32))
        for side in (project.image, project.caption)
    )
    scores = images @ captions[0]
    shown = re.findall(r"val_\d+\.jpg(?!-)", printed.getvalue().partition("[")[2])
    rows = [project.image.ids.index(id_) for id_ in shown]
    assert len(rows) == 10
    np.testing.assert_allclose(scores[rows], np.sort(scores)[::-1][:10], atol=1e-6)


def test_failed_items_are_left_out_and_rows_follow_the_ids(tmp_path: Path) -> None:
    made = galleries.make_store(tmp_path / "s", "a", failed={"image": [3], "caption": [0, 5]})
    export_store(made, tmp_path / "out", "npy")
    ids, values, _ = rows_of("npy", tmp_path / "out", "image")
    kept = [row for row in range(len(made.image.ids)) if row != 3]
    assert ids == [made.image.ids[row] for row in kept]
    want = np.asarray(made.image.embeddings(), np.float32)[kept]
    np.testing.assert_allclose(values, unit_rows(want), rtol=1e-6)
    assert np.isfinite(values).all()
    assert len(rows_of("npy", tmp_path / "out", "caption")[0]) == len(made.caption.ids) - 2


def test_half_precision_and_rows_as_stored(project: StoreReader, tmp_path: Path) -> None:
    assert not project.spec.model.normalized
    export_store(project, tmp_path / "half", "safetensors", dtype="float16", unit=False)
    _, values, _ = rows_of("safetensors", tmp_path / "half", "image")
    assert values.dtype == np.float16
    np.testing.assert_array_equal(values, np.asarray(project.image.embeddings(), np.float16))
    text = (tmp_path / "half/README.md").read_text()
    assert "Metric: cosine." in text
    assert "not of unit length" in text
    export_store(project, tmp_path / "unit", "npy")
    assert "Metric: inner product." in (tmp_path / "unit/README.md").read_text()
    with pytest.raises(UsageError, match="faiss holds float32"):
        export_store(project, tmp_path / "no", "faiss", dtype="float16")


def test_an_export_is_whole_or_absent(
    project: StoreReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    pieces = Rows.pieces

    def broken(rows: Rows) -> Any:
        for piece in pieces(rows):
            yield piece
            if rows.side == "caption":
                raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "pieces", broken)
        with pytest.raises(OSError, match="No space left"):
            export_store(project, target, "npy")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(("out", ".out"))]
    assert export_store(project, target, "npy")
    assert not export_store(project, target, "npy")  # it is there
    before = (target / "image.npy").read_bytes()
    with pytest.raises(UsageError, match="an export of other dtype: 'float32', now 'float16'"):
        export_store(project, target, "npy", dtype="float16")
    # A replacement that fails leaves what was there.
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "pieces", broken)
        with pytest.raises(OSError, match="No space left"):
            export_store(project, target, "npy", dtype="float16", fresh=True)
    assert (target / "image.npy").read_bytes() == before
    assert export_store(project, target, "npy", dtype="float16", fresh=True)
    assert np.load(target / "image.npy").dtype == np.float16
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(UsageError, match="holds something else"):
            export_store(project, tmp_path / "mine", "npy", fresh=fresh)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_it_reads_a_shard_at_a_time(project: StoreReader, tmp_path: Path) -> None:
    """No piece is longer than a shard, whatever the split's size."""
    assert project.spec.rows_per_shard["image"] == 8
    for side in ("image", "caption"):
        rows = Rows.of(project, side, unit=True)  # type: ignore[arg-type]
        sizes = [len(piece.ids) for piece in rows.pieces()]
        assert max(sizes) <= project.spec.rows_per_shard[side]  # type: ignore[index]
        assert sum(sizes) == len(rows)
    assert len(sizes) == 1  # 64 captions a shard
    assert [piece.start for piece in Rows.of(project, "image", unit=True).pieces()] == [0, 8, 16]


def test_what_cannot_be_exported_is_one_message(project: StoreReader, tmp_path: Path) -> None:
    # Another data set under the same name: its captions would be of other images.
    annotations = tmp_path / "data" / "dataset_tiny.json"
    text = json.loads(annotations.read_text())
    text["images"] = [entry for entry in text["images"] if entry["filename"] != "val_003.jpg"]
    annotations.write_text(json.dumps(text))
    words = ["export", str(project.path), "out"]
    done = CliRunner().invoke(store, words)
    assert done.exit_code == 1
    assert "its items are not those of tiny/val as it is now" in done.stderr
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(store, [*words, "--ids-only"]).exit_code == 0
    # Without the data set: ids alone, and it says so.
    annotations.unlink()
    done = CliRunner().invoke(store, ["export", str(project.path), "other"])
    assert done.exit_code == 0
    assert "ids alone: " in done.stderr
    done = CliRunner().invoke(store, ["export", "nowhere", "x"])
    assert done.exit_code == 1
    assert "there is no feature store" in done.stderr


def test_a_missing_package_names_its_extra(
    project: StoreReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for form, (package, extra) in NEEDS.items():
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(UsageError, match=rf"pip install 'hada\[{extra}\]'"):
                export_store(project, tmp_path / form, form)
        assert not (tmp_path / form).exists()


def test_a_damaged_shard_stops_it(project: StoreReader, tmp_path: Path) -> None:
    files = [p for p in project.path.rglob("*") if p.is_file() and "embeddings" in str(p)]
    shard = next(p for p in files if p.stat().st_size > 500 and p.name != "zarr.json")
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 255
    shard.write_bytes(data)
    with pytest.raises(StoreError):
        export_store(open_store(project.path), tmp_path / "out", "npy")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_texts_alone_and_images_alone_are_exported(form: str, tmp_path: Path) -> None:
    need(form)
    makers.make_project(tmp_path)
    (tmp_path / "asked.txt").write_text("red above blue\ngreen\n")
    for data in ("asked=asked.txt", "alone=data/images"):
        done = CliRunner().invoke(extract, ["--data", data, "--model", "one"])
        assert done.exit_code == 0, done.output
    for name, side, count in (("asked", "caption", 2), ("alone", "image", 17)):
        source = f"stores/{name}/all/one"
        done = CliRunner().invoke(store, ["export", source, name, "--format", form])
        assert done.exit_code == 0, done.output
        ids, values, columns = rows_of(form, Path(name), side)
        assert ids == list(open_store(source).side(side).ids)  # type: ignore[arg-type]
        assert values.shape == (count, open_store(source).spec.model.embedding_width)
        if side == "caption" and columns:
            # Of no image, not of the last one.
            assert {*columns["image_id"]} == {None}
            assert {*columns["file"]} == {None}
            assert list(columns["caption"]) == ["red above blue", "green"]
