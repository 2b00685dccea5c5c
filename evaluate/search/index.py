"""Search a split by text or image: a stored index, and queries encoded as the split was.

The index holds the run's (or a model's) embeddings, whose inner product is the score. It is exact,
and its file is mapped, not read, so that processes share its pages. `hada.evaluate.search.graph`
has the approximate one.

Shape letters: I images, E embedding width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.search.mapped import mapped, packed
from hada.extract.common import atomic
from hada.extract.common.arrays import unit_rows
from hada.extract.common.console import say
from hada.extract.common.errors import UsageError
from hada.extract.spec import SIDES, SideName
from hada.extract.store import StoreReader
from hada.fuse.embedding import Embedded, embed_split
from hada.fuse.run_files.features import contents_of
from hada.fuse.run_files.sealed import FaultError, check_sealed, write_sealed
from hada.fuse.run_folder import RunFolder, weights_digest
from hada.fuse.scores.item_nodes import ItemNodes, score_matrix

FORMAT = 4
# The first stage brings this many items to the second, which scores them by their nodes; see
# docs/fusion.md for what is lost against an exhaustive search.
DEPTH = 200
HOLDS = "index"
_NODES = ("vectors_SW", "weights_S", "lengths")
_OWN = "own "


@dataclass(frozen=True)
class Query:
    """What is searched by.

    Attributes:
        vector: (E,) its inner product with an index's embeddings is the first stage's score.
        embedded: What a run that matches nodes makes of it; None where one stage is all.
        side: What the query is, an `image` or a `caption`; None where it does not matter.
        plain: (E,) in place of `vector` where items of the query's own side are searched: without
            what items pay, which is a matter of images with captions.
        own: The models' own embeddings of it by name, (E_m,) at unit length.
    """

    vector: NDArray[np.float32]
    embedded: Embedded | None = None
    side: SideName | None = None
    plain: NDArray[np.float32] | None = None
    own: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def against(self, side: SideName) -> NDArray[np.float32]:
        """(E,) the vector that items of one side are compared with."""
        same = self.plain is not None and side == self.side
        return np.asarray(self.plain if same else self.vector, np.float32)

    def matches_nodes(self, side: SideName) -> bool:
        """Whether the second stage is for this query: nodes match an image with a caption."""
        return self.embedded is not None and side != self.side


@dataclass(frozen=True)
class SecondStage:
    """What the whole score of a run that matches nodes needs of the items of one side.

    Attributes:
        side: Of the items.
        cosines: (n, E) their inner product with the query's is the sum of cosines, uncorrected.
        nodes: Their nodes.
        paid: (n,) what they pay for their popularity in the whole score.
    """

    side: SideName
    cosines: NDArray[np.float32]
    nodes: ItemNodes
    paid: NDArray[np.float32]

    @classmethod
    def of(cls, embedded: Embedded, side: SideName) -> SecondStage | None:
        """The second stage of one side of a split; None where the run matches no nodes.

        Args:
            embedded: The split, as the run embeds it.
            side: The one that is searched.
        """
        if embedded.nodes is None or not embedded.node_share:
            return None
        number = SIDES.index(side)
        cosines, nodes = embedded.cosines()[number], embedded.nodes[number]
        paid = np.zeros(len(nodes), np.float32)
        if embedded.node_penalties is not None:
            paid = embedded.node_penalties[number]
        return cls(side, cosines, nodes, paid)

    def scores(self, query: Embedded, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(k,) the whole score of some items; the query's own payment changes no order.

        Args:
            query: One item of the other side, as the run embeds it.
            rows: (k,) rows of items.
        """
        assert query.nodes is not None
        asked = 1 - SIDES.index(self.side)
        items, one = self.nodes.take(rows), query.nodes[asked]
        pair = (items, one) if self.side == "image" else (one, items)
        matched = score_matrix(*pair, query.mirror).ravel()
        cosine = self.cosines[rows] @ query.cosines()[asked][0]
        return np.asarray(query.node_share * matched + cosine - self.paid[rows], np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As arrays by name, for the file of an index."""
        nodes = {f"nodes_{name}": value for name, value in vars(self.nodes).items()}
        return {"cosines": self.cosines, "paid": self.paid, **nodes}


@dataclass(frozen=True)
class Index:
    """(n, E) embeddings of one side of a split, with the ids of their items.

    second: What the second stage needs; None where one stage is all. own: per model with a joint
    space (n, E_m) its own embeddings at unit length, for its score beside the run's.
    """

    embeddings: NDArray[np.float32]
    ids: list[str]
    key: str
    second: SecondStage | None = None
    side: SideName = "image"
    own: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def top(
        self, query: Query | NDArray[np.float32], count: int, depth: int = DEPTH
    ) -> list[tuple[int, float]]:
        """Rows and scores of the best; equal scores in the order of rows.

        The order is exact by the embeddings; where nodes are matched, the best `depth` by the
        embeddings are ordered anew by the whole score.

        >>> Index(np.eye(2, dtype=np.float32), ["a", "b"], "").top(np.array([0, 1.0]), 1)
        [(1, 1.0)]
        """
        asked = query if isinstance(query, Query) else Query(np.asarray(query, np.float32))
        return self.tops([asked], count, depth)[0]

    def tops(
        self, queries: Sequence[Query], count: int, depth: int = DEPTH
    ) -> list[list[tuple[int, float]]]:
        """`top` of several queries, whose products with the embeddings are computed together."""
        vectors = np.stack([query.against(self.side) for query in queries])
        found = []
        for query, scores in zip(queries, vectors @ self.embeddings.T, strict=True):
            if self.second is None or not query.matches_nodes(self.side):
                rows = best_rows(scores, count)
                found.append([(int(row), float(scores[row])) for row in rows])
            else:
                found.append(self.again(query, best_rows(scores, max(count, depth)), count))
        return found

    def own_scores(self, query: Query, row: int) -> dict[str, float]:
        """Each model's own cosine of a query and an item."""
        return {
            name: float(values[row] @ query.own[name])
            for name, values in self.own.items()
            if name in query.own
        }

    def own_ranks(self, query: Query, rows: Sequence[int]) -> dict[str, list[int]]:
        """Per model the rank of some items by its own cosine alone, from 1.

        One more than the number of items with a larger cosine: equal ones share a rank. Every item
        is scored, so that it takes as long as a first stage for each model.
        """
        ranks = {}
        for name, values in self.own.items():
            if name in query.own:
                scores = values @ query.own[name]
                larger = np.searchsorted(np.sort(-scores), -scores[list(rows)], "left")
                ranks[name] = (1 + larger).tolist()
        return ranks

    def again(self, query: Query, rows: NDArray[np.int64], count: int) -> list[tuple[int, float]]:
        """The best of some rows by the whole score: the second stage."""
        assert self.second is not None
        assert query.embedded is not None
        scores = self.second.scores(query.embedded, rows)
        order = np.argsort(-scores, kind="stable")[:count]
        return [(int(rows[k]), float(scores[k])) for k in order]

    def save(self, path: Path, weights: str = "") -> None:
        """Write it as one file that NumPy opens; `weights` is the digest of a run's weights."""
        more = {} if self.second is None else self.second.arrays()
        more |= {f"{_OWN}{name}": values for name, values in self.own.items()}
        arrays: dict[str, Any] = {"ids": np.array(self.ids), "embeddings": self.embeddings, **more}
        head = {"holds": HOLDS, "format": FORMAT, "key": self.key, "weights": weights}
        with atomic.writing(path) as file:
            write_sealed(file, packed(arrays), head)

    @classmethod
    def load(cls, path: Path, key: str, side: SideName = "image") -> Index | None:
        """The saved index of a side, None where there is none.

        Raises:
            FaultError: It is damaged, or of other weights or features.
        """
        if not path.exists():
            return None
        check_copy(path, HOLDS, key)
        try:
            file = mapped(path)
            ids, embeddings = file["ids"], file["embeddings"]
            second = None
            if "cosines" in file:
                nodes = ItemNodes(*(file[f"nodes_{name}"] for name in _NODES))
                second = SecondStage(side, file["cosines"], nodes, file["paid"])
            own = {n.removeprefix(_OWN): file[n] for n in file if n.startswith(_OWN)}
            if embeddings.ndim != 2 or ids.shape != embeddings.shape[:1] or ids.dtype.kind != "U":
                raise ValueError("its arrays do not fit each other")
        except Exception as error:  # a checksum of ours, and contents that are not
            raise FaultError("damaged", path, str(error), "remove it") from error
        return cls(embeddings, ids.tolist(), key, second, side, own)


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


def best_rows(scores_n: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The rows of the largest numbers, largest first, equal ones in the order of rows.

    >>> best_rows(np.array([1, 3, 2, 3], np.float32), 3).tolist()
    [1, 3, 2]

    Args:
        scores_n: Of all items.
        count: How many rows; fewer where there are fewer items.
    """
    if count >= len(scores_n):
        return np.asarray(np.argsort(-scores_n, kind="stable"))
    # Sorting all of a large set takes longer than scoring it.
    least = np.partition(scores_n, len(scores_n) - count)[len(scores_n) - count]
    rows = np.flatnonzero(scores_n >= least)
    return np.asarray(rows[np.argsort(-scores_n[rows], kind="stable")][:count])


def first_line(error: Exception) -> str:
    """What is wrong, without its remedy, which is about to be done."""
    if isinstance(error, FaultError):
        return f"{error.file}: {error.kind}: {error.reason}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
        saved = Index.load(path, key, side)
    except FaultError as fault:
        say(f"{first_line(fault)}. It is made anew")
    else:
        if saved is not None:
            return saved, True
    ids = stores[0].side(side).ids
    if folder is None:
        index = Index(own_embeddings(stores[0], side), list(ids), key, side=side)
    else:
        embedded = embed_split(folder, stores, device=device)
        rows = embedded.image_rows if side == "image" else embedded.caption_rows
        values = embedded.image_IE if side == "image" else embedded.caption_TE
        second = SecondStage.of(embedded, side)
        own = {
            store.spec.model.name: own_embeddings(store, side)[rows]
            for store in stores
            if store.spec.model.embedding_width is not None
        }
        index = Index(values, [ids[row] for row in rows], key, second, side, own)
    try:
        index.save(path, weights)
    except OSError as error:
        say(f"{path}: the index is not kept, so that every command makes it: {error.strerror}")
    return index, False
