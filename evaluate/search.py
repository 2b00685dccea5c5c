"""Search a split by text or picture: an index made once, and a query encoded like the split was.

The index holds the run's (or a model's) embeddings, whose inner product is the score. It is exact;
with the extra `faiss` an approximate one can stand in for it, and is then measured against it.

Shape letters: I images, E embedding width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract import atomic
from hada.extract.errors import StoreError, UsageError
from hada.extract.images import open_image
from hada.extract.spec import SideName
from hada.extract.store import StoreReader, write_store
from hada.extract.store import open_store as open_one

FORMAT = 1


@dataclass(frozen=True)
class Hit:
    """One result: its place from 1, its score, its row and id, and where it lies or what it says."""

    place: int
    score: float
    row: int
    id: str
    what: str


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

    def save(self, path: Path) -> None:
        """Write it as one file that NumPy opens."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = np.frombuffer(json.dumps({"format": FORMAT, "key": self.key}).encode(), np.uint8)
        names = np.array(self.ids)
        with atomic.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, head=head, ids=names, embeddings=self.embeddings)

    @classmethod
    def load(cls, path: Path, key: str) -> Index | None:
        """The saved index, or None where there is none or it is of other features."""
        try:
            with np.load(path, allow_pickle=False) as file:
                head = json.loads(file["head"].tobytes())
                if head != {"format": FORMAT, "key": key}:
                    return None
                return cls(file["embeddings"], file["ids"].tolist(), key)
        except (OSError, ValueError, KeyError):
            return None


def faiss_top(index: Index, query_E: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
    """The best by faiss's HNSW; raises `UsageError` where the package is missing."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise UsageError(
            "--faiss needs the package faiss, which is not installed: pip install 'hada[faiss]'"
        ) from error
    graph = faiss.IndexHNSWFlat(index.embeddings.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = max(64, 4 * count)
    graph.add(index.embeddings)
    scores, rows = graph.search(query_E[None].astype(np.float32), count)
    return [(int(row), float(score)) for row, score in zip(rows[0], scores[0], strict=True)]


@dataclass(frozen=True)
class Encoder:
    """The frozen models, and the fusion where there is one, loaded once for any number of queries.

    `shares` weigh a run's cosines as its score does.
    """

    backbones: Sequence[Any]
    fuse: Callable[[Sequence[StoreReader]], Any] | None

    def text(self, text: str) -> NDArray[np.float32]:
        """(E,) embedding of a caption."""
        if not text.strip():
            raise UsageError("the query is empty: expected a sentence or --image FILE")
        return self._encode("caption", text)

    def image(self, path: Path) -> NDArray[np.float32]:
        """(E,) embedding of a picture; raises `ImageError` where it cannot be read."""
        return self._encode("image", path)

    def _encode(self, side: SideName, query: Any) -> NDArray[np.float32]:
        # A store of one image and one caption, so that a query passes through the very code that
        # the split passed through. The other side is a stand-in that nobody reads.
        import tempfile

        text = query if side == "caption" else "a picture"
        with tempfile.TemporaryDirectory(prefix="hada-query-") as folder:
            stores = []
            for number, backbone in enumerate(self.backbones):
                place = f"{folder}/{number}"
                _store_one(backbone, place, text, query if side == "image" else None)
                stores.append(open_one(place))
            if self.fuse is None:
                return _own(stores[0], side)
            image, caption = self.fuse(stores)
            return np.asarray((image if side == "image" else caption)[0], np.float32)


def _store_one(backbone: Any, place: str, text: str, path: Path | None) -> None:
    import PIL.Image

    from hada.extract.spec import StoreSpec

    picture = PIL.Image.new("RGB", (64, 64)) if path is None else open_image(path)
    image = backbone.encode_images(backbone.preprocess(picture)[None])
    caption = backbone.encode_captions(backbone.tokenize([text]))
    spec = StoreSpec(
        model=backbone.spec, dataset="query", split="query", dataset_digest="0", dtype="float32"
    )
    tokens: dict[SideName, Any] = {
        side: (found.values, found.lengths)
        for side, found in (("image", image), ("caption", caption))
        if found.values is not None
    }
    embeddings: dict[SideName, Any] = {
        side: found.embeddings
        for side, found in (("image", image), ("caption", caption))
        if found.embeddings is not None
    }
    write_store(
        place,
        spec,
        ids={"image": ["query"], "caption": ["query"]},
        caption_to_image=np.zeros(1, np.int64),
        tokens=tokens,
        embeddings=embeddings,
    )


def _own(store: StoreReader, side: SideName) -> NDArray[np.float32]:
    values = (store.image if side == "image" else store.caption).embeddings()
    if values is None:
        raise StoreError(f"model {store.spec.model.name!r} has no joint space to search in")
    row = values[0].astype(np.float32)
    return np.asarray(row / np.linalg.norm(row), np.float32)


def index_key(stores: Sequence[StoreReader], weights: bytes, side: str) -> str:
    """What an index depends on: the stores, the fusion's weights and the side."""
    parts = [store.spec.digest() for store in stores] + [hashlib.sha256(weights).hexdigest(), side]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
