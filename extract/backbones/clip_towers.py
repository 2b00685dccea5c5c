"""Tokens, pooled vector and embedding out of any tower that open_clip builds.

One function per side, one branch per kind of tower. All answer with `Features`; which of them a
tower can give is for the caller to declare.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from hada.extract.backbones.torch_base import grid_to_tokens


@dataclass
class Features:
    """What one tower gives for a batch.

    tokens: (B, N, D) after the final norm, None where the tower has no such rows.
    pooled: (B, P) what stands for the whole before the projection, None where there is none.
    embedding: (B, E) projected, not normalised.
    """

    tokens: Tensor | None
    pooled: Tensor | None
    embedding: Tensor


def image_features(visual: Any, pixels: Tensor) -> Features:
    """The image tower's features of (B, 3, H, W)."""
    if isinstance(visual, VisionTransformer):
        return _vision_transformer(visual, pixels)
    if isinstance(visual, TimmModel):
        return _timm(visual, pixels)
    # ModifiedResNet: the last feature map. Its attention pool projects as it pools, so the vector
    # before the projection is what that pool takes as its query, the mean of the map.
    output = visual.forward_intermediates(pixels, indices=1, output_fmt="NCHW")
    tokens = grid_to_tokens(output["image_intermediates"][-1])
    return Features(tokens, tokens.mean(dim=1), output["image_features"])


def tokens_are_normed(visual: Any) -> bool:
    """Whether image tokens come after the tower's final norm.

    False where that norm follows the pooling (average-pooled ViTs of timm, ConvNeXt) or where
    there is none (ResNet): their tokens are the last ones the tower has.
    """
    if isinstance(visual, VisionTransformer):
        return True
    norm = getattr(getattr(visual, "trunk", None), "norm", None)
    return norm is not None and not isinstance(norm, nn.Identity)


def _vision_transformer(visual: VisionTransformer, pixels: Tensor) -> Features:
    """All tokens after the final norm: what `ln_post` gives.

    In front is the CLS row, or CoCa's first query. Only where the norm comes after pooling is it
    a single vector, and there are no such tokens.
    """
    normed: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
        normed.append(output)

    handle = visual.ln_post.register_forward_hook(keep)
    try:
        output = visual(pixels)
    finally:
        handle.remove()
    embedding = output[0] if isinstance(output, tuple) else output
    tokens = normed[-1]
    if tokens.ndim != 3 or getattr(visual, "attn_pool_contrastive", None) is not None:
        return Features(None, None, embedding)
    pooled = {"tok": tokens[:, 0], "avg": tokens[:, 1:].mean(dim=1)}.get(visual.pool_type)
    return Features(tokens, pooled, embedding)


def _timm(visual: TimmModel, pixels: Tensor) -> Features:
    """Trunks of timm: rows after the final norm, or a feature map as a grid of rows."""
    trunk: Any = visual.trunk
    features = trunk.forward_features(pixels)
    embedding = visual.head(trunk.forward_head(features))
    pooled = None
    if "pre_logits" in inspect.signature(trunk.forward_head).parameters:
        pooled = trunk.forward_head(features, pre_logits=True)
        pooled = pooled if pooled.ndim == 2 else None
    tokens = features
    if features.ndim == 4:
        channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        tokens = features.flatten(1, 2) if channels_last else grid_to_tokens(features)
    return Features(tokens if tokens.ndim == 3 else None, pooled, embedding)


class TextReader:
    """The caption tower of an open_clip model.

    length: positions that a batch is padded to; None where pads cannot be seen by real tokens
        (causal attention), so that the longest caption of the batch is enough.
    ends_at: where True, rows after the end token are noise: the pooled vector is the row of the
        highest id (or of the tower's own end id), and nothing before it sees what follows.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.text: Any = getattr(model, "text", model)
        self.is_hf = isinstance(self.text, HFTextEncoder)
        self.pool_type: str = ""
        self.causal = False
        if not self.is_hf:
            # CLIP carries its text tower in itself, under another attribute name.
            self.pool_type = getattr(self.text, "text_pool_type", None) or self.text.pool_type
            self.causal = (
                self.text.attn_mask is not None
                and getattr(self.text, "cls_emb", None) is None
                and self.pool_type in ("argmax", "eos")
            )
        self.context_length = int(model.context_length)
        self.vocab_size = int(self.text.vocab_size)
        self.length = None if self.causal or self.is_hf else self.context_length

    @property
    def pools_at_end_token(self) -> bool:
        """Whether the pooled vector is the row of the end token."""
        return self.pool_type in ("argmax", "eos")

    def end(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B,) position of the end token."""
        if self.pool_type == "eos":
            own = getattr(self.text, "text_eos_id", None)
            own = own if own is not None else self.text.eos_id
            ids = (ids == own).int()
        return ids.argmax(dim=1)

    def features(self, ids: Tensor, real: Tensor) -> Features:
        """(B, L) ids and which are real -> features of all L positions."""
        if self.is_hf:
            return self._hugging_face(ids, real)
        return self._causal(ids) if self.causal else self._full_length(ids)

    def _causal(self, ids: Tensor) -> Features:
        """The tower's own blocks on a shortened sequence: captions rarely fill 77 positions."""
        text = self.text
        length = ids.shape[1]
        dtype = text.transformer.get_cast_dtype()
        hidden = text.token_embedding(ids).to(dtype)
        hidden = hidden + text.positional_embedding[:length].to(dtype)
        hidden = text.transformer(hidden, attn_mask=text.attn_mask[:length, :length])
        tokens = text.ln_final(hidden)
        pooled = tokens[torch.arange(len(ids), device=ids.device), self.end(ids)]
        return Features(tokens, pooled, self._project(pooled))

    def _full_length(self, ids: Tensor) -> Features:
        """SigLIP's pads are attended, CoCa's CLS comes last: every position counts."""
        if self.text is self.model:
            output = self.model.forward_intermediates(
                text=ids, text_indices=1, normalize_intermediates=True, normalize=False
            )
        else:
            output = self.text.forward_intermediates(
                ids,
                indices=1,
                normalize_intermediates=True,
                output_fmt="NLC",
                output_extra_tokens=True,
            )
        tokens = output["text_intermediates"][-1]
        if "text_intermediates_suffix" in output:
            pooled = output["text_intermediates_suffix"][-1][:, 0]
        elif self.pools_at_end_token:
            pooled = tokens[torch.arange(len(ids), device=ids.device), self.end(ids)]
        else:
            pooled = {"first": tokens[:, 0], "last": tokens[:, -1]}.get(self.pool_type)
        return Features(tokens, pooled, output["text_features"])

    def _hugging_face(self, ids: Tensor, real: Tensor) -> Features:
        mask = real.long()
        output = self.text.transformer(input_ids=ids, attention_mask=mask)
        pooled = self.text.pooler(output, mask)
        return Features(output.last_hidden_state, pooled, self.text.proj(pooled))

    def _project(self, pooled: Tensor) -> Tensor:
        projection: nn.Linear | Tensor | None = self.text.text_projection
        if projection is None:
            return pooled
        projected: Tensor = (
            projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        )
        return projected
