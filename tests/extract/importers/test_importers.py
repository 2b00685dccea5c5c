"""hada-store import: every format ends in the store that its numbers say, or in one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from hada.extract.cli import store
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import load_manifest
from hada.extract.store import open_store

E, D = 4, 6


@pytest.fixture
def data(tmp_path: Path) -> CaptionDataset:
    makers.make_project(tmp_path)
    for picture in (tmp_path / "data" / "images").iterdir():
        picture.unlink()  # an import needs none
    return read_dataset(load_manifest().dataset(), "val", pictures=False)


def command(kind: str, *arguments: str) -> Any:
    return CliRunner().invoke(
        store,
        ["import", kind, "--model", "x", "--split", "val", "--store-dtype", "float32", *arguments],
    )


def good(result: Any) -> Any:
    assert result.exit_code == 0, result.output
    return open_store("stores/tiny/val/x")


def refused(result: Any, message: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert message in result.stderr


def unit(rows: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, E)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def hada_folders(data: CaptionDataset, *, ragged: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """ALBEF's layout (padded captions) or DOT's (ragged images, captions as objects)."""
    random = np.random.default_rng(0)
    embeddings, tokens = unit(len(data.image_ids), 1), []
    for folder in ("img", "txt"):
        Path(folder).mkdir()
    for row, id_ in enumerate(data.image_ids):
        count = int((data.caption_to_image == row).sum())
        feat = random.standard_normal((3 + (row if ragged else 0), D), dtype=np.float32)
        np.savez(f"img/{Path(id_).stem}.npz", feat=feat, proj_embed=embeddings[row])
        lengths = random.integers(2, 6, count)
        rows = [random.standard_normal((n, D), dtype=np.float32) for n in lengths]
        tokens += rows
        proj = unit(count, row + 10)
        if ragged:
            feats, atts = np.empty(count, object), np.empty(count, object)
            for place, item in enumerate(rows):
                feats[place], atts[place] = item, np.ones(len(item), np.int64)
        else:
            feats, atts = np.zeros((count, 6, D), np.float32), np.zeros((count, 6), np.int64)
            for place, item in enumerate(rows):
                feats[place, : len(item)], atts[place, : len(item)] = item, 1
            if count == 1:  # the official code drops the axis
                feats, atts, proj = feats[0], atts[0], proj[0]
        np.savez(f"txt/{Path(id_).stem}.npz", feat=feats, att=atts, proj_embed=proj)
    return embeddings, tokens


HADA = ("--images", "img", "--captions", "txt")


def test_albef_folders(data: CaptionDataset) -> None:
    embeddings, tokens = hada_folders(data, ragged=False)
    found = good(command("hada", *HADA))
    np.testing.assert_array_equal(found.image.embeddings(), embeddings)
    np.testing.assert_array_equal(found.caption.tokens(slice(None)), np.concatenate(tokens))
    model = found.spec.model
    assert (model.image.count, model.caption.count, model.normalized) == (3, None, True)
    assert (model.family, model.preprocessing["format"]) == ("imported", "hada")
    assert found.image.ids == data.image_ids
    first = np.load(f"img/{Path(data.image_ids[0]).stem}.npz")["feat"]
    np.testing.assert_array_equal(found.image.tokens(np.array([0])), first)


def test_dot_folders_need_an_explicit_yes(data: CaptionDataset) -> None:
    _, tokens = hada_folders(data, ragged=True)
    refused(command("hada", *HADA), "Where you trust the files: --allow-pickle")
    result = command("hada", *HADA, "--allow-pickle")
    assert "warning: --allow-pickle opens pickles, which can run code" in result.stderr
    found = good(result)
    assert found.image.lengths.tolist() == [3, 4, 5, 6, 7]
    np.testing.assert_array_equal(found.caption.tokens(slice(None)), np.concatenate(tokens))


def test_augmented_files_are_a_model_of_their_own(data: CaptionDataset) -> None:
    hada_folders(data, ragged=False)
    for file in list(Path("img").iterdir()):
        file.rename(file.with_name(f"{file.stem}_0.npz"))
    refused(command("hada", *HADA), "not one image has features")
    good(command("hada", *HADA, "--image-name", "{stem}_0.npz"))
    refused(command("hada", *HADA, "--image-name", "../{stem}.npz"), "expected a file name with")


def test_a_damaged_image_is_left_out(data: CaptionDataset) -> None:
    hada_folders(data, ragged=False)
    file = Path("img") / f"{Path(data.image_ids[3]).stem}.npz"
    file.write_bytes(file.read_bytes()[:200])
    result = command("hada", *HADA)
    found = good(result)
    assert found.image.failed.tolist() == [False, False, False, True, False]
    assert "could not import val_003.jpg" in result.stderr
    refused(command("hada", *HADA, "--max-errors", "0"), "more than --max-errors 0", 1)


def test_captions_must_fit(data: CaptionDataset) -> None:
    hada_folders(data, ragged=False)
    file = Path("txt") / f"{Path(data.image_ids[0]).stem}.npz"
    np.savez(file, feat=np.zeros((5, 6, D)), att=np.ones((5, 6)), proj_embed=unit(5, 0))
    refused(command("hada", *HADA), "but the dataset has 2 captions of 'val_000.jpg'")
    file.unlink()
    refused(command("hada", *HADA), "val_000.npz: no such file")
    refused(command("hada", "--images", "img"), "give --images and --captions")
    refused(command("hada", "--images", "a", "--captions", "b"), "a: no such folder")


def plain(data: CaptionDataset) -> tuple[np.ndarray, np.ndarray]:
    """Arrays whose rows are in another order than the dataset, with one row too many."""
    images, captions = unit(len(data.image_ids) + 1, 1), unit(len(data.captions), 2)
    np.save("i.npy", images[::-1])
    np.save("c.npy", captions)
    Path("i.txt").write_text("\n".join(["extra", *reversed(data.image_ids)]) + "\n")
    Path("c.json").write_text(json.dumps(list(data.caption_ids)))
    return images[:-1], captions


PLAIN = ("--images", "i.npy", "--image-ids", "i.txt", "--captions", "c.npy")


def test_plain_arrays(data: CaptionDataset) -> None:
    images, captions = plain(data)
    found = good(command("npy", *PLAIN, "--caption-ids", "c.json"))
    np.testing.assert_array_equal(found.image.embeddings(), images)
    np.testing.assert_array_equal(found.caption.embeddings(), captions)
    assert found.spec.model.image is None


def test_plain_arrays_that_do_not_fit(data: CaptionDataset) -> None:
    plain(data)
    refused(command("npy", *PLAIN), "plain arrays need --images and --captions")
    ids = json.loads(Path("c.json").read_text())
    Path("c.json").write_text(json.dumps([*ids[:-1], "other"]))
    refused(command("npy", *PLAIN, "--caption-ids", "c.json"), "1 of 10 captions of the dataset")
    Path("c.json").write_text(json.dumps(ids[:-1]))
    refused(command("npy", *PLAIN, "--caption-ids", "c.json"), "9 ids for 10 rows")
    Path("c.json").write_text(json.dumps([*ids[:-1], ids[0]]))
    refused(command("npy", *PLAIN, "--caption-ids", "c.json"), "an id appears twice")
    Path("c.json").write_text("{")
    refused(command("npy", *PLAIN, "--caption-ids", "c.json"), "broken JSON")
    Path("c.json").write_text(json.dumps(ids))
    np.save("c.npy", np.array([{}] * 10, dtype=object))
    refused(command("npy", *PLAIN, "--caption-ids", "c.json"), "holds pickled objects")
    np.save("c.npy", np.zeros((10, E + 1), np.float32))
    refused(command("npy", *PLAIN, "--caption-ids", "c.json"), "not of one joint space")


def test_safetensors(data: CaptionDataset) -> None:
    images, captions = unit(5, 1), 3 * unit(10, 2)
    tokens = np.random.default_rng(0).standard_normal((5, 3, D)).astype(np.float16)
    tensors = {"image_embeddings": images, "caption_embeddings": captions, "image_tokens": tokens}
    ids = {"image_ids": json.dumps(data.image_ids), "caption_ids": json.dumps(data.caption_ids)}
    safetensors.numpy.save_file(tensors, "f.safetensors", metadata=ids)
    found = good(command("safetensors", "--images", "f.safetensors"))
    np.testing.assert_array_equal(found.caption.embeddings(), captions)
    np.testing.assert_array_equal(found.image.tokens(slice(None)), tokens.reshape(-1, D))
    assert found.spec.model.normalized is False
    safetensors.numpy.save_file(tensors, "f.safetensors")
    refused(command("safetensors", "--images", "f.safetensors"), "give --image-ids")
    safetensors.numpy.save_file({"x": images}, "f.safetensors")
    refused(command("safetensors", "--images", "f.safetensors"), "no tensor 'image_embeddings'")
    Path("f.safetensors").write_bytes(b"nothing")
    refused(command("safetensors", "--images", "f.safetensors"), "not a safetensors file")


def clip_retrieval_folder(data: CaptionDataset) -> tuple[np.ndarray, np.ndarray]:
    """Two partitions of pairs, in a shuffled order."""
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    images, captions = unit(5, 1).astype(np.float16), unit(10, 2).astype(np.float16)
    order = np.random.default_rng(3).permutation(10)
    for part, rows in enumerate((order[:6], order[6:])):
        owners = data.caption_to_image[rows]
        for kind, values in (("img", images[owners]), ("text", captions[rows])):
            Path(f"out/{kind}_emb").mkdir(parents=True, exist_ok=True)
            np.save(f"out/{kind}_emb/{kind}_emb_{part}.npy", values)
        Path("out/metadata").mkdir(exist_ok=True)
        table = {
            "image_path": [f"somewhere/{data.image_ids[owner]}" for owner in owners],
            "caption": [data.captions[row] for row in rows],
        }
        parquet.write_table(arrow.table(table), f"out/metadata/metadata_{part}.parquet")
    return images, captions


def test_clip_retrieval(data: CaptionDataset) -> None:
    images, captions = clip_retrieval_folder(data)
    found = good(command("clip-retrieval", "--images", "out"))
    np.testing.assert_array_equal(found.image.embeddings(), images.astype(np.float32))
    np.testing.assert_array_equal(found.caption.embeddings(), captions.astype(np.float32))
    assert found.spec.model.normalized is True
    Path("out/metadata/metadata_1.parquet").unlink()
    Path("out/metadata/metadata_0.parquet").write_bytes(b"nothing")
    refused(command("clip-retrieval", "--images", "out"), "not a parquet file")
    Path("out/metadata/metadata_0.parquet").unlink()
    refused(command("clip-retrieval", "--images", "out"), "no numbered .parquet files")


def test_an_incomplete_clip_retrieval_folder(data: CaptionDataset) -> None:
    clip_retrieval_folder(data)
    Path("out/metadata/metadata_1.parquet").unlink()
    refused(command("clip-retrieval", "--images", "out"), "of the dataset are not in out")
    Path("out/text_emb/text_emb_0.npy").unlink()
    refused(command("clip-retrieval", "--images", "out"), "text_emb_0.npy: no such file")


def test_again_is_nothing_to_do_and_another_source_is_refused(data: CaptionDataset) -> None:
    plain(data)
    good(command("npy", *PLAIN, "--caption-ids", "c.json"))
    good(command("npy", *PLAIN, "--caption-ids", "c.json"))
    np.save("i.npy", unit(6, 9).astype(np.float64))
    refused(command("npy", *PLAIN, "--caption-ids", "c.json"), "holds other features than these")


def test_embeddings_count_as_normalised_only_where_all_have_unit_length(
    data: CaptionDataset,
) -> None:
    plain(data)
    captions = np.load("c.npy")
    captions[3] *= 1.5
    np.save("c.npy", captions)
    found = good(command("npy", *PLAIN, "--caption-ids", "c.json"))
    assert found.spec.model.normalized is False
    np.testing.assert_array_equal(found.caption.embeddings(), captions)


def test_arrays_of_two_spaces_or_with_nan_are_refused(data: CaptionDataset) -> None:
    plain(data)
    captions = np.load("c.npy")
    np.save("c.npy", np.concatenate([captions, captions[:, :1]], axis=1))
    refused(command("npy", *PLAIN, "--caption-ids", "c.json"), "not of one joint space")
    captions[2, 0] = np.nan
    np.save("c.npy", captions)
    refused(command("npy", *PLAIN, "--caption-ids", "c.json"), "hold NaN or infinity")
