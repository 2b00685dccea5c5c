"""The protocol every backbone follows, and the batch it answers with.

A backbone is frozen and in eval mode. It declares its `ModelSpec` before it sees data, tokenises
captions on its own (so that their lengths are known before anything is written), turns one
decoded picture into an array (called from worker threads: no shared mutable state), and encodes
batches of either without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import PIL.Image

    from hada.extract.datasets.regions import RegionRules, Regions
    from hada.extract.spec import ModelSpec


@dataclass(frozen=True)
class Encoded:
    """Features of one batch, as float32 arrays on the host.

    values: (sum of lengths, D) tokens of all items, one item after the other, padding removed,
        or None where the model keeps no tokens.
    lengths: (B,) int64, tokens per item; None together with `values`.
    embeddings: (B, E), or None where the model has no joint space.
    """

    values: NDArray[np.float32] | None
    lengths: NDArray[np.int64] | None
    embeddings: NDArray[np.float32] | None

    # Whether the arrays are still on their way from a device: reading one waits for it.
    arriving: ClassVar[bool] = False

    def wait(self) -> float:
        """Wait until the arrays are here; the seconds of that in which they only travelled."""
        return 0.0


class Backbone(Protocol):
    """A frozen vision-language model behind one small face."""

    spec: ModelSpec

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Token ids per caption, special tokens included, padding not.

        `len(ids)` plus one where the spec's caption global source is "pooled" is the number of
        token rows that `encode_captions` returns for it.
        """
        ...

    def preprocess(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        """One decoded picture to (3, H, W) float32, by the model's evaluation transform.

        A backbone that also has this transform as an attribute `preprocessor`, a callable that
        can be pickled, lets `--workers` run it in other processes; else it runs in threads.
        """
        ...

    def encode_images(self, pixels: NDArray[np.float32]) -> Encoded:
        """(B, 3, H, W) -> features; the number of tokens is `spec.image.count` for each."""
        ...

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """A batch of what `tokenize` gave -> features."""
        ...


@runtime_checkable
class RegionBackbone(Protocol):
    """A backbone whose images are a detector's region features instead of pictures.

    `spec.image.count` is None: an image has one row (CLS, or the pooled vector that stands in for
    it) and one row a region.
    """

    spec: ModelSpec
    regions: RegionRules

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """As `Backbone.tokenize`."""
        ...

    def encode_regions(self, items: Sequence[Regions]) -> Encoded:
        """A batch of images' regions -> features, 1 + regions rows each."""
        ...

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """As `Backbone.encode_captions`."""
        ...


@dataclass(frozen=True, kw_only=True)
class BackboneRequest:
    """What the manifest (and the command line) asks a family to load.

    `weights` is a folder, a file, or a name that the family's own library resolves
    (a Hugging Face id, an open_clip tag). `options` are the family's own keys.
    """

    name: str
    family: str
    weights: str
    device: str = "cpu"
    precision: str = "fp32"
    options: dict[str, Any]
