"""`hada-extract` on a BLIP checkpoint in Salesforce's own layout: golden features in the store.

The golden captions are raw text, so the command reproduces them from end to end. The golden image
features belong to pixels that no picture decodes to; so the command's pictures are those whose
official preprocessing is golden, and their stored features are compared with the features of the
golden pixels, by the model that reproduces the golden image features.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from golden_files import at_hand

from hada.extract.backbones import load_backbone
from hada.extract.backbones.base import BackboneRequest
from hada.extract.cli import extract
from hada.extract.store import open_store

PICTURES = ["wide", "tall", "gray", "small", "rgba"]
CHECKPOINT = "model_base_retrieval_flickr.pth"
MANIFEST = """\
schema: 1
defaults: {dataset: golden, models: [blip]}
datasets:
  golden:
    reader: karpathy
    root: data
    annotations: dataset.json
    splits: {test: {images: 5, captions: 7}}
models:
  blip: {family: blip, weights: CHECKPOINT}
"""


@pytest.fixture(params=["blip_base", "blip_large_like"])
def golden(request: pytest.FixtureRequest, golden_root: Path, tmp_path: Path) -> Path:
    """A project whose manifest names the official checkpoint and a dataset of golden items."""
    folder = at_hand(golden_root / "backbones" / str(request.param))
    data = tmp_path / "data"
    data.mkdir()
    texts = json.loads((folder / "texts.json").read_text())["raw"]
    shares = [texts[0:2], texts[2:4], texts[4:5], texts[5:6], texts[6:7]]
    images = []
    for name, captions in zip(PICTURES, shares, strict=True):
        shutil.copy(folder.parent / "preproc" / f"{name}.png", data)
        sentences = [{"raw": text, "sentid": f"{name}{k}"} for k, text in enumerate(captions)]
        images.append({"filename": f"{name}.png", "split": "test", "sentences": sentences})
    (data / "dataset.json").write_text(json.dumps({"images": images}))
    (tmp_path / "data_manifest.yaml").write_text(
        MANIFEST.replace("CHECKPOINT", str(folder / CHECKPOINT))
    )
    return folder


def test_the_command_stores_golden_features(golden: Path) -> None:
    words = ["--model", "blip", "--split", "test", "--store-dtype", "float32", "--batch-size", "7"]
    result = CliRunner().invoke(extract, words)
    assert result.exit_code == 0, result.output
    store = open_store("stores/golden/test/blip")
    with np.load(golden / "golden.npz") as expected:
        mask = expected["attention_mask"] > 0
        np.testing.assert_array_equal(store.caption.lengths, mask.sum(axis=1))
        np.testing.assert_allclose(
            store.caption.tokens(slice(None)), expected["text_feat"][mask], atol=1e-5
        )
        np.testing.assert_allclose(
            store.caption.embeddings(), expected["text_proj_unnorm"], atol=1e-5
        )
        assert not store.spec.model.normalized
        request = BackboneRequest(
            name="blip", family="blip", weights=str(golden / CHECKPOINT), options={}
        )
        backbone = load_backbone(request)
        known = backbone.encode_images(expected["pixel_values"])
        assert known.values is not None
        tokens = expected["image_feat"].reshape(known.values.shape)
        np.testing.assert_allclose(known.values, tokens, atol=1e-5)
    with np.load(golden.parent / "preproc" / "golden.npz") as expected:
        pixels = np.stack([expected[f"{name}_square64"] for name in PICTURES])
    official = backbone.encode_images(pixels)
    np.testing.assert_allclose(store.image.tokens(slice(None)), official.values, atol=1e-5)
    np.testing.assert_allclose(store.image.embeddings(), official.embeddings, atol=1e-5)
