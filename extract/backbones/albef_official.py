"""Official ALBEF checkpoints as a model assembled from blocks of timm and transformers.

Four layouts exist: the released retrieval files (a bare state dict), training saves (under
`model`, with momentum copies and queues), pre-training files (`text_encoder.bert.*` and a masked
language head), and LAVIS's (no token types). Every size is read off the tensors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.models.blip.configuration_blip import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextModel

from hada.extract.backbones import weights
from hada.extract.backbones.salesforce import (
    TEXT_HEADS,
    VISION_HEADS,
    check_width,
    choose_heads,
    configs_beside,
    count_blocks,
)
from hada.extract.common.errors import CheckpointError

CONFIG_FILES = ("config_bert.json", "model_config.json")
TOKEN_TYPES = "text_encoder.embeddings.token_type_embeddings.weight"
POSITIONS = "visual_encoder.pos_embed"
_LAYER = re.compile(r"text_encoder\.encoder\.layer\.(\d+)\.(.*)")
# Momentum copies, queues and the masked language head serve training only.
_MOMENTUM = ("visual_encoder_m.", "text_encoder_m.", "vision_proj_m.", "text_proj_m.")
_DROPPED_PREFIXES = (*_MOMENTUM, "text_encoder.cls.")
_DROPPED = {"image_queue", "text_queue", "idx_queue", "queue_ptr", "ptr_queue", "temp"}


class AlbefModel(nn.Module):
    """ALBEF's parts: both encoders, the layers that join them, and the three heads.

    The text encoder is the lower half of a BERT. The upper half, `fusion`, is BLIP's text model
    without its embeddings: the same layers of self-attention, cross-attention and MLP.
    """

    def __init__(
        self,
        visual_encoder: VisionTransformer,
        text_config: BertConfig,
        fusion_config: BlipTextConfig,
        embedding_width: int,
    ) -> None:
        super().__init__()
        vision_width, text_width = visual_encoder.embed_dim, text_config.hidden_size
        self.visual_encoder = visual_encoder
        self.text_encoder = BertModel(text_config, add_pooling_layer=False)
        self.fusion = BlipTextModel(fusion_config, add_pooling_layer=False)
        self.fusion.embeddings = nn.Identity()  # it starts from the text encoder's output
        self.vision_proj = nn.Linear(vision_width, embedding_width)
        self.text_proj = nn.Linear(text_width, embedding_width)
        self.itm_head = nn.Linear(text_width, 2)


def clean_state(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that retrieval needs, `bert.` infixes removed, layers not yet renumbered."""
    state = {}
    for key, value in raw.items():
        dropped = key in _DROPPED or key.startswith(_DROPPED_PREFIXES)
        if not dropped and not key.endswith("position_ids"):
            state[key.replace("text_encoder.bert.", "text_encoder.")] = value
    return state


def fusion_layer(state: Mapping[str, Tensor]) -> int:
    """How many layers the text encoder has: those below the first with cross-attention."""
    crossed = [
        int(found.group(1))
        for key in state
        if (found := _LAYER.match(key)) and found.group(2).startswith("crossattention.")
    ]
    return min(crossed, default=0)


def map_key(key: str, first_fused: int) -> str:
    """The name in `AlbefModel` of an official name; layers from `first_fused` on are the fusion's.

    >>> map_key("text_encoder.encoder.layer.7.output.dense.bias", 6)
    'fusion.encoder.layer.1.output.dense.bias'
    """
    found = _LAYER.match(key)
    if found is None or int(found.group(1)) < first_fused:
        return key
    return f"fusion.encoder.layer.{int(found.group(1)) - first_fused}.{found.group(2)}"


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """(1, 1 + n * n, D) position embeddings for another square grid, (1, 1 + grid * grid, D).

    As the official code: the CLS position kept, the others bicubic without antialiasing.
    """
    resized: Tensor = resample_abs_pos_embed(
        positions,
        [grid, grid],
        num_prefix_tokens=1,
        interpolation="bicubic",
        antialias=False,
    )
    return resized


def load_official(
    path: Path, heads: int | None, vision_heads: int | None, image_size: int | None
) -> tuple[AlbefModel, bool]:
    """The model in a checkpoint file, in float32, and whether it is of LAVIS's variant.

    Args:
        path: The file.
        heads: Of the text side; None takes those of a config beside the file, or the published.
        vision_heads: The same of the image side.
        image_size: In pixels; None for the size that the checkpoint was trained on.

    Raises:
        CheckpointError: The file is damaged, of another family, or does not fit.
    """
    raw = weights.read_state_dict(path)
    weights.refuse_other_family(raw, "albef", path)
    state = clean_state(raw)
    lavis = TOKEN_TYPES not in state
    try:
        if lavis:  # trained without token types: adding zeros is the same
            words = state["text_encoder.embeddings.word_embeddings.weight"]
            state[TOKEN_TYPES] = torch.zeros(2, words.shape[1])
        model, grid = _build(state, path, heads, vision_heads, image_size)
        state[POSITIONS] = resize_positions(state[POSITIONS].float(), grid)
    except KeyError as error:
        raise weights.not_of("an ALBEF retrieval", raw, path, error) from error
    first_fused = fusion_layer(state)
    weights.load_strict(
        model, {map_key(key, first_fused): value for key, value in state.items()}, path, raw
    )
    return model, lavis


def _build(
    state: Mapping[str, Tensor],
    path: Path,
    heads: int | None,
    vision_heads: int | None,
    image_size: int | None,
) -> tuple[AlbefModel, int]:
    """The empty model of the sizes that the tensors have, and its patches per side."""
    visual, grid = _vision(state, path, vision_heads, image_size)
    words = state["text_encoder.embeddings.word_embeddings.weight"]
    width, layer = words.shape[1], "text_encoder.encoder.layer."
    first_fused, layers = fusion_layer(state), count_blocks(state, layer)
    if not 0 < first_fused < layers:
        raise CheckpointError(
            f"{path}: expected cross-attention in the upper of {layers} text layers only, as "
            f"ALBEF has it; the first layer with it is {first_fused}"
        )
    text = configs_beside(path, CONFIG_FILES)["text"]
    check_width(path, text, width)
    sizes = {
        "hidden_size": width,
        "intermediate_size": state[f"{layer}0.intermediate.dense.weight"].shape[0],
        "num_attention_heads": choose_heads(
            "text",
            width,
            heads,
            text.get("num_attention_heads"),
            TEXT_HEADS,
            path,
            family="ALBEF",
            files=CONFIG_FILES,
        ),
        "layer_norm_eps": text.get("layer_norm_eps", 1e-12),
    }
    text_config = BertConfig(
        **sizes,
        num_hidden_layers=first_fused,
        vocab_size=words.shape[0],
        max_position_embeddings=state["text_encoder.embeddings.position_embeddings.weight"].shape[
            0
        ],
        type_vocab_size=state[TOKEN_TYPES].shape[0],
    )
    fusion_config = BlipTextConfig(
        **sizes,
        num_hidden_layers=layers - first_fused,
        encoder_hidden_size=state[f"{layer}{first_fused}.crossattention.self.key.weight"].shape[1],
        is_decoder=True,  # gives every layer its cross-attention
        vocab_size=1,
        # Ids must lie inside the vocabulary, which is not used.
        bos_token_id=0,
        eos_token_id=0,
        sep_token_id=0,
        pad_token_id=0,
        max_position_embeddings=1,
    )
    embedding_width = state["vision_proj.weight"].shape[0]
    return AlbefModel(visual, text_config, fusion_config, embedding_width), grid


def _vision(
    state: Mapping[str, Tensor], path: Path, heads: int | None, image_size: int | None
) -> tuple[VisionTransformer, int]:
    """The empty image encoder and its patches per side."""
    patch = state["visual_encoder.patch_embed.proj.weight"]
    width, patch_size = patch.shape[0], patch.shape[-1]
    native = round((state[POSITIONS].shape[1] - 1) ** 0.5) * patch_size
    size = image_size or native
    if size % patch_size:
        raise CheckpointError(f"{path}: image_size {size} is no multiple of the patch {patch_size}")
    vision = configs_beside(path, CONFIG_FILES)["vision"]
    visual = VisionTransformer(
        img_size=size,
        patch_size=patch_size,
        embed_dim=width,
        depth=count_blocks(state, "visual_encoder.blocks."),
        num_heads=choose_heads(
            "vision",
            width,
            heads,
            vision.get("num_heads"),
            VISION_HEADS,
            path,
            family="ALBEF",
            files=CONFIG_FILES,
        ),
        mlp_ratio=state["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0] / width,
        qkv_bias=True,
        # The official epsilon, whatever the library's default becomes.
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        num_classes=0,
        global_pool="",
    )
    return visual, size // patch_size
