"""BLIP-2: golden query outputs, and what the stored embedding has to do with the official score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from golden_files import ids_of
from numpy.typing import NDArray

from hada.extract.backbones import Backbone, BackboneRequest, load_backbone
from hada.extract.common.errors import CheckpointError, UsageError
from hada.extract.testing.backbone_contract import CAPTIONS, BackboneContract, split


def load(path: Path | str, **options: Any) -> Any:
    return load_backbone(
        BackboneRequest(name="m", family="blip2", weights=str(path), options=options)
    )


@pytest.fixture(scope="session")
def golden(golden_root: Path) -> Path:
    return golden_root / "backbones" / "blip2"


@pytest.fixture(scope="session")
def vocabulary(golden_root: Path) -> str:
    return str(golden_root / "backbones" / "albef" / "vocab.txt")


@pytest.fixture
def folder(golden: Path, vocabulary: str, tmp_path: Path) -> Path:
    """The model's folder with a vocabulary, writable."""
    shutil.copytree(golden / "model", tmp_path / "model", copy_function=shutil.copy)
    (tmp_path / "model").chmod(0o755)
    shutil.copy(vocabulary, tmp_path / "model" / "vocab.txt")
    for file in (tmp_path / "model").iterdir():
        file.chmod(0o644)
    return tmp_path / "model"


def edit_config(folder: Path, part: str, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (config[part] if part else config).update(changes)
    (folder / "config.json").write_text(json.dumps(config))


class TestBlip2(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, golden: Path, vocabulary: str) -> Backbone:
        return load(golden / "model", tokenizer=vocabulary)  # type: ignore[no-any-return]

    def project(self, backbone: Any, side: str, row: NDArray[np.float32]) -> Any:
        if side == "image":  # a mean of unit vectors does not follow from the mean of their sources
            return None
        projected = backbone.model.text_projection(torch.from_numpy(row)).detach().numpy()
        return projected / np.linalg.norm(projected, axis=1, keepdims=True)

    def test_the_official_scores_are_the_librarys(self, backbone: Any, pixels: Any) -> None:
        ids = backbone.tokenize(CAPTIONS)
        padded, real = backbone.pad(ids, 0)
        batch = {
            "input_ids": padded,
            "attention_mask": real.long(),
            "pixel_values": torch.from_numpy(pixels),
        }
        with torch.no_grad():
            match = backbone.model(**batch, use_image_text_matching_head=True).logits_per_image
        ours = backbone.match_logits(pixels, ids)
        np.testing.assert_allclose(np.diagonal(ours).T, match, atol=2e-6)


class TestBlip2Embeddings(TestBlip2):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, golden: Path, vocabulary: str) -> Backbone:
        return load(  # type: ignore[no-any-return]
            golden / "model", tokenizer=vocabulary, image_tokens="embeddings"
        )


def test_golden(golden: Path, vocabulary: str) -> None:
    backbone = load(golden / "model", tokenizer=vocabulary)
    with np.load(golden / "golden.npz") as expected:
        images = backbone.encode_images(expected["pixel_values"])
        tokens = np.stack(split(images))
        queries = expected["image_feat"]
        np.testing.assert_allclose(tokens[:, 1:], queries, rtol=0, atol=1e-5)
        np.testing.assert_allclose(tokens[:, 0], queries.mean(axis=1), rtol=0, atol=1e-5)
        mean = expected["image_embed"].mean(axis=1)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        np.testing.assert_allclose(images.embeddings, mean, rtol=0, atol=1e-5)
        ids, mask = ids_of(expected)
        captions = backbone.encode_captions(ids)
        np.testing.assert_allclose(captions.values, expected["text_feat"][mask], rtol=0, atol=1e-5)
        np.testing.assert_allclose(captions.embeddings, expected["text_embed"], rtol=0, atol=1e-5)
        logits = backbone.match_logits(expected["pixel_values"], ids)
        np.testing.assert_allclose(logits, expected["itm_logits"], rtol=0, atol=1e-5)


def test_the_official_score_can_be_had_from_projected_tokens(golden: Path, vocabulary: str) -> None:
    backbone = load(golden / "model", tokenizer=vocabulary, image_tokens="embeddings")
    assert backbone.spec.image.width == 16
    with np.load(golden / "golden.npz") as expected:
        images = backbone.encode_images(expected["pixel_values"])
        units = np.stack(split(images))[:, 1:]
        np.testing.assert_allclose(units, expected["image_embed"], rtol=0, atol=1e-5)
        best = np.einsum("iqe,te->iqt", units, expected["text_embed"]).max(axis=1)
        np.testing.assert_allclose(best, expected["sim"], rtol=0, atol=1e-5)
        # The embeddings' cosine is another score, and the spec says so.
        single = images.embeddings @ expected["text_embed"].T
        assert np.abs(single - expected["sim"]).max() > 0.01
    assert "largest cosine" in backbone.spec.preprocessing["official_score"]


def test_captions_are_cleaned_and_cut(golden: Path, vocabulary: str) -> None:
    backbone = load(golden / "model", tokenizer=vocabulary)
    ids = backbone.tokenize(["Dog!", "dog " * 60])
    assert ids[0][0] == 101
    assert ids[0][-1] == 102
    assert len(ids[1]) == 32
    assert backbone.truncated == 1


def test_no_tokenizer(golden: Path) -> None:
    with pytest.raises(CheckpointError, match=r"put BERT's vocab\.txt there or set the option"):
        load(golden / "model")


def test_heads_are_checked(folder: Path) -> None:
    edit_config(folder, "qformer_config", num_attention_heads=5)
    with pytest.raises(CheckpointError, match="5 text heads do not divide the width 48"):
        load(folder)
    assert load(folder, heads=4).spec.preprocessing["heads"] == [4, 4]
    edit_config(folder, "qformer_config", num_attention_heads=4)
    edit_config(folder, "vision_config", num_attention_heads=7)
    with pytest.raises(CheckpointError, match="7 vision heads do not divide the width 64"):
        load(folder)


def test_missing_keys_and_nan(folder: Path) -> None:
    file = folder / "model.safetensors"
    state = safetensors.torch.load_file(file)
    state["itm_head.bias"][0] = torch.nan
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"NaN or infinity \(itm_head\.bias\)"):
        load(folder)
    del state["text_projection.weight"]
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing keys \(text_projection\.weight\)"):
        load(folder)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load(folder)


def test_other_models(golden_root: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'queries'"):
        load(folder, image_tokens="query")
    edit_config(folder, "", model_type="blip")
    with pytest.raises(CheckpointError, match="holds a 'blip' model, expected 'blip-2'"):
        load(folder)
    with pytest.raises(CheckpointError, match="no model folder at"):
        load(golden_root / "backbones" / "albef" / "flickr30k.pth")
