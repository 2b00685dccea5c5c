"""Dual encoders of transformers through their common interface, without a list of classes.

VisionTextDualEncoderModel, CLIPModel, SiglipModel and their kin have `vision_model`,
`text_model`, `get_image_features` and `get_text_features`. Whether a tower has a CLS or an EOT
token, or only a pooled vector, and whether its last hidden state is before or after its final
norm, is found by running it once on a probe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hada.extract.backbones import dual_load, lower_case
from hada.extract.backbones.base import BackboneRequest, Encoded
from hada.extract.backbones.options import read_options
from hada.extract.backbones.preprocessing import Processor
from hada.extract.backbones.torch_base import (
    TorchBackbone,
    encoded,
    grid_to_tokens,
    library_versions,
    plain,
    probe_pixels,
    same,
    with_pooled,
)
from hada.extract.common.errors import CheckpointError
from hada.extract.spec import ModelSpec, TokenSpec

OPTIONS: dict[str, type] = {"revision": str, "max_tokens": int}
_CLS_NAMES = ("cls_token", "class_embedding")
_PROBE_CAPTIONS = ("a dog runs", "two people on a bench in the park")

GlobalToken = Literal["first", "last", "pooled"]


@dataclass
class Seen:
    """What a tower computed inside one call: before the projection overwrites it."""

    hidden: Tensor | None = None
    pooled: Tensor | None = None


class DualBackbone(TorchBackbone):
    """Any dual encoder of transformers with the common interface."""

    def __init__(
        self,
        request: BackboneRequest,
        model: nn.Module,
        tokenizer: Any,
        processor: Any,
        weights_digest: str,
    ) -> None:
        super().__init__(request, model)
        self.tokenizer = tokenizer
        self.preprocessor = self._make_processor(processor)
        config: Any = model.config
        # SigLIP was trained with every caption padded to the full length and pads attended.
        self.full_length = lower_case.is_siglip(config.model_type)
        lowered = {"lower_case": lower_case.ensure(tokenizer)} if self.full_length else {}
        self.pad_id = dual_load.pad_id(tokenizer, config.text_config)
        self.max_tokens = dual_load.max_tokens(tokenizer, model, self.pad_id)
        asked = read_options(request, OPTIONS)["max_tokens"]
        if asked is not None and not self.full_length:
            self.max_tokens = min(asked, self.max_tokens)
        self._special = dual_load.special_ids(tokenizer)
        self._norm_tokens = False
        self._memory_format = torch.contiguous_format
        self._image_global: GlobalToken = "pooled"
        self._caption_global: GlobalToken = "pooled"
        precision, self.dtype = self.dtype, None  # probe in float32 whatever is asked
        image, image_width = self._probe_images()
        caption, caption_width = self._probe_captions()
        self.dtype, self.truncated = precision, 0
        if image_width != caption_width:
            raise CheckpointError(
                f"model {request.name!r}: image embeddings are {image_width} wide, caption "
                f"embeddings {caption_width}; this is not a dual encoder with one joint space"
            )
        self.spec = ModelSpec(
            name=request.name,
            family=request.family,
            weights_digest=weights_digest,
            embedding_width=image_width,
            normalized=False,
            image=image,
            caption=caption,
            preprocessing={
                "class": type(processor).__name__,
                "settings": plain(dual_load.settings(processor)),
                "tokenizer": type(tokenizer).__name__,
                "max_tokens": self.max_tokens,
                **lowered,
            },
            precision=request.precision,
            libraries=library_versions("torch", "transformers", "tokenizers", "pillow"),
        )

    def _make_processor(self, processor: Any) -> Any:
        return Processor(processor)

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """The tokenizer's own ids; a caption that is too long keeps its end token."""
        if not captions:
            return []
        # Truncated and padded here, not by the tokenizer, which keeps both as shared state.
        rows = self.tokenizer(list(captions), add_special_tokens=False)["input_ids"]
        start, end = self._special
        limit = self.max_tokens - len(start) - len(end)
        self.count_truncated(sum(len(row) > limit for row in rows))
        return [[*start, *row[:limit], *end] for row in rows]

    def preprocess(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        """(3, H, W) by the checkpoint's own image processor, in its PIL form."""
        pixels: NDArray[np.float32] = self.preprocessor(image)
        return pixels

    def encode_images(self, pixels: NDArray[np.float32]) -> Encoded:
        """(B, 3, H, W) -> tokens after the tower's final norm, and the projected embedding."""
        with self.running():
            images = self.to_device(pixels).contiguous(memory_format=self._memory_format)
            seen, embeddings = self._run_images(images)
            tokens = self._image_tokens(seen) if self.spec.image else None
            if tokens is not None and self._image_global == "pooled":
                assert seen.pooled is not None
                tokens, _ = with_pooled(seen.pooled, tokens, None)
            return encoded(tokens, None, embeddings)

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """Tokens after the tower's final norm (pads left out), and the projected embedding."""
        with self.running():
            seen, embeddings, real = self._run_captions(ids)
            tokens, mask = (seen.hidden if self.spec.caption else None), real
            if tokens is not None and self._caption_global == "pooled":
                pooled = self._caption_pooled(seen)
                assert pooled is not None
                tokens, mask = with_pooled(pooled, tokens, real)
            return encoded(tokens, mask, embeddings)

    def _run_images(self, pixels: Tensor) -> tuple[Seen, Tensor]:
        def call() -> Any:
            return self.model.get_image_features(pixel_values=pixels)

        return run_tower(self.model.vision_model, call)

    def _run_captions(self, ids: Sequence[Sequence[int]]) -> tuple[Seen, Tensor, Tensor]:
        length = self.max_tokens if self.full_length else None
        input_ids, real = self.pad(ids, self.pad_id, length)
        mask = {} if self.full_length else {"attention_mask": real.long()}

        def call() -> Any:
            return self.model.get_text_features(input_ids=input_ids, **mask)

        seen, embeddings = run_tower(self.model.text_model, call)
        return seen, embeddings, real

    def _image_tokens(self, seen: Seen) -> Tensor | None:
        """(B, N, D) after the final norm; a feature map becomes its grid."""
        if seen.hidden is None:
            return None
        if seen.hidden.ndim == 4:
            return grid_to_tokens(seen.hidden)
        if self._norm_tokens:
            normed: Tensor = self.model.vision_model.post_layernorm(seen.hidden)
            return normed
        return seen.hidden

    def _caption_pooled(self, seen: Seen) -> Tensor | None:
        """The vector the text projection gets, as wide as a token; None where there is none."""
        if seen.hidden is not None and isinstance(
            getattr(self.model.text_model, "head", None), nn.Linear
        ):
            return seen.hidden[:, -1]  # SigLIP: its pooler_output is already projected by `head`
        return seen.pooled

    def _probe_images(self) -> tuple[TokenSpec | None, int]:
        """The image side's spec and the embedding width; decides how tokens are read."""
        blank = PIL.Image.new("RGB", (64, 48))
        height, width = self.preprocess(blank).shape[1:]
        norm = getattr(self.model.vision_model, "post_layernorm", nn.Identity())
        dims: list[int] = []
        handle = norm.register_forward_hook(lambda _module, args, _out: dims.append(args[0].ndim))
        with self.running():
            pixels = self.to_device(probe_pixels(height, width))
            seen, embeddings = self._run_images(pixels)
            handle.remove()
            # CLIP's own norm sees the CLS row only; its other tokens still need it.
            self._norm_tokens = bool(dims) and max(dims) == 2
            tokens = self._image_tokens(seen)
        if seen.hidden is not None and seen.hidden.ndim == 4:
            # Convolutions on the CPU are half as fast again in this layout.
            self._memory_format = torch.channels_last
            self.model.vision_model.to(memory_format=torch.channels_last)
        size = int(embeddings.shape[-1])
        if tokens is None:
            return None, size
        width = int(tokens.shape[-1])
        has_cls = (
            seen.hidden is not None and seen.hidden.ndim == 3 and _has_cls(self.model.vision_model)
        )
        if has_cls or (seen.pooled is not None and same(tokens[:, 0], seen.pooled)):
            self._image_global = "first"
            return TokenSpec(width=width, count=int(tokens.shape[1])), size
        if seen.pooled is None or seen.pooled.shape[-1] != width:
            return None, size
        count = int(tokens.shape[1]) + 1
        return TokenSpec(width=width, count=count, global_source="pooled"), size

    def _probe_captions(self) -> tuple[TokenSpec | None, int]:
        """The caption side's spec and the embedding width; decides which token is global."""
        ids = self.tokenize(_PROBE_CAPTIONS)
        with self.running():
            seen, embeddings, real = self._run_captions(ids)
        pooled = self._caption_pooled(seen)
        size = int(embeddings.shape[-1])
        if seen.hidden is None:
            return None, size
        width = int(seen.hidden.shape[-1])
        rows = torch.arange(len(ids), device=self.device)
        start = getattr(self.tokenizer, "cls_token_id", None)
        last = seen.hidden[rows, real.sum(dim=1) - 1]
        if pooled is not None and not self.full_length and same(pooled, last):
            self._caption_global = "last"
            return TokenSpec(width=width, count=None, global_token="last"), size
        first = pooled is not None and same(pooled, seen.hidden[:, 0])
        # BERT's pooler puts a tanh layer on [CLS]; the row is its global token all the same.
        if first or (start is not None and all(row[0] == start for row in ids)):
            self._caption_global = "first"
            return TokenSpec(width=width, count=None), size
        if pooled is None or pooled.shape[-1] != width:
            return None, size
        return TokenSpec(width=width, count=None, global_source="pooled"), size


def run_tower(tower: nn.Module, call: Callable[[], Any]) -> tuple[Seen, Tensor]:
    """Call the model, keeping what its tower returned, and the embedding (B, E)."""
    seen = Seen()

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.hidden = getattr(output, "last_hidden_state", None)
        seen.pooled = getattr(output, "pooler_output", None)

    handle = tower.register_forward_hook(keep)
    try:
        output = call()
    finally:
        handle.remove()
    # transformers 5 answers with the tower's output, its pooler_output projected; 4 with a tensor.
    embeddings = output if isinstance(output, Tensor) else output.pooler_output
    return seen, embeddings


def _has_cls(vision_model: nn.Module) -> bool:
    """Whether the tower's input begins with a CLS token; a pooling head may have its own."""
    names = (name.rpartition(".") for name, _ in vision_model.named_parameters())
    return any(name in _CLS_NAMES and "head" not in where.split(".") for where, _, name in names)
