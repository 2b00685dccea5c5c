"""UNITER: tokens of regions and of captions, each side read alone.

UNITER joins pictures and captions in one network. It has no joint embedding space: the spec says
so (`embedding_width` None), and no dual-encoder score can be computed from its store. Each side
alone is a legal input. Captions begin with [CLS]; pictures alone have none, so the pooler's
output stands in front of the regions, as UNITER itself pools an input without text (a tanh layer
on the first region, which has attended to all others).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

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
from hada.extract.backbones.torch_base import encoded, library_versions, with_pooled
from hada.extract.backbones.uniter_model import (
    UniterModel,
    bert_config,
    model_state,
    modern_names,
    pad_regions,
    part,
)
from hada.extract.datasets.regions import Regions
from hada.extract.spec import ModelSpec, TokenSpec

CONFIG_FILES = ("uniter-base.json", "uniter-large.json", "config.json")


class _Uniter(nn.Module):
    """The network and those heads on the pooled vector of a pair that the file has."""

    def __init__(self, uniter: UniterModel, heads: dict[str, int]) -> None:
        super().__init__()
        width = uniter.config.hidden_size
        self.uniter = uniter
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in heads.items()})


class UniterBackbone(RegionTextBackbone):
    """UNITER on regions alone and on captions alone; `pair_scores` reads both together."""

    def __init__(
        self, request: BackboneRequest, model: _Uniter, tokenizer: Any, weights_digest: str
    ) -> None:
        config = model.uniter.config
        super().__init__(
            request, model, tokenizer, config.max_position_embeddings, config.vocab_size
        )
        width = config.hidden_size
        self.spec = ModelSpec(
            name=request.name,
            family=request.family,
            weights_digest=weights_digest,
            embedding_width=None,
            normalized=False,
            image=TokenSpec(width=width, count=None, global_source="pooled"),
            caption=TokenSpec(width=width, count=None),
            preprocessing={
                **self.text_settings(),
                "image_global": "UNITER's pooler on the first region; there is no CLS",
                "heads": [config.num_attention_heads],
            },
            precision=request.precision,
            libraries=library_versions("torch", "transformers", "tokenizers"),
        )

    def encode_regions(self, items: Sequence[Regions]) -> Encoded:
        """The pooled row and one row a region; no embeddings."""
        with self.running():
            features, boxes, real = pad_regions(items, self.device)
            tokens = self.model.uniter(self.model.uniter.regions(features, boxes), real)
            pooled = self.model.uniter.pooler(tokens)
            tokens, real = with_pooled(pooled, tokens, real)
            return encoded(tokens, real, None)

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """Tokens of the last layer, CLS first; no embeddings."""
        with self.running():
            input_ids, real = self.pad(ids, self.pad_id)
            tokens = self.model.uniter(self.model.uniter.words(input_ids), real)
            return encoded(tokens, real, None)

    def pair_scores(
        self, items: Sequence[Regions], ids: Sequence[Sequence[int]]
    ) -> dict[str, NDArray[np.float32]]:
        """All pairs of I pictures and T captions, by UNITER's own heads.

        `pooled` (I, T, D); `itm` (I, T, 2) where the file has `itm_output`, class 1 is "match";
        `rank` (I, T) where it has `rank_output`.
        """
        uniter = self.model.uniter
        with self.running():
            features, boxes, real_regions = pad_regions(items, self.device)
            pictures = uniter.regions(features, boxes)
            input_ids, real_words = self.pad(ids, self.pad_id)
            words = uniter.words(input_ids)
            rows: list[Tensor] = []
            for picture, real in zip(pictures, real_regions, strict=True):
                joint = torch.cat([words, picture.expand(len(ids), -1, -1)], dim=1)
                mask = torch.cat([real_words, real.expand(len(ids), -1)], dim=1)
                rows.append(uniter.pooler(uniter(joint, mask)))
            pooled = torch.stack(rows)
            found = {"pooled": pooled}
            found.update({name: head(pooled) for name, head in self.model.heads.items()})
        scores = {name: value.float().cpu().numpy() for name, value in found.items()}
        if "rank" in scores:
            scores["rank"] = scores["rank"][..., 0]
        return scores


def load(request: BackboneRequest) -> UniterBackbone:
    """UNITER from an official `.pt`, pre-trained or fine-tuned for retrieval.

    Options: `region_base.OPTIONS`, of which `regions` is required. Raises `CheckpointError` where
    the weights do not fit or heads are unknown.
    """
    options = read_options(request, OPTIONS)
    region_rules(request)  # a wrong request is told before a large file is read
    path = Path(request.weights).expanduser()
    model = _load_official(path, options["heads"])
    tokenizer = bert_tokenizer(options["tokenizer"], path.parent, "uniter", CASED)
    digest = weights.digest(files_of(path, CONFIG_FILES))
    return UniterBackbone(request, model, tokenizer, digest)


def _load_official(path: Path, heads: int | None) -> _Uniter:
    """The network in a file, pre-training heads left out."""
    raw = weights.read_state_dict(path)
    weights.refuse_other_family(raw, "uniter", path)
    named = modern_names(raw)
    state = part(named, "uniter.")
    try:
        config = bert_config(state, path, heads, "UNITER", CONFIG_FILES)
        feature_width = state["img_embeddings.img_linear.weight"].shape[1]
    except KeyError as error:
        raise weights.not_of("a UNITER", raw, path, error) from error
    kept = {f"uniter.{key}": value for key, value in model_state(state).items()}
    sizes = {}
    for name, size in (("itm", 2), ("rank", 1)):
        if head := part(named, f"{name}_output."):
            sizes[name] = size
            kept.update({f"heads.{name}.{key}": value for key, value in head.items()})
    model = _Uniter(UniterModel(config, feature_width), sizes)
    weights.load_strict(model, kept, path, raw)
    return model
