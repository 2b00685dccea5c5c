"""Queries encoded as the split that is searched was.

Shape letters: B queries, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from hada.evaluate.frozen_model import load_frozen_model
from hada.evaluate.search.index import Query
from hada.extract.backbones import RegionBackbone
from hada.extract.backbones.base import Encoded
from hada.extract.common.arrays import unit_rows
from hada.extract.common.device import choose_device
from hada.extract.common.errors import UsageError
from hada.extract.datasets.images import open_image
from hada.extract.manifest import Manifest
from hada.extract.spec import SideName, StoreSpec
from hada.extract.store import StoreReader, dtypes
from hada.extract.store.memory import MemoryStore
from hada.extract.store.pooling import describe
from hada.extract.variants.reduced import reduced
from hada.fuse.embedding import Embedded, SideEncoded, embed, encode_side
from hada.fuse.network.fuser import Fuser
from hada.fuse.run_files.features import check_features
from hada.fuse.run_folder import RunFolder
from hada.fuse.tokens.split import Split

# What fills the side that is not asked for.
_BLANK_TEXT, _BLANK_SIZE = "a picture", (64, 64)


class Encoder:
    """The frozen models, and the fusion where there is one, loaded once for any number of queries.

    Queries become a store in memory, with one item on the other side whose result is unused, so
    that they pass through the same code as the split. That item is encoded once.
    """

    def __init__(
        self,
        manifest: Manifest,
        stores: Sequence[StoreReader],
        device: str,
        run: RunFolder | None = None,
    ) -> None:
        """Load the models of the stores, and the run's fusion.

        Args:
            manifest: Names the models' families and weights.
            stores: Of the split that is searched, one per model of the run.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            run: The fusion behind the models; None for a single model.

        Raises:
            StoreMismatchError: The manifest's weights are not those of a store.
            UsageError: A model sees regions, so it cannot encode a query, or it has no joint space
                and there is no run.
            RunError: The run does not fit the stores.
        """
        if run is None:
            _check_joint_space(stores)
        self._like = stores
        self._backbones = [_as_stored(load_frozen_model(manifest, s, device), s) for s in stores]
        self._blanks: dict[tuple[int, SideName], Encoded] = {}
        self._blank_image: SideEncoded | None = None
        self.fuser: Fuser | None = None
        self._first_only = False
        # Whether queries may be encoded together: each as it is alone.
        self._together = True
        self._fuse = None if run is None else self._fusion(run, device)

    def _fusion(
        self, run: RunFolder, device: str
    ) -> Callable[[Sequence[StoreReader], SideName, bool], Embedded]:
        """The run's fusion: from the stores of queries (or of items) to their embeddings."""
        fuser, mix = run.load_best()
        heads, config, recipe = run.load_heads(), run.config(), run.recipe()
        # What a query pays for its own nodes changes no order, and takes longer than the rest.
        light = None if heads is None else replace(heads, node_correction=None)
        inputs = recipe.network.inputs
        self._together = not fuser.image.config.second_from_first
        for store, backbone in zip(self._like, self._backbones, strict=True):
            model = store.spec.model
            check_features(config["features"][model.name], store, run.path, inputs=inputs)
            if inputs == "as-is" and backbone.spec.normalized != model.normalized:
                raise UsageError(
                    f"{store.path}: holds embeddings of unit length, which model {model.name!r} "
                    "no longer gives, and this run takes them as they are; extract again"
                )
        self.fuser, self._first_only = fuser, recipe.features.first_tokens_only

        # Once, not with every query: to walk through all modules takes longer than to encode one.
        fuser.eval()
        on = torch.device(choose_device(device))

        def fuse(stores: Sequence[StoreReader], side: SideName, as_items: bool) -> Embedded:
            split = Split(stores, in_memory=False, first_tokens_only=self._first_only)
            known: dict[SideName, SideEncoded] = {}
            if side == "caption":
                # The one blank image beside texts is the same every time.
                if self._blank_image is None:
                    self._blank_image = encode_side(fuser, split, "image", on)
                known["image"] = self._blank_image
            return embed(fuser, mix, split, on, heads if as_items else light, known=known)

        return fuse

    def text(self, text: str) -> Query:
        """A caption as a query; raises `UsageError` where it is empty."""
        return self.texts([text])[0]

    def image(self, source: Any) -> Query:
        """An image as a query; raises `ImageError` where it cannot be read."""
        return self.images([open_image(source)])[0]

    def texts(self, texts: Sequence[str], *, as_items: bool = False) -> list[Query]:
        """Captions as queries, encoded together.

        Args:
            texts: Sentences.
            as_items: Also with what each pays in the whole score, as one that is searched for.

        Raises:
            UsageError: A text is empty.
        """
        if not all(text.strip() for text in texts):
            raise UsageError("the query is empty: expected a sentence, or --image FILE")
        return self._encode("caption", list(texts), as_items)

    def images(self, images: Sequence[PIL.Image.Image], *, as_items: bool = False) -> list[Query]:
        """Images as queries, encoded together.

        Args:
            images: Upright RGB pictures.
            as_items: As for `texts`.
        """
        return self._encode("image", list(images), as_items)

    def _encode(self, side: SideName, items: list[Any], as_items: bool) -> list[Query]:
        if not self._together and len(items) > 1:
            return [query for item in items for query in self._encode(side, [item], as_items)]
        encoded = [self._encoded(number, side, items) for number in range(len(self._backbones))]
        own = {
            store.spec.model.name: _own(part, store.spec.dtype)
            for store, part in zip(self._like, encoded, strict=True)
            if part.embeddings is not None
        }
        if self._fuse is None:
            (vectors,) = own.values()
            return [Query(vector, side=side, plain=vector) for vector in vectors]
        other: SideName = "image" if side == "caption" else "caption"
        stores = [
            self._stored(n, side, part, len(items), self._blank(n, other))
            for n, part in enumerate(encoded)
        ]
        embedded = self._fuse(stores, side, as_items)
        return [
            _query(embedded, side, k, {name: values[k] for name, values in own.items()})
            for k in range(len(items))
        ]

    @property
    def tokenizers(self) -> dict[str, Any]:
        """The models by name, which can say which tokens a word has."""
        names = [store.spec.model.name for store in self._like]
        return dict(zip(names, self._backbones, strict=True))

    def pair(self, side: SideName, item: Any, stores: Sequence[StoreReader], row: int) -> Split:
        """A query and a stored item of the other side, as a split of one image and one caption.

        Args:
            side: What the query is.
            item: A text or a decoded image.
            stores: One store a model, in the run's order; their split may be any.
            row: Of the other side's item in them.
        """
        other: SideName = "image" if side == "caption" else "caption"
        memory = [
            self._stored(
                number, side, self._encoded(number, side, [item]), 1, _kept(store, other, row)
            )
            for number, store in enumerate(stores)
        ]
        return Split(memory, first_tokens_only=self._first_only)

    def _encoded(self, number: int, side: SideName, items: list[Any]) -> Encoded:
        """What a model makes of texts or images."""
        backbone = self._backbones[number]
        if side == "caption":
            found: Encoded = backbone.encode_captions(backbone.tokenize(items))
        else:
            inputs = [backbone.preprocess(item) for item in items]
            found = backbone.encode_images(inputs if backbone.varying_input else np.stack(inputs))
        found.wait()
        return found

    def _blank(self, number: int, side: SideName) -> Encoded:
        if (number, side) not in self._blanks:
            item = _BLANK_TEXT if side == "caption" else PIL.Image.new("RGB", _BLANK_SIZE)
            self._blanks[number, side] = self._encoded(number, side, [item])
        return self._blanks[number, side]

    def _stored(
        self, number: int, side: SideName, part: Encoded, count: int, blank: Encoded
    ) -> StoreReader:
        """Queries as a store: texts are captions of one image, images have one caption each.

        `blank` is the one item of the other side.
        """
        if side == "caption":
            both: dict[SideName, tuple[Encoded, int]] = {"image": (blank, 1), "caption": (part, 1)}
        else:
            both = {"image": (part, 1), "caption": (blank, count)}
        values = {s: _items(encoded) * times for s, (encoded, times) in both.items()}
        embeddings = {
            s: np.tile(encoded.embeddings, (times, 1))
            for s, (encoded, times) in both.items()
            if encoded.embeddings is not None
        }
        images = 1 if side == "caption" else count
        owners = np.zeros(count, np.int64) if side == "caption" else np.arange(count)
        spec = StoreSpec(
            model=self._backbones[number].spec,
            dataset="query",
            split="query",
            dataset_digest="0",
            dtype=self._like[number].spec.dtype,
        )
        ids: dict[SideName, list[str]] = {
            "image": [f"image {k}" for k in range(images)],
            "caption": [f"caption {k}" for k in range(count)],
        }
        return MemoryStore(spec, ids, owners, values, embeddings)


def _check_joint_space(stores: Sequence[StoreReader]) -> None:
    for store in stores:
        if store.spec.model.embedding_width is None:
            raise UsageError(
                f"model {store.spec.model.name!r} has no joint space of one vector an item, so "
                "nothing can be searched by it alone: search by a run that has it (--run)"
            )


def _as_stored(backbone: Any, store: StoreReader) -> Any:
    """A model that keeps the tokens that its store has; raises `UsageError` for one of regions."""
    model = store.spec.model
    if isinstance(backbone, RegionBackbone):
        raise UsageError(f"model {model.name!r} sees regions, not images: it cannot encode a query")
    kept = describe(model.image)
    return backbone if kept == describe(backbone.spec.image) else reduced(backbone, kept)


def _kept(store: StoreReader, side: SideName, row: int) -> Encoded:
    """An item as its store has it."""
    reader, rows = store.side(side), np.array([row])
    values = lengths = None
    if reader.tokens_spec is not None:
        values, lengths = np.asarray(reader.tokens(rows), np.float32), reader.lengths[rows]
    embeddings = reader.embeddings(rows)
    return Encoded(
        values, lengths, None if embeddings is None else np.asarray(embeddings, np.float32)
    )


def _items(encoded: Encoded) -> list[NDArray[np.float32]]:
    """The tokens item by item; none where the model keeps none."""
    if encoded.values is None or encoded.lengths is None:
        return []
    return list(np.split(encoded.values, np.cumsum(encoded.lengths)[:-1]))


def _own(encoded: Encoded, dtype: str) -> NDArray[np.float32]:
    """(B, E) at unit length, in the precision that the split is stored in."""
    values = np.asarray(encoded.embeddings, np.float32)
    stored = dtypes.of_embeddings(dtype)
    values = dtypes.decode(dtypes.encode(values, stored), stored).astype(np.float32)
    return np.asarray(unit_rows(values), np.float32)


def _query(
    embedded: Embedded, side: SideName, row: int, own: dict[str, NDArray[np.float32]]
) -> Query:
    """One of the queries that were embedded together."""
    images = np.array([0 if side == "caption" else row])
    one = embedded.part(images, np.array([row]))
    number = 0 if side == "image" else 1
    vector = tuple(one)[number][0]
    plain = one.cosines()[number][0]
    # Where a run corrects hubs its vectors end in what the two sides pay.
    plain = np.concatenate([plain, np.zeros(len(vector) - len(plain), np.float32)])
    matched = one.nodes is not None and one.node_share > 0
    return Query(np.asarray(vector, np.float32), one if matched else None, side, plain, own)
