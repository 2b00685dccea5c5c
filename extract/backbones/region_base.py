"""Base of the models that read region features instead of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hada.extract.backbones.base import BackboneRequest
from hada.extract.backbones.options import read_options
from hada.extract.backbones.salesforce import bert_rows, check_vocabulary, clean_albef
from hada.extract.backbones.torch_base import TorchBackbone
from hada.extract.common.errors import UsageError, unknown
from hada.extract.datasets.regions import RegionRules

OPTIONS: dict[str, type] = {
    "regions": str,
    "region_name": str,
    "region_threshold": float,
    "regions_at_least": int,
    "regions_at_most": int,
    "heads": int,
    "tokenizer": str,
    "max_tokens": int,
    "caption_cleaning": str,
}
CLEANINGS = ("none", "albef")
CASED = "google-bert/bert-base-cased"


class RegionTextBackbone(TorchBackbone):
    """Options on regions, and captions as UNITER tokenises them: [CLS] word pieces [SEP].

    The official code keeps the case and the punctuation of captions. HADA's authors gave their
    region models captions in ALBEF's cleaning: `caption_cleaning: albef`.
    """

    regions: RegionRules

    def __init__(
        self, request: BackboneRequest, model: Any, tokenizer: Any, positions: int, words: int
    ) -> None:
        super().__init__(request, model)
        options = read_options(request, OPTIONS)
        self.regions = region_rules(request)
        self.cleaning = options["caption_cleaning"] or CLEANINGS[0]
        if self.cleaning not in CLEANINGS:
            raise unknown("value of option caption_cleaning", self.cleaning, CLEANINGS)
        check_vocabulary(request.name, tokenizer, words)
        self.tokenizer = tokenizer
        self.pad_id = int(tokenizer.pad_token_id)
        self.max_tokens = min(options["max_tokens"] or positions, positions)

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """[CLS] words [SEP]; captions longer than the position embeddings keep their [SEP]."""
        if self.cleaning == "albef":
            cleaned = [clean_albef(caption, 30) for caption in captions]
        else:
            cleaned = [(caption, False) for caption in captions]
        rows, cut = bert_rows(self.tokenizer, cleaned, self.max_tokens)
        self.count_truncated(cut)
        return rows

    def text_settings(self) -> dict[str, Any]:
        """What of the preprocessing this class decides, for the spec."""
        return {
            "class": "region features",
            "region_threshold": self.regions.threshold,
            "regions": [self.regions.fewest, self.regions.most],
            "caption_cleaning": self.cleaning,
            "max_tokens": self.max_tokens,
            "tokenizer": type(self.tokenizer).__name__,
            "lower_case": bool(getattr(self.tokenizer, "do_lower_case", False)),
        }


def region_rules(request: BackboneRequest) -> RegionRules:
    """The rules that a model's options set; raises `UsageError` where they contradict."""
    options = read_options(request, OPTIONS)
    if options["regions"] is None:
        raise UsageError(
            f"model {request.name!r} sees region features, not pictures: set its option `regions` "
            "to a folder of .npz files, an LMDB folder or a .tsv file ({dataset} and {split} in "
            "it are replaced)"
        )
    given = {
        "threshold": options["region_threshold"],
        "fewest": options["regions_at_least"],
        "most": options["regions_at_most"],
    }
    rules = RegionRules(
        place=options["regions"],
        name=options["region_name"],
        **{key: value for key, value in given.items() if value is not None},
    )
    if rules.fewest > rules.most:
        raise UsageError(
            f"model {request.name!r}: regions_at_least {rules.fewest} is more than "
            f"regions_at_most {rules.most}"
        )
    return rules
