"""The record of a store: digests of everything that precedes its first feature.

The attributes hold the spec (`hada`) and the record (`hada_bound`): a digest of each part (spec,
the metadata of every array, the elements of ids, spans and image_index) and the root, which is the
digest of these. Markers name the root, so a shard of another store, split or model is foreign.
Attributes without a record are those of a store of the first schema; it is read as it always was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import atomic, remote
from hada.extract.common.errors import StoreError, UsageError
from hada.extract.spec import SIDES, SideName, StoreSpec
from hada.extract.store import digests, formats
from hada.extract.store.formats import Format

SPEC, BOUND = "hada", "hada_bound"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """The attributes of a store.

    root: what its markers must name, "" where it is not bound. parts: name -> digest.
    upgrading: it is being bound, so that markers may still be of the first schema.
    """

    folder: Path
    form: Format
    features: Path
    spec: StoreSpec
    attributes: dict[str, Any]
    root: str = ""
    parts: Mapping[str, str]
    upgrading: bool = False


@dataclass(frozen=True, kw_only=True)
class Contents:
    """metadata: of each array, and of what holds them (""). index: the small arrays."""

    metadata: dict[str, Any]
    index: dict[str, NDArray[Any]]


def locate(folder: Path) -> tuple[Format, Path]:
    """The format of a store and the folder of its features. Raises `StoreError` without one."""
    found = formats.find(folder)
    if found is None and not remote.is_remote(folder) and folder.is_symlink():
        raise UsageError(atomic.not_a_folder(folder))
    if found is None:
        raise StoreError(
            f"{folder}: there is no feature store. Make it first: hada-extract "
            f"--model {folder.name} --split {folder.parent.name} "
            f"--dataset {folder.parent.parent.name}"
        )
    return found


def read_record(folder: Path) -> Record:
    """The attributes of a store, complete or not; their own digest is compared.

    Raises `StoreError` where there is no store, or its attributes were changed.
    """
    form, features = locate(folder)
    attributes = form.attributes(features)
    if not isinstance(attributes.get(SPEC), dict):
        raise StoreError(f"{features}: holds arrays, but not ones that HADA wrote")
    spec = StoreSpec.from_json(attributes[SPEC])
    bound = attributes.get(BOUND)
    root, upgrading = "", False
    parts: dict[str, str] = {}
    if bound is not None:
        root, parts, upgrading = _parse(features, bound)
        if bound["attributes"] != attributes_digest(attributes):
            raise changed(folder, "its attributes are not those that were written")
    return Record(
        folder=folder,
        form=form,
        features=features,
        spec=spec,
        attributes=attributes,
        root=root,
        parts=parts,
        upgrading=upgrading,
    )


def _parse(features: Path, bound: Any) -> tuple[str, dict[str, str], bool]:
    try:
        if bound["schema"] != SCHEMA or bound["hash"] != digests.NAME:
            raise StoreError(
                f"{features}: its record is of schema {bound['schema']!r} with {bound['hash']!r}, "
                f"this version of HADA reads schema {SCHEMA} with {digests.NAME!r}. Read it with "
                "the version that wrote it, or extract the features again"
            )
        parts = {str(name): str(digest) for name, digest in bound["parts"].items()}
        root, upgrading = str(bound["root"]), bound.get("upgrading", False) is True
        wrong = digests.of_json(parts) != root or not isinstance(bound["attributes"], str)
    except (LookupError, TypeError, AttributeError) as error:
        raise changed(features.parent, f"its record cannot be read: {error!r}") from error
    if wrong:
        raise changed(features.parent, "its root is not the digest of its parts")
    return root, parts, upgrading


def changed(folder: Path, what: str) -> StoreError:
    """The error of a store whose frame is not the one that was made."""
    return StoreError(
        f"{folder}: {what}. What a store knows before its first feature cannot be mended: put "
        "the right files back, or start it again with --fresh."
    )


def attributes_digest(attributes: Mapping[str, Any]) -> str:
    """Digest of all attributes but the record."""
    return digests.of_json({key: value for key, value in attributes.items() if key != BOUND})


def with_record(
    attributes: Mapping[str, Any], root: str, parts: Mapping[str, str], *, upgrading: bool = False
) -> dict[str, Any]:
    """Attributes with the record that binds them.

    Args:
        attributes: Of the store.
        root: The digest of all parts.
        parts: Name of a part -> its digest.
        upgrading: Whether markers of the first schema may still be there.
    """
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "hash": digests.NAME,
        "root": root,
        "parts": dict(sorted(parts.items())),
        "attributes": attributes_digest(attributes),
    }
    if upgrading:
        record["upgrading"] = True
    return {**attributes, BOUND: record}


def bind(form: Format, features: Path, spec: StoreSpec, *, upgrading: bool = False) -> None:
    """Write the record of what lies there now.

    Args:
        form: Of the store.
        features: The folder of its arrays.
        spec: What it holds.
        upgrading: Whether markers of the first schema may still be there.
    """
    attributes = {k: v for k, v in form.attributes(features).items() if k != BOUND}
    parts = part_digests(form, attributes[SPEC], read_parts(form, features, spec))
    root = digests.of_json(parts)
    form.set_attributes(features, with_record(attributes, root, parts, upgrading=upgrading))


def index_names(spec: StoreSpec) -> dict[str, int]:
    """The small arrays of a store: name -> axes."""
    names = {"image/ids": 2, "caption/ids": 2, "caption/image_index": 1}
    for side in SIDES:
        tokens = spec.model.tokens(side)
        if tokens is not None and tokens.count is None:
            names[f"{side}/spans"] = 2
    return names


def shard_names(spec: StoreSpec, side: SideName) -> dict[str, int]:
    """The arrays of a side that lie in shards: name -> axes."""
    names, tokens = {}, spec.model.tokens(side)
    if tokens is not None:
        axes = 2 if tokens.count is None else 3
        names[f"{side}/tokens"] = axes
        if spec.dtype == "int8":
            names[f"{side}/steps"] = axes
    if spec.model.embedding_width is not None:
        names[f"{side}/embeddings"] = 2
    return names


def all_names(spec: StoreSpec) -> dict[str, int]:
    """Every array that the spec declares."""
    return index_names(spec) | shard_names(spec, "image") | shard_names(spec, "caption")


def read_parts(form: Format, features: Path, spec: StoreSpec) -> Contents:
    """Metadata and small arrays. Raises `StoreError` where one is missing or damaged."""
    metadata = form.metadata(features, all_names(spec))
    return Contents(metadata=metadata, index=form.whole(features, index_names(spec), metadata))


def part_digests(form: Format, spec: Mapping[str, Any], contents: Contents) -> dict[str, str]:
    """The digest of each part: "spec", "metadata/NAME" and "index/NAME"."""
    parts = {"format": digests.of_json(form.name), "spec": digests.of_json(spec)}
    parts |= {f"metadata/{name}": digests.of_json(m) for name, m in contents.metadata.items()}
    parts |= {f"index/{name}": digests.of_array(a) for name, a in contents.index.items()}
    return parts


def read_contents(record: Record) -> Contents:
    """What a store knows before its first feature, compared with its record where it has one.

    Raises `StoreError`: a part is missing, damaged, or not the one that was written.
    """
    contents = read_parts(record.form, record.features, record.spec)
    if record.root:
        found = part_digests(record.form, record.attributes[SPEC], contents)
        names = sorted(found.keys() | record.parts.keys())
        wrong = [name for name in names if found.get(name) != record.parts.get(name)]
        if wrong:
            raise changed(record.folder, f"{_listed(wrong)} not as written")
    _check_shapes(record, contents)
    return contents


def _listed(parts: list[str]) -> str:
    said = [name.removesuffix("/") for name in parts]
    return (
        f"{', '.join(said[:4])}{' and more' * (len(said) > 4)} {'is' if len(said) == 1 else 'are'}"
    )


def _check_shapes(record: Record, contents: Contents) -> None:
    """The small arrays must be what they are read as, in stores without a record, too."""
    kinds = {"ids": (np.dtype(np.uint8), 2), "spans": (np.dtype(np.int64), 2)}
    for name, values in contents.index.items():
        dtype, axes = kinds.get(name.rpartition("/")[2], (np.dtype(np.int64), 1))
        if values.dtype != dtype or values.ndim != axes:
            raise changed(
                record.folder,
                f"{name}: expected {axes} axes of {dtype}, got {values.shape} {values.dtype}",
            )
