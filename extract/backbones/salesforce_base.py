"""Base of ALBEF, BLIP and BLIP-2: what they do alike with pictures and captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from hada.extract.backbones.base import BackboneRequest
from hada.extract.backbones.preprocessing import MEAN, STD, Squash
from hada.extract.backbones.salesforce import bert_rows, clean_caption
from hada.extract.backbones.torch_base import TorchBackbone


class SalesforceBackbone(TorchBackbone):
    """Pictures squashed to a square, and captions as BERT's word pieces after BLIP's cleaning.

    max_words, max_tokens: where captions are cut; whoever inherits sets them.
    """

    max_words: int
    max_tokens: int

    def __init__(
        self, request: BackboneRequest, model: Any, tokenizer: Any, image_size: int
    ) -> None:
        super().__init__(request, model)
        self.tokenizer, self.image_size = tokenizer, image_size
        self.preprocessor = Squash(image_size)
        self.pad_id = int(tokenizer.pad_token_id)

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """[CLS] words [SEP], after BLIP's cleaning; long captions keep their [SEP]."""
        cleaned = [clean_caption(caption, self.max_words) for caption in captions]
        rows, cut = bert_rows(self.tokenizer, cleaned, self.max_tokens)
        self.count_truncated(cut)
        return rows

    def preprocess(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        """(3, S, S): squashed to a square, not cropped, as the official evaluation transform."""
        return self.preprocessor(image)

    def picture_settings(self) -> dict[str, Any]:
        """What of the preprocessing is done to pictures, for the spec."""
        return {
            "class": "PIL bicubic squash",
            "size": self.image_size,
            "mean": list(MEAN),
            "std": list(STD),
        }
