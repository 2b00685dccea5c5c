"""Dual encoders of transformers: tiny ones of every kind, and the shared real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tiny_dual import (
    TEXT,
    VISION,
    caption_inputs,
    load,
    make_clip,
    make_vit_bert,
    save_model,
    save_tokenizer,
)

from hada.extract.backbones import Backbone, BackboneRequest, load_backbone
from hada.extract.common.errors import CheckpointError, UnknownNameError
from hada.extract.testing.backbone_contract import CAPTIONS, BackboneContract, pictures

pytestmark = pytest.mark.slow


def make_siglip(folder: Path) -> Path:
    torch.manual_seed(0)
    text = {**TEXT, "eos_token_id": 10, "bos_token_id": 2, "pad_token_id": 0}
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    save_model(transformers.SiglipModel(config), folder)
    save_tokenizer(folder, "$A </s>", eos_token="</s>")
    size = {"height": 32, "width": 32}
    transformers.SiglipImageProcessorPil(size=size).save_pretrained(folder)
    return folder


class DualContract(BackboneContract):
    """Adds what the library itself computes, from its own tokenisation and padding."""

    padding: Any = True

    def test_embeddings_are_the_librarys(self, backbone: Any, pixels: Any) -> None:
        inputs = caption_inputs(backbone, CAPTIONS, self.padding)
        with torch.no_grad():
            output = backbone.model(**inputs, pixel_values=torch.from_numpy(pixels))
        images = np.asarray(backbone.encode_images(pixels).embeddings)
        ids = backbone.tokenize(CAPTIONS)
        captions = np.asarray(backbone.encode_captions(ids).embeddings)
        for own, theirs in ((images, output.image_embeds), (captions, output.text_embeds)):
            unit = own / np.linalg.norm(own, axis=1, keepdims=True)
            np.testing.assert_allclose(unit, theirs, atol=1e-6)
        for row, theirs in zip(ids, inputs["input_ids"].tolist(), strict=True):
            assert row == theirs[: len(row)]


class TestClip(DualContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
        return load(make_clip(tmp_path_factory.mktemp("clip")))  # type: ignore[no-any-return]

    def project(self, backbone: Any, side: str, row: NDArray[np.float32]) -> Any:
        model = backbone.model
        head = model.visual_projection if side == "image" else model.text_projection
        return head(torch.from_numpy(row)).detach().numpy()

    def test_declared(self, backbone: Any) -> None:
        image, caption = backbone.spec.image, backbone.spec.caption
        assert (image.count, image.global_source) == (17, "token")
        assert (caption.global_token, caption.global_source) == ("last", "token")
        assert backbone.spec.preprocessing["class"] == "CLIPImageProcessorPil"

    def test_all_image_tokens_are_normed(self, backbone: Any, pixels: Any) -> None:
        with torch.no_grad():
            tower = backbone.model.vision_model
            raw = tower(torch.from_numpy(pixels)).last_hidden_state
            expected = tower.post_layernorm(raw).numpy()
        values = backbone.encode_images(pixels).values
        np.testing.assert_allclose(values, expected.reshape(values.shape), atol=1e-6)


class TestSiglip(DualContract):
    padding = "max_length"

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
        return load(make_siglip(tmp_path_factory.mktemp("siglip")))  # type: ignore[no-any-return]

    def project(self, backbone: Any, side: str, row: NDArray[np.float32]) -> Any:
        head = (lambda rows: rows) if side == "image" else backbone.model.text_model.head
        return head(torch.from_numpy(row)).detach().numpy()

    def test_declared(self, backbone: Any, pixels: Any) -> None:
        image, caption = backbone.spec.image, backbone.spec.caption
        assert (image.count, image.global_source) == (17, "pooled")
        assert (caption.global_token, caption.global_source) == ("first", "pooled")
        with torch.no_grad():
            tower = backbone.model.vision_model(torch.from_numpy(pixels))
        values = backbone.encode_images(pixels).values.reshape(3, 17, 32)
        np.testing.assert_allclose(values[:, 1:], tower.last_hidden_state, atol=1e-6)


class TestVitBert(DualContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
        return load(make_vit_bert(tmp_path_factory.mktemp("vit")))  # type: ignore[no-any-return]

    def test_declared(self, backbone: Any) -> None:
        image, caption = backbone.spec.image, backbone.spec.caption
        assert (image.count, image.global_source) == (17, "token")
        assert (caption.global_token, caption.global_source) == ("first", "token")


@pytest.mark.parametrize(
    ("name", "width"), [("mobilenetv2-minilm", 1280), ("mobilenetv1-minilm", 1024)]
)
def test_shared_checkpoints(shared: Path, name: str, width: int) -> None:
    backbone = load(shared / "checkpoints" / name)
    image, caption = backbone.spec.image, backbone.spec.caption
    assert (image.width, image.count, image.global_source) == (width, 50, "pooled")
    assert (caption.width, caption.global_token, caption.global_source) == (384, "first", "token")
    assert backbone.spec.preprocessing["class"] == "ViTImageProcessorPil"
    assert next(backbone.model.parameters()).dtype == torch.float32
    pixels = backbone.preprocess(pictures()[0])[None]
    encoded = backbone.encode_images(pixels)
    with torch.no_grad():
        output = backbone.model.vision_model(pixel_values=torch.from_numpy(pixels))
        projected = backbone.model.visual_projection(output.pooler_output)
    np.testing.assert_allclose(encoded.values[0], output.pooler_output[0], atol=1e-5)
    grid = output.last_hidden_state[0].permute(1, 2, 0).reshape(49, width)
    np.testing.assert_allclose(encoded.values[1:], grid, atol=1e-5)
    np.testing.assert_allclose(encoded.values[1:].mean(axis=0), encoded.values[0], atol=1e-4)
    np.testing.assert_allclose(encoded.embeddings, projected, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision(tmp_path: Path, precision: str) -> None:
    folder = make_clip(tmp_path / "m")
    exact = load(folder)
    low = load_backbone(
        BackboneRequest(
            name="m", family="dual", weights=str(folder), precision=precision, options={}
        )
    )
    assert low.spec.precision == precision
    assert low.spec.image == exact.spec.image
    pixels = exact.preprocess(pictures()[0])[None]
    one, two = exact.encode_images(pixels).values, low.encode_images(pixels).values
    assert two is not None
    assert two.dtype == np.float32
    assert 0 < np.abs(one - two).max() < 0.1 * np.abs(one).max()
    with pytest.raises(UnknownNameError, match="Known: bf16, fp16, fp32"):
        load_backbone(
            BackboneRequest(
                name="m", family="dual", weights=str(folder), precision="fp8", options={}
            )
        )


def test_max_tokens(tmp_path: Path) -> None:
    backbone = load(make_clip(tmp_path / "m"), max_tokens=4)
    assert backbone.tokenize(["a dog in red"]) == [[2, 3, 4, 10]]
    assert backbone.truncated == 1


def test_not_a_dual_encoder(tmp_path: Path, golden_root: Path) -> None:
    with pytest.raises(CheckpointError, match="set `family: blip`"):
        load(golden_root / "backbones" / "blip2" / "model")
    transformers.BertModel(transformers.BertConfig(**TEXT)).save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match="'bert' model, expected a dual encoder"):
        load(tmp_path / "bert")


def test_damaged(tmp_path: Path) -> None:
    import safetensors.torch

    folder = make_clip(tmp_path / "m")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        load(folder)
    file.write_bytes(whole)
    state = safetensors.torch.load_file(file)
    del state["text_projection.weight"]
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing keys \(text_projection\.weight\)"):
        load(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load(folder)
