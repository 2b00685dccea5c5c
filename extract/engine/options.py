"""The options of an extraction, as one record that every step passes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hada.extract.common.errors import UsageError, nearest
from hada.extract.manifest import STORE_FORMATS
from hada.extract.spec import STORE_DTYPES, SideName
from hada.extract.store.pooling import ALL, pool_size

ON_ERROR = ("skip", "fail")


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How a store is filled; checked when it is made.

    Attributes:
        dtype: What the disk holds: "float16", "float32", "bfloat16" or "int8".
        tokens: Which tokens are kept: "all", "pool:K" or "none"; see
            `hada.extract.store.pooling`.
        batch_size: Items per forward pass; None takes what the store has, else what suits the
            device (`hada.extract.engine.batch_size`).
        workers: Processes that decode and preprocess images; 0 does it in threads.
        rows_per_shard: Items per shard for both sides; None takes what suits real models.
        format: "zarr" or "hdf5"; None goes on with what is there, and makes Zarr otherwise.
        allow_mismatch: Fields in which a store that is there may differ from what is asked for.
        force: Begin even where the disk has not the room for all of it.
        on_error: "skip" leaves out images that cannot be read and names them in the store's
            `errors.jsonl`; "fail" stops at the first.
        provenance: What else decided the features' last bits, for the shards' markers.

    Raises:
        UsageError: A value is none of these.
    """

    dtype: str = "float16"
    tokens: str = ALL
    batch_size: int | None = 32
    workers: int = 0
    rows_per_shard: Mapping[SideName, int] | None = None
    format: str | None = None
    allow_mismatch: tuple[str, ...] = ()
    force: bool = False
    on_error: str = "skip"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choices = {
            "dtype": STORE_DTYPES,
            "format": (None, *STORE_FORMATS),
            "on_error": ON_ERROR,
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                known = [choice for choice in allowed if choice is not None]
                raise UsageError(f"{name} {value!r}: {nearest(str(value), known)}")
        pool_size(self.tokens)
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.workers < 0:
            raise UsageError(f"workers: expected at least 0, got {self.workers}")
        if self.rows_per_shard is not None and min(self.rows_per_shard.values()) < 1:
            raise UsageError(f"rows_per_shard: expected at least 1, got {self.rows_per_shard}")
