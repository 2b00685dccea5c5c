"""BLIP-2 (transformers' Blip2ForImageTextRetrieval): the query outputs, and one vector from them.

The image tokens are the outputs of the Q-Former's query tokens (32 in the published models).
There is no CLS; the mean of the outputs stands in front of them as the global row.

How the stored embedding relates to BLIP-2's own score: BLIP-2 projects every query, brings it to
unit length, and scores a caption by the largest of the 32 cosines. That is no dot product of two
vectors, so no stored embedding can reproduce it. Stored is the mean of the unit query embeddings,
brought to unit length: its cosine with a caption ranks by the mean cosine over the queries, not
by the largest. With the option `image_tokens: embeddings` the tokens are the 32 unit query
embeddings themselves, and the official score is the largest of `tokens[1:] @ caption embedding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval

from hada.extract.backbones import hub, weights
from hada.extract.backbones.base import BackboneRequest, Encoded
from hada.extract.backbones.options import read_options
from hada.extract.backbones.salesforce import (
    bert_tokenizer,
    check_vocabulary,
    load_folder,
)
from hada.extract.backbones.salesforce_base import SalesforceBackbone
from hada.extract.backbones.torch_base import encoded, library_versions, with_pooled
from hada.extract.common.errors import unknown
from hada.extract.spec import ModelSpec, TokenSpec

OPTIONS: dict[str, type] = {
    "heads": int,
    "vision_heads": int,
    "tokenizer": str,
    "revision": str,
    "max_words": int,
    "max_tokens": int,
    "image_tokens": str,
}
IMAGE_TOKENS = ("queries", "embeddings")
# Width -> heads of the published image encoder, ViT-g/14.
VISION_HEADS = {1408: 16}


class Blip2Backbone(SalesforceBackbone):
    """BLIP-2's image encoder with its Q-Former, and the Q-Former alone on captions."""

    model: Blip2ForImageTextRetrieval

    def __init__(
        self,
        request: BackboneRequest,
        model: Blip2ForImageTextRetrieval,
        tokenizer: Any,
        weights_digest: str,
    ) -> None:
        config = model.config
        vision, text = config.vision_config, config.qformer_config
        super().__init__(request, model, tokenizer, int(vision.image_size))
        options = read_options(request, OPTIONS)
        self.projected = options["image_tokens"] == "embeddings"
        self.max_words = options["max_words"] or 50
        self.max_tokens = min(options["max_tokens"] or 32, text.max_position_embeddings)
        check_vocabulary(request.name, tokenizer, text.vocab_size)
        width = int(config.image_text_hidden_size)
        self.spec = ModelSpec(
            name=request.name,
            family=request.family,
            weights_digest=weights_digest,
            embedding_width=width,
            normalized=True,
            image=TokenSpec(
                width=width if self.projected else text.hidden_size,
                count=config.num_query_tokens + 1,
                global_source="pooled",
            ),
            caption=TokenSpec(width=text.hidden_size, count=None),
            preprocessing={
                **self.picture_settings(),
                "image_tokens": IMAGE_TOKENS[self.projected],
                "image_global": "mean of the query outputs",
                "image_embedding": "mean of the unit query embeddings, of unit length",
                "official_score": "largest cosine over the queries; not that of the embeddings",
                "caption_cleaning": "blip",
                "max_words": self.max_words,
                "max_tokens": self.max_tokens,
                "tokenizer": type(tokenizer).__name__,
                "heads": [vision.num_attention_heads, text.num_attention_heads],
            },
            precision=request.precision,
            libraries=library_versions("torch", "transformers", "tokenizers", "pillow"),
        )

    def encode_images(self, pixels: NDArray[np.float32]) -> Encoded:
        """(B, 3, S, S) -> the mean row and the queries' rows, and the unit embedding."""
        with self.running():
            queries, _ = self._queries(pixels)
            units = _unit(self.model.vision_projection(queries))
            embedding = _unit(units.mean(dim=1))
            if self.projected:
                tokens, _ = with_pooled(embedding, units, None)
            else:
                tokens, _ = with_pooled(queries.mean(dim=1), queries, None)
            return encoded(tokens, None, embedding)

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """Tokens of the Q-Former's last layer, CLS first, and the unit embedding."""
        with self.running():
            input_ids, real = self.pad(ids, self.pad_id)
            tokens = self.model.qformer(
                query_embeds=self.model.embeddings(input_ids=input_ids),
                query_length=0,
                attention_mask=real.long(),
            ).last_hidden_state
            return encoded(tokens, real, _unit(self.model.text_projection(tokens[:, 0])))

    def match_logits(
        self, pixels: NDArray[np.float32], ids: Sequence[Sequence[int]]
    ) -> NDArray[np.float32]:
        """(I, 3, S, S) and T captions -> (I, T, 2) logits of the matching head; 1 is "match"."""
        with self.running():
            _, images = self._queries(pixels)
            input_ids, real = self.pad(ids, self.pad_id)
            query = self.model.query_tokens.expand(len(ids), -1, -1)
            mask = torch.cat([real.new_ones(query.shape[:2]), real], dim=1).long()
            joint = self.model.embeddings(input_ids=input_ids, query_embeds=query)
            logits = []
            for image in images:
                fused = self.model.qformer(
                    query_embeds=joint,
                    query_length=query.shape[1],
                    attention_mask=mask,
                    encoder_hidden_states=image.expand(len(ids), -1, -1),
                    encoder_attention_mask=mask.new_ones(len(ids), len(image)),
                ).last_hidden_state
                each = self.model.itm_head(fused[:, : query.shape[1]])
                logits.append(each.mean(dim=1).float())
            result: NDArray[np.float32] = torch.stack(logits).cpu().numpy()
            return result

    def _queries(self, pixels: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """The query outputs (B, Q, D), and the image encoder's own tokens (B, 1 + P, V)."""
        images = self.model.vision_model(pixel_values=self.to_device(pixels)).last_hidden_state
        queries = self.model.qformer(
            query_embeds=self.model.query_tokens.expand(len(images), -1, -1),
            encoder_hidden_states=images,
            encoder_attention_mask=torch.ones(images.shape[:2], device=self.device).long(),
        ).last_hidden_state
        return queries, images


def _unit(projected: Tensor) -> Tensor:
    return torch.nn.functional.normalize(projected.float(), dim=-1)


def load(request: BackboneRequest) -> Blip2Backbone:
    """BLIP-2 from a `save_pretrained` folder or a Hugging Face id.

    Options: `OPTIONS`; `image_tokens` is "queries" (default) or "embeddings" (see the module).
    Raises `CheckpointError` where the weights do not fit or heads are unknown.
    """
    options = read_options(request, OPTIONS)
    kept = options["image_tokens"] or IMAGE_TOKENS[0]
    if kept not in IMAGE_TOKENS:
        raise unknown("value of option image_tokens", kept, IMAGE_TOKENS)
    folder = hub.resolve_folder(request.weights, options["revision"])
    model = load_folder(
        folder,
        Blip2ForImageTextRetrieval,
        options,
        family="blip2",
        text_config="qformer_config",
        vision_heads=VISION_HEADS,
    )
    tokenizer = bert_tokenizer(options["tokenizer"], folder, "blip2")
    digest = weights.digest(weights.folder_files(folder))
    backbone = Blip2Backbone(request, model, tokenizer, digest)
    backbone.origin = hub.origin(request.weights, folder)
    return backbone
