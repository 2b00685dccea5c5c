"""ALBEF: golden features of the official code, from every layout of its checkpoint files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import ids_of
from numpy.typing import NDArray

from hada.extract.backbones import Backbone, BackboneRequest, load_backbone
from hada.extract.backbones.albef_official import map_key, resize_positions
from hada.extract.backbones.salesforce import clean_albef, clean_caption
from hada.extract.common.errors import CheckpointError, UsageError
from hada.extract.testing.backbone_contract import CAPTIONS, BackboneContract

OFFICIAL = ["flickr30k.pth", "checkpoint_best.pth", "ALBEF_pretrain.pth"]
LAVIS = "albef_flickr_retrieval_lavis.pt"
BESIDE = ("config_bert.json", "model_config.json", "vocab.txt")


def load(path: Path | str, **options: Any) -> Any:
    return load_backbone(
        BackboneRequest(name="m", family="albef", weights=str(path), options=options)
    )


@pytest.fixture(scope="session")
def golden(golden_root: Path) -> Path:
    return golden_root / "backbones" / "albef"


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    """The released file and its configs, writable."""
    for name in ("flickr30k.pth", *BESIDE):
        shutil.copy(golden / name, tmp_path / name)
        (tmp_path / name).chmod(0o644)
    return tmp_path


class TestAlbef(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, golden: Path) -> Backbone:
        return load(golden / "flickr30k.pth")  # type: ignore[no-any-return]

    def project(self, backbone: Any, side: str, row: NDArray[np.float32]) -> Any:
        head = backbone.model.vision_proj if side == "image" else backbone.model.text_proj
        return head(torch.from_numpy(row)).detach().numpy()

    def test_match_logits_do_not_depend_on_the_batch(self, backbone: Any, pixels: Any) -> None:
        ids = backbone.tokenize(CAPTIONS)
        whole = backbone.match_logits(pixels, ids)
        assert whole.shape == (3, 3, 2)
        alone = backbone.match_logits(pixels[1:2], ids[2:3])
        np.testing.assert_allclose(whole[1:2, 2:3], alone, atol=2e-6)


class TestLavis(TestAlbef):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, golden: Path) -> Backbone:
        return load(golden / LAVIS)  # type: ignore[no-any-return]


@pytest.mark.parametrize("file", [*OFFICIAL, LAVIS])
def test_golden_features_and_tokens(golden: Path, file: str) -> None:
    backbone = load(golden / file)
    suffix = "_lavis" if file == LAVIS else ""
    texts = json.loads((golden / f"texts{suffix}.json").read_text())
    ids = backbone.tokenize(texts["raw"])
    with np.load(golden / f"golden{suffix}.npz") as expected:
        golden_ids, mask = ids_of(expected)
        assert ids == golden_ids
        images = backbone.encode_images(expected["pixel_values"])
        tokens = expected["image_feat"].reshape(-1, expected["image_feat"].shape[-1])
        np.testing.assert_allclose(images.values, tokens, rtol=0, atol=1e-5)
        unit = images.embeddings / np.linalg.norm(images.embeddings, axis=1, keepdims=True)
        np.testing.assert_allclose(unit, expected["image_embed"], rtol=0, atol=1e-5)
        if "image_proj_unnorm" in expected:
            raw = expected["image_proj_unnorm"]
            np.testing.assert_allclose(images.embeddings, raw, rtol=0, atol=1e-5)
        captions = backbone.encode_captions(ids)
        np.testing.assert_allclose(captions.values, expected["text_feat"][mask], rtol=0, atol=1e-5)
        raw = expected["text_proj_unnorm"]
        np.testing.assert_allclose(captions.embeddings, raw, rtol=0, atol=1e-5)
        logits = backbone.match_logits(expected["pixel_values"], ids)
        np.testing.assert_allclose(logits, expected["itm_logits"], rtol=0, atol=1e-5)


def test_golden_cleaning(golden: Path) -> None:
    texts = json.loads((golden / "texts.json").read_text())
    for words in (30, 50):
        cleaned = [clean_albef(text, words)[0] for text in texts["raw"]]
        assert cleaned == texts[f"pre_caption_{words}"]
    texts = json.loads((golden / "texts_lavis.json").read_text())
    assert [clean_caption(text, 50)[0] for text in texts["raw"]] == texts["pre_caption"]


def test_golden_position_embeddings(golden: Path) -> None:
    with np.load(golden / "pos_embed.npz") as expected:
        for source, target in (("ckpt_2x2", "to_4x4"), ("ckpt_6x6", "from6_to_4x4")):
            resized = resize_positions(torch.from_numpy(expected[source]), 4)
            np.testing.assert_allclose(resized, expected[target], rtol=0, atol=1e-6)


def test_another_image_size(golden: Path) -> None:
    """A checkpoint trained at 96 pixels, run at 64, as official pre-training files are at 384."""
    with np.load(golden / "pos_embed.npz") as expected:
        larger = load(golden / "flickr30k.pth", image_size=96)
        assert larger.spec.image.count == 37
        pixels = np.zeros((1, 3, 96, 96), np.float32)
        assert larger.encode_images(pixels).values.shape == (37, 48)
        same = load(golden / "flickr30k.pth", image_size=64)
        assert same.spec == load(golden / "flickr30k.pth").spec
        assert expected["to_4x4"].shape[1] == same.spec.image.count
    with pytest.raises(CheckpointError, match="image_size 70 is no multiple of the patch 16"):
        load(golden / "flickr30k.pth", image_size=70)


def test_a_checkpoint_of_another_grid_is_interpolated(golden: Path, copy: Path) -> None:
    state = torch.load(copy / "flickr30k.pth")
    with np.load(golden / "pos_embed.npz") as expected:
        state["visual_encoder.pos_embed"] = torch.from_numpy(expected["ckpt_6x6"])
        torch.save(state, copy / "flickr30k.pth")
        model = load(copy / "flickr30k.pth", image_size=64).model
        np.testing.assert_allclose(
            model.visual_encoder.pos_embed, expected["from6_to_4x4"], rtol=0, atol=1e-6
        )
    assert load(copy / "flickr30k.pth").image_size == 96


@pytest.mark.parametrize("name", ["wide", "tall", "gray", "small", "rgba"])
def test_golden_preprocessing(golden: Path, name: str) -> None:
    from hada.extract.datasets.images import open_image

    folder = golden.parent / "preproc"
    with np.load(folder / "golden.npz") as expected:
        values = load(golden / "flickr30k.pth").preprocess(open_image(folder / f"{name}.png"))
        np.testing.assert_array_equal(values, expected[f"{name}_square64"])


def test_half_precision_files_are_taken(copy: Path, golden: Path) -> None:
    state = {key: value.half() for key, value in torch.load(copy / "flickr30k.pth").items()}
    torch.save(state, copy / "flickr30k.pth")
    pixels = np.ones((1, 3, 64, 64), np.float32)
    half, full = load(copy / "flickr30k.pth"), load(golden / "flickr30k.pth")
    difference = half.encode_images(pixels).values - full.encode_images(pixels).values
    assert 0 < np.abs(difference).max() < 0.05


def test_heads_are_never_guessed(copy: Path) -> None:
    for name in ("config_bert.json", "model_config.json"):
        (copy / name).unlink()
    file = copy / "flickr30k.pth"
    with pytest.raises(CheckpointError, match="number of vision attention heads is unknown"):
        load(file)
    with pytest.raises(CheckpointError, match="number of text attention heads is unknown"):
        load(file, vision_heads=4)
    with pytest.raises(CheckpointError, match="5 text heads do not divide the width 48"):
        load(file, vision_heads=4, heads=5)
    assert load(file, vision_heads=4, heads=4).spec.preprocessing["heads"] == [4, 4]


def test_missing_unexpected_and_nan(copy: Path) -> None:
    file = copy / "flickr30k.pth"
    state = torch.load(file)
    torch.save({**state, "itm_head.bias": torch.full((2,), torch.nan)}, file)
    with pytest.raises(CheckpointError, match=r"NaN or infinity \(itm_head\.bias\)"):
        load(file)
    del state["text_proj.weight"]
    state["visual_encoder.extra.weight"] = torch.zeros(3)
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=r"1 missing keys \(text_proj\.weight\); 1 unexp"):
        load(file)
    del state["vision_proj.weight"]
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=r"no tensor 'vision_proj\.weight'"):
        load(file)


def test_truncated(copy: Path) -> None:
    file = copy / "flickr30k.pth"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load(file)


@pytest.mark.parametrize(
    ("file", "family"),
    [
        ("blip_base/model_base_retrieval_flickr.pth", "blip"),
        ("uniter/uniter-base.pt", "uniter"),
        ("lightningdot/flickr-ft.pt", "lightningdot"),
    ],
)
def test_checkpoints_of_other_families(golden: Path, file: str, family: str) -> None:
    with pytest.raises(CheckpointError, match=f"set `family: {family}`"):
        load(golden.parent / file)


def test_wrong_requests(golden: Path) -> None:
    with pytest.raises(CheckpointError, match="expected the checkpoint file itself"):
        load(golden)
    with pytest.raises(UsageError, match="Did you mean 'image_size'"):
        load(golden / "flickr30k.pth", imagesize=3)


def test_every_layer_is_mapped() -> None:
    names = [map_key(f"text_encoder.encoder.layer.{n}.x", 6) for n in (5, 6, 11)]
    assert names == [
        "text_encoder.encoder.layer.5.x",
        "fusion.encoder.layer.0.x",
        "fusion.encoder.layer.5.x",
    ]
