"""Structural edits of a store: parts swapped, replaced, replayed, renamed, edited, removed, added.

Each is a name and a function that edits a whole store in place. What they must meet:
`verify --deep` calls none of the results whole, and no reader returns a row that was not in the
store. `benchmarks/store_edits.py` runs all of them, `test_store_edits.py` some.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import makers
import numpy as np

from hada.extract.common.errors import HadaError
from hada.extract.spec import SIDES
from hada.extract.store import open_store
from hada.extract.store.check import check
from hada.extract.testing.store_contract import Content, signed

Edit = tuple[str, Callable[[Path], None]]
OTHERS = ("split", "model", "dtype", "older")


def make_stores(folder: Path, form: str) -> Path:
    """A store, and beside it one of another split, model, dtype, and an older one of its spec."""
    spec = makers.make_spec()
    whole = Content(spec, format=form)
    whole.write(folder / "whole")
    changes = {
        "split": replace(spec, split="test"),
        "model": makers.make_spec(weights_digest="1"),
        "dtype": makers.make_spec(dtype="float32"),
        "older": spec,
    }
    for name, other in changes.items():
        content = Content(other, format=form, seed=0 if name == "older" else 1)
        for side in SIDES:
            assert content.embeddings is not None
            content.embeddings[side] += 1
            content.tokens[side] = [tokens + 1 for tokens in content.tokens[side]]
        if name == "split":
            content.ids["image"] = [f"{k}.png" for k in range(5)]
        content.write(folder / name)
    return folder / "whole"


def content_of(path: Path) -> list[Any]:
    """Everything that a reader tells of a store."""
    store = open_store(path)
    found: list[Any] = [store.caption_to_image.tolist()]
    for side in (store.image, store.caption):
        embeddings = side.embeddings()
        found += [side.ids, side.lengths.tolist(), side.failed.tolist()]
        found += [None if embeddings is None else embeddings.tobytes()]
        found += [side.tokens(slice(None)).tobytes()]
    return found


def outcome(path: Path, truth: list[Any], *, deep: bool = True) -> tuple[bool, str]:
    """Whether `verify` calls a store whole, and what reading gives: "refused", "right", "wrong"."""
    whole = check(path, deep=deep).whole
    try:
        return whole, "right" if content_of(path) == truth else "wrong"
    except HadaError:
        return whole, "refused"


def edits(whole: Path) -> Iterator[Edit]:
    """All edits of the store that `make_stores` made; those that change nothing are left out."""
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    for other, name in itertools.product(OTHERS, files):
        source = whole.parent / other / name
        if source.exists() and source.read_bytes() != (whole / name).read_bytes():
            yield f"{name} of another {other}", _copy(source, name)
    for name in files:
        yield f"{name} removed", lambda path, name=name: (path / name).unlink()  # type: ignore[misc]
        yield f"{name} doubled", _copy(whole / name, name.with_name(f"9{name.name}"))
    shards = [name for name in files if _is_shard(name)]
    markers = [name for name in files if name.parent.name == "commit" and name.name != "seal.json"]
    for one, two in itertools.permutations([*shards, *markers], 2):
        if _array(one) == _array(two) and (whole / one).read_bytes() != (whole / two).read_bytes():
            yield f"{one} over {two}", _copy(whole / one, two)
            if one < two:
                yield f"{one} and {two} swapped", _swap([(one, two)])
    yield from _replays(whole, shards, markers)
    for marker in markers:
        yield from _marker_edits(marker)
    yield from _attribute_edits(whole)
    yield from _added(whole)


def _is_shard(name: Path) -> bool:
    inside = "c" in name.parts and not {"ids", "spans", "image_index"} & set(name.parts)
    return inside or (name.suffix == ".h5" and name.name != "index.h5")


def _array(name: Path) -> str:
    """What shards of one array, and markers of one side, have in common."""
    parts = name.parts
    return (
        str(Path(*parts[: parts.index("c")])) if "c" in parts else f"{name.parent}{name.name[:3]}"
    )


def _number(name: Path) -> tuple[str, int]:
    if name.parent.name == "commit":
        side, _, number = name.stem.partition("-")
        return side, int(number)
    at = name.parts.index("c") if "c" in name.parts else -2
    return name.parts[1], int(Path(name.parts[at + 1]).stem)


def _copy(source: Path, name: Path) -> Callable[[Path], None]:
    return lambda path: path.joinpath(name).write_bytes(source.read_bytes()) and None


def _swap(pairs: list[tuple[Path, Path]]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        for one, two in pairs:
            first, second = (path / one).read_bytes(), (path / two).read_bytes()
            (path / one).write_bytes(second)
            (path / two).write_bytes(first)

    return edit


def _replays(whole: Path, shards: list[Path], markers: list[Path]) -> Iterator[Edit]:
    """Shards with their markers: of an older version, of another store, or of another place."""

    def put(names: list[Path], other: Path) -> Callable[[Path], None]:
        def edit(path: Path) -> None:
            for name in names:
                (path / name).write_bytes((other / name).read_bytes())

        return edit

    for marker in markers:
        mine = [marker, *(name for name in shards if _number(name) == _number(marker))]
        for other in OTHERS:
            yield f"{marker.stem} and its files of another {other}", put(mine, whole.parent / other)
    for one, two in itertools.combinations(markers, 2):
        if _number(one)[0] == _number(two)[0]:
            pairs = [
                (a, b)
                for a in [one, *shards]
                for b in [two, *shards]
                if _array(a) == _array(b)
                and (_number(a), _number(b)) == (_number(one), _number(two))
            ]
            yield f"{one.stem} and {two.stem} swapped with their files", _swap(pairs)


def _marker_edits(marker: Path) -> Iterator[Edit]:
    side, shard = _number(marker)
    size = {"image": 2, "caption": 4}[side]
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "a row called failed": lambda m: m["failed"].update({str(shard * size): "broken"}),
        "a row of another shard called failed": lambda m: m["failed"].update({str(99): "broken"}),
        "another batch size": lambda m: m["provenance"].update(batch_size=7),
        "no files": lambda m: m.update(files={}),
        "no checksums of chunks": lambda m: m.update(crcs={}),
        "another checksum": lambda m: m["crcs"].update(dict.fromkeys(m["crcs"], "AAAAAA==")),
        "another root": lambda m: m.update(root="0" * 32),
        "another number": lambda m: m.update(shard=shard + 1),
        "another size": lambda m: m["files"][min(m["files"])].__setitem__(0, 1),
        "the first schema": lambda m: [m.pop(key) for key in ("root", "crcs", "digest")],
    }
    for (what, change), again in itertools.product(changes.items(), (False, True)):

        def edit(path: Path, change: Any = change, again: bool = again) -> None:
            value = json.loads((path / marker).read_text())
            change(value)
            value = signed(value) if again and "root" in value else value
            (path / marker).write_text(json.dumps(value))

        yield f"{marker.stem}: {what}{', signed' * again}", edit


def _attribute_edits(whole: Path) -> Iterator[Edit]:
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "another dataset": lambda a: a["hada"].update(dataset="coco"),
        "another split": lambda a: a["hada"].update(split="train"),
        "other weights": lambda a: a["hada"]["model"].update(weights_digest="9"),
        "unit length": lambda a: a["hada"]["model"].update(normalized=True),
        "no joint space": lambda a: a["hada"]["model"].update(embedding_width=None),
        "no tokens": lambda a: a["hada"]["model"].update(image=None),
        "other shards": lambda a: a["hada"]["rows_per_shard"].update(image=5),
        "an accepted difference": lambda a: a.update(hada_allowed_mismatches=[]),
        "no record": lambda a: a.pop("hada_bound"),
        "another root": lambda a: a["hada_bound"].update(root="0" * 32),
        "no parts": lambda a: a["hada_bound"].update(parts={}),
        "upgrading": lambda a: a["hada_bound"].update(upgrading=True),
    }
    for what, change in changes.items():

        def edit(path: Path, change: Any = change) -> None:
            file = path / "features.zarr" / "zarr.json"
            if file.exists():
                group = json.loads(file.read_text())
                change(group["attributes"])
                file.write_text(json.dumps(group))
                return
            with h5py.File(path / "features.hdf5" / "index.h5", "r+") as index:
                names = [name for name in index.attrs if name != "arrays"]
                values = {name: json.loads(index.attrs[name]) for name in names}
                change(values)
                for name in names:
                    del index.attrs[name]
                for name, value in values.items():
                    index.attrs[name] = json.dumps(value)

        yield f"attributes: {what}", edit


def _added(whole: Path) -> Iterator[Edit]:
    def folder(path: Path) -> None:
        shutil.copytree(
            path / "features.zarr" / "image" / "tokens", path / "features.zarr/image/more"
        )

    def dataset(path: Path) -> None:
        with h5py.File(path / "features.hdf5" / "index.h5", "r+") as index:
            index["image/more"] = np.arange(3)

    def fewer(path: Path) -> None:
        with h5py.File(path / "features.hdf5" / "index.h5", "r+") as index:
            arrays = json.loads(index.attrs["arrays"])
            del arrays["image/embeddings"]
            index.attrs["arrays"] = json.dumps(arrays)

    if (whole / "features.zarr").exists():
        yield "an array added", folder
        for name in ("image/embeddings", "caption/tokens", "caption/spans"):
            yield (
                f"{name} removed whole",
                lambda path, name=name: shutil.rmtree(path / "features.zarr" / name),  # type: ignore[misc]
            )
    else:
        yield "an array added", dataset
        yield "image/embeddings taken out of the index", fewer
