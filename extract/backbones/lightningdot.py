"""LightningDOT: two encoders, UNITER's network on regions and BERT on captions.

The image encoder reads one [CLS] and then the regions, so pictures have a CLS token. Embeddings
are compared by their plain dot product: they are stored as they are, not normalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel

from hada.extract.backbones import weights
from hada.extract.backbones.base import BackboneRequest, Encoded
from hada.extract.backbones.options import read_options
from hada.extract.backbones.region_base import (
    CASED,
    OPTIONS,
    RegionTextBackbone,
    region_rules,
)
from hada.extract.backbones.salesforce import bert_tokenizer, files_of
from hada.extract.backbones.torch_base import encoded, library_versions
from hada.extract.backbones.uniter_model import (
    UniterModel,
    bert_config,
    model_state,
    modern_names,
    pad_regions,
    part,
)
from hada.extract.common.errors import CheckpointError
from hada.extract.datasets.regions import Regions
from hada.extract.spec import ModelSpec, TokenSpec

# The image encoder's config, then the text encoder's.
IMAGE_CONFIGS = ("img_base.json", "uniter-base.json")
TEXT_CONFIGS = ("config.json", "bert-base-cased.json")
CLS_ID = 101  # the official code has it as a number


class _LightningDot(nn.Module):
    """Both encoders with their projections."""

    def __init__(
        self, image: UniterModel, text: BertModel, image_widths: list[int], text_widths: list[int]
    ) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.image_proj, self.text_proj = _projection(*image_widths), _projection(*text_widths)


def _projection(width: int, inner: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, inner), nn.GELU(), nn.LayerNorm(inner, eps=1e-12), nn.Linear(inner, out)
    )


class LightningDotBackbone(RegionTextBackbone):
    """LightningDOT's image and text encoder."""

    def __init__(
        self, request: BackboneRequest, model: _LightningDot, tokenizer: Any, weights_digest: str
    ) -> None:
        image, text = model.image.config, model.text.config
        super().__init__(request, model, tokenizer, text.max_position_embeddings, text.vocab_size)
        self.spec = ModelSpec(
            name=request.name,
            family=request.family,
            weights_digest=weights_digest,
            embedding_width=model.image_proj[-1].out_features,  # type: ignore[arg-type]
            normalized=False,
            image=TokenSpec(width=image.hidden_size, count=None),
            caption=TokenSpec(width=text.hidden_size, count=None),
            preprocessing={
                **self.text_settings(),
                "heads": [image.num_attention_heads, text.num_attention_heads],
                "official_score": "dot product",
            },
            precision=request.precision,
            libraries=library_versions("torch", "transformers", "tokenizers"),
        )

    def encode_regions(self, items: Sequence[Regions]) -> Encoded:
        """CLS and one row a region, and the embedding, not normalised."""
        with self.running():
            features, boxes, real = pad_regions(items, self.device)
            start = torch.full((len(items), 1), CLS_ID, device=self.device)
            embedded = torch.cat(
                [self.model.image.words(start), self.model.image.regions(features, boxes)], dim=1
            )
            real = torch.cat([real.new_ones(len(items), 1), real], dim=1)
            tokens = self.model.image(embedded, real)
            return encoded(tokens, real, self.model.image_proj(tokens[:, 0]))

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """Tokens of the last layer, CLS first, and the embedding, not normalised."""
        with self.running():
            input_ids, real = self.pad(ids, self.pad_id)
            tokens = self.model.text(
                input_ids=input_ids, attention_mask=real.long()
            ).last_hidden_state
            return encoded(tokens, real, self.model.text_proj(tokens[:, 0]))


def load(request: BackboneRequest) -> LightningDotBackbone:
    """LightningDOT from an official `.pt`, pre-trained or fine-tuned.

    Options: `region_base.OPTIONS`, of which `regions` is required; `heads` counts for both
    encoders. Raises `CheckpointError` where the weights do not fit or heads are unknown.
    """
    options = read_options(request, OPTIONS)
    region_rules(request)  # a wrong request is told before a large file is read
    path = Path(request.weights).expanduser()
    model = _load_official(path, options["heads"])
    tokenizer = bert_tokenizer(options["tokenizer"], path.parent, "lightningdot", CASED)
    digest = weights.digest(files_of(path, (*IMAGE_CONFIGS, *TEXT_CONFIGS)))
    return LightningDotBackbone(request, model, tokenizer, digest)


def _load_official(path: Path, heads: int | None) -> _LightningDot:
    raw = weights.read_state_dict(path)
    weights.refuse_other_family(raw, "lightningdot", path)
    named = modern_names(raw)
    if any(key.startswith("bert.img_model.") for key in named):  # a pre-training file
        named = part(named, "bert.")
    image, text = part(named, "img_model.bert."), part(named, "txt_model.bert.")
    projections = {side: part(named, f"{side}_model.encode_proj.") for side in ("img", "txt")}
    try:
        image_config = bert_config(image, path, heads, "LightningDOT", IMAGE_CONFIGS)
        if image_config.vocab_size <= CLS_ID:
            raise CheckpointError(f"{path}: {image_config.vocab_size} words, expected a BERT's")
        text_config = bert_config(text, path, heads, "LightningDOT", TEXT_CONFIGS)
        model = _LightningDot(
            UniterModel(image_config, image["img_embeddings.img_linear.weight"].shape[1]),
            BertModel(text_config, add_pooling_layer=False),
            _widths(projections["img"]),
            _widths(projections["txt"]),
        )
    except KeyError as error:
        raise weights.not_of("a LightningDOT", raw, path, error) from error
    state = {f"image.{key}": value for key, value in model_state(image).items()}
    # The text encoder's pooler was trained by nothing and is used by nothing.
    state |= {f"text.{key}": v for key, v in text.items() if not key.startswith("pooler.")}
    state |= {f"image_proj.{key}": value for key, value in projections["img"].items()}
    state |= {f"text_proj.{key}": value for key, value in projections["txt"].items()}
    weights.load_strict(model, state, path, raw)
    return model


def _widths(projection: Mapping[str, Tensor]) -> list[int]:
    """Input, inner and output width of a projection."""
    return [*projection["0.weight"].shape[::-1], projection["3.weight"].shape[0]]
