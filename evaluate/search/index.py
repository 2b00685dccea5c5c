"""Search a split by text or image: a stored index, and queries encoded as the split was.

The index holds the run's (or a model's) embeddings, whose inner product is the score. It is exact.
The extra `faiss` adds an approximate index, whose results are compared with the exact ones.

Shape letters: I images, E embedding width.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from hada.evaluate.frozen_model import load_frozen_model
from hada.extract.backbones import RegionBackbone
from hada.extract.common import atomic
from hada.extract.common.arrays import unit_rows
from hada.extract.common.console import say
from hada.extract.common.device import choose_device
from hada.extract.common.errors import UsageError
from hada.extract.datasets.images import open_image
from hada.extract.manifest import Manifest
from hada.extract.spec import SideName, StoreSpec
from hada.extract.store import StoreReader, open_store, write_store
from hada.fuse.embedding import Embedded, check_features, contents_of, embed, embed_split
from hada.fuse.run_files.sealed import FaultError, check_sealed, write_sealed
from hada.fuse.run_folder import RunFolder, weights_digest
from hada.fuse.tokens.split import Split

FORMAT = 2
HOLDS, GRAPH = "index", "faiss graph"


@dataclass(frozen=True)
class Index:
    """(n, E) embeddings of one side of a split, with the ids of their items."""

    embeddings: NDArray[np.float32]
    ids: list[str]
    key: str

    def top(self, query_E: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
        """Rows and scores of the best, exactly; equal scores in the order of rows.

        >>> Index(np.eye(2, dtype=np.float32), ["a", "b"], "").top(np.array([0, 1.0]), 1)
        [(1, 1.0)]
        """
        scores = self.embeddings @ query_E.astype(np.float32)
        order = np.argsort(-scores, kind="stable")[:count]
        return [(int(row), float(scores[row])) for row in order]

    def save(self, path: Path, weights: str = "") -> None:
        """Write it as one file that NumPy opens; `weights` is the digest of a run's weights."""
        buffer = io.BytesIO()
        np.savez(buffer, ids=np.array(self.ids), embeddings=self.embeddings)
        head = {"holds": HOLDS, "format": FORMAT, "key": self.key, "weights": weights}
        with atomic.writing(path) as file:
            write_sealed(file, buffer.getbuffer(), head)

    @classmethod
    def load(cls, path: Path, key: str) -> Index | None:
        """The saved index, None where there is none.

        Raises:
            FaultError: It is damaged, or of other weights or features.
        """
        if not path.exists():
            return None
        check_copy(path, HOLDS, key)
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                ids, embeddings = file["ids"], file["embeddings"]
            if embeddings.ndim != 2 or ids.shape != embeddings.shape[:1] or ids.dtype.kind != "U":
                raise ValueError("its arrays do not fit each other")
        except Exception as error:  # a checksum of ours, and contents that are not
            raise FaultError("damaged", path, str(error), "remove it") from error
        return cls(embeddings, ids.tolist(), key)


def check_copy(path: Path, holds: str, key: str) -> None:
    """Raise `FaultError` where a file is not the whole copy that is asked for."""
    remedy = "remove it: a search makes it anew"
    try:
        head = check_sealed(path)
    except (OSError, ValueError) as error:
        raise FaultError("damaged", path, str(error), remedy) from error
    if head is None:
        raise FaultError("unbound", path, "it has no checksum, or was cut short", remedy)
    if head.get("holds") != holds or head.get("format") != FORMAT:
        raise FaultError("foreign", path, f"it holds no {holds} of this version", remedy)
    if head.get("key") != key:
        raise FaultError("stale", path, "it is of other weights or stores", remedy)


def faiss_top(
    index: Index, query_E: NDArray[np.float32], count: int, path: Path | None = None
) -> list[tuple[int, float]]:
    """The best by faiss's HNSW, which is kept at `path` and made again for another index.

    Raises:
        UsageError: The package is missing.
    """
    graph = hnsw(index, path)
    graph.hnsw.efSearch = max(64, 4 * count)
    scores, rows = graph.search(query_E[None].astype(np.float32), count)
    # Where fewer are found than asked for, faiss fills up with row -1.
    ranked = zip(rows[0], scores[0], strict=True)
    return [(int(row), float(score)) for row, score in ranked if row >= 0]


def hnsw(index: Index, path: Path | None) -> Any:
    """Faiss's graph of an index, read from beside `path` where it was kept."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise UsageError(
            "--faiss needs the package faiss, which is not installed: pip install 'hada[faiss]'"
        ) from error
    kept = None if path is None else path.with_name(f"{path.stem}-{index.key}.faiss")
    if kept is not None and kept.exists():
        try:
            check_copy(kept, GRAPH, index.key)
            return faiss.read_index(str(kept))
        except (FaultError, RuntimeError) as error:
            say(f"{_first(error)}. It is made anew")
    graph = faiss.IndexHNSWFlat(index.embeddings.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.add(index.embeddings)
    if kept is not None and path is not None:
        for old in path.parent.glob(f"{path.stem}-*.faiss"):
            old.unlink()
        with atomic.writing(kept) as file:
            head = {"holds": GRAPH, "format": FORMAT, "key": index.key}
            write_sealed(file, faiss.serialize_index(graph).tobytes(), head)
    return graph


def _first(error: Exception) -> str:
    """What is wrong, without its remedy, which is about to be done."""
    if isinstance(error, FaultError):
        return f"{error.file}: {error.kind}: {error.reason}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Encoder:
    """The frozen models, and the fusion where there is one, loaded once for any number of queries.

    A query becomes a store of one image and one caption, so that it passes through the same code as
    the split. The side that is not the query is filled with a placeholder whose result is unused.
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
            UsageError: A model sees regions, so it cannot encode a query.
            RunError: The run does not fit the stores.
        """
        self._like = stores
        self._backbones = [load_frozen_model(manifest, store, device) for store in stores]
        for store, backbone in zip(stores, self._backbones, strict=True):
            if isinstance(backbone, RegionBackbone):
                name = store.spec.model.name
                raise UsageError(
                    f"model {name!r} sees regions, not images: it cannot encode a query"
                )
        self._fuse = None if run is None else self._fusion(run, device)

    def _fusion(self, run: RunFolder, device: str) -> Callable[[Sequence[StoreReader]], Embedded]:
        """The run's fusion as a function from the stores of a query to its embeddings."""
        fuser, mix = run.load_best()
        config, recipe = run.config(), run.recipe()
        inputs = recipe.network.inputs
        for store, backbone in zip(self._like, self._backbones, strict=True):
            model = store.spec.model
            check_features(config["features"][model.name], store, run.path, inputs=inputs)
            if inputs == "as-is" and backbone.spec.normalized != model.normalized:
                raise UsageError(
                    f"{store.path}: holds embeddings of unit length, which model {model.name!r} "
                    "no longer gives, and this run takes them as they are; extract again"
                )
        first_only = recipe.features.first_tokens_only

        def fuse(stores: Sequence[StoreReader]) -> Embedded:
            split = Split(stores, first_tokens_only=first_only)
            return embed(fuser, mix, split, torch.device(choose_device(device)))

        return fuse

    def text(self, text: str) -> NDArray[np.float32]:
        """(E,) embedding of a caption."""
        if not text.strip():
            raise UsageError("the query is empty: expected a sentence, or --image FILE")
        return self._encode("caption", text, PIL.Image.new("RGB", (64, 64)))

    def image(self, path: Path) -> NDArray[np.float32]:
        """(E,) embedding of an image; raises `ImageError` where it cannot be read."""
        return self._encode("image", "a picture", open_image(path))

    def _encode(
        self, side: SideName, text: str, query_image: PIL.Image.Image
    ) -> NDArray[np.float32]:
        with tempfile.TemporaryDirectory(prefix="hada-query-") as folder:
            stores = []
            for number, backbone in enumerate(self._backbones):
                dtype = self._like[number].spec.dtype
                stores.append(_store_one(backbone, f"{folder}/{number}", text, query_image, dtype))
            if self._fuse is None:
                return np.asarray(own_embeddings(stores[0], side)[0])
            image, caption = self._fuse(stores)
            return np.asarray((image if side == "image" else caption)[0], np.float32)


def _store_one(
    backbone: Any, path: str, text: str, query_image: PIL.Image.Image, dtype: str
) -> StoreReader:
    encoded: dict[SideName, Any] = {
        "image": backbone.encode_images(backbone.preprocess(query_image)[None]),
        "caption": backbone.encode_captions(backbone.tokenize([text])),
    }
    spec = StoreSpec(
        model=backbone.spec, dataset="query", split="query", dataset_digest="0", dtype=dtype
    )
    write_store(
        path,
        spec,
        ids={"image": ["query"], "caption": ["query"]},
        caption_to_image=np.zeros(1, np.int64),
        tokens={s: [e.values] for s, e in encoded.items() if e.values is not None},
        embeddings={s: e.embeddings for s, e in encoded.items() if e.embeddings is not None}
        or None,
    )
    return open_store(path)


def own_embeddings(store: StoreReader, side: SideName) -> NDArray[np.float32]:
    """(n, E) a model's own embeddings at unit length; failed items are zero, so they rank last."""
    values = (store.image if side == "image" else store.caption).embeddings()
    if values is None:
        raise UsageError(f"model {store.spec.model.name!r} has no joint space to search in")
    return np.asarray(unit_rows(np.nan_to_num(values.astype(np.float32))), np.float32)


def build_index(
    stores: Sequence[StoreReader], folder: RunFolder | None, side: SideName, device: str, path: Path
) -> tuple[Index, bool]:
    """The index of one side of a split: read from `path`, or built and saved there.

    Args:
        stores: One store per model of the run, or the one of a single model.
        folder: The run, or None for a single model.
        side: The side to search: `image` or `caption`.
        device: Where the run is applied.
        path: The index file. It is built again if the stores or the weights have changed.

    Returns:
        The index, and whether the file was there already.

    Raises:
        UsageError: The model has no joint space.
        RunError: The run does not fit the stores.
    """
    weights = "" if folder is None else weights_digest(folder.path)
    parts = [*(contents_of(store) for store in stores), weights, side]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    try:
        saved = Index.load(path, key)
    except FaultError as fault:
        say(f"{_first(fault)}. It is made anew")
    else:
        if saved is not None:
            return saved, True
    ids = (stores[0].image if side == "image" else stores[0].caption).ids
    if folder is None:
        index = Index(own_embeddings(stores[0], side), list(ids), key)
    else:
        embedded = embed_split(folder, stores, device=device)
        rows = embedded.image_rows if side == "image" else embedded.caption_rows
        values = embedded.image_IE if side == "image" else embedded.caption_TE
        index = Index(values, [ids[row] for row in rows], key)
    index.save(path, weights)
    return index, False
