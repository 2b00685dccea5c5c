"""The specifications of models and stores, declared before any data.

Both are plain frozen records that travel as JSON inside a store, so that another machine, on
another day, can tell whether features fit. NumPy is not even needed here.

Shape letters used in all of HADA: I images, T captions, N tokens, D token width,
E embedding width, B batch, M models, H heads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from hada.extract.common.differences import differences
from hada.extract.common.errors import StoreError

SCHEMA_VERSION = 1
STORE_DTYPES = ("float16", "float32", "bfloat16", "int8")

SideName = Literal["image", "caption"]
SIDES: tuple[SideName, SideName] = ("image", "caption")


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """The tokens of one item, as the backbone's last hidden layer gives them after its norm.

    `count` is N where every item has the same number of tokens and None where it varies.
    The global token stands for the whole item: it is the `first` (CLS) or the `last` (EOT) row.
    A backbone without such a token puts its pooled vector, unprojected and as wide as a token,
    in front of the others; `global_source` then says "pooled". `pooled` is K where an item's
    tokens were averaged to at most K rows (`hada.extract.store.pooling`), None where all are
    kept.
    """

    width: int
    count: int | None
    global_token: Literal["first", "last"] = "first"
    global_source: Literal["token", "pooled"] = "token"
    pooled: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Identity and shapes of one frozen model: all that decides what its features are.

    `embedding_width` is E of the joint space, or None where the model has none (UNITER).
    `normalized` tells whether embeddings are stored with unit length; they are stored as the
    backbone gives them. `preprocessing` and `libraries` name what turned files into input.
    """

    name: str
    family: str
    weights_digest: str
    embedding_width: int | None
    normalized: bool
    image: TokenSpec | None
    caption: TokenSpec | None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    libraries: dict[str, str] = field(default_factory=dict)

    def tokens(self, side: SideName) -> TokenSpec | None:
        """The token spec of one side, None where only the embedding is kept."""
        return self.image if side == "image" else self.caption


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """What one store holds: one model on one split of one dataset."""

    model: ModelSpec
    dataset: str
    split: str
    dataset_digest: str
    dtype: str = "float16"
    rows_per_shard: dict[SideName, int] = field(
        default_factory=lambda: {"image": 256, "caption": 2048}
    )
    schema: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        value = dataclasses.asdict(self)
        for side in SIDES:
            # A store of all tokens says what it said before there were others.
            tokens = value["model"][side]
            if tokens is not None and tokens["pooled"] is None:
                del tokens["pooled"]
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Back from `to_json`; raises `StoreError` where fields are missing or unknown."""
        if not isinstance(value, dict):
            raise StoreError("the store's attributes are not a HADA spec: expected a mapping")
        if value.get("schema") != SCHEMA_VERSION:
            raise StoreError(
                f"store schema: expected {SCHEMA_VERSION}, got {value.get('schema')!r}; "
                "extract the features again with this version of HADA"
            )
        try:
            raw = dict(value["model"])
            for side in SIDES:
                raw[side] = TokenSpec(**raw[side]) if raw[side] is not None else None
            spec = cls(**{**value, "model": ModelSpec(**raw)})
            _check_types(spec)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"the store's attributes are not a HADA spec: {error}") from error
        return spec

    def digest(self) -> str:
        """A short hash of the whole spec: equal digests mean interchangeable stores."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: StoreSpec) -> list[tuple[str, Any, Any]]:
        """The fields in which two specs differ, as (dotted name, own value, other value)."""
        return list(differences(self.to_json(), other.to_json()))


def _check_types(spec: StoreSpec) -> None:
    """Raise `ValueError` where a field is not what it must be: the file may hold anything."""
    model = spec.model
    texts: list[Any] = [model.name, model.family, model.weights_digest, model.precision]
    texts += [spec.dataset, spec.split, spec.dataset_digest]
    sizes: list[Any] = [spec.rows_per_shard[side] for side in SIDES]
    sizes += [] if model.embedding_width is None else [model.embedding_width]
    kinds = set()
    for tokens in (model.image, model.caption):
        if tokens is not None:
            sizes += [tokens.width]
            sizes += [size for size in (tokens.count, tokens.pooled) if size is not None]
            kinds |= {tokens.global_token, tokens.global_source}
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("names and digests must be texts")
    if not all(type(size) is int and 0 < size < 2**40 for size in sizes):
        raise ValueError("widths, counts and rows of a shard must be positive integers")
    if set(spec.rows_per_shard) != set(SIDES) or type(model.normalized) is not bool:
        raise ValueError("rows_per_shard or normalized is not what it must be")
    if spec.dtype not in STORE_DTYPES or not kinds <= {"first", "last", "token", "pooled"}:
        raise ValueError(f"unknown dtype {spec.dtype!r} or unknown global token")
    if not (isinstance(model.preprocessing, dict) and isinstance(model.libraries, dict)):
        raise ValueError("preprocessing and libraries must be mappings")
