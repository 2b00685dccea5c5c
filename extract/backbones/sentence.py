"""Models of sentence-transformers that encode images and text: pooled and multi-vector ones.

The library prepares and encodes everything itself, by its `encode_query` and `encode_document`,
since prompts, chat templates and query expansion are its own. So captions travel as their bytes,
and images as they are; how many token rows either has is counted beforehand from what the library
prepares of it, without a forward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import logging

from hada.extract.backbones import hub, sentence_load
from hada.extract.backbones.base import BackboneRequest, Encoded
from hada.extract.backbones.options import read_options
from hada.extract.backbones.sentence_options import (
    OPTIONS,
    Global,
    check_countable,
    global_row,
    settings_of,
    tasks_and_prompts,
    width_asked,
)
from hada.extract.backbones.torch_base import TorchBackbone, library_versions
from hada.extract.common.errors import CheckpointError, UsageError
from hada.extract.spec import SIDES, ModelSpec, SideName, TokenSpec

# What stands before a caption's bytes, so that an empty one has an id, too.
_START = 256
_AT_ONCE = 256
_GLOBAL_ROWS: dict[Global, str] = {
    "first": "CLS", "last": "the last token", "mean": "the mean of all tokens",
}  # fmt: skip
_PROBE_CAPTIONS = ["a dog runs", "two people on a bench in the park"]
# Sizes of images that tell whether a model gives all images as many tokens.
_PROBE_SIZES = ((64, 48), (48, 64), (640, 480), (300, 1200), (2000, 1500))


class SentenceBackbone(TorchBackbone):
    """A `SentenceTransformer` or a `MultiVectorEncoder`.

    Of a pooled model the tokens are the transformer's, with the token that is pooled as the global
    one, or their mean in front where pooling takes more than one. Of a multi-vector model they are
    its output vectors, with their mean in front.
    """

    varying_input = True

    def __init__(self, request: BackboneRequest, model: Any, weights_digest: str) -> None:
        super().__init__(request, model)
        options = read_options(request, OPTIONS)
        self.multi_vector = type(model).__name__ == "MultiVectorEncoder"
        self.mean_embedding = bool(options["mean_embedding"])
        self.width = width_asked(request.name, model, options["truncate_dim"], self.multi_vector)
        self.tasks, self.prompts = tasks_and_prompts(model, options)
        self._global: Global = "mean" if self.multi_vector else global_row(model)
        # The library's tokenizers are no two threads' at once.
        self._counting = threading.Lock()
        self._rows_of_size: dict[tuple[int, int], int | None] = {}
        self._masks = [m for m in model.modules() if type(m).__name__ == "MultiVectorMask"]
        check_countable(request.name, model)
        if self.mean_embedding and not self.multi_vector:
            raise UsageError(
                f"model {request.name!r}, option 'mean_embedding': the model has embeddings of its "
                "own; leave the option out"
            )
        precision, self.dtype = self.dtype, None  # probe in float32 whatever is asked
        captions, texts = self._forward("caption", _PROBE_CAPTIONS)
        blanks = [PIL.Image.new("RGB", size) for size in _PROBE_SIZES[:2]]
        images, pictures = self._forward("image", blanks)
        self.dtype = precision
        if captions is not None and self._rows("caption", _PROBE_CAPTIONS) is None:
            captions = None  # nothing says beforehand how many tokens a caption has
        embedding = texts[0].shape[-1] if texts is not None else None
        if (None if pictures is None else pictures[0].shape[-1]) != embedding:
            raise CheckpointError(f"model {request.name!r}: no joint space of images and texts")
        count = self._image_count(request.name) if images is not None else None
        self._overhead = int((self._rows("caption", [""]) or [0])[0])
        self.spec = ModelSpec(
            name=request.name,
            family=request.family,
            weights_digest=weights_digest,
            embedding_width=embedding,
            normalized=embedding is not None and self._is_normalized(model),
            image=None if images is None else self._token_spec(images, count),
            caption=None if captions is None else self._token_spec(captions, None),
            preprocessing={
                **settings_of(model),
                "global_row": _GLOBAL_ROWS[self._global],
                "truncate_dim": self.width,
                "mean_embedding": self.mean_embedding,
                **{f"{side}_task": self.tasks[side] for side in SIDES},
                **{f"{side}_prompt": self.prompts[side] or "" for side in SIDES},
            },
            precision=request.precision,
            libraries=library_versions(
                "sentence-transformers", "torch", "transformers", "tokenizers", "pillow"
            ),
        )
        self._count = count

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """A start and the bytes of each caption, which the library tokenises when it encodes."""
        self.count_truncated(self._cut(captions))
        return [[_START, *caption.encode("utf-8", "surrogatepass")] for caption in captions]

    def caption_rows(self, ids: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """(T,) token rows of captions, counted from what the library prepares of them."""
        texts = [_text(row) for row in ids]
        rows: list[int] = []
        for start in range(0, len(texts), _AT_ONCE):
            counted = self._rows("caption", texts[start : start + _AT_ONCE])
            assert counted is not None, "a spec of caption tokens has been checked"
            rows += counted
        return np.array(rows, np.int64) + (self._global == "mean")

    def image_rows(self, width: int, height: int) -> int:
        """Token rows of an image of a size in pixels, counted from what is prepared of it."""
        with self._counting:
            if (width, height) not in self._rows_of_size:
                blank = PIL.Image.new("RGB", (width, height))
                rows = self._rows("image", [blank])
                self._rows_of_size[width, height] = None if rows is None else rows[0]
            counted = self._rows_of_size[width, height]
        if counted is not None and self.spec.image is not None:
            counted += self._global == "mean"
            if self._count not in (None, counted):
                raise ValueError(f"{counted} token rows, expected {self._count} of every image")
            return counted
        return self._count or 0

    def preprocess(self, image: PIL.Image.Image) -> Any:
        """The image as "RGB"; the library's own processor follows when it encodes.

        What the processor raises for an image of this size is raised here, where the others of a
        batch do not suffer from it.
        """
        self.image_rows(*image.size)
        return image.convert("RGB")

    def encode_images(self, pixels: Any) -> Encoded:
        """A list of what `preprocess` gave -> tokens and embeddings."""
        return self._encode("image", list(pixels))

    def encode_captions(self, ids: Sequence[Sequence[int]]) -> Encoded:
        """A batch of what `tokenize` gave -> tokens and embeddings."""
        return self._encode("caption", [_text(row) for row in ids])

    def _encode(self, side: SideName, inputs: list[Any]) -> Encoded:
        tokens, embeddings = self._forward(side, inputs)
        values, lengths = None, None
        if tokens is not None and self.spec.tokens(side) is not None:
            values = torch.cat(tokens).float().cpu().numpy()
            lengths = np.array([len(rows) for rows in tokens], np.int64)
        host = None if embeddings is None else embeddings.float().cpu().numpy()
        return Encoded(values=values, lengths=lengths, embeddings=host)

    def _forward(
        self, side: SideName, inputs: list[Any]
    ) -> tuple[list[Tensor] | None, Tensor | None]:
        """The token rows of each input, the global one among them, and (B, E) embeddings."""
        model = self.model
        encode = model.encode_query if self.tasks[side] == "query" else model.encode_document
        with self.running():
            found = encode(
                inputs,
                prompt=self.prompts[side],
                batch_size=len(inputs),
                output_value=None,
                show_progress_bar=False,
            )
            tokens = None
            if all("token_embeddings" in item for item in found):
                tokens = [_kept(item) for item in found]
            means = None if tokens is None else torch.stack([rows.mean(dim=0) for rows in tokens])
            if self.multi_vector:
                assert means is not None, "a multi-vector model has vectors"
                unit = torch.nn.functional.normalize(means.float(), dim=-1)
                embeddings = unit if self.mean_embedding else None
            else:
                embeddings = torch.stack([item["sentence_embedding"] for item in found])
                embeddings = embeddings[:, : self.width]
            if tokens is not None and means is not None and self._global == "mean":
                tokens = [
                    torch.cat([mean[None], rows]) for mean, rows in zip(means, tokens, strict=True)
                ]
            return tokens, embeddings

    def _rows(self, side: SideName, inputs: list[Any], **more: Any) -> list[int] | None:
        """The vectors of each input without a row in front; None where nothing says how many."""
        task = self.tasks[side]
        features = self.model.preprocess(inputs, prompt=self.prompts[side], task=task, **more)
        if "attention_mask" not in features or len(features["attention_mask"]) != len(inputs):
            return None
        names = ("input_ids", "attention_mask", "query_expansion_positions")
        masked = {name: features[name] for name in names if name in features}
        for module in self._masks:
            masked = module(masked, task=task)
        return [int(row) for row in masked["attention_mask"].bool().sum(dim=1)]

    def _cut(self, captions: Sequence[str]) -> int:
        """How many captions are longer than the model takes."""
        limit = self._limit()
        # A token is a byte or more, so others cannot be.
        room = None if limit is None else limit - self._overhead
        long = [text for text in captions if room is not None and len(text.encode()) > room]
        cut = 0
        whole = {"text": {"truncation": False, "max_length": None}}
        for start in range(0, len(long), _AT_ONCE):
            part = long[start : start + _AT_ONCE]
            with _quiet():  # the tokenizer would warn of what is counted here
                kept = self._rows("caption", part)
                uncut = self._rows("caption", part, processing_kwargs=whole)
            if kept is not None and uncut is not None:
                cut += sum(few < many for few, many in zip(kept, uncut, strict=True))
        return cut

    def _limit(self) -> int | None:
        """The tokens of a caption at most; None where there is no limit, or no such tokens."""
        first = self.model[0]
        if not hasattr(first, "processing_kwargs"):
            return None
        limits = [
            self.model.max_seq_length,
            getattr(first, f"{self.tasks['caption']}_length", None),
        ]
        expansion = getattr(first, "query_expansion", None)
        if self.tasks["caption"] == "query" and expansion is not None:
            limits.append(expansion["length"])
        return min((int(limit) for limit in limits if limit is not None), default=None)

    def _image_count(self, name: str) -> int | None:
        """Token rows of every image, None where that depends on its size."""
        counts = set()
        for size in _PROBE_SIZES:
            image = [PIL.Image.new("RGB", size)]
            rows = self._rows("image", image)
            if rows is None:
                tokens, _ = self._forward("image", image)
                assert tokens is not None, "the probe had tokens"
                counts.add(len(tokens[0]))
            else:
                counts.add(rows[0] + (self._global == "mean"))
        if len(counts) > 1 and rows is None:
            raise CheckpointError(
                f"model {name!r} gives images of different sizes different numbers of tokens and "
                "does not say beforehand how many; a class of your own can use it "
                "(docs/own_backbone.md)"
            )
        return counts.pop() if len(counts) == 1 else None

    def _token_spec(self, tokens: list[Tensor], count: int | None) -> TokenSpec:
        return TokenSpec(
            width=int(tokens[0].shape[-1]),
            count=count,
            global_token="last" if self._global == "last" else "first",
            global_source="pooled" if self._global == "mean" else "token",
        )

    def _is_normalized(self, model: Any) -> bool:
        if self.multi_vector:
            return True
        last = list(model.children())[-1]
        return type(last).__name__ == "Normalize" and self.width is None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of transformers."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _text(ids: Sequence[int]) -> str:
    return bytes(ids[1:]).decode("utf-8", "surrogatepass")


def _kept(item: dict[str, Any]) -> Tensor:
    """(N, D): the vectors that count, as the library's own pooling and scoring take them."""
    tokens: Tensor = item["token_embeddings"]
    mask = item.get("attention_mask")
    if mask is None or mask.ndim != 1 or len(mask) != len(tokens):
        return tokens.float()
    return tokens[mask.bool()].float()


def load(request: BackboneRequest) -> SentenceBackbone:
    """A model of sentence-transformers from a folder or a Hugging Face id.

    Options: `OPTIONS`. Raises `CheckpointError` where the folder holds another kind of model, or
    one without an image side, and `UsageError` for a prompt or a width that the model has not.
    """
    options = read_options(request, OPTIONS)
    folder = hub.resolve_folder(request.weights, options["revision"], hub.SENTENCE_WEIGHTS)
    model = sentence_load.read_folder(folder)
    backbone = SentenceBackbone(request, model, sentence_load.digest(folder))
    backbone.origin = hub.origin(request.weights, folder)
    return backbone
