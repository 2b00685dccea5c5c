"""CLIP and its relatives by open_clip: any architecture, tag, hub id or local folder.

Caption tokens end with the end token; embeddings are projected and not normalised. Whether a
tower has a global token, or only a pooled vector, is found by running it once on a probe.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor

from hada.extract.backbones import clip_load, hub, weights
from hada.extract.backbones.base import BackboneRequest, Encoded
from hada.extract.backbones.clip_towers import (
    Features,
    TextReader,
    image_features,
    tokens_are_normed,
)
from hada.extract.backbones.options import read_options
from hada.extract.backbones.preprocessing import Transform
from hada.extract.backbones.torch_base import (
    TorchBackbone,
    encoded,
    library_versions,
    plain,
    probe_pixels,
    same,
    with_pooled,
)
from hada.extract.common.errors import CheckpointError
from hada.extract.spec import ModelSpec, TokenSpec

OPTIONS: dict[str, type] = {"pretrained": str, "architecture": str, "quick_gelu": bool}


class ClipBackbone(TorchBackbone):
    """Any model that `open_clip.create_model` builds."""

    def __init__(
        self,
        request: BackboneRequest,
        model: Any,
        tokenizer: Any,
        weights_digest: str,
        text_settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(request, model)
        self.reader = TextReader(model)
        self.tokenizer = tokenizer
        # A tokenizer of transformers inside open_clip's wrapper, None for CLIP's own BPE.
        self._inner: Any = getattr(tokenizer, "tokenizer", None)
        self.pad_id = int(getattr(self._inner, "pad_token_id", None) or 0)
        config = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
        self.preprocessor = Transform(image_transform_v2(config, is_train=False))
        height, width = config.input_size[1:]
        precision, self.dtype = self.dtype, None  # probe in float32 whatever is asked
        image, embedding_width = self._probe_images(height, width)
        caption = self._probe_captions()
        self.dtype, self.truncated = precision, 0
        self.spec = ModelSpec(
            name=request.name,
            family=request.family,
            weights_digest=weights_digest,
            embedding_width=embedding_width,
            normalized=False,
            image=image,
            caption=caption,
            preprocessing={
                "class": "open_clip.image_transform_v2",
                "settings": plain(dataclasses.asdict(config)),
                "tokenizer": type(tokenizer).__name__,
                "max_tokens": self.reader.context_length,
                "image_tower": type(model.visual).__name__,
                "image_tokens_after_final_norm": tokens_are_normed(model.visual),
                "caption_tower": type(self.reader.text).__name__,
                **text_settings,
            },
            precision=request.precision,
            libraries=library_versions("torch", "torchvision", "open_clip_torch", "timm", "pillow"),
        )

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Start token, words, end token; a caption that is too long keeps its end token."""
        rows = self._tokenize(captions)
        highest = max((max(row) for row in rows), default=0)
        if highest >= self.reader.vocab_size:
            raise CheckpointError(
                f"model {self.spec.name!r}: its tokenizer gives id {highest}, its checkpoint has "
                f"only {self.reader.vocab_size} words; the two do not belong together"
            )
        return rows

    def _tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        if not captions:
            return []
        if isinstance(self.tokenizer, SimpleTokenizer) and self.tokenizer.reduction_fn is None:
            return [self._bpe(caption) for caption in captions]
        padded = self.tokenizer(list(captions), context_length=self.reader.context_length)
        rows = [self._without_pads(row) for row in padded.tolist()]
        self.count_truncated(
            sum(
                len(row) == self.reader.context_length and self._is_longer(caption, len(row))
                for row, caption in zip(rows, captions, strict=True)
            )
        )
        return rows

    def _bpe(self, caption: str) -> list[int]:
        """As open_clip's own tokenizer, without its padding to the full length."""
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        ids = self.tokenizer.encode(caption)
        limit = self.reader.context_length - 2
        self.count_truncated(int(len(ids) > limit))
        ids = ids[:limit]
        if end in ids:  # "<end_of_text>" written in a caption: the tower would pool there
            ids = ids[: ids.index(end)]
        return [start, *ids, end]

    def _without_pads(self, row: list[int]) -> list[int]:
        end = getattr(self._inner, "eos_token_id", None)
        length = len(row)
        while length > 1 and row[length - 1] == self.pad_id:
            length -= 1
        # SigLIP pads with its end token: the first of them is the caption's own.
        keep = length < len(row) and end == self.pad_id
        return row[: length + int(keep)]

    def _is_longer(self, caption: str, length: int) -> bool:
        if self._inner is None:
            return True  # CLIP's tokenizer with a reduction: full rows were cut or just fit
        text = getattr(self.tokenizer, "clean_fn", str)(caption)
        return len(self._inner(text, truncation=False)["input_ids"]) > length

    def preprocess(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        """(3, H, W) by the evaluation transform that belongs to the weights."""
        return self.preprocessor(image)

    def encode_images(self, pixels: NDArray[np.float32]) -> Encoded:
        """(B, 3, H, W) -> tokens after the final norm, and the projected embedding."""
        with self.running():
            features = image_features(self.model.visual, self.to_device(pixels))
            return _encoded(features, self.spec.image, None)

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """Tokens after the final norm up to the end token, and the projected embedding."""
        with self.running():
            features, real = self._run_captions(ids)
            return _encoded(features, self.spec.caption, real)

    def _run_captions(self, ids: Sequence[Sequence[int]]) -> tuple[Features, Tensor]:
        padded, real = self.pad(ids, self.pad_id, self.reader.length)
        return self.reader.features(padded, real), real

    def _probe_images(self, height: int, width: int) -> tuple[TokenSpec | None, int]:
        with self.running():
            pixels = self.to_device(probe_pixels(height, width))
            features = image_features(self.model.visual, pixels)
        return _token_spec(features, None), int(features.embedding.shape[-1])

    def _probe_captions(self) -> TokenSpec | None:
        rows = self._tokenize(["a dog runs", "two people on a bench in the park"])
        top = self.reader.vocab_size - 1
        if any(max(row) > top for row in rows):
            # A checkpoint with a reduced vocabulary can still encode ready ids, which end with
            # the highest: towers pool there.
            rows = [[*(word % top for word in row[:-1]), top] for row in rows]
        with self.running():
            features, real = self._run_captions(rows)
        return _token_spec(features, real)


def _token_spec(features: Features, real: Tensor | None) -> TokenSpec | None:
    """What a probe shows: which row is the pooled one, or that the pooled vector comes in front.

    `real` is the mask of a caption side and None on an image side, where N is fixed.
    """
    tokens, pooled = features.tokens, features.pooled
    if tokens is None or pooled is None or pooled.shape[-1] != tokens.shape[-1]:
        return None
    width, rows = int(tokens.shape[-1]), int(tokens.shape[1])
    count = rows if real is None else None
    if real is not None:
        last = tokens[torch.arange(len(tokens), device=tokens.device), real.sum(dim=1) - 1]
        if same(pooled, last):
            return TokenSpec(width=width, count=None, global_token="last")
    if same(pooled, tokens[:, 0]):
        return TokenSpec(width=width, count=count)
    count = None if count is None else count + 1
    return TokenSpec(width=width, count=count, global_source="pooled")


def _encoded(features: Features, spec: TokenSpec | None, real: Tensor | None) -> Encoded:
    if spec is None or features.tokens is None:
        return encoded(None, None, features.embedding)
    tokens = features.tokens
    if spec.global_source == "pooled" and features.pooled is not None:
        tokens, real = with_pooled(features.pooled, tokens, real)
    return encoded(tokens, real, features.embedding)


def load(request: BackboneRequest) -> ClipBackbone:
    """A model of open_clip.

    `weights`: a folder with open_clip_config.json (also as `local-dir:PATH`), `hf-hub:ORG/NAME`,
    `ARCH/TAG`, `ARCH/FILE`, `ARCH` with the option `pretrained`, or a file with the option
    `architecture`. Options: `OPTIONS`.
    """
    source = clip_load.find(request.weights, read_options(request, OPTIONS))
    logging.getLogger(__name__).debug("open_clip model %s, %s", source.name, source.pretrained)
    model, tokenizer = clip_load.create(source)
    lowered = clip_load.lower_cased(source.name, tokenizer)
    backbone = ClipBackbone(request, model, tokenizer, weights.digest(source.files), lowered)
    if len(source.files) > 1:  # a folder, here or on the hub
        text = request.weights.removeprefix(clip_load.HUB).removeprefix(clip_load.LOCAL)
        backbone.origin = hub.origin(text, source.files[0].parent)
    return backbone
