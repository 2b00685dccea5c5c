"""ALBEF: tokens of both encoders, the contrastive embedding, and the matching head's logits.

Takes the official `.pth` files (released, training saves, pre-training) and LAVIS's `.pt`. The
image tokens are the ViT's after its final norm; the caption tokens are those of the text
encoder, the lower half of ALBEF's BERT, as retrieval uses it. The embedding is the projection
as the model gives it; ALBEF compares such projections by their cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hada.extract.backbones import weights
from hada.extract.backbones.albef_official import CONFIG_FILES, AlbefModel, load_official
from hada.extract.backbones.base import BackboneRequest, Encoded
from hada.extract.backbones.options import read_options
from hada.extract.backbones.salesforce import (
    bert_tokenizer,
    check_vocabulary,
    clean_albef,
    clean_caption,
    files_of,
)
from hada.extract.backbones.salesforce_base import SalesforceBackbone
from hada.extract.backbones.torch_base import encoded, library_versions
from hada.extract.common.errors import CheckpointError
from hada.extract.spec import ModelSpec, TokenSpec

OPTIONS: dict[str, type] = {
    "heads": int,
    "vision_heads": int,
    "image_size": int,
    "tokenizer": str,
    "max_words": int,
    "max_tokens": int,
}


class AlbefBackbone(SalesforceBackbone):
    """ALBEF's encoders; `match_logits` runs the fusion layers on what they gave."""

    model: AlbefModel
    # The official evaluation ranks the first results by the logit alone.
    match_adds_cosine = False

    def __init__(
        self,
        request: BackboneRequest,
        model: AlbefModel,
        tokenizer: Any,
        weights_digest: str,
        *,
        lavis: bool,
    ) -> None:
        text, vision = model.text_encoder.config, model.visual_encoder
        super().__init__(request, model, tokenizer, int(vision.patch_embed.img_size[0]))
        options = read_options(request, OPTIONS)
        self.lavis = lavis
        self.max_words = options["max_words"] or (50 if lavis else 30)
        self.max_tokens = min(
            options["max_tokens"] or (35 if lavis else 30), text.max_position_embeddings
        )
        check_vocabulary(request.name, tokenizer, text.vocab_size)
        self.spec = ModelSpec(
            name=request.name,
            family=request.family,
            weights_digest=weights_digest,
            embedding_width=model.vision_proj.out_features,
            normalized=False,
            image=TokenSpec(width=vision.embed_dim, count=vision.pos_embed.shape[1]),
            caption=TokenSpec(width=text.hidden_size, count=None),
            preprocessing={
                **self.picture_settings(),
                "caption_cleaning": "blip" if lavis else "albef",
                "end_token": lavis,
                "max_words": self.max_words,
                "max_tokens": self.max_tokens,
                "tokenizer": type(tokenizer).__name__,
                "heads": [vision.blocks[0].attn.num_heads, text.num_attention_heads],
            },
            precision=request.precision,
            libraries=library_versions("torch", "timm", "transformers", "tokenizers", "pillow"),
        )

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """[CLS] and the word pieces, without [SEP], which ALBEF never saw; LAVIS's have one."""
        clean = clean_caption if self.lavis else clean_albef
        cleaned = [clean(caption, self.max_words) for caption in captions]
        if not cleaned:
            return []
        rows = self.tokenizer([text for text, _ in cleaned], add_special_tokens=False)["input_ids"]
        end = [self.tokenizer.sep_token_id] if self.lavis else []
        limit = self.max_tokens - 1 - len(end)
        self.count_truncated(
            sum(cut or len(row) > limit for row, (_, cut) in zip(rows, cleaned, strict=True))
        )
        return [[self.tokenizer.cls_token_id, *row[:limit], *end] for row in rows]

    def encode_images(self, pixels: NDArray[np.float32]) -> Encoded:
        """(B, 3, S, S) -> 1 + patches tokens, CLS first, and the projection."""
        with self.running():
            tokens = self.model.visual_encoder.forward_features(self.to_device(pixels))
            return encoded(tokens, None, self.model.vision_proj(tokens[:, 0]))

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """Tokens of the text encoder's last layer, CLS first, and the projection."""
        with self.running():
            tokens, real = self._texts(ids)
            return encoded(tokens, real, self.model.text_proj(tokens[:, 0]))

    def match_logits(
        self, pixels: NDArray[np.float32], ids: Sequence[Sequence[int]]
    ) -> NDArray[np.float32]:
        """(I, 3, S, S) and T captions -> (I, T, 2) logits of the matching head; 1 is "match"."""
        with self.running():
            images = self.model.visual_encoder.forward_features(self.to_device(pixels))
            captions, real = self._texts(ids)
            logits = [
                self._match(image.expand(len(ids), -1, -1), captions, real) for image in images
            ]
            result: NDArray[np.float32] = torch.stack(logits).cpu().numpy()
            return result

    def match_tokens(
        self, tokens_PND: NDArray[np.float32], ids: Sequence[Sequence[int]]
    ) -> NDArray[np.float32]:
        """(P, 2) logits of P pairs: images as `encode_images` gave them, and one caption each.

        The captions pass the text encoder again, each once: a store may hold their tokens in half
        precision or averaged, and that pass is short beside the pairs'.
        """
        with self.running():
            rows = [tuple(row) for row in ids]
            texts = list(dict.fromkeys(rows))
            place = {row: number for number, row in enumerate(texts)}
            captions, real = self._texts(texts)
            of = torch.tensor([place[row] for row in rows], device=captions.device)
            logits = self._match(self.to_device(tokens_PND), captions[of], real[of])
            result: NDArray[np.float32] = logits.cpu().numpy()
            return result

    def _texts(self, ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(T, N, D) tokens of the text encoder, and which of them are real."""
        input_ids, real = self.pad(ids, self.pad_id)
        tokens = self.model.text_encoder(input_ids=input_ids, attention_mask=real.long())
        return tokens.last_hidden_state, real

    def _match(
        self, images: torch.Tensor, captions: torch.Tensor, real: torch.Tensor
    ) -> torch.Tensor:
        fused = self.model.fusion(
            encoder_embeds=captions,
            attention_mask=real.long(),
            encoder_hidden_states=images,
            encoder_attention_mask=real.new_ones(images.shape[:2]).long(),
        ).last_hidden_state
        return torch.as_tensor(self.model.itm_head(fused[:, 0]).float())


def load(request: BackboneRequest) -> AlbefBackbone:
    """ALBEF from an official `.pth` or LAVIS's `.pt`; which of the two is read off the file.

    Options: `OPTIONS`; `image_size` runs a checkpoint at another size by interpolating its
    position embeddings. Raises `CheckpointError` where the weights do not fit or heads are
    unknown.
    """
    options = read_options(request, OPTIONS)
    path = Path(request.weights).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: expected the checkpoint file itself (.pth)")
    model, lavis = load_official(
        path, options["heads"], options["vision_heads"], options["image_size"]
    )
    tokenizer = bert_tokenizer(options["tokenizer"], path.parent, "albef")
    digest = weights.digest(files_of(path, CONFIG_FILES))
    return AlbefBackbone(request, model, tokenizer, digest, lavis=lavis)
