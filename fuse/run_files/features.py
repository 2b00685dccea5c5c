"""What a run records of the stores that it was trained on, and whether others hold the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hada.extract.common.errors import RunError, StoreMismatchError
from hada.extract.spec import SIDES
from hada.extract.store import StoreReader
from hada.extract.store.commit import read_markers
from hada.extract.store.pooling import ALL, describe
from hada.fuse.run_files.sealed import digest, digest_json


def features_of(store: StoreReader) -> dict[str, Any]:
    """What of a model must be the same wherever a run is used: recorded in its config."""
    spec = store.spec.model
    kept = describe(spec.image)
    return {
        "family": spec.family,
        "weights_digest": spec.weights_digest,
        "normalized": spec.normalized,
        # Not for all of them: runs made before there was a choice said nothing.
        **({} if kept == ALL else {"tokens": kept}),
    }


def contents_of(store: StoreReader) -> str:
    """A digest of a store's spec and of what its markers say of every shard's contents.

    A copy of what was made from the store is good as long as this stays the same.
    """
    readers = dict(zip(SIDES, (store.image, store.caption), strict=True))
    places = [
        (side, shard)
        for side, reader in readers.items()
        for shard in range(-(-len(reader.ids) // store.spec.rows_per_shard[side]))
    ]
    parts: list[Any] = [store.spec.digest()]
    bound = True
    for marker in read_markers(store.path, places).values():
        if isinstance(marker, Exception):
            raise marker
        if marker is not None:
            parts.append([marker.side, marker.shard, marker.files, marker.failed])
            bound &= bool(getattr(marker, "digest", ""))
    if not bound:
        # Markers of before stores were bound say little of the contents.
        for reader in readers.values():
            values = reader.embeddings()
            parts.append(None if values is None else digest(np.ascontiguousarray(values).data))
    return digest_json(parts)


def check_features(
    recorded: dict[str, Any], store: StoreReader, run: Path, *, inputs: str = "as-is"
) -> None:
    """Raise `RunError` where a store holds another model's features than the run learned from.

    Args:
        recorded: What `features_of` said when the run was made.
        store: What is to be fused now.
        run: Named in the message.
        inputs: The run's way with its inputs. Only "as-is" sees whether embeddings are of unit
            length; runs made before that was recorded are not asked.
    """
    now = features_of(store)
    seen = [field for field in dict.fromkeys([*now, *recorded]) if field != "normalized"]
    if inputs == "as-is" and "normalized" in recorded:
        seen.append("normalized")
    for field in seen:
        if recorded.get(field) != now.get(field):
            raise RunError(
                f"{run}: model {store.spec.model.name!r}: {field}: the run was trained on "
                f"{recorded.get(field)!r}, {store.path} holds {now.get(field)!r}; extract with "
                "the same weights and --tokens, or train again"
            )


def check_raw(store: StoreReader) -> None:
    """Raise `StoreMismatchError` for a store whose embeddings were brought to unit length.

    HADA-LAVIS fuses projections as the models give them; how long those are tells it something.
    """
    model = store.spec.model
    if model.normalized and model.embedding_width is not None:
        raise StoreMismatchError(
            f"{store.path}: holds embeddings of unit length (normalized: true); HADA-LAVIS fuses "
            "projections as the model gives them, as blip and albef are stored today. Extract "
            f"{model.name!r} again (hada-extract --fresh), or, where the model has no other "
            "embedding, --set raw_embeddings=false"
        )
