"""BLIP: golden features of the official code, from its own checkpoint files, and their traps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import at_hand, ids_of
from numpy.typing import NDArray
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

from hada.extract.backbones import Backbone, BackboneRequest, load_backbone
from hada.extract.backbones.blip_official import map_key
from hada.extract.backbones.salesforce import TEXT_HEADS, choose_heads, clean_caption
from hada.extract.common.errors import CheckpointError, UsageError
from hada.extract.testing.backbone_contract import CAPTIONS, BackboneContract

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "two", "people", "in", "red"]
FILE = "model_base_retrieval_flickr.pth"
GOLDEN = ["blip_base", "blip_large_like"]


def load(path: Path | str, **options: Any) -> Any:
    return load_backbone(
        BackboneRequest(name="m", family="blip", weights=str(path), options=options)
    )


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_folder(folder: Path) -> Path:
    """A `save_pretrained` folder with random weights and a tiny vocabulary."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = BlipConfig(
        text_config={
            **size,
            "num_attention_heads": 2,
            "vocab_size": 20,
            "max_position_embeddings": 40,
            "bos_token_id": 18,
            "sep_token_id": 3,
        },
        vision_config={**size, "num_attention_heads": 4, "image_size": 32, "patch_size": 16},
        image_text_hidden_size=12,
    )
    model = BlipForImageTextRetrieval(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


class TestBlip(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
        return load(make_folder(tmp_path_factory.mktemp("blip")))  # type: ignore[no-any-return]

    def project(self, backbone: Any, side: str, row: NDArray[np.float32]) -> Any:
        head = backbone.model.vision_proj if side == "image" else backbone.model.text_proj
        return head(torch.from_numpy(row)).detach().numpy()

    def test_cosines_are_the_librarys(self, backbone: Any, pixels: Any) -> None:
        ids = backbone.tokenize(CAPTIONS)
        padded, real = backbone.pad(ids, 0)
        with torch.no_grad():
            scores = backbone.model(
                input_ids=padded,
                attention_mask=real.long(),
                pixel_values=torch.from_numpy(pixels),
                use_itm_head=False,
            ).itm_score
        images = backbone.encode_images(pixels).embeddings
        captions = backbone.encode_captions(ids).embeddings
        np.testing.assert_allclose(unit(images) @ unit(captions).T, scores, atol=1e-6)

    def test_vision_epsilon_is_the_official(self, backbone: Any) -> None:
        assert backbone.spec.preprocessing["vision_layer_norm_eps"] == 1e-6


@pytest.fixture(params=GOLDEN)
def golden(request: pytest.FixtureRequest, golden_root: Path) -> Path:
    return at_hand(golden_root / "backbones" / str(request.param))


def test_golden_features_and_tokens(golden: Path) -> None:
    backbone = load(golden / FILE)
    texts = json.loads((golden / "texts.json").read_text())
    ids = backbone.tokenize(texts["raw"])
    with np.load(golden / "golden.npz") as expected:
        golden_ids, mask = ids_of(expected)
        assert ids == golden_ids
        images = backbone.encode_images(expected["pixel_values"])
        tokens = expected["image_feat"].reshape(-1, expected["image_feat"].shape[-1])
        np.testing.assert_allclose(images.values, tokens, atol=1e-5)
        np.testing.assert_allclose(images.embeddings, expected["image_proj_unnorm"], atol=1e-5)
        np.testing.assert_allclose(unit(images.embeddings), expected["image_embed"], atol=1e-5)
        captions = backbone.encode_captions(ids)
        np.testing.assert_allclose(captions.values, expected["text_feat"][mask], atol=1e-5)
        np.testing.assert_allclose(captions.embeddings, expected["text_proj_unnorm"], atol=1e-5)
        pixels = expected["pixel_values"]
        for name, demo in (("itm_logits_enc", False), ("itm_logits_cls", True)):
            logits = backbone.match_logits(pixels, ids, demo=demo)
            np.testing.assert_allclose(logits, expected[name], rtol=0, atol=1e-5)
        match = backbone.match_logits(pixels, ids)[..., 1]
        scores = match + unit(images.embeddings) @ unit(captions.embeddings).T
        np.testing.assert_allclose(scores, expected["retrieval_score_enc"], rtol=0, atol=1e-5)


def test_golden_cleaning(golden: Path) -> None:
    texts = json.loads((golden / "texts.json").read_text())
    for words in (30, 50):
        cleaned = [clean_caption(text, words)[0] for text in texts["raw"]]
        assert cleaned == texts[f"pre_caption_{words}"]


@pytest.mark.parametrize("name", ["wide", "tall", "gray", "small", "rgba"])
def test_golden_preprocessing(golden_root: Path, name: str) -> None:
    from hada.extract.datasets.images import open_image

    folder = golden_root / "backbones"
    picture = open_image(folder / "preproc" / f"{name}.png")
    with np.load(folder / "preproc" / "golden.npz") as expected:
        values = load(folder / "blip_base" / FILE).preprocess(picture)
        np.testing.assert_array_equal(values, expected[f"{name}_square64"])


def test_the_official_layout_and_the_folder_agree(golden: Path, tmp_path: Path) -> None:
    official = load(golden / FILE)
    official.model.save_pretrained(tmp_path / "folder")
    shutil.copy(golden / "vocab.txt", tmp_path / "folder")
    folder = load(tmp_path / "folder")
    ids = official.tokenize(CAPTIONS)
    np.testing.assert_array_equal(
        official.encode_captions(ids).values, folder.encode_captions(ids).values
    )


def test_every_official_key_is_mapped(golden: Path) -> None:
    official = [line.split()[0] for line in (golden / "keys.txt").read_text().splitlines() if line]
    expected = {line.split()[0] for line in (golden / "hf_keys.txt").read_text().splitlines()}
    assert {new for key in official if (new := map_key(key))} == expected


class TestHeads:
    """A wrong number of heads loads without error and changes every feature."""

    @pytest.fixture
    def folder(self, golden_root: Path, tmp_path: Path) -> Path:
        source = golden_root / "backbones" / "blip_base"
        for name in (FILE, "vocab.txt", "med_config.json", "model_config.json"):
            shutil.copy(source / name, tmp_path / name)
            (tmp_path / name).chmod(0o644)
        return tmp_path

    def test_unknown_is_refused(self, folder: Path) -> None:
        (folder / "med_config.json").unlink()
        (folder / "model_config.json").unlink()
        with pytest.raises(CheckpointError, match="number of text attention heads is unknown"):
            load(folder / FILE)
        with pytest.raises(CheckpointError, match="number of vision attention heads is unknown"):
            load(folder / FILE, heads=4)
        assert load(folder / FILE, heads=4, vision_heads=4).spec.embedding_width == 16

    def test_an_option_wins(self, folder: Path) -> None:
        right, wrong = load(folder / FILE), load(folder / FILE, heads=2)
        ids = right.tokenize(CAPTIONS)
        difference = right.encode_captions(ids).values - wrong.encode_captions(ids).values
        assert np.abs(difference).max() > 0.1
        assert right.spec.preprocessing["heads"] != wrong.spec.preprocessing["heads"]

    def test_published_sizes(self) -> None:
        path = Path("x.pth")
        assert choose_heads("text", 768, None, None, TEXT_HEADS, path) == 12
        assert choose_heads("text", 768, 8, None, TEXT_HEADS, path) == 8
        with pytest.raises(CheckpointError, match=r"says 8 text .* set the option `heads: 12`"):
            choose_heads("text", 768, None, 8, TEXT_HEADS, path)
        with pytest.raises(CheckpointError, match="do not divide"):
            choose_heads("text", 48, 5, None, TEXT_HEADS, path)

    def test_a_config_of_another_model(self, folder: Path) -> None:
        config = json.loads((folder / "med_config.json").read_text())
        (folder / "med_config.json").write_text(json.dumps({**config, "hidden_size": 64}))
        with pytest.raises(CheckpointError, match="text width 48, the config beside it says 64"):
            load(folder / FILE)
        (folder / "med_config.json").write_text("{")
        with pytest.raises(CheckpointError, match="broken JSON at line 1"):
            load(folder / FILE)

    def test_missing_and_unexpected_keys(self, folder: Path) -> None:
        state = torch.load(folder / FILE)["model"]
        del state["text_proj.weight"]
        state["visual_encoder.extra.weight"] = torch.zeros(3)
        torch.save({"model": state}, folder / FILE)
        with pytest.raises(CheckpointError, match=r"1 missing keys \(text_proj\.weight\); 1 unexp"):
            load(folder / FILE)

    def test_nan(self, folder: Path) -> None:
        state = torch.load(folder / FILE)["model"]
        state["text_proj.bias"][0] = torch.nan
        torch.save(state, folder / FILE)
        with pytest.raises(CheckpointError, match=r"NaN or infinity \(text_proj\.bias\)"):
            load(folder / FILE)


@pytest.mark.parametrize(
    ("file", "family"),
    [
        ("albef/flickr30k.pth", "albef"),
        ("albef/checkpoint_best.pth", "albef"),
        ("albef/albef_flickr_retrieval_lavis.pt", "albef"),
        ("uniter/uniter-base.pt", "uniter"),
        ("lightningdot/flickr-ft.pt", "lightningdot"),
        ("lightningdot/LightningDot.pt", "lightningdot"),
    ],
)
def test_checkpoints_of_other_families(golden_root: Path, file: str, family: str) -> None:
    with pytest.raises(CheckpointError, match=f"set `family: {family}`"):
        load(golden_root / "backbones" / file)


def test_an_open_clip_checkpoint(golden_root: Path, tmp_path: Path) -> None:
    source = golden_root / "backbones" / "openclip" / "open_clip_pytorch_model.bin"
    shutil.copy(source, tmp_path / "clip.pth")
    with pytest.raises(CheckpointError, match="CLIP weights"):
        load(tmp_path / "clip.pth")


def test_a_folder_of_another_model(golden_root: Path) -> None:
    with pytest.raises(CheckpointError, match="expected 'blip'"):
        load(golden_root / "backbones" / "blip2" / "model")


def test_the_tokenizer_has_to_fit(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "vocab.txt").write_text("\n".join([*WORDS, *map(str, range(30))]))
    with pytest.raises(CheckpointError, match="41 words, the checkpoint 20"):
        load(folder)
    (tmp_path / "v.txt").write_text("\n".join(WORDS))
    assert load(folder, tokenizer=str(tmp_path / "v.txt")).tokenize(["a dog"]) == [[2, 5, 6, 3]]
    BertTokenizer(str(tmp_path / "v.txt")).save_pretrained(tmp_path / "t")
    assert load(folder, tokenizer=str(tmp_path / "t")).tokenize(["A dog!"]) == [[2, 5, 6, 3]]


def test_word_and_token_limits(tmp_path: Path) -> None:
    backbone = load(make_folder(tmp_path / "m"), max_words=5, max_tokens=4)
    assert backbone.tokenize(["a dog in red", "a dog"]) == [[2, 5, 6, 3], [2, 5, 6, 3]]
    assert backbone.truncated == 1


def test_captions_are_cut_as_the_named_code_cuts_them(tmp_path: Path) -> None:
    """BLIP: 30 words and 35 tokens; LAVIS: 50 and 35; HADA-LAVIS: 50, and no limit of tokens."""
    folder = make_folder(tmp_path)
    words = " ".join(["dog"] * 60)
    for rule, words_kept, most in (("blip", 30, 35), ("lavis", 50, 35), ("hada-lavis", 50, 40)):
        backbone = load(folder, captions=rule)
        # This model has 40 positions, BLIP's has 512.
        assert len(backbone.tokenize([words])[0]) == min(words_kept + 2, most)
        assert backbone.spec.preprocessing["max_words"] == words_kept
    with pytest.raises(UsageError, match=r"option captions 'lavs'\. Did you mean 'lavis'"):
        load(folder, captions="lavs")
