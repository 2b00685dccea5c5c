"""SigLIP 2 NaFlex: ragged image rows, as transformers' model gives them, by the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import makers
import model_layouts as make
import numpy as np
import pytest
import tiny_dual
import torch
import transformers
from click.testing import CliRunner
from PIL import Image

from hada.extract.cli import extract
from hada.extract.common.errors import DatasetError
from hada.extract.datasets.read import read_dataset
from hada.extract.engine.items import RaggedPictureItems, image_items
from hada.extract.manifest import load_manifest
from hada.extract.store import open_store
from hada.extract.testing.backbone_contract import BackboneContract, pictures
from hada.extract.variants.reduced import reduced

SIZES = [(32, 24), (24, 32), (90, 60), (60, 20), (40, 40)]


def test_the_command_stores_what_the_library_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    makers.make_project(tmp_path, splits={"val": [2, 1, 3, 2, 2]})
    random = np.random.default_rng(0)
    images = []
    for number, (width, height) in enumerate(SIZES):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(f"data/images/val_{number:03d}.jpg", quality=95)
        images.append(Image.open(f"data/images/val_{number:03d}.jpg"))
    (tmp_path / "weights").mkdir()
    place = make.naflex(tmp_path / "weights")
    manifest = tmp_path / "data_manifest.yaml"
    manifest.write_text(manifest.read_text().replace("      train: {}\n", ""))
    words = ["--split", "val", "--model", f"m={place}", "--store-dtype", "float32"]
    done = CliRunner().invoke(extract, [*words, "--batch-size", "3", "--workers", "2"])
    assert done.exit_code == 0, done.output
    store = open_store("stores/tiny/val/m")
    model = transformers.AutoModel.from_pretrained(place).eval()
    processor = transformers.Siglip2ImageProcessorPil.from_pretrained(place)
    counts = []
    for row, image in enumerate(images):
        with torch.inference_mode():
            inputs = processor(images=image, return_tensors="pt")
            whole = model.vision_model(**inputs)
            features = model.get_image_features(**inputs).pooler_output
        real = inputs["pixel_attention_mask"][0].bool()
        tokens = store.image.tokens([row])
        np.testing.assert_allclose(tokens[0], whole.pooler_output[0], atol=2e-6)
        np.testing.assert_allclose(tokens[1:], whole.last_hidden_state[0][real], atol=2e-6)
        np.testing.assert_allclose(store.image.embeddings([row]), features, atol=2e-6)
        counts.append(len(tokens))
        image.close()
    assert len(set(counts)) > 1
    assert store.spec.model.image.count is None


def test_batches_sizes_and_settings(tmp_path: Path) -> None:
    backbone = tiny_dual.load(make.naflex(tmp_path))
    gallery = pictures([(131, 97), (80, 150), (33, 20), (1, 1), (300, 2)])
    pixels = np.stack([backbone.preprocess(image) for image in gallery])
    whole = backbone.encode_images(pixels)
    assert whole.lengths.tolist() == [backbone.image_rows(*image.size) for image in gallery]
    rows = np.split(whole.values, np.cumsum(whole.lengths)[:-1])
    for index in range(len(gallery)):
        single = backbone.encode_images(pixels[index : index + 1])
        np.testing.assert_allclose(rows[index], single.values, atol=2e-6)
        np.testing.assert_allclose(whole.embeddings[index], single.embeddings[0], atol=2e-6)
    settings = backbone.spec.preprocessing["settings"]
    assert (settings["patch_size"], settings["max_num_patches"]) == (8, 24)


class TestContract(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return tiny_dual.load(make.naflex(tmp_path_factory.mktemp("naflex")))


def test_images_that_cannot_be_counted_or_changed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    makers.make_project(tmp_path, splits={"val": [1] * 5})
    (tmp_path / "weights").mkdir()
    backbone = tiny_dual.load(make.naflex(tmp_path / "weights"))
    folder = tmp_path / "data" / "images"
    noise = pictures([(60, 40)])[0]
    (folder / "val_000.jpg").write_bytes(b"no image")
    noise.resize((1500, 1)).save(folder / "val_001.jpg")
    data = read_dataset(load_manifest().dataset("tiny"), "val")
    rows = backbone.image_rows

    def some_fail(width: int, height: int) -> int:
        if (width, height) == (31, 30):
            raise ValueError("an odd size")
        return rows(width, height)

    monkeypatch.setattr(backbone, "image_rows", some_fail)
    noise.resize((31, 30)).save(folder / "val_002.jpg")
    items = image_items(backbone, data)
    assert isinstance(items, RaggedPictureItems)
    assert not items.portable
    assert items.lengths.tolist() == [1, 1, 1, rows(32, 24), rows(32, 24)]
    noise.save(folder / "val_003.jpg")
    for row, message in enumerate(
        (
            r"not a picture in any known format",
            r"too elongated \(1500 x 1, at most 1000 to 1\)",
            r"cannot be preprocessed \(ValueError: an odd size\)",
            r"is 60 x 40, though 32 x 24 was read before; is the file being written\?",
        )
    ):
        with pytest.raises(DatasetError, match=message):
            items.read(row)
    assert items.read(4).shape == (25, 192)
    # Fewer tokens are counted as they are stored.
    fewer = image_items(reduced(backbone, "pool:5"), data)
    assert fewer.lengths.tolist() == [1, 1, 1, 5, 5]
