"""A backbone that keeps fewer tokens; `hada.extract.store.pooling` says which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.backbones.base import Backbone, Encoded, RegionBackbone
from hada.extract.store.pooling import pool, pooled_lengths, reduced_spec
from hada.extract.variants.changed import ChangedBackbone


def reduced(backbone: Backbone | RegionBackbone, tokens: str) -> Any:
    """The same backbone, of whose tokens only some are kept; its spec says so.

    Args:
        backbone: A loaded model; itself is given back where all tokens are kept.
        tokens: Which tokens are kept, as --tokens says it: "all", "none" or "pool:K".

    Raises:
        UsageError: As for `reduced_spec`.
    """
    spec = reduced_spec(backbone.spec, tokens)
    return backbone if spec is backbone.spec else _Reduced(backbone, spec)


class _Reduced(ChangedBackbone):
    """A backbone that pools or drops tokens."""

    def encode_images(self, pixels: NDArray[np.float32]) -> Encoded:
        return self._image_side(self.inner.encode_images(pixels))  # type: ignore[union-attr]

    @property
    def encode_regions(self) -> Callable[[Any], Encoded]:
        encode = self.inner.encode_regions  # type: ignore[union-attr]
        return lambda items: self._image_side(encode(items))

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        encoded = self.inner.encode_captions(ids)
        return encoded if self.spec.caption is not None else _without_tokens(encoded)

    def _image_side(self, encoded: Encoded) -> Encoded:
        own, wanted = self.inner.spec.image, self.spec.image
        if wanted is None or encoded.values is None or encoded.lengths is None:
            return _without_tokens(encoded)
        assert own is not None
        if wanted.pooled == own.pooled:
            return encoded
        assert wanted.pooled is not None
        last = own.global_token == "last"
        return Encoded(
            values=pool(encoded.values, encoded.lengths, wanted.pooled, global_last=last),
            lengths=pooled_lengths(encoded.lengths, wanted.pooled),
            embeddings=encoded.embeddings,
        )


def _without_tokens(encoded: Encoded) -> Encoded:
    return Encoded(values=None, lengths=None, embeddings=encoded.embeddings)
