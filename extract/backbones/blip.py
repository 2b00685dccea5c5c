"""BLIP (transformers' BlipForImageTextRetrieval): tokens of both encoders and the ITC embedding.

Takes Hugging Face ids, `save_pretrained` folders and the official Salesforce `.pth` files. The
embedding is the image-text-contrastive projection as the model gives it; BLIP compares such
projections by their cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BlipForImageTextRetrieval

from hada.extract.backbones import blip_official, hub, weights
from hada.extract.backbones.base import BackboneRequest, Encoded
from hada.extract.backbones.options import read_options
from hada.extract.backbones.salesforce import (
    bert_tokenizer,
    check_vocabulary,
    files_of,
    load_folder,
)
from hada.extract.backbones.salesforce_base import SalesforceBackbone
from hada.extract.backbones.torch_base import encoded, library_versions
from hada.extract.common.errors import CheckpointError, unknown
from hada.extract.spec import ModelSpec, TokenSpec

OPTIONS: dict[str, type] = {
    "heads": int,
    "vision_heads": int,
    "vision_layer_norm_eps": float,
    "tokenizer": str,
    "revision": str,
    "max_words": int,
    "max_tokens": int,
    "captions": str,
}
# How captions are cut: words and tokens of BLIP's own retrieval code, of LAVIS's, and of
# HADA-LAVIS, which has LAVIS's words and cuts no tokens.
CAPTIONS: dict[str, tuple[int, int | None]] = {
    "blip": (30, 35),
    "lavis": (50, 35),
    "hada-lavis": (50, None),
}


class BlipBackbone(SalesforceBackbone):
    """BLIP's image encoder and its text encoder without cross-attention."""

    model: BlipForImageTextRetrieval
    # The official evaluation ranks the first results by the logit and the cosine.
    match_adds_cosine = True

    def __init__(
        self,
        request: BackboneRequest,
        model: BlipForImageTextRetrieval,
        tokenizer: Any,
        weights_digest: str,
    ) -> None:
        vision, text = model.config.vision_config, model.config.text_config
        super().__init__(request, model, tokenizer, int(vision.image_size))
        options = read_options(request, OPTIONS)
        words, most = CAPTIONS[_captions(options["captions"])]
        positions = text.max_position_embeddings
        self.max_words = options["max_words"] or words
        self.max_tokens = min(options["max_tokens"] or most or positions, positions)
        check_vocabulary(request.name, tokenizer, text.vocab_size)
        self.match_start = match_start(tokenizer, text.vocab_size)
        patches = (self.image_size // int(vision.patch_size)) ** 2
        self.spec = ModelSpec(
            name=request.name,
            family=request.family,
            weights_digest=weights_digest,
            embedding_width=model.config.image_text_hidden_size,
            normalized=False,
            image=TokenSpec(width=vision.hidden_size, count=patches + 1),
            caption=TokenSpec(width=text.hidden_size, count=None),
            preprocessing={
                **self.picture_settings(),
                "caption_cleaning": "blip",
                "max_words": self.max_words,
                "max_tokens": self.max_tokens,
                "tokenizer": type(tokenizer).__name__,
                "heads": [vision.num_attention_heads, text.num_attention_heads],
                "vision_layer_norm_eps": vision.layer_norm_eps,
            },
            precision=request.precision,
            libraries=library_versions("torch", "transformers", "tokenizers", "pillow"),
        )

    def encode_images(self, pixels: NDArray[np.float32]) -> Encoded:
        """(B, 3, S, S) -> 1 + patches tokens, CLS first, and the projection."""
        with self.running():
            # Not pooler_output: transformers normalises that a second time.
            tokens = self.model.vision_model(self.to_device(pixels)).last_hidden_state
            return encoded(tokens, None, self.model.vision_proj(tokens[:, 0]))

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """Tokens of the last text layer, CLS first, and the projection."""
        with self.running():
            input_ids, real = self.pad(ids, self.pad_id)
            tokens = self.model.text_encoder(
                input_ids=input_ids, attention_mask=real.long()
            ).last_hidden_state
            return encoded(tokens, real, self.model.text_proj(tokens[:, 0]))

    def match_logits(
        self, pixels: NDArray[np.float32], ids: Sequence[Sequence[int]], *, demo: bool = False
    ) -> NDArray[np.float32]:
        """(I, 3, S, S) and T captions -> (I, T, 2) logits of the matching head; 1 is "match".

        The training and retrieval code puts [ENC] in place of [CLS] (see `match_start`); `demo`
        keeps [CLS], as the demo class and transformers' own forward pass do. The logits differ.
        """
        with self.running():
            images = self.model.vision_model(self.to_device(pixels)).last_hidden_state
            input_ids, real = self.pad(ids, self.pad_id)
            if not demo:
                input_ids[:, 0] = self.match_start
            logits = [
                self._match(image.expand(len(ids), -1, -1), input_ids, real) for image in images
            ]
            result: NDArray[np.float32] = torch.stack(logits).cpu().numpy()
            return result

    def match_tokens(
        self, tokens_PND: NDArray[np.float32], ids: Sequence[Sequence[int]]
    ) -> NDArray[np.float32]:
        """(P, 2) logits of P pairs: images as `encode_images` gave them, and one caption each."""
        with self.running():
            input_ids, real = self.pad(ids, self.pad_id)
            input_ids[:, 0] = self.match_start
            logits = self._match(self.to_device(tokens_PND), input_ids, real)
            result: NDArray[np.float32] = logits.cpu().numpy()
            return result

    def _match(
        self, images: torch.Tensor, input_ids: torch.Tensor, real: torch.Tensor
    ) -> torch.Tensor:
        fused = self.model.text_encoder(
            input_ids=input_ids,
            attention_mask=real.long(),
            encoder_hidden_states=images,
            encoder_attention_mask=real.new_ones(images.shape[:2]).long(),
        ).last_hidden_state
        return torch.as_tensor(self.model.itm_head(fused[:, 0]).float())


def _captions(name: str | None) -> str:
    if name is not None and name not in CAPTIONS:
        raise unknown("value of option captions", name, CAPTIONS)
    return name or "blip"


def match_start(tokenizer: Any, vocab_size: int) -> int:
    """The first token of a caption that the matching head reads.

    The official code adds [ENC] as the last word. Where the last word is another one, the head was
    trained through transformers' own forward pass, which keeps [CLS].
    """
    last = vocab_size - 1
    word = tokenizer.convert_ids_to_tokens(last) if last < len(tokenizer) else "[ENC]"
    return last if word == "[ENC]" else int(tokenizer.cls_token_id)


def load(request: BackboneRequest) -> BlipBackbone:
    """BLIP from an official `.pth`, a `save_pretrained` folder or a Hugging Face id.

    Options: `OPTIONS`; `captions` is one of `CAPTIONS`, "blip" by default. Raises
    `CheckpointError` where the weights do not fit or heads are unknown.
    """
    options = read_options(request, OPTIONS)
    path = Path(request.weights).expanduser()
    if path.is_file() or path.suffix in (".pth", ".pt"):
        if options["vision_layer_norm_eps"] is not None:
            raise CheckpointError(f"{path}: official BLIP has vision_layer_norm_eps 1e-6, always")
        model = blip_official.load_official(path, options["heads"], options["vision_heads"])
        files = files_of(path, blip_official.CONFIG_FILES)
        tokenizer = bert_tokenizer(options["tokenizer"], path.parent, "blip")
    else:
        folder = hub.resolve_folder(request.weights, options["revision"])
        model = load_folder(
            folder,
            BlipForImageTextRetrieval,
            options,
            family="blip",
            vision_eps=options["vision_layer_norm_eps"] or blip_official.VISION_EPS,
        )
        files = weights.folder_files(folder)
        tokenizer = bert_tokenizer(options["tokenizer"], folder, "blip")
    backbone = BlipBackbone(request, model, tokenizer, weights.digest(files))
    backbone.origin = {} if path.is_file() else hub.origin(request.weights, folder)
    return backbone
