"""Dual encoders' kin: AltCLIP, Chinese CLIP, ALIGN and SigLIP 2, small and in the real format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_dual import (
    TEXT,
    VISION,
    caption_inputs,
    load,
    save_model,
    save_tokenizer,
)

from hada.extract.backbones import Backbone
from hada.extract.testing.backbone_contract import CAPTIONS, BackboneContract

pytestmark = pytest.mark.slow

SQUARE = {"height": 32, "width": 32}


def make_altclip(folder: Path) -> Path:
    torch.manual_seed(0)
    text = {**TEXT, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 10, "project_dim": 24}
    config = transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
    save_model(transformers.AltCLIPModel(config), folder)
    save_tokenizer(folder, "<s> $A </s>", bos_token="<s>", eos_token="</s>", cls_token="<s>")
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SQUARE
    ).save_pretrained(folder)
    return folder


def make_chinese_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.ChineseCLIPConfig(
        text_config={**TEXT, "pad_token_id": 0}, vision_config=VISION, projection_dim=12
    )
    save_model(transformers.ChineseCLIPModel(config), folder)
    save_tokenizer(folder, "<s> $A </s>", cls_token="<s>", sep_token="</s>")
    transformers.ChineseCLIPImageProcessorPil(size=SQUARE, crop_size=SQUARE).save_pretrained(folder)
    return folder


def make_align(folder: Path) -> Path:
    torch.manual_seed(0)
    vision = {
        "image_size": 64,
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "kernel_sizes": [3, 3],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 2],
        "depthwise_padding": [],
        "hidden_dim": 24,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
    }
    config = transformers.AlignConfig(
        text_config={**TEXT, "pad_token_id": 0}, vision_config=vision, projection_dim=24
    )
    save_model(transformers.AlignModel(config), folder)
    save_tokenizer(folder, "<s> $A </s>", cls_token="<s>", sep_token="</s>")
    size = {"height": 64, "width": 64}
    transformers.EfficientNetImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def make_siglip2(folder: Path) -> Path:
    """The checkpoints of one size: SigLIP's classes, Gemma's kind of tokenizer."""
    torch.manual_seed(0)
    text = {**TEXT, "eos_token_id": 10, "bos_token_id": 2, "pad_token_id": 0, "projection_size": 32}
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    save_model(transformers.SiglipModel(config), folder)
    save_tokenizer(folder, "$A </s>", bos_token="<s>", eos_token="</s>")
    transformers.SiglipImageProcessorPil(size=SQUARE).save_pretrained(folder)
    return folder


class KinContract(BackboneContract):
    """Adds that embeddings are what the library's own methods give, captions padded by it."""

    padding: Any = True

    def test_embeddings_are_the_librarys(self, backbone: Any, pixels: Any) -> None:
        inputs = caption_inputs(backbone, CAPTIONS, self.padding)
        with torch.no_grad():
            images = backbone.model.get_image_features(pixel_values=torch.from_numpy(pixels))
            captions = backbone.model.get_text_features(**inputs)
        ids = backbone.tokenize(CAPTIONS)
        for own, theirs in (
            (backbone.encode_images(pixels).embeddings, images),
            (backbone.encode_captions(ids).embeddings, captions),
        ):
            expected = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
            np.testing.assert_allclose(own, expected, atol=1e-5, rtol=1e-5)

    def test_the_model_is_what_it_should_be(self, backbone: Any) -> None:
        assert type(backbone.model).__name__ == self.name

    name: str


def fixture(make: Any) -> Any:
    def backbone(cls: Any, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
        found: Backbone = load(make(tmp_path_factory.mktemp("kin")))
        return found

    return pytest.fixture(scope="class")(classmethod(backbone))


class TestAltClip(KinContract):
    name = "AltCLIPModel"
    backbone = fixture(make_altclip)

    def test_declared(self, backbone: Any) -> None:
        image, caption = backbone.spec.image, backbone.spec.caption
        assert (image.count, image.global_source) == (17, "token")
        # Its tokens are those behind the transformation; positions start behind the pad.
        assert (caption.global_token, caption.width) == ("first", 24)
        assert backbone.max_tokens == 15


class TestChineseClip(KinContract):
    name = "ChineseCLIPModel"
    backbone = fixture(make_chinese_clip)

    def test_declared(self, backbone: Any) -> None:
        image, caption = backbone.spec.image, backbone.spec.caption
        assert (image.count, image.global_source) == (17, "token")
        assert (caption.global_token, caption.global_source) == ("first", "token")


class TestAlign(KinContract):
    name = "AlignModel"
    backbone = fixture(make_align)

    def test_declared(self, backbone: Any) -> None:
        image, caption = backbone.spec.image, backbone.spec.caption
        assert image.global_source == "pooled"  # a feature map has no global token
        assert (caption.global_token, caption.global_source) == ("first", "token")


class TestSiglip2(KinContract):
    name = "SiglipModel"
    padding = "max_length"
    backbone = fixture(make_siglip2)

    def test_declared(self, backbone: Any) -> None:
        image, caption = backbone.spec.image, backbone.spec.caption
        assert (image.count, image.global_source) == (17, "pooled")
        assert caption.global_source == "pooled"
