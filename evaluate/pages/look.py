"""What a fusion looks at in an image and its caption: heat on patches and words.

Where nodes are matched, a word's weight and the patches that answered it; otherwise the attention
of the graph's global nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import Gallery
from hada.evaluate.pages import attention, matched, thumbnails
from hada.evaluate.pages.heat import heat, times_uniform
from hada.extract.common.console import say
from hada.extract.common.errors import HadaError
from hada.extract.spec import ModelSpec
from hada.extract.store import StoreReader
from hada.fuse.network.fuser import Fuser
from hada.fuse.run_folder import RunFolder
from hada.fuse.tokens.split import Split

# Classes of the style sheet from clear to full.
LEVELS = 24


@dataclass(frozen=True)
class Heat:
    """A model's patches on an image.

    heat: (S, S) from 0 to 1, row by row; cut: it lies over the square in the image's middle.
    most: the largest weight, in times uniform.
    """

    model: str
    heat: NDArray[np.float64]
    cut: bool
    most: float

    @property
    def overlay(self) -> str:
        """A data URI to lay over the image."""
        return thumbnails.heat_map(self.heat)


@dataclass(frozen=True)
class Word:
    """A word, how hot it is from 0 to `LEVELS`, and what to say of it.

    patch: model, row and column (from 0) of the patch that answered it; None where none did.
    """

    text: str
    level: int
    tip: str
    patch: tuple[str, int, int] | None = None


@dataclass(frozen=True)
class Shown:
    """Heat on the patches and the words of each model that has them."""

    heats: list[Heat] = field(default_factory=list)
    words: dict[str, list[Word]] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """What a fusion looks at in one image and one caption.

    Attributes:
        patches: Per model one weight for each of its image tokens.
        words: Per model one weight for each of its caption tokens.
        answers: Per model what answered each of its caption tokens; empty where nodes are not
            matched.
    """

    patches: Sequence[NDArray[np.float64]]
    words: Sequence[NDArray[np.float64]]
    answers: Sequence[Sequence[matched.Answer]] = ()


def looker(
    gallery: Gallery,
    folder: RunFolder,
    tokenizers: dict[str, Any],
    images: NDArray[np.int64],
    captions: NDArray[np.int64],
) -> Callable[[int, str], Shown]:
    """A function from the number of a case and its caption's text to what is shown of it.

    Args:
        gallery: What was scored.
        folder: The run.
        tokenizers: Per model that can say which tokens a word has, the frozen model.
        images: (n,) the gallery's rows of the cases' images.
        captions: (n,) likewise of their captions.
    """
    stores = {store.spec.model.name: store for store in gallery.stores}
    own = [stores[name] for name in folder.config()["models"]]
    try:
        weights = _weights(gallery, folder, own, images, captions)
    except HadaError as error:
        say(f"no attention on the page: {error}")
        return lambda _number, _text: Shown()
    specs = [store.spec.model for store in own]
    return lambda number, text: shown(specs, weights[number], text, tokenizers)


def shown(
    specs: Sequence[ModelSpec], weights: Weights, text: str, tokenizers: Mapping[str, Any]
) -> Shown:
    """The heat of one image and one caption.

    Args:
        specs: The models, in the run's order.
        weights: What the run looks at.
        text: The caption.
        tokenizers: Per model that can say which tokens a word has, the frozen model.
    """
    result = Shown()
    grids: dict[int, tuple[int, bool]] = {}
    for model, spec in enumerate(specs):
        last = spec.image is not None and spec.image.global_token == "last"
        patches = attention.grid(weights.patches[model], global_last=last)
        if patches is not None:
            grids[model] = len(patches), last
            result.heats.append(_heat_of(spec, patches))
    names = [spec.name for spec in specs]
    for model, name in enumerate(names):
        if name not in tokenizers:
            continue
        own = weights.words[model]
        spans = attention.word_spans(text, len(own), tokenizers[name])
        if spans is None:
            continue
        given: list[Any] | None = None
        if weights.answers:
            given = [_answered(weights.answers[model], own, span, names, grids) for span in spans]
        result.words[name] = words_of(spans, own, given)
    return result


def _answered(
    answers: Sequence[matched.Answer],
    weights: NDArray[np.float64],
    span: tuple[str, int, int],
    names: Sequence[str],
    grids: Mapping[int, tuple[int, bool]],
) -> tuple[str, tuple[str, int, int] | None] | None:
    """What answered the heaviest token of a word; None for a word without tokens."""
    _, start, stop = span
    if start == stop:
        return None
    answer = answers[start + int(np.argmax(weights[start:stop]))]
    return matched.told(answer, names, grids), matched.patch_of(answer, names, grids)


def words_of(
    spans: Sequence[tuple[str, int, int]],
    weights: NDArray[np.float64],
    answers: Sequence[tuple[str, tuple[str, int, int] | None] | None] | None = None,
) -> list[Word]:
    """The words of a caption, each with the weight of all of its tokens.

    Args:
        spans: Words and the rows of their tokens, as `attention.word_spans` gives them. One without
            tokens, such as a control character, is clear.
        weights: Of all tokens; those outside of words do not count.
        answers: What answered each word, in words and as a patch, where nodes are matched.
    """
    counts = np.array([stop - start for _, start, stop in spans], np.int64)
    read = counts > 0
    sums = np.array([weights[start:stop].sum() for _, start, stop in spans])
    times = np.zeros(len(spans))
    times[read] = times_uniform(sums[read], counts[read])
    words = []
    for number, ((word, _, _), many, hot) in enumerate(zip(spans, times, heat(times), strict=True)):
        if not read[number]:
            words.append(Word(word, 0, "the model reads nothing of it"))
            continue
        tip, answer = f"{many:.1f} times uniform", answers[number] if answers else None
        if answer is not None:
            tip += f", answered by {answer[0]}"
        words.append(Word(word, round(LEVELS * float(hot)), tip, answer[1] if answer else None))
    return words


def _heat_of(spec: ModelSpec, patches: NDArray[np.float64]) -> Heat:
    times = times_uniform(patches)
    cut = any(word in str(spec.preprocessing) for word in ("shortest", "crop"))
    return Heat(spec.name, heat(times), cut, float(times.max()))


def _weights(
    gallery: Gallery,
    folder: RunFolder,
    stores: Sequence[StoreReader],
    images: NDArray[np.int64],
    captions: NDArray[np.int64],
) -> list[Weights]:
    """Of each case."""
    split = Split(stores, first_tokens_only=folder.recipe().features.first_tokens_only)
    fuser, _ = folder.load_best()
    # The gallery may lack items that the run's own models could read.
    rows = np.searchsorted(split.image_rows, gallery.image_rows[images])
    lines = np.searchsorted(split.caption_rows, gallery.caption_rows[captions])
    return weights_of(fuser, split, rows, lines)


def weights_of(
    fuser: Fuser, split: Split, images: NDArray[np.int64], captions: NDArray[np.int64]
) -> list[Weights]:
    """What a fusion looks at in pairs of an image and a caption of a split.

    Args:
        fuser: The network, on the CPU and in eval mode.
        split: What they are of.
        images: (n,) items of the split.
        captions: (n,) likewise.

    Raises:
        UsageError: The run matches no nodes, and has no single attention of its global nodes.
    """
    if fuser.nodes is None:
        on_images = attention.attention(fuser, split, "image", images)
        on_captions = attention.attention(fuser, split, "caption", captions)
        return [Weights(*both) for both in zip(on_images, on_captions, strict=True)]
    found = [
        matched.match(fuser.nodes, split, image, caption)
        for image, caption in zip(images.tolist(), captions.tolist(), strict=True)
    ]
    return [Weights(one.patches, one.words, one.answers) for one in found]
