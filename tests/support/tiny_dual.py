"""Tiny dual encoders of transformers, in folders as the library writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from hada.extract.backbones import BackboneRequest, load_backbone

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = {**SIZE, "image_size": 32, "patch_size": 8}
TEXT = {**SIZE, "vocab_size": 20, "max_position_embeddings": 16}
WORDS = ["<pad>", "<unk>", "<s>", "a", "dog", "two", "people", "in", "red", "shirts", "</s>"]


def save_tokenizer(folder: Path, template: str, **tokens: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", **tokens
    ).save_pretrained(folder)


def save_model(model: Any, folder: Path) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)


def make_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    text = {**TEXT, "eos_token_id": 10, "bos_token_id": 2, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
    save_model(transformers.CLIPModel(config), folder)
    save_tokenizer(folder, "<s> $A </s>", bos_token="<s>", eos_token="</s>")
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(folder)
    return folder


def make_vit_bert(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**VISION), transformers.BertConfig(**TEXT), projection_dim=12
    )
    save_model(transformers.VisionTextDualEncoderModel(config), folder)
    save_tokenizer(folder, "<s> $A </s>", cls_token="<s>", sep_token="</s>")
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def load(path: Path | str, **options: Any) -> Any:
    return load_backbone(
        BackboneRequest(name="m", family="dual", weights=str(path), options=options)
    )


def caption_inputs(backbone: Any, captions: list[str], padding: Any) -> Any:
    """Captions as the library's own tokenizer gives them to the model."""
    inputs = backbone.tokenizer(
        captions,
        return_tensors="pt",
        truncation=True,
        padding=padding,
        max_length=backbone.max_tokens,
    )
    if padding == "max_length":
        del inputs["attention_mask"]
    inputs.pop("token_type_ids", None)
    return inputs
