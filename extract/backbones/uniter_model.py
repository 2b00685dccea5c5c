"""UNITER's network, which is also LightningDOT's image encoder, from blocks of transformers.

A BERT whose input may be words, regions of a picture, or both one after the other. Only the
embedding of regions has no equivalent in a library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.models.blip.configuration_blip import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextModel

from hada.extract.backbones.salesforce import (
    check_width,
    choose_heads,
    configs_beside,
    count_blocks,
)
from hada.extract.datasets.regions import Regions

# Width -> heads of the published models: BERT-base and BERT-large.
HEADS = {768: 12, 1024: 16}
_EPSILON = 1e-12


class RegionEmbeddings(nn.Module):
    """Features and places of regions to the width of the tokens."""

    def __init__(self, feature_width: int, width: int) -> None:
        super().__init__()
        self.img_linear = nn.Linear(feature_width, width)
        self.img_layer_norm = nn.LayerNorm(width, eps=_EPSILON)
        self.pos_linear = nn.Linear(7, width)
        self.pos_layer_norm = nn.LayerNorm(width, eps=_EPSILON)
        self.LayerNorm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, features: Tensor, boxes: Tensor, kind: Tensor) -> Tensor:
        """(B, N, F) features, (B, N, 7) boxes and the token type (D,) of regions -> (B, N, D)."""
        seen = self.img_layer_norm(self.img_linear(features))
        placed = self.pos_layer_norm(self.pos_linear(boxes))
        result: Tensor = self.LayerNorm(seen + placed + kind)
        return result


class Pooler(nn.Module):
    """The tanh layer on the first position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        return torch.tanh(self.dense(tokens[:, 0]))


class UniterModel(nn.Module):
    """Embeddings of words and of regions, the layers they share, and the pooler."""

    def __init__(self, config: BertConfig, feature_width: int) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertModel(config, add_pooling_layer=False).embeddings
        self.img_embeddings = RegionEmbeddings(feature_width, config.hidden_size)
        # Only the layers are used: it takes ready embeddings and masks for them.
        self.trunk = BlipTextModel(_layers_only(config), add_pooling_layer=False)
        self.trunk.embeddings = nn.Identity()
        self.pooler = Pooler(config.hidden_size)

    def words(self, input_ids: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, D) input of the layers."""
        result: Tensor = self.embeddings(input_ids=input_ids)
        return result

    def regions(self, features: Tensor, boxes: Tensor) -> Tensor:
        """(B, N, F) and (B, N, 7) -> (B, N, D) input of the layers."""
        kind = self.embeddings.token_type_embeddings.weight[1]
        result: Tensor = self.img_embeddings(features, boxes, kind)
        return result

    def forward(self, embedded: Tensor, real: Tensor) -> Tensor:
        """(B, N, D) input, and which of it is no padding as (B, N) bool -> (B, N, D) output."""
        result: Tensor = self.trunk(
            encoder_embeds=embedded, attention_mask=real.long()
        ).last_hidden_state
        return result


def _layers_only(config: BertConfig) -> BlipTextConfig:
    return BlipTextConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        layer_norm_eps=config.layer_norm_eps,
        is_decoder=False,
        # Its own embeddings are not used, and its ids must lie inside the vocabulary.
        vocab_size=1,
        max_position_embeddings=1,
        bos_token_id=0,
        eos_token_id=0,
        sep_token_id=0,
        pad_token_id=0,
    )


def modern_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old names of norms (`gamma`, `beta`) as new ones, float32 throughout."""
    renamed = {}
    for key, value in state.items():
        if key.endswith("position_ids"):
            continue
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            key = key.removesuffix(old) + new if key.endswith(old) else key
        renamed[key] = value.float()
    return renamed


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below `prefix`, without it."""
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def model_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `UniterModel` under its own names, from those below an official prefix."""
    return {
        f"trunk.{key}" if key.startswith("encoder.") else key: value
        for key, value in state.items()
        if key != "img_embeddings.mask_embedding.weight"  # pre-training only
    }


def bert_config(
    state: Mapping[str, Tensor],
    path: Path,
    heads: int | None,
    family: str,
    files: Sequence[str],
) -> BertConfig:
    """The sizes of a BERT; heads from the option, a config beside, or published.

    Args:
        state: Its tensors by BERT's own names.
        path: The checkpoint.
        heads: The option.
        family: For messages.
        files: The names of configs that may lie beside the checkpoint.

    Raises:
        KeyError: A tensor is missing.
        CheckpointError: The heads do not fit.
    """
    words = state["embeddings.word_embeddings.weight"]
    beside = configs_beside(path, files)["text"]
    check_width(path, beside, words.shape[1])
    return BertConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=count_blocks(state, "encoder.layer."),
        num_attention_heads=choose_heads(
            "text",
            words.shape[1],
            heads,
            beside.get("num_attention_heads"),
            HEADS,
            path,
            family=family,
            files=files,
        ),
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        type_vocab_size=state["embeddings.token_type_embeddings.weight"].shape[0],
        layer_norm_eps=_EPSILON,
    )


def pad_regions(items: Sequence[Regions], device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Features (B, N, F), boxes (B, N, 7) and which regions are real (B, N) bool."""
    most, width = max(map(len, items)), items[0].features.shape[1]
    features = np.zeros((len(items), most, width), np.float32)
    boxes = np.zeros((len(items), most, 7), np.float32)
    real = np.zeros((len(items), most), bool)
    for row, item in enumerate(items):
        features[row, : len(item)], boxes[row, : len(item)] = item.features, item.boxes
        real[row, : len(item)] = True
    return tuple(torch.from_numpy(array).to(device) for array in (features, boxes, real))  # type: ignore[return-value]
