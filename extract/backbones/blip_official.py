"""Official Salesforce BLIP checkpoints (`.pth`) as transformers' BlipForImageTextRetrieval.

Every size is read off the tensors; what tensors cannot tell, the numbers of attention heads,
comes from the options, the `med_config.json` or `model_config.json` beside the file, or the two
published sizes. It is never guessed: a wrong head count loads without error and changes every
feature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval

from hada.extract.backbones import weights
from hada.extract.errors import CheckpointError

# Width -> heads of the published models: BERT-base; ViT-B/16 and ViT-L/16.
TEXT_HEADS = {768: 12}
VISION_HEADS = {768: 12, 1024: 16}
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
# Momentum copies and queues serve training only.
_DROPPED_PREFIXES = ("visual_encoder_m.", "text_encoder_m.", "vision_proj_m.", "text_proj_m.")
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
    beside = _configs_beside(path)
    try:
        config = _config(state, beside, path, heads, vision_heads)
    except KeyError as error:
        raise CheckpointError(
            f"{path} is not a BLIP retrieval checkpoint: no tensor {error}"
        ) from error
    model = BlipForImageTextRetrieval(config)
    weights.load_strict(model, state, path)
    return model


def choose_heads(
    which: str,
    width: int,
    option: int | None,
    configured: int | None,
    published: Mapping[int, int],
    path: Path,
) -> int:
    """The number of heads; an option wins, a config must agree with what is published.

    Raises `CheckpointError` where nothing tells, or where the config contradicts the published
    model of this width.
    """
    name = "heads" if which == "text" else "vision_heads"
    right = published.get(width)
    chosen = option or configured or right
    if chosen is None:
        raise CheckpointError(
            f"{path}: the number of {which} attention heads is unknown (width {width}); put "
            f"{' or '.join(CONFIG_FILES)} beside the file or set the option `{name}`"
        )
    if option is None and right is not None and chosen != right:
        raise CheckpointError(
            f"{path}: its config says {chosen} {which} attention heads, BLIP of width {width} "
            f"has {right}; correct the config or set the option `{name}: {right}`"
        )
    if width % chosen:
        raise CheckpointError(f"{path}: {chosen} {which} heads do not divide the width {width}")
    return chosen


def _configs_beside(path: Path) -> dict[str, dict[str, Any]]:
    """The text ("med") and vision ("vit") settings that lie beside a checkpoint."""
    found: dict[str, dict[str, Any]] = {"med": {}, "vit": {}}
    for name in reversed(CONFIG_FILES):  # med_config.json, the official file, has the last word
        file = path.with_name(name)
        if not file.is_file():
            continue
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{file} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{file}: expected a JSON object")
        for part in found:
            inner = value.get(part)
            found[part].update(inner if isinstance(inner, dict) else {})
        if "num_attention_heads" in value:
            found["med"].update(value)
    return found


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
    med, vit = beside["med"], beside["vit"]
    if med.get("hidden_size", text_width) != text_width:
        raise CheckpointError(
            f"{path} has text width {text_width}, the config beside it says {med['hidden_size']}"
        )
    layer = "text_encoder.encoder.layer.0."
    text = {
        "vocab_size": words.shape[0],
        "hidden_size": text_width,
        "intermediate_size": state[layer + "intermediate.dense.weight"].shape[0],
        "num_hidden_layers": _count(state, "text_encoder.encoder.layer."),
        "num_attention_heads": choose_heads(
            "text", text_width, heads, med.get("num_attention_heads"), TEXT_HEADS, path
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
        "num_hidden_layers": _count(state, "vision_model.encoder.layers."),
        "num_attention_heads": choose_heads(
            "vision", vision_width, vision_heads, vit.get("num_heads"), VISION_HEADS, path
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


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered blocks there are under `prefix`."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})
