"""`--model PATH-OR-ID`: a table of models and folders that load, or are refused and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import makers
import model_layouts as make
import numpy as np
import pytest
import tiny_sentence as tiny
import torch
from click.testing import CliRunner
from tiny_clip import TEXT, VIT
from tiny_dual import SIZE, VISION, make_clip
from tiny_dual import TEXT as WORDS

from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.backbones.recognise import described_model, recognise
from hada.extract.cli import extract
from hada.extract.common.errors import CheckpointError, HadaError, UnknownNameError, UsageError
from hada.extract.job import model_entry
from hada.extract.manifest import Manifest, load_manifest
from hada.extract.testing.backbone_contract import CAPTIONS, pictures

GROUPS = {**VISION, "depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 4]}
HF_TEXT = {**TEXT, "vocab_size": 64, "hf_tokenizer_name": "local"}
TIMM = {"timm_model_name": "resnet10t", "timm_model_pretrained": False, "image_size": 64}

# What it is -> how it is made, and the family that reads it.
LOADS: dict[str, tuple[make.Maker, str]] = {
    "CLIP": (make.dual("CLIP", projection_dim=12), "dual"),
    "SigLIP 2 of one size": (make.dual("Siglip"), "dual"),
    "SigLIP 2 NaFlex": (make.naflex, "dual"),
    "AltCLIP": (make.dual("AltCLIP", words={**make.WORDS, "project_dim": 24}), "dual"),
    "Chinese CLIP": (make.dual("ChineseCLIP", projection_dim=12), "dual"),
    "MetaCLIP 2": (make.dual("MetaClip2", projection_dim=12), "dual"),
    "CLIPSeg": (make.dual("CLIPSeg", projection_dim=12), "dual"),
    "GroupViT": (
        make.dual("GroupViT", sight=GROUPS, projection_dim=12, projection_intermediate_dim=16),
        "dual",
    ),
    "OWL-ViT": (make.dual("OwlViT", projection_dim=12), "dual"),
    "OWLv2": (make.dual("Owlv2", projection_dim=12), "dual"),
    "AIMv2": (make.dual("Aimv2", projection_dim=12), "dual"),
    "TIPS 2": (make.dual("Tipsv2"), "dual"),
    "ViT and BERT": (make.vit_bert, "dual"),
    "CLIP saved by DistributedDataParallel": (
        make.with_prefix(make.dual("CLIP", projection_dim=12), "module.", "state_dict"),
        "dual",
    ),
    "CLIP saved by torch.compile": (
        make.with_prefix(make.dual("CLIP", projection_dim=12), "_orig_mod."),
        "dual",
    ),
    "CLIP of sentence-transformers": (make.sentence("0_CLIPModel", make_clip), "dual"),
    "CLIP as sentence-transformers saves it by now": (tiny.clip_alone, "dual"),
    "a CLIP of sentence-transformers with a layer of its own": (tiny.clip_pooled, "sentence"),
    "a Qwen2-VL embedder of sentence-transformers": (tiny.chat_embedder, "sentence"),
    "a multi-vector model of sentence-transformers": (tiny.multi_vector, "sentence"),
    "ColQwen2": (tiny.inside(tiny.colqwen), "sentence"),
    "ColPali": (tiny.inside(tiny.colpali), "sentence"),
    "BLIP for retrieval": (make.blip("BlipForImageTextRetrieval"), "blip"),
    "open_clip ViT": (make.open_folder(VIT, TEXT), "clip"),
    "open_clip with a tower of timm": (make.open_folder(TIMM, TEXT), "clip"),
    "open_clip with a tokenizer of transformers": (make.open_folder(VIT, HF_TEXT), "clip"),
    "open_clip saved by torch.compile": (
        make.with_prefix(make.open_folder(VIT, TEXT), "_orig_mod.", "ema"),
        "clip",
    ),
    "an open_clip checkpoint of a named architecture": (
        lambda folder: f"tiny-alone/{make.open_clip_file('tiny-alone')(folder)}",
        "clip",
    ),
    "the official BLIP": (make.golden("blip_base/model_base_retrieval_flickr.pth"), "blip"),
    "the official ALBEF": (make.golden("albef/flickr30k.pth"), "albef"),
    "LAVIS's ALBEF": (make.golden("albef/albef_flickr_retrieval_lavis.pt"), "albef"),
}

BLIP_CAPTIONS = ("visual_encoder.cls_token", "text_decoder.bert.embeddings.word_embeddings.weight")
QWEN = {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]}
COLPALI = {"model_type": "paligemma", "architectures": ["ColPali"]}
BLIP2 = {"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"]}
CLASSES = {**WORDS, "eos_token_id": 10, "pad_token_id": 0}

# What it is -> how it is made, and what is said of it.
REFUSED: dict[str, tuple[make.Maker, str]] = {
    "BLIP for captions": (
        make.blip("BlipForConditionalGeneration"),
        r"a BLIP captioning checkpoint, which has no projection .*; use blip:Salesforce",
    ),
    "BLIP for questions": (
        make.blip("BlipForQuestionAnswering"),
        r"a BLIP question answering checkpoint, which has no projection",
    ),
    "BlipModel": (make.blip("BlipModel"), r"a BLIP without its retrieval heads \(BlipModel\)"),
    "BLIP-2 for captions": (
        make.only_config(**BLIP2),
        r"a BLIP-2 captioning checkpoint, .*; use blip2:Salesforce/blip2-itm-vit-g",
    ),
    "half a CLIP, images": (
        make.alone("CLIPVisionModelWithProjection", "CLIPVisionConfig", VISION),
        r"an image encoder alone \(CLIPVisionModelWithProjection\); .* a text side",
    ),
    "half a CLIP, texts": (
        make.alone("CLIPTextModelWithProjection", "CLIPTextConfig", CLASSES),
        r"a text encoder alone .*; give a model that has an image side, too",
    ),
    "CLIP for classification": (
        make.only_config(model_type="clip", architectures=["CLIPForImageClassification"]),
        r"a CLIP for classification .*; give the model it began as",
    ),
    "BERT": (make.alone("BertModel", "BertConfig", make.BERT_SIZES), r"a text encoder alone \(Be"),
    "ViT": (make.alone("ViTModel", "ViTConfig", VISION), r"an image encoder alone \(ViTModel\)"),
    "ViLT": (
        make.alone("ViltModel", "ViltConfig", {**SIZE, "vocab_size": 20, "image_size": 32}),
        r"a ViLT model, which scores pairs only; a class of your own",
    ),
    "Qwen2-VL": (
        make.only_config(**QWEN),
        r"a Qwen2VLForConditionalGeneration of transformers, which no family reads",
    ),
    "ColPali of colpali-engine": (
        make.only_config(**COLPALI),
        r"a late-interaction model of colpali-engine \(ColPali\); use its form for transformers",
    ),
    "a config of nothing": (make.only_config(hidden_size=3), r"config.json names no model_type"),
    "timm": (make.timm_folder, r"an image encoder of timm alone \(resnet10t\)"),
    "timm's checkpoint": (make.timm_file, r"an image encoder alone; give a model that has a text"),
    "BERT of sentence-transformers": (
        make.sentence("0_Transformer", make.alone("BertModel", "BertConfig", make.BERT_SIZES)),
        r"a sentence-transformers folder of text alone \(bert\): it has no image side; give one",
    ),
    "BERT as sentence-transformers saves it": (
        tiny.text_embedder,
        r"a sentence-transformers folder of text alone \(bert\): it has no image side; give one",
    ),
    "a cross-encoder of sentence-transformers": (
        tiny.cross_encoder,
        r"a cross-encoder folder of .*, which scores pairs only; re-rank with it: .*cross-encoder:",
    ),
    "a cross-encoder of texts": (
        tiny.text_cross_encoder,
        r"a cross-encoder folder of sentence-transformers, which scores pairs only",
    ),
    "a sparse encoder": (
        tiny.sparse_encoder,
        r"a SparseEncoder folder of sentence-transformers; a class of your own",
    ),
    "an adapter": (
        make.text_file("adapter_config.json", "{}", whole_folder=True),
        r"an adapter \(PEFT\), not a model; merge it",
    ),
    "diffusers": (
        make.text_file("model_index.json", "{}", whole_folder=True),
        r"a pipeline of diffusers, which generates images",
    ),
    "BLIP's captioning checkpoint": (
        make.state("model_base_caption.pth", *BLIP_CAPTIONS, wrap="model"),
        r"a BLIP captioning checkpoint, which has no projection; use one .* for retrieval",
    ),
    "BLIP's checkpoint for questions": (
        make.state("model_vqa.pth", *BLIP_CAPTIONS, "text_encoder.pooler.dense.bias"),
        r"a checkpoint for visual question answering, which has no projection",
    ),
    "ALBEF without projections": (
        make.state("albef_nlvr.pth", "visual_encoder.cls_token", "text_encoder.bert.x", "cls_head"),
        r"a BLIP or ALBEF checkpoint without its projections",
    ),
    "LAVIS's BLIP-2": (
        make.state("blip2_pretrained.pth", "Qformer.bert.x", "visual_encoder.cls_token"),
        r"a BLIP-2 checkpoint in LAVIS's layout; .* blip2:Salesforce/blip2-itm-vit-g",
    ),
    "half of an open_clip": (
        make.state("visual.pt", "visual.conv1.weight", "visual.proj"),
        r"the image half of a CLIP; give the whole model",
    ),
    "BERT's checkpoint": (
        make.state("pytorch_model.bin", *make.BERT_NAMES),
        r"a text encoder alone; give a model that has an image side, too",
    ),
    "an adapter's checkpoint": (
        make.state("adapter_model.safetensors", "base_model.model.x.lora_A.weight"),
        r"an adapter \(PEFT\), not a model",
    ),
    "names of nobody": (
        make.state("x.pth", "alpha", "beta"),
        r"a checkpoint whose names no family knows \(alpha, beta\)",
    ),
    "CLIP's weights without a config": (
        make.state("model.safetensors", "vision_model.x", "text_model.x"),
        r"the weights of a model of transformers without its config.json; give the model's folder",
    ),
    "OpenAI's ViT-B/32": (
        make.torchscript("ViT-B-32.pt"),
        r"a TorchScript archive, .* as OpenAI published CLIP; use clip:ViT-B-32/openai, or save",
    ),
    "OpenAI's ViT-L/14 at 336": (
        make.torchscript("ViT-L-14-336px.pt"),
        r"use clip:ViT-L-14-336/openai",
    ),
    "a TorchScript archive": (make.torchscript("a.pt"), r"use clip:ARCH/openai \(ARCH is RN50"),
    "an open_clip checkpoint of two architectures": (
        make.open_clip_file("tiny-two"),
        r"does not say its architecture; its shapes fit tiny-two, tiny-two-quickgelu: .*, "
        r"clip:tiny-two//.*/epoch_3.pt \(with -quickgelu for OpenAI's",
    ),
    "an open_clip checkpoint of one architecture": (
        make.open_clip_file("tiny-alone"),
        r"its shapes fit tiny-alone: .* clip:tiny-alone//.*/epoch_3.pt$",
    ),
    "an open_clip checkpoint of other towers": (
        make.state("epoch_1.pt", "visual.trunk.stem.weight", "text.token_embedding.weight"),
        r"an open_clip checkpoint that does not say its architecture; none .*clip:ARCH//",
    ),
    "a folder of models": (make.family_of_folders, r"a folder of 2 model folders; name .*/one"),
    "several checkpoints": (make.several, r"several checkpoints .*; name one of them: a.pth, b"),
    "an empty folder": (lambda folder: folder, r"without weights; .* it holds nothing"),
    "a config without weights": (make.without_weights, r"CLIP folder without its weights; fetch"),
    "Flax": (make.flax, r"a model whose weights are Flax's \(flax_model.msgpack\); convert it"),
    "a clone without large files": (make.pointer, r"is a pointer\); run `git lfs pull` in "),
    "GGUF": (make.text_file("clip.gguf", "GGUF"), r"a file of llama.cpp; give weights of PyTorch"),
}


@pytest.fixture(scope="module", autouse=True)
def _architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    make.tiny_architectures(tmp_path_factory.mktemp("architectures"))


@pytest.fixture
def manifest() -> Manifest:
    return load_manifest()


def loaded(entry: Any, **options: Any) -> Any:
    return load_backbone(
        BackboneRequest(
            name=entry.name,
            family=entry.family,
            weights=entry.weights_for("any"),
            options={**entry.options, **options},
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADS)
def test_what_loads(name: str, manifest: Manifest, tmp_path: Path) -> None:
    maker, family = LOADS[name]
    place = maker(tmp_path)
    entry = described_model(manifest, f"m={place}")
    assert (entry.name, entry.family) == ("m", family)
    backbone = loaded(entry)
    inputs = [backbone.preprocess(p) for p in pictures()[:2]]
    images = backbone.encode_images(inputs if backbone.varying_input else np.stack(inputs))
    captions = backbone.encode_captions(backbone.tokenize(CAPTIONS[:2]))
    if images.embeddings is None:  # late interaction
        assert images.values.shape[1] == captions.values.shape[1]
        assert np.isfinite(images.values).all()
        return
    assert images.embeddings.shape == captions.embeddings.shape
    assert np.isfinite(images.embeddings).all()
    assert np.isfinite(captions.embeddings).all()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, manifest: Manifest, tmp_path: Path) -> None:
    maker, message = REFUSED[name]
    place = maker(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        described_model(manifest, f"m={place}")
    assert str(tmp_path) in str(caught.value)
    # Whatever family is named instead, the same is said.
    for family in ("dual", "clip", "blip", "albef"):
        request = BackboneRequest(name="m", family=family, weights=str(place), options={})
        with pytest.raises(HadaError, match=message):
            load_backbone(request)


def test_the_table_is_long() -> None:
    assert len(LOADS) + len(REFUSED) >= 40


WRONG = {
    "CLIP": "dual",
    "BLIP for retrieval": "blip",
    "open_clip ViT": "clip",
    "the official BLIP": "blip",
    "the official ALBEF": "albef",
    "CLIP of sentence-transformers": "dual",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("family", ["albef", "blip", "blip2", "clip", "dual", "siglip"])
def test_a_wrong_family_is_told_the_right_one(name: str, family: str, tmp_path: Path) -> None:
    right = WRONG[name]
    if family == right and name != "CLIP of sentence-transformers":
        pytest.skip("not wrong")
    place = LOADS[name][0](tmp_path)
    request = BackboneRequest(name="m", family=family, weights=str(place), options={})
    with pytest.raises(UsageError, match=rf"It is an? .*: {right}:{place}") as caught:
        load_backbone(request)
    assert ("'siglip' is no family" in str(caught.value)) == (family == "siglip")


def test_prefixes_do_not_change_a_vector(tmp_path: Path) -> None:
    file = make.golden("blip_base/model_base_retrieval_flickr.pth")(tmp_path)
    plain = loaded(_entry("blip", file))
    state = torch.load(file, weights_only=True)["model"]
    torch.save({"ema": {f"module._orig_mod.{k}": v for k, v in state.items()}}, file)
    other = loaded(_entry("blip", file))
    pixels = np.stack([plain.preprocess(p) for p in pictures()])
    for one, two in (
        (plain.encode_images(pixels), other.encode_images(pixels)),
        *[[m.encode_captions(m.tokenize(CAPTIONS)) for m in (plain, other)]],
    ):
        np.testing.assert_array_equal(one.embeddings, two.embeddings)
        np.testing.assert_array_equal(one.values, two.values)


def _entry(family: str, file: Any) -> Any:
    return described_model(load_manifest(), f"m={family}:{file}")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("weights/My model!", "My-model"),
        ("weights/clip.v2", "clip.v2"),
        ("weights/best.safetensors", "best"),
        ("./weights/clip.v2/", "clip.v2"),
        ("weights/.hidden", "hidden"),
        ("weights/été", "t"),
        ("weights/...", "model"),
    ],
)
def test_the_name_is_the_last_part_of_the_path(
    place: str, name: str, manifest: Manifest, tmp_path: Path
) -> None:
    target = tmp_path / place
    if place.endswith(".safetensors"):
        target.parent.mkdir()
        make.with_prefix(make.open_folder(VIT, TEXT), "")(tmp_path)
        entry = described_model(manifest, f"clip:{place}")
    else:
        target.mkdir(parents=True)
        make_clip(target)
        entry = described_model(manifest, place)
    assert entry.name == name


def test_names_of_ids_and_tags(manifest: Manifest) -> None:
    for text, name in (
        ("dual:org/My_Model@v1.0", "My_Model"),
        ("hf-hub:laion/CLIP-ViT-B-32@abc", "CLIP-ViT-B-32"),
        ("clip:ViT-B-32/openai", "ViT-B-32-openai"),
        ("ViT-B-32/openai", "ViT-B-32-openai"),
        ("clip:ViT-B-32//data/my run/best.pt", "best"),
        ("builtin:scenes/blip", None),
    ):
        if name is None:
            with pytest.raises(UsageError, match=r"called 'blip', which is a model .*NAME=built"):
                described_model(manifest, text)
        else:
            assert described_model(manifest, text).name == name


def test_forms_that_are_none(manifest: Manifest, tmp_path: Path) -> None:
    assert model_entry(manifest, "clip") is manifest.models["clip"]
    make_clip(Path("bare"))
    assert (model_entry(manifest, "bare").name, model_entry(manifest, "bare").family) == (
        "bare",
        "dual",
    )
    with pytest.raises(UnknownNameError, match=r"unknown model 'clp'. Did you mean 'clip'"):
        model_entry(manifest, "clp")
    with pytest.raises(CheckpointError, match=r"no file or folder at './nothing'.*ARCH/TAG"):
        model_entry(manifest, "./nothing")
    with pytest.raises(CheckpointError, match=r"no file or folder at 'best.pth'"):
        model_entry(manifest, "m=best.pth")
    with pytest.raises(UsageError, match=r"'a/b/c' is no path that is there and no id"):
        model_entry(manifest, "a/b/c")
    with pytest.raises(UsageError, match=r"expected NAME=PATH-OR-ID or NAME=FAMILY:WEIGHTS"):
        model_entry(manifest, "m=")
    with pytest.raises(UsageError, match=r"expected NAME=PATH-OR-ID"):
        model_entry(manifest, "")
    with pytest.raises(UsageError, match=r"expected NAME=PATH-OR-ID"):
        model_entry(manifest, "not a name=dual:x")
    with pytest.raises(UsageError, match=r"expected FAMILY:WEIGHTS"):
        model_entry(manifest, "m=dual:")
    # A folder whose name has what the forms use.
    odd = tmp_path / "lr=3:best"
    make_clip(odd)
    assert model_entry(manifest, str(odd)).weights == {"default": str(odd)}
    assert model_entry(manifest, f"m={odd}").family == "dual"
    entry = model_entry(manifest, "m=my_models:Colours:v1")
    assert (entry.family, entry.weights) == ("my_models:Colours", {"default": "v1"})


def test_an_architecture_with_a_file_that_is_not_there() -> None:
    for place in ("ViT-B-32//data/best.pt", "ViT-B-32/best.pt"):
        with pytest.raises(CheckpointError, match=r"no checkpoint file at '.*best.pt' for the arc"):
            loaded(_entry("clip", place))


def test_what_openais_archives_hold_beside_weights_is_left_out(tmp_path: Path) -> None:
    file = make.open_clip_file("tiny-alone")(tmp_path)
    plain = loaded(_entry("clip", f"tiny-alone/{file}"))
    state = torch.load(file, weights_only=True)["state_dict"]
    for name in ("input_resolution", "context_length", "vocab_size"):
        state[name] = torch.tensor(77)
    torch.save(state, file)
    other = loaded(_entry("clip", f"tiny-alone/{file}"))
    ids = plain.tokenize(CAPTIONS)
    np.testing.assert_array_equal(
        plain.encode_captions(ids).embeddings, other.encode_captions(ids).embeddings
    )


def test_a_folder_with_both_libraries_configs_is_told_by_its_weights(tmp_path: Path) -> None:
    make_clip(tmp_path)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    assert recognise(str(tmp_path)).family == "dual"
    (tmp_path / "model.safetensors").rename(tmp_path / "open_clip_model.safetensors")
    assert recognise(str(tmp_path)).family == "clip"


def test_odd_folders_are_no_accident(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"without a config.json and without weights"):
        described_model(load_manifest(), f"m={tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "clip", "architectures": "CLIPModel"}')
    with pytest.raises(CheckpointError, match=r"a transformers CLIP folder without its weights"):
        described_model(load_manifest(), f"m={tmp_path}")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json"):
        described_model(load_manifest(), f"m={tmp_path}")


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    for place in ("a/best", "b/best"):
        (tmp_path / place).mkdir(parents=True)
        make_clip(tmp_path / place)
    words = ["--split", "val", "--dry-run", "--model", "a/best", "--model"]
    done = CliRunner().invoke(extract, [*words, "b/best"])
    assert done.exit_code == 2
    assert "two models are called 'best' (a/best and b/best): name one of them" in done.output
    done = CliRunner().invoke(extract, [*words, "other=b/best", "--model", "a/best"])
    assert done.exit_code == 0, done.output


def test_a_damaged_checkpoint_is_named_as_such(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("<html>404</html>")
    with pytest.raises(CheckpointError, match="damaged or not a PyTorch file"):
        described_model(manifest, f"m={tmp_path / 'a.pth'}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        described_model(manifest, f"m={tmp_path}")


def test_a_file_beside_its_config_is_its_folder(tmp_path: Path) -> None:
    make_clip(tmp_path)
    found = recognise(str(tmp_path / "model.safetensors"))
    assert (found.family, found.weights) == ("dual", str(tmp_path))
