"""Caption datasets in Karpathy's JSON: read as written, and refused where they are broken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest

from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.common.errors import DatasetError, UnknownNameError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.read import read_dataset
from hada.extract.engine.runner import run
from hada.extract.manifest import load_manifest
from hada.extract.store import open_store


def read(split: str = "val") -> CaptionDataset:
    return read_dataset(load_manifest().dataset(), split)


def change(tmp_path: Path, edit: Any) -> None:
    file = tmp_path / "data" / "dataset_tiny.json"
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


def test_any_number_of_captions_per_image(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    data = read()
    assert data.image_ids == tuple(f"val_{k:03d}.jpg" for k in range(5))
    np.testing.assert_array_equal(data.caption_to_image, [0, 0, 1, 2, 2, 2, 3, 3, 4, 4])
    assert data.caption_ids[2] == "val_001.jpg-0"
    assert all(path.exists() for path in data.image_paths)
    assert data.digest() == read().digest() != read("train").digest()


def test_coco_joins_restval_and_uses_filepath(tmp_path: Path) -> None:
    makers.make_project(tmp_path, splits={"train": [1], "restval": [2]})
    (tmp_path / "data" / "images").rename(tmp_path / "data" / "val2014")
    text = makers.MANIFEST.replace("images: images", "images: .")
    (tmp_path / "data_manifest.yaml").write_text(
        text.replace("train: {}", "train: {from: [train, restval], images: 2, captions: 3}")
    )

    def edit(document: Any) -> None:
        for image in document["images"]:
            image["filepath"] = "val2014"

    change(tmp_path, edit)
    assert read("train").image_ids == ("val2014/train_000.jpg", "val2014/restval_000.jpg")


def test_filepath_tells_files_of_one_name_apart(tmp_path: Path) -> None:
    """A name that is in one folder alone is found without its path, so two folders have it."""
    makers.make_project(tmp_path, splits={"train": [1], "val": [2]})
    manifest = tmp_path / "data_manifest.yaml"
    manifest.write_text(makers.MANIFEST.replace("images: images", "images: ."))
    pictures = {}
    for split in ("train", "val"):
        (tmp_path / "data" / f"{split}2014").mkdir()
        file = tmp_path / "data" / f"{split}2014" / "0.jpg"
        (tmp_path / "data" / "images" / f"{split}_000.jpg").rename(file)
        pictures[split] = file.read_bytes()
    assert pictures["train"] != pictures["val"]

    def edit(document: Any) -> None:
        for image in document["images"]:
            image |= {"filepath": f"{image['split']}2014", "filename": "0.jpg"}

    change(tmp_path, edit)
    for split, picture in pictures.items():
        data = read(split)
        assert data.image_ids == (f"{split}2014/0.jpg",)
        assert [path.read_bytes() for path in data.image_paths] == [picture]


def test_flickr8k_has_its_counts(shared: Path) -> None:
    manifest = load_manifest(roots={"flickr8k": str(shared / "flickr8k")})
    data = read_dataset(manifest.dataset("flickr8k"), "val")
    assert (len(data.image_ids), len(data.captions)) == (1000, 5000)
    with pytest.raises(DatasetError, match=r"marked 'test', and there are none.*'train', 'val'"):
        read_dataset(manifest.dataset("flickr8k"), "test")


def _empty(document: Any) -> None:
    document["images"][-1]["sentences"] = []


def _twice(document: Any) -> None:
    document["images"][-1]["filename"] = document["images"][-2]["filename"]


def _outside(document: Any) -> None:
    document["images"][-1]["filename"] = "../../etc/passwd"


def _nameless(document: Any) -> None:
    del document["images"][-1]["filename"]


def _wordless(document: Any) -> None:
    document["images"][-1]["sentences"][0] = {"tokens": ["a"]}


def _no_list(document: Any) -> None:
    document["images"] = {"a": 1}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_empty, r"images\[16\]: 'val_004.jpg' has no captions"),
        (_twice, r"image id 'val_003.jpg' appears twice"),
        (_outside, r"points outside the dataset's folder"),
        (_nameless, r"images\[16\]: 'filename' is missing"),
        (_wordless, r"images\[16\].sentences\[0\]: 'raw' is missing"),
        (_no_list, r"a mapping with a list 'images'"),
    ],
)
def test_broken_annotations_are_refused(tmp_path: Path, edit: Any, message: str) -> None:
    makers.make_project(tmp_path)
    change(tmp_path, edit)
    with pytest.raises(DatasetError, match=message):
        read()


def test_files_that_are_not_there(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    with pytest.raises(UnknownNameError, match=r"has no split 'vall'. Did you mean 'val'"):
        read("vall")
    (tmp_path / "data" / "images" / "val_002.jpg").unlink()
    with pytest.raises(
        DatasetError, match=r"1 of 5 pictures are missing.*val_002.jpg.*published at"
    ):
        read()
    (tmp_path / "data" / "dataset_tiny.json").write_text('{"images": [')
    with pytest.raises(DatasetError, match="broken JSON at line 1, column 13"):
        read()
    (tmp_path / "data" / "dataset_tiny.json").unlink()
    with pytest.raises(DatasetError, match=r"annotations 'dataset_tiny.json' are not in 'data'"):
        read()


def test_expected_counts(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    file = tmp_path / "data_manifest.yaml"
    file.write_text(makers.MANIFEST.replace("val: {}", "val: {images: 5, captions: 11}"))
    with pytest.raises(DatasetError, match="expected 11 captions, found 10"):
        read()


def test_a_digest_is_of_ids_words_and_owners(tmp_path: Path) -> None:
    makers.make_project(tmp_path, splits={"train": [1], "val": [2, 3, 1]})
    data = read()
    assert data.caption_to_image.tolist() == [0, 0, 1, 1, 1, 2]
    others = [
        replace(data, captions=("other", *data.captions[1:])),
        replace(data, caption_ids=("other", *data.caption_ids[1:])),
        replace(data, image_ids=("other", *data.image_ids[1:])),
        replace(data, caption_to_image=np.array([0, 1, 1, 1, 1, 2])),
    ]
    assert len({d.digest() for d in (data, *others)}) == 5
    assert replace(data).digest() == data.digest()


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path: Path) -> None:
    makers.make_project(tmp_path, splits={"train": [1], "val": [1]})

    def edit(document: Any) -> None:
        document["images"][1]["sentences"][0]["raw"] = "a dog \ud83d and \U0001f600"

    change(tmp_path, edit)
    assert read().captions == ("a dog \ufffd and \U0001f600",)


def test_a_reader_that_nobody_knows_names_those_there_are(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    entry = replace(load_manifest().dataset(), reader="karpaty")
    with pytest.raises(UnknownNameError, match=r"reader of dataset.*'karpaty'.*'karpathy'"):
        read_dataset(entry, "val")


def test_a_store_of_bare_names_is_continued_with_them(tmp_path: Path) -> None:
    """Until 0.1 the id of an image was its file's name alone; such stores are not begun anew."""
    makers.make_project(tmp_path, splits={"train": [1], "val": [2, 1]})
    (tmp_path / "data" / "images").rename(tmp_path / "data" / "val2014")
    manifest = tmp_path / "data_manifest.yaml"
    manifest.write_text(makers.MANIFEST.replace("images: images", "images: ."))

    def edit(document: Any) -> None:
        for image in document["images"]:
            image["filepath"] = "val2014"
            for sentence in image["sentences"]:
                sentence["sentid"] = None  # numbered by image

    change(tmp_path, edit)
    data = read()
    assert data.image_ids[0] == "val2014/val_000.jpg"
    assert data.caption_ids[0] == "val2014/val_000.jpg#0"
    bare = replace(
        data,
        image_ids=("val_000.jpg", "val_001.jpg"),
        caption_ids=("val_000.jpg#0", "val_000.jpg#1", "val_001.jpg#0"),
    )
    assert data.as_stored(bare.digest()).image_ids == bare.image_ids
    assert data.as_stored(data.digest()) is data
    assert data.as_stored("another") is data
    backbone = load_backbone(BackboneRequest(name="one", family="fake", weights="a", options={}))
    store = tmp_path / "stores" / "tiny" / "val" / "one"
    run(backbone, bare, store)
    report = run(backbone, data, store)
    assert report.images == 0, "nothing was written again"
    assert tuple(open_store(store).image.ids) == bare.image_ids
