"""What a fusion looks at in an image and its caption: heat on patches and words.

Where nodes are matched, a word's weight and the patches that answered it; otherwise the attention
of the graph's global nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from hada.fuse.run_folder import RunFolder
from hada.fuse.tokens.split import Split

# Classes of the style sheet from clear to full.
LEVELS = 24


@dataclass(frozen=True)
class Heat:
    """A model's patches on an image.

    overlay: a data URI to lay over the image; cut: over the square in its middle.
    most: the largest weight, in times uniform.
    """

    model: str
    overlay: str
    cut: bool
    most: float


@dataclass(frozen=True)
class Word:
    """A word, how hot it is from 0 to `LEVELS`, and what to say of it."""

    text: str
    level: int
    tip: str


@dataclass(frozen=True)
class Shown:
    """Heat on the patches and the words of each model that has them."""

    heats: list[Heat] = field(default_factory=list)
    words: dict[str, list[Word]] = field(default_factory=dict)


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
    names = folder.config()["models"]
    stores = {store.spec.model.name: store for store in gallery.stores}
    own = [stores[name] for name in names]
    try:
        on_images, on_captions, answers = _weights(gallery, folder, own, images, captions)
    except HadaError as error:
        say(f"no attention on the page: {error}")
        return lambda _number, _text: Shown()

    def look(number: int, text: str) -> Shown:
        shown = Shown()
        grids: dict[int, tuple[int, bool]] = {}
        for model, store in enumerate(own):
            spec = store.spec.model
            last = spec.image is not None and spec.image.global_token == "last"
            patches = attention.grid(on_images[number][model], global_last=last)
            if patches is not None:
                grids[model] = len(patches), last
                shown.heats.append(_heat_of(spec, patches))
        for model, name in enumerate(names):
            if name not in tokenizers:
                continue
            weights = on_captions[number][model]
            spans = attention.word_spans(text, len(weights), tokenizers[name])
            if spans is None:
                continue
            said = None
            if answers:
                best = [a + int(np.argmax(weights[a:b])) for _, a, b in spans]
                given = [answers[number][model][token] for token in best]
                said = [matched.told(answer, names, grids) for answer in given]
            shown.words[name] = words_of(spans, weights, said)
        return shown

    return look


def words_of(
    spans: Sequence[tuple[str, int, int]],
    weights: NDArray[np.float64],
    answers: Sequence[str] | None = None,
) -> list[Word]:
    """The words of a caption, each with the weight of all of its tokens.

    Args:
        spans: Words and the rows of their tokens, as `attention.word_spans` gives them.
        weights: Of all tokens; those outside of words do not count.
        answers: What answered each word, where nodes are matched.
    """
    sums = np.array([weights[start:stop].sum() for _, start, stop in spans])
    times = times_uniform(sums, np.array([stop - start for _, start, stop in spans]))
    return [
        Word(
            word,
            round(LEVELS * float(hot)),
            f"{many:.1f} times uniform" + (f", answered by {answers[number]}" if answers else ""),
        )
        for number, ((word, _, _), many, hot) in enumerate(
            zip(spans, times, heat(times), strict=True)
        )
    ]


def _heat_of(spec: ModelSpec, patches: NDArray[np.float64]) -> Heat:
    times = times_uniform(patches)
    cut = any(word in str(spec.preprocessing) for word in ("shortest", "crop"))
    return Heat(spec.name, thumbnails.heat_map(heat(times)), cut, float(times.max()))


def _weights(
    gallery: Gallery,
    folder: RunFolder,
    stores: Sequence[StoreReader],
    images: NDArray[np.int64],
    captions: NDArray[np.int64],
) -> tuple[Any, Any, list[list[list[matched.Answer]]]]:
    """Per case and model the weights of image and caption tokens, and what answered each word."""
    split = Split(stores, first_tokens_only=folder.recipe().features.first_tokens_only)
    fuser, _ = folder.load_best()
    # The gallery may lack items that the run's own models could read.
    rows = np.searchsorted(split.image_rows, gallery.image_rows[images])
    lines = np.searchsorted(split.caption_rows, gallery.caption_rows[captions])
    if fuser.nodes is None:
        on_images = attention.attention(fuser, split, "image", rows)
        return on_images, attention.attention(fuser, split, "caption", lines), []
    found = [
        matched.match(fuser.nodes, split, row, line)
        for row, line in zip(rows.tolist(), lines.tolist(), strict=True)
    ]
    patches, words = [one.patches for one in found], [one.words for one in found]
    return patches, words, [one.answers for one in found]
