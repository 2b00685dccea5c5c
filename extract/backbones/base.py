"""The protocol of backbones, and the batch of features that they return.

A backbone is frozen and in eval mode. It declares its `ModelSpec` before it sees data, tokenises
captions on its own (so that their lengths are known before anything is written), turns one
decoded picture into an array (called from worker threads: no shared mutable state), and encodes
batches of either without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.device import choose_device
from hada.extract.common.errors import UsageError

if TYPE_CHECKING:
    import PIL.Image

    from hada.extract.datasets.regions import RegionRules, Regions
    from hada.extract.manifest import ModelEntry
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


class OptionalParts(Protocol):
    """What a backbone may have beside its methods; the values here hold where it has not.

    A class that inherits `Backbone` or `RegionBackbone` has them; `load_backbone` gives them to
    the objects of other classes.

    preprocessor: The evaluation transform as a value that can be pickled: with it `--workers` runs
        the transform in other processes, else it runs in threads.
    truncated: Captions that `tokenize` has cut so far because they were too long.
    device: The torch device that the model computes on; None for the host.
    clock: Seconds spent so far on bringing images to the device, under "transfer".
    varying_input: Whether what `preprocess` gives is not always an array of one shape. Then
        `encode_images` takes a list of it, and images are prepared in threads of this process.
    image_rows: For a backbone whose images have different numbers of tokens (`spec.image.count`
        is None): the token rows of an image of (width, height); None where all have as many.
    caption_rows: The token rows of captions as (T,) int64, from what `tokenize` gave; None where
        they are the ids, and a pooled row where the spec has one.
    origin: What is known of the weights beside their digest, for the record: "weights", the id
        and commit on a hub, and "licence".
    match_adds_cosine: Of a `MatchingBackbone`, whether the model's own evaluation adds the cosine
        of the embeddings to the logit of "match", as BLIP's does and ALBEF's does not.
    """

    preprocessor: Callable[[PIL.Image.Image], NDArray[np.float32]] | None = None
    truncated: int = 0
    device: Any = None
    clock: Mapping[str, float] = MappingProxyType({})
    origin: Mapping[str, str] = MappingProxyType({})
    varying_input: bool = False
    image_rows: Callable[[int, int], int] | None = None
    caption_rows: Callable[[Sequence[Sequence[int]]], NDArray[np.int64]] | None = None
    match_adds_cosine: bool = True
    spec: ModelSpec

    def compile(self) -> None:
        """Run the model through `torch.compile`; raises `UsageError` where that cannot be."""
        raise UsageError(f"--compile: family {self.spec.family!r} is no PyTorch model of ours")


class Backbone(OptionalParts, Protocol):
    """A frozen vision-language model behind one small face."""

    spec: ModelSpec

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Token ids per caption, special tokens included, padding not.

        `len(ids)` plus one where the spec's caption global source is "pooled" is the number of
        token rows that `encode_captions` returns for it, unless `caption_rows` says another.
        """
        ...

    def preprocess(self, image: PIL.Image.Image) -> NDArray[np.float32]:
        """One decoded picture to (3, H, W) float32, by the model's evaluation transform."""
        ...

    def encode_images(self, pixels: NDArray[np.float32]) -> Encoded:
        """(B, 3, H, W) -> features, with `spec.image.count` tokens each or as `image_rows` says."""
        ...

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """A batch of what `tokenize` gave -> features."""
        ...


@runtime_checkable
class RegionBackbone(OptionalParts, Protocol):
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


@runtime_checkable
class MatchingBackbone(Backbone, Protocol):
    """A backbone whose matching head works from stored tokens, for re-ranking."""

    def match_tokens(
        self, tokens_PND: NDArray[np.float32], ids: Sequence[Sequence[int]]
    ) -> NDArray[np.float32]:
        """(P, N, D) stored tokens of images, a caption for each -> (P, 2) logits; 1 is "match".

        Args:
            tokens_PND: The N stored tokens of P images, D wide, one image a pair.
            ids: Per pair the token ids of its caption, as `tokenize` gives them.
        """
        ...


def completed(backbone: Backbone | RegionBackbone) -> Backbone | RegionBackbone:
    """The same object with the parts of `OptionalParts` that its class leaves out."""
    for name in (
        *("preprocessor", "truncated", "device", "clock", "origin", "match_adds_cosine"),
        *("varying_input", "image_rows", "caption_rows"),
    ):
        if not hasattr(backbone, name):
            setattr(backbone, name, getattr(OptionalParts, name))
    if not hasattr(backbone, "compile"):
        backbone.compile = OptionalParts.compile.__get__(backbone)  # type: ignore[method-assign]
    return backbone


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

    @classmethod
    def of(
        cls, model: ModelEntry, dataset: str, *, device: str = "auto", precision: str = "fp32"
    ) -> Self:
        """The request for a model of the manifest with its weights for a dataset.

        Args:
            model: The manifest's entry.
            dataset: Decides between weights that were fine-tuned.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            precision: `fp32`, `bf16` or `fp16`.

        Raises:
            ManifestError: The model has no weights for the dataset.
            UsageError: The device is not there.
        """
        return cls(
            name=model.name,
            family=model.family,
            weights=model.weights_for(dataset),
            device=choose_device(device),
            precision=precision,
            options=dict(model.options),
        )
