"""Late interaction over a frozen model's stored tokens: nothing is trained.

A multi-vector model (ColBERT, ColPali) is trained for it: its tokens are matched as they are
stored. Those of any other model lie in two spaces. Where the model has embeddings, a linear map
takes each side's tokens there: the one that makes a global token its item's embedding, by least
squares over items of a training split. CLIP's, BLIP's and most models' embeddings are such a
projection of the global token, so the map is theirs.

Which rows count: all that are stored, padding never is. A row in front that stands for the whole
without being one of the model's tokens (`global_source: pooled`) is left out, as the libraries of
multi-vector models know none; [CLS] and other special tokens count, as they do there.

Shape letters: n items, S packed tokens, D token width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import NonFiniteError, UsageError
from hada.extract.spec import SIDES, ModelSpec, SideName
from hada.extract.store import StoreReader
from hada.fuse.scores.item_nodes import ItemNodes

# Numbers that are read from a store and widened at once: 64 MiB.
READ_NUMBERS = 1 << 24
# Items of a training split that fit the map, and the share of the mean variance that is added.
FIT_ITEMS = 5000
RIDGE = 1e-4
# Stored float16 rows this near to unit length are taken as they are.
UNIT = 2e-3
_CLASS, _DECLARED = "MultiVectorEncoder", "late_interaction"


@dataclass(frozen=True)
class Projection:
    """A linear map of one side's tokens.

    weight_DE: float32. bias_E: float32. explained: share of the embeddings' variance that it gives
    on the items that fitted it.
    """

    weight_DE: NDArray[np.float32]
    bias_E: NDArray[np.float32]
    explained: float


@dataclass(frozen=True)
class TokenSpace:
    """How a model's tokens are matched.

    model: Its name.
    projections: Of images and captions; None where the tokens are matched as they are stored.
    mirror: See `hada.fuse.network.maxsim`; 0 is MaxSim, a sum over the caption's tokens alone.
    """

    model: str
    projections: tuple[Projection, Projection] | None = None
    mirror: float = 0.0

    @classmethod
    def of(cls, train: StoreReader) -> Self:
        """The way for a model, fitted on a training split where its tokens share no space.

        Raises:
            UsageError: The store holds no tokens of a side, or the model has no embeddings.
        """
        model = train.spec.model
        if trained_for_it(model):
            return cls(model.name)
        check_tokens(model)
        image, caption = (_fitted(train, side) for side in SIDES)
        return cls(model.name, (image, caption))

    def nodes(
        self, store: StoreReader, images: NDArray[np.int64], captions: NDArray[np.int64]
    ) -> tuple[ItemNodes, ItemNodes]:
        """The tokens of some rows of a store of this model, as nodes that weigh the same."""
        maps: tuple[Projection | None, ...] = self.projections or (None, None)
        image, caption = (
            _nodes(store, side, rows, projection)
            for side, rows, projection in zip(SIDES, (images, captions), maps, strict=True)
        )
        return image, caption

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """As arrays by name, for the file of a run's weights."""
        found: dict[str, NDArray[np.generic]] = {
            "model": np.frombuffer(self.model.encode(), np.uint8).copy(),
            "mirror": np.array(self.mirror, np.float64),
        }
        for side, one in zip(SIDES, self.projections or (), strict=False):
            found |= {f"{side}.weight": one.weight_DE, f"{side}.bias": one.bias_E}
            found[f"{side}.explained"] = np.array(one.explained, np.float64)
        return found

    @classmethod
    def from_arrays(cls, found: Mapping[str, NDArray[np.generic]]) -> Self:
        """Back from `arrays`."""
        projections = None
        if "image.weight" in found:
            image, caption = (
                Projection(
                    found[f"{side}.weight"].astype(np.float32),
                    found[f"{side}.bias"].astype(np.float32),
                    float(found[f"{side}.explained"].item()),
                )
                for side in SIDES
            )
            projections = image, caption
        name = found["model"].astype(np.uint8).tobytes().decode()
        return cls(name, projections, float(found["mirror"].item()))


def trained_for_it(model: ModelSpec) -> bool:
    """Whether a model's stored tokens are vectors that late interaction was trained on.

    So says a multi-vector model of sentence-transformers, and any other backbone whose spec has
    `preprocessing: {"late_interaction": True}`.
    """
    said = model.preprocessing
    declared = said.get(_DECLARED) is True or said.get("class") == _CLASS
    image, caption = model.image, model.caption
    return declared and image is not None and caption is not None and image.width == caption.width


def check_tokens(model: ModelSpec) -> None:
    """Raise `UsageError` where a model's tokens cannot be matched."""
    for side in SIDES:
        if model.tokens(side) is None:
            raise UsageError(
                f"late interaction of {model.name!r}: its store keeps no {side} tokens; extract "
                "them (hada-extract --tokens all), or name another model"
            )
    if model.embedding_width is None and not trained_for_it(model):
        raise UsageError(
            f"late interaction of {model.name!r}: its image and caption tokens have no common "
            "space, and the model has no embeddings to map them to; name a multi-vector model or "
            "one with a joint space"
        )


def _fitted(store: StoreReader, side: SideName) -> Projection:
    """The map of global tokens to embeddings with the least squares."""
    reader, tokens = store.side(side), store.spec.model.tokens(side)
    assert tokens is not None, "checked"
    whole = np.flatnonzero(~reader.failed)
    rows = whole[np.unique(np.linspace(0, len(whole) - 1, min(len(whole), FIT_ITEMS)).astype(int))]
    values = reader.embeddings(rows)
    assert values is not None, "checked"
    globals_nD = np.empty((len(rows), tokens.width), np.float64)
    for some in _blocks(reader.lengths[rows], tokens.width):
        ends = np.cumsum(reader.lengths[rows[some]])
        places = ends - 1 if tokens.global_token == "last" else ends - reader.lengths[rows[some]]
        globals_nD[some] = reader.tokens(rows[some])[places]
    wanted_nE = values.astype(np.float64)
    mean_D, mean_E = globals_nD.mean(0), wanted_nE.mean(0)
    centred, target = globals_nD - mean_D, wanted_nE - mean_E
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram) + np.finfo(float).tiny
    weight_DE = np.linalg.solve(gram, centred.T @ target)
    left = ((target - centred @ weight_DE) ** 2).sum() / max((target**2).sum(), 1e-30)
    bias_E = mean_E - mean_D @ weight_DE
    return Projection(weight_DE.astype(np.float32), bias_E.astype(np.float32), float(1 - left))


def _nodes(
    store: StoreReader, side: SideName, rows: NDArray[np.int64], projection: Projection | None
) -> ItemNodes:
    """The rows that count of some items, at unit length, in half precision as they are stored."""
    reader, tokens = store.side(side), store.spec.model.tokens(side)
    assert tokens is not None, "checked"
    width = tokens.width if projection is None else projection.weight_DE.shape[1]
    whole = reader.lengths[rows]
    # A lone row stays, whatever it is.
    dropped = (whole > 1).astype(np.int64) * (tokens.global_source == "pooled")
    lengths, ends = whole - dropped, np.cumsum(whole - dropped)
    vectors_SW = np.empty((int(lengths.sum()), width), np.float16)
    for some in _blocks(whole, tokens.width):
        block = reader.tokens(rows[some])
        counts = np.cumsum(whole[some])
        counts = counts - 1 if tokens.global_token == "last" else counts - whole[some]
        block = np.delete(block, counts[dropped[some] > 0], axis=0).astype(np.float32)
        if projection is not None:
            block = block @ projection.weight_DE + projection.bias_E
        if not np.isfinite(block).all():
            raise NonFiniteError(f"{store.path}: {side} tokens are not finite; extract them again")
        norm = np.linalg.norm(block, axis=1, keepdims=True)
        if projection is not None or (np.abs(norm - 1) > UNIT).any():
            block = block / np.maximum(norm, np.finfo(np.float32).tiny)
        vectors_SW[ends[some[0]] - lengths[some[0]] : ends[some[-1]]] = block
    weights_S = np.repeat((1 / np.maximum(lengths, 1)).astype(np.float32), lengths)
    return ItemNodes(vectors_SW, weights_S, lengths)


def _blocks(lengths: NDArray[np.int64], width: int) -> list[NDArray[np.int64]]:
    """Items in order, in pieces of about `READ_NUMBERS` numbers."""
    if not len(lengths):
        return []
    piece = np.cumsum(lengths * width) // READ_NUMBERS
    return np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(piece)) + 1)
