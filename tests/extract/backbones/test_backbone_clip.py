"""open_clip models: the golden tiny CLIP, and tiny towers of every kind, against the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from golden_files import ids_of
from numpy.typing import NDArray
from PIL import Image
from tiny_clip import TEXT, VIT, make_folder

from hada.extract.backbones import Backbone, BackboneRequest, load_backbone
from hada.extract.common.errors import CheckpointError, UnknownNameError, UsageError
from hada.extract.testing.backbone_contract import CAPTIONS, BackboneContract, split

pytestmark = pytest.mark.slow

HF_TEXT = {**TEXT, "vocab_size": 64, "hf_tokenizer_name": "local"}
SIGLIP_TEXT = {
    **HF_TEXT,
    "no_causal_mask": True,
    "pool_type": "last",
    "proj_bias": True,
    "pad_id": 1,
    "tokenizer_kwargs": {"clean": "canonicalize"},
}


def timm_tower(name: str, **settings: Any) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_model_pretrained": False, "image_size": 160, **settings}


# This one keeps its norm behind the pooling, so that no row is the pooled vector.
EVA = {
    **timm_tower("eva02_tiny_patch14_224", timm_pool="token", timm_proj="linear"),
    "image_size": 224,
}


# PE-Core: a CLS row in front, pooled by attention. The smallest one that timm has.
PE_CORE = {
    **timm_tower("vit_pe_core_tiny_patch16_384", timm_pool="map", timm_proj=None),
    "image_size": 384,
}
# MobileCLIP: convolutions and a little attention; a feature map, pooled by the head.
MOBILE_CLIP = timm_tower("fastvit_mci0", timm_pool="avg", timm_proj=None)
COCA = {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
COCA_TEXT = {**TEXT, "embed_cls": True, "context_length": 11, "output_tokens": True}
COCA_DECODER = {"multimodal_cfg": {**TEXT, "context_length": 11, "mlp_ratio": 2}}


def load(folder: Path, **options: Any) -> Any:
    return load_backbone(
        BackboneRequest(name="m", family="clip", weights=str(folder), options=options)
    )


def text_tower(backbone: Any) -> Any:
    """What the library calls on full-length ids; the backbone does not encode with it."""
    reader = backbone.reader
    return reader.model.encode_text if reader.text is reader.model else reader.text


class ClipContract(BackboneContract):
    """Adds what the library itself computes."""

    def test_embeddings_are_the_librarys(self, backbone: Any, pixels: Any) -> None:
        with torch.no_grad():
            image = backbone.model.visual(torch.from_numpy(pixels))
            image = image[0] if isinstance(image, tuple) else image
            caption = text_tower(backbone)(backbone.tokenizer(CAPTIONS))
            caption = caption[0] if isinstance(caption, tuple) else caption
        np.testing.assert_allclose(backbone.encode_images(pixels).embeddings, image, atol=1e-6)
        encoded = backbone.encode_captions(backbone.tokenize(CAPTIONS))
        np.testing.assert_allclose(encoded.embeddings, caption, atol=1e-6)


class TestVit(ClipContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
        return load(make_folder(tmp_path_factory.mktemp("vit"), VIT, TEXT))  # type: ignore[no-any-return]

    def project(self, backbone: Any, side: str, row: NDArray[np.float32]) -> Any:
        model = backbone.model
        matrix = model.visual.proj if side == "image" else model.text_projection
        return row @ matrix.detach().numpy()

    def test_declared(self, backbone: Backbone) -> None:
        image, caption = backbone.spec.image, backbone.spec.caption
        assert image is not None
        assert caption is not None
        assert (image.count, image.global_token, image.global_source) == (5, "first", "token")
        assert (caption.global_token, caption.global_source) == ("last", "token")
        assert not backbone.spec.normalized

    def test_tokens_are_those_of_the_librarys_tokenizer(self, backbone: Any) -> None:
        captions = [*CAPTIONS, "", "Café <end_of_text> naïve", "word " * 40]
        rows = backbone.tokenizer(captions).tolist()
        for ids, row in zip(backbone.tokenize(captions), rows, strict=True):
            assert ids == row[: row.index(49407) + 1]

    def test_low_precision(self, backbone: Any, pixels: Any) -> None:
        exact = np.asarray(backbone.encode_images(pixels).embeddings)
        backbone.dtype = torch.bfloat16
        low = np.asarray(backbone.encode_images(pixels).embeddings)
        backbone.dtype = None
        assert low.dtype == np.float32
        assert 0 < np.abs(low - exact).max() < 0.05 * np.abs(exact).max()


class TestSiglip(ClipContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
        tower = timm_tower("test_vit3", timm_pool="map", timm_proj="none")
        folder = tmp_path_factory.mktemp("siglip")
        return load(  # type: ignore[no-any-return]
            make_folder(folder, tower, SIGLIP_TEXT, embed_dim=96, init_logit_bias=-10.0)
        )

    def project(self, backbone: Any, side: str, row: NDArray[np.float32]) -> Any:
        if side == "image":
            return row
        projection = backbone.reader.text.text_projection
        return projection(torch.from_numpy(row)).detach().numpy()

    def test_declared(self, backbone: Any) -> None:
        assert backbone.spec.image.global_source == "pooled"
        assert backbone.spec.caption.global_source == "pooled"
        assert backbone.tokenize(["a dog", "dog " * 11, "dog " * 12])[0] == [3, 4, 1]


@pytest.mark.parametrize(
    ("vision", "text", "image_source", "caption_global"),
    [
        (EVA, TEXT, "pooled", "last"),
        (timm_tower("test_vit2", timm_pool="avg", timm_proj="linear"), TEXT, "pooled", "last"),
        (timm_tower("test_vit", timm_pool="token", timm_proj="linear"), TEXT, "token", "last"),
        (timm_tower("test_convnext", timm_pool="", timm_proj="linear"), TEXT, "pooled", "last"),
        ({**VIT, "layers": [1, 1, 1, 1], "width": 8, "image_size": 64}, TEXT, "pooled", "last"),
        ({**VIT, "pool_type": "avg"}, TEXT, "pooled", "last"),
        ({**VIT, "final_ln_after_pool": True}, TEXT, None, "last"),
        (VIT, {**TEXT, "embed_cls": True, "context_length": 11}, "token", "pooled"),
        (VIT, {**SIGLIP_TEXT, "pool_type": "first", "proj_bias": False}, "token", "first"),
    ],
    ids=["eva", "gap", "timm-cls", "convnext", "resnet", "avg", "late-norm", "text-cls", "first"],
)
def test_towers(
    tmp_path: Path,
    vision: dict[str, Any],
    text: dict[str, Any],
    image_source: str | None,
    caption_global: str,
) -> None:
    custom = {} if text is TEXT and "timm_model_name" not in vision else {"custom_text": True}
    backbone = load(make_folder(tmp_path / "m", vision, text, **custom))
    spec = backbone.spec
    size = backbone.model.visual.image_size
    size = size if isinstance(size, tuple) else (size, size)
    picture = Image.effect_noise(size, 64).convert("RGB")
    pixels = backbone.preprocess(picture)[None]
    images = backbone.encode_images(pixels)
    if image_source is None:
        assert spec.image is None or images.lengths.tolist() == [spec.image.count]
    else:
        assert spec.image.global_source == image_source
        assert images.values.shape == (spec.image.count, spec.image.width)
    ids = backbone.tokenize(CAPTIONS)
    captions = backbone.encode_captions(ids)
    expected = [len(row) + (spec.caption.global_source == "pooled") for row in ids]
    assert captions.lengths.tolist() == expected
    declared = spec.caption.global_source
    assert caption_global == (declared if declared == "pooled" else spec.caption.global_token)
    with torch.no_grad():
        tower = text_tower(backbone)(backbone.tokenizer(CAPTIONS))
        visual = backbone.model.visual(torch.from_numpy(pixels))
    np.testing.assert_allclose(captions.embeddings, tower, atol=1e-6)
    np.testing.assert_allclose(images.embeddings, visual, atol=1e-6)


@pytest.mark.parametrize("vision", [PE_CORE, MOBILE_CLIP], ids=["pe-core", "mobileclip"])
def test_published_towers(tmp_path: Path, vision: dict[str, Any]) -> None:
    """The library's own code of towers that have no small test form; random weights."""
    import timm

    trunk = timm.create_model(vision["timm_model_name"], pretrained=False, num_classes=0)
    width = getattr(trunk, "head_hidden_size", trunk.num_features)
    del trunk
    folder = make_folder(tmp_path / "m", vision, TEXT, custom_text=True, embed_dim=width)
    backbone = load(folder)
    spec = backbone.spec
    assert spec.image.global_source == "pooled"
    height, wide = backbone.preprocess(Image.new("RGB", (50, 40))).shape[1:]
    pixels = np.random.default_rng(0).standard_normal((2, 3, height, wide)).astype(np.float32)
    encoded = backbone.encode_images(pixels)
    assert encoded.lengths.tolist() == [spec.image.count] * 2
    with torch.no_grad():
        trunk = backbone.model.visual.trunk
        rows = trunk.forward_features(torch.from_numpy(pixels))
        rows = rows.flatten(2).transpose(1, 2) if rows.ndim == 4 else rows
        embedding = backbone.model.encode_image(torch.from_numpy(pixels))
    tokens = encoded.values.reshape(2, spec.image.count, -1)[:, 1:]
    np.testing.assert_allclose(tokens, rows, atol=1e-5)
    np.testing.assert_allclose(encoded.embeddings, embedding, atol=1e-5)


def test_a_whole_coca(tmp_path: Path) -> None:
    """With its decoder, which only generates text; its own encoders answer with unit length."""
    folder = make_folder(tmp_path / "m", COCA, COCA_TEXT, custom_text=True, **COCA_DECODER)
    backbone = load(folder)
    assert type(backbone.model).__name__ == "CoCa"
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    images = backbone.encode_images(pixels)
    captions = backbone.encode_captions(backbone.tokenize(CAPTIONS))
    with torch.no_grad():
        theirs = backbone.model.encode_image(torch.from_numpy(pixels), normalize=False)
        words = backbone.model.encode_text(backbone.tokenizer(CAPTIONS), normalize=False)
    np.testing.assert_allclose(images.embeddings, theirs, atol=1e-6)
    np.testing.assert_allclose(captions.embeddings, words, atol=1e-6)
    assert backbone.spec.caption.global_source == "pooled"


def test_coca_style_pooling(tmp_path: Path) -> None:
    vision = {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 7}
    backbone = load(make_folder(tmp_path / "m", {**vision, "output_tokens": True}, TEXT))
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        embedding, queries = backbone.model.visual(torch.from_numpy(pixels))
    encoded = backbone.encode_images(pixels)
    # The first query is the pooled one; open_clip hands out the others.
    assert backbone.spec.image.global_source == "token"
    assert backbone.spec.image.count == queries.shape[1] + 1
    np.testing.assert_allclose(encoded.values.reshape(2, -1, 20)[:, 1:], queries, atol=1e-6)
    np.testing.assert_allclose(encoded.embeddings, embedding, atol=1e-6)


def test_hugging_face_text_tower(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    bert = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        pad_token_id=1,
    )
    BertModel(bert).save_pretrained(tmp_path / "bert")
    text = {
        "hf_model_name": str(tmp_path / "bert"),
        "hf_tokenizer_name": "local",
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
        "hf_model_pretrained": False,
        "context_length": 12,
    }
    backbone = load(make_folder(tmp_path / "m", VIT, text))
    ids = backbone.tokenize(CAPTIONS)
    encoded = backbone.encode_captions(ids)
    assert backbone.spec.caption.global_source == "pooled"
    single = backbone.encode_captions(ids[:1])
    np.testing.assert_allclose(split(encoded)[0], single.values, atol=1e-6)


class TestGolden:
    """A checkpoint and features made with the official code."""

    @pytest.fixture
    def folder(self, golden_root: Path) -> Path:
        return golden_root / "backbones" / "openclip"

    def test_features(self, folder: Path) -> None:
        backbone = load(folder)
        assert backbone.spec.caption.global_token == "last"
        with np.load(folder / "golden.npz") as golden:
            encoded = backbone.encode_images(golden["pixel_values"])
            tokens = golden["image_feat"].reshape(-1, golden["image_feat"].shape[-1])
            np.testing.assert_allclose(encoded.values, tokens, atol=1e-5)
            np.testing.assert_allclose(encoded.embeddings, golden["image_proj_unnorm"], atol=1e-5)
            ids, mask = ids_of(golden, "text_mask")
            encoded = backbone.encode_captions(ids)
            np.testing.assert_allclose(encoded.values, golden["text_feat"][mask], atol=1e-5)
            np.testing.assert_allclose(encoded.embeddings, golden["text_proj_unnorm"], atol=1e-5)

    def test_a_tokenizer_with_more_words_than_the_checkpoint(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match="has only 200 words"):
            load(folder).tokenize(["a dog"])

    @pytest.mark.parametrize("name", ["wide", "tall", "gray", "small", "rgba"])
    def test_preprocessing(self, golden_root: Path, name: str) -> None:
        from hada.extract.datasets.images import open_image

        pictures = golden_root / "backbones" / "preproc"
        picture = open_image(pictures / f"{name}.png")
        with np.load(pictures / "golden.npz") as golden:
            values = load(golden_root / "backbones" / "openclip").preprocess(picture)
            np.testing.assert_array_equal(values, golden[f"{name}_clip64"])


def ask(weights: str, **options: Any) -> Backbone:
    return load_backbone(BackboneRequest(name="m", family="clip", weights=weights, options=options))


def test_a_file_with_its_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "m", VIT, TEXT)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    file = str(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(UsageError, match="set the option `architecture`"):
        ask(file)
    plain = ask(file, architecture="tiny-test")
    same = ask("tiny-test", pretrained=file)
    quick = ask(file, architecture="tiny-test", quick_gelu=True)
    ids = plain.tokenize(["a dog"])
    first = np.asarray(plain.encode_captions(ids).embeddings)
    np.testing.assert_array_equal(first, same.encode_captions(ids).embeddings)
    assert np.abs(first - quick.encode_captions(ids).embeddings).max() > 1e-4


def test_openai_tags_force_quick_gelu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hada.extract.backbones import clip_load

    file = tmp_path / "weights.safetensors"
    monkeypatch.setattr(clip_load, "download_pretrained", lambda config: file)
    options = dict.fromkeys(("pretrained", "architecture", "quick_gelu"))
    assert clip_load.find("ViT-B-32/openai", options).quick_gelu is True
    assert clip_load.find("ViT-B-32/laion2b_s34b_b79k", options).quick_gelu is False
    assert clip_load.find("ViT-B-32-quickgelu/openai", options).quick_gelu is True
    with pytest.raises(UsageError, match="trained without"):
        clip_load._gelu("ViT-B-32-quickgelu", "some_tag", trained_with=False)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ("ViT-B-23/openai", UnknownNameError, "Did you mean 'ViT-B-32'"),
        ("ViT-B-32/opnai", UnknownNameError, "Did you mean 'openai'"),
        ("ViT-B-32", UsageError, "write ARCH/TAG"),
        ("local-dir:nowhere", CheckpointError, r"no open_clip_config\.json in nowhere"),
    ],
)
def test_wrong_names(weights: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ask(weights)


def test_damaged_folders(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", VIT, TEXT)
    file = folder / "open_clip_pytorch_model.bin"
    state = torch.load(file)
    torch.save({k: v for k, v in state.items() if "ln_post" not in k}, file)
    with pytest.raises(CheckpointError, match=r"Missing key.*visual\.ln_post\.weight"):
        load(folder)
    torch.save({f"uniter.{k}": v for k, v in state.items()}, file)
    with pytest.raises(CheckpointError, match="UNITER weights"):
        load(folder)
    torch.save({**state, "text_projection": state["text_projection"] * torch.nan}, file)
    with pytest.raises(CheckpointError, match=r"NaN or infinity \(text_projection\)"):
        load(folder)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="truncated"):
        load(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load(folder)
