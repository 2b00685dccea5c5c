"""The golden features through the command a user types, from checkpoints in their own formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import golden_ids
import numpy as np
import pytest
from click.testing import CliRunner
from golden_files import at_hand

from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.cli import extract
from hada.extract.store import open_store

pytestmark = pytest.mark.slow

PICTURES = ("gray", "rgba", "small", "tall", "wide")
MANIFEST = """\
schema: 1
defaults: {dataset: golden, models: [m]}
stores: stores
datasets:
  golden:
    reader: karpathy
    root: data
    annotations: golden.json
    images: images
    splits: {test: {}}
models: {m: {family: fake, weights: a}}
"""
# Folder below golden/backbones, checkpoint, suffix of its golden files, family.
CHECKPOINTS = [
    ("albef", "flickr30k.pth", "", "albef"),
    ("albef", "checkpoint_best.pth", "", "albef"),
    ("albef", "ALBEF_pretrain.pth", "", "albef"),
    ("albef", "albef_flickr_retrieval_lavis.pt", "_lavis", "albef"),
    ("blip_base", "model_base_retrieval_flickr.pth", "", "blip"),
    ("blip_large_like", "model_base_retrieval_flickr.pth", "", "blip"),
]


def make_project(folder: Path, pictures: Path, captions: list[str]) -> None:
    """The golden pictures, the golden captions spread over them, and a manifest."""
    (folder / "data" / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    for name in PICTURES:
        shutil.copy(pictures / f"{name}.png", folder / "data" / "images")
        images.append({"filename": f"{name}.png", "split": "test", "sentences": []})
    for number, caption in enumerate(captions):
        # In the order of the images, so that caption rows keep the golden order.
        place = number * len(PICTURES) // len(captions)
        images[place]["sentences"].append({"raw": caption, "sentid": number})
    (folder / "data" / "golden.json").write_text(json.dumps({"images": images}))
    (folder / "data_manifest.yaml").write_text(MANIFEST)


def command(*arguments: str) -> None:
    result = CliRunner().invoke(
        extract, ["--split", "test", "--store-dtype", "float32", *arguments]
    )
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("named", [True, False], ids=["named", "recognised"])
@pytest.mark.parametrize(("folder", "file", "suffix", "family"), CHECKPOINTS)
def test_golden(
    golden_root: Path, tmp_path: Path, folder: str, file: str, suffix: str, family: str, named: bool
) -> None:
    golden = golden_root / "backbones"
    texts = json.loads((at_hand(golden / folder) / f"texts{suffix}.json").read_text())
    make_project(tmp_path, golden / "preproc", texts["raw"])
    weights = str(golden / folder / file)
    command("--model", f"g={family}:{weights}" if named else f"g={weights}", "--batch-size", "3")
    store = open_store("stores/golden/test/g")
    with np.load(golden / folder / f"golden{suffix}.npz") as expected:
        mask = expected["attention_mask"] > 0
        tokens = store.caption.tokens(slice(None))
        np.testing.assert_allclose(tokens, expected["text_feat"][mask], rtol=0, atol=1e-5)
        embeddings = store.caption.embeddings()
        np.testing.assert_allclose(embeddings, expected["text_proj_unnorm"], rtol=0, atol=1e-5)
        assert not store.spec.model.normalized
    # The golden images are noise that no file can hold; the pictures' golden pixels lead on.
    backbone = load_backbone(BackboneRequest(name="g", family=family, weights=weights, options={}))
    with np.load(golden / "preproc" / "golden.npz") as expected:
        pixels = np.stack([expected[f"{name}_square64"] for name in PICTURES])
    direct = backbone.encode_images(pixels)
    np.testing.assert_allclose(store.image.tokens(slice(None)), direct.values, rtol=0, atol=1e-5)
    np.testing.assert_allclose(store.image.embeddings(), direct.embeddings, rtol=0, atol=1e-5)


@pytest.mark.parametrize("named", [True, False], ids=["named", "recognised"])
@pytest.mark.parametrize("family", ["blip2", "clip"])
def test_golden_ids(golden_root: Path, tmp_path: Path, family: str, named: bool) -> None:
    """Models whose golden captions are ids: folders with a vocabulary in which ids are words."""
    golden = golden_root / "backbones"
    source, mask_name, embed_name = {
        "blip2": ("blip2/model", "attention_mask", "text_embed"),
        "clip": ("openclip", "text_mask", "text_proj_unnorm"),
    }[family]
    model = tmp_path / "model"
    model.mkdir()
    for file in (golden / source).iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    if family == "blip2":
        golden_ids.bert_vocabulary(model / "vocab.txt", 200)
    else:
        golden_ids.clip_tokenizer(model, 200)
        config = json.loads((model / "open_clip_config.json").read_text())
        config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "local"
        (model / "open_clip_config.json").write_text(json.dumps(config))
    with np.load(golden / source.partition("/")[0] / "golden.npz") as expected:
        mask = expected[mask_name] > 0
        captions = golden_ids.captions(expected["input_ids"], mask)
        # Every picture needs a caption; those beyond the golden ones come last.
        make_project(tmp_path, golden / "preproc", captions + ["word7"] * (5 - len(captions)))
        command("--model", f"g={family}:model" if named else "g=model")
        store = open_store("stores/golden/test/g")
        tokens = store.caption.tokens(slice(None))[: mask.sum()]
        np.testing.assert_allclose(tokens, expected["text_feat"][mask], rtol=0, atol=1e-5)
        embeddings = store.caption.embeddings(slice(len(mask)))
        np.testing.assert_allclose(embeddings, expected[embed_name], rtol=0, atol=1e-5)
    if family == "clip":
        backbone = load_backbone(
            BackboneRequest(name="g", family=family, weights="model", options={})
        )
        with np.load(golden / "preproc" / "golden.npz") as expected:
            pixels = np.stack([expected[f"{name}_clip64"] for name in PICTURES])
        direct = backbone.encode_images(pixels)
        tokens = store.image.tokens(slice(None))
        np.testing.assert_allclose(tokens, direct.values, rtol=0, atol=1e-5)
        embeddings = store.image.embeddings()
        np.testing.assert_allclose(embeddings, direct.embeddings, rtol=0, atol=1e-5)
