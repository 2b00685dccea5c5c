"""Official Salesforce BLIP checkpoints (`.pth`) as transformers' BlipForImageTextRetrieval.

Every size is read off the tensors; what tensors cannot tell, the numbers of attention heads,
comes from the options, the `med_config.json` or `model_config.json` beside the file, or the two
published sizes. It is never guessed: a wrong head count loads without error and changes every
feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval

from hada.extract.backbones import weights
from hada.extract.backbones.salesforce import (
    TEXT_HEADS,
    VISION_HEADS,
    check_width,
    choose_heads,
    configs_beside,
    count_blocks,
)

# The official code sets 1e-6; transformers' own default, 1e-5, moves tokens by 2e-5.
VISION_EPS = 1e-6
CONFIG_FILES = ("med_config.json", "model_config.json")

_TOP_LEVEL = {
    "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
    "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj.": "vision_model.embeddings.patch_embedding.",
    "visual_encoder.norm.": "vision_model.post_layernorm.",
    "visual_encoder.blocks.": "vision_model.encoder.layers.",
}
_IN_BLOCK = {
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}
# Momentum copies and queues serve training only; pre-training files have a captioning half, too.
_DROPPED_PREFIXES = ("visual_encoder_m.", "text_encoder_m.", "vision_proj_m.", "text_proj_m.",
                     "text_decoder.")  # fmt: skip
_DROPPED = {"image_queue", "text_queue", "idx_queue", "ptr_queue", "queue_ptr", "temp"}


def map_key(key: str) -> str | None:
    """The transformers name of an official tensor name, None for what retrieval does not need.

    >>> map_key("visual_encoder.blocks.3.attn.qkv.weight")
    'vision_model.encoder.layers.3.self_attn.qkv.weight'
    """
    if key in _DROPPED or key.startswith(_DROPPED_PREFIXES) or key.endswith(".position_ids"):
        return None
    for old, new in _TOP_LEVEL.items():
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    for old, new in _IN_BLOCK.items():
        key = key.replace(old, new) if key.startswith("vision_model.") else key
    return key


def load_official(
    path: Path, heads: int | None, vision_heads: int | None
) -> BlipForImageTextRetrieval:
    """The model in a `.pth`, in float32; raises `CheckpointError` where it does not fit."""
    raw = weights.read_state_dict(path)
    weights.refuse_other_family(raw, "blip", path)
    state = {new: value for key, value in raw.items() if (new := map_key(key)) is not None}
    beside = configs_beside(path, CONFIG_FILES)
    try:
        config = _config(state, beside, path, heads, vision_heads)
    except KeyError as error:
        raise weights.not_of("a BLIP retrieval", raw, path, error) from error
    model = BlipForImageTextRetrieval(config)
    weights.load_strict(model, state, path, raw)
    return model


def _config(
    state: Mapping[str, Tensor],
    beside: Mapping[str, Mapping[str, Any]],
    path: Path,
    heads: int | None,
    vision_heads: int | None,
) -> BlipConfig:
    patch = state["vision_model.embeddings.patch_embedding.weight"]
    positions = state["vision_model.embeddings.position_embedding"].shape[1] - 1
    words = state["text_encoder.embeddings.word_embeddings.weight"]
    vision_width, text_width = patch.shape[0], words.shape[1]
    med, vit = beside["text"], beside["vision"]
    check_width(path, med, text_width)
    layer = "text_encoder.encoder.layer.0."
    text = {
        "vocab_size": words.shape[0],
        "hidden_size": text_width,
        "intermediate_size": state[layer + "intermediate.dense.weight"].shape[0],
        "num_hidden_layers": count_blocks(state, "text_encoder.encoder.layer."),
        "num_attention_heads": choose_heads(
            "text",
            text_width,
            heads,
            med.get("num_attention_heads"),
            TEXT_HEADS,
            path,
            files=CONFIG_FILES,
        ),
        "max_position_embeddings": state[
            "text_encoder.embeddings.position_embeddings.weight"
        ].shape[0],
        "encoder_hidden_size": state[layer + "crossattention.self.key.weight"].shape[1],
        "layer_norm_eps": med.get("layer_norm_eps", 1e-12),
        "bos_token_id": words.shape[0] - 2,  # [DEC], the last but one
    }
    vision = {
        "hidden_size": vision_width,
        "intermediate_size": state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count_blocks(state, "vision_model.encoder.layers."),
        "num_attention_heads": choose_heads(
            "vision",
            vision_width,
            vision_heads,
            vit.get("num_heads"),
            VISION_HEADS,
            path,
            files=CONFIG_FILES,
        ),
        "image_size": round(positions**0.5) * patch.shape[-1],
        "patch_size": patch.shape[-1],
        "layer_norm_eps": VISION_EPS,
    }
    return BlipConfig(
        text_config=text,
        vision_config=vision,
        image_text_hidden_size=state["vision_proj.weight"].shape[0],
    )
