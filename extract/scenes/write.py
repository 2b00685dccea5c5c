"""The `scenes` data set on disk: Karpathy's JSON, a folder of pictures, and a marker.

    root/
      dataset_scenes.json   {"dataset": "scenes", "images": [{"filename", "imgid", "split", ...}]}
      images/               test_000000.png, ...
      scenes.json           the parameters, counts and digest; its presence says: complete
      classes.json, labels.json   what is in which picture, for zero-shot classification

Every picture and caption depends on (seed, split, index) alone, so neither the order of drawing
nor the size of a split changes any of them, and the same parameters give the same bytes anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hada.extract.common import atomic
from hada.extract.common.errors import DatasetError, UsageError
from hada.extract.scenes.classes import write_classes
from hada.extract.scenes.draw import encode_png, render
from hada.extract.scenes.grammar import PEOPLE, write_captions
from hada.extract.scenes.words import tokens
from hada.extract.scenes.world import Dice, sample_scene

ANNOTATIONS = "dataset_scenes.json"
IMAGES = "images"
MARKER = "scenes.json"
CAPTIONS_PER_IMAGE = 5
GENERATOR = 2  # raise it when world, draw or grammar change what a seed gives


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSummary:
    """What lies in `root`: pictures per split, their captions, bytes on disk.

    `digest` is the SHA-256 over the annotations and all pictures; `kept` is True where a complete
    set with the same parameters was there already and nothing was written.
    """

    root: Path
    images: dict[str, int]
    captions: int
    seed: int
    digest: str
    n_bytes: int
    kept: bool


def captions_of(seed: int, split: str, index: int) -> list[str]:
    """The five captions of one picture.

    Args:
        seed: Of the data set.
        split: The name of the split.
        index: The number of the picture in it, from 0.
    """
    dice = Dice(seed, split, index, "captions")
    return write_captions(sample_scene(seed, split, index), PEOPLE, dice, CAPTIONS_PER_IMAGE)


def write_scenes(
    root: Path,
    *,
    train: int = 4000,
    val: int = 500,
    test: int = 1000,
    seed: int = 0,
    fresh: bool = False,
    progress: Callable[[int], None] | None = None,
) -> SceneSummary:
    """Make the data set in a folder, whole or not at all.

    A complete set with the same parameters is kept. A set with other parameters, or one that is
    damaged, is replaced only with `fresh`; a folder that holds anything else is never touched.

    Args:
        root: The folder.
        train: Pictures of that split.
        val: Pictures of that split.
        test: Pictures of that split.
        seed: Of all that is drawn.
        fresh: Whether a set with other parameters is replaced.
        progress: Is called with the number of pictures just written.

    Raises:
        UsageError: A size is negative, or all are 0.
        DatasetError: Something else is in the folder, or a set that only `fresh` replaces.
    """
    counts = {"train": train, "val": val, "test": test}
    if min(counts.values()) < 0 or not any(counts.values()):
        raise UsageError(f"scenes: sizes must be 0 or more and not all 0, got {counts}")
    wanted = {"generator": GENERATOR, "seed": seed, "images": counts}
    kept = _existing(root, wanted, fresh)
    if kept is not None:
        if os.access(root, os.W_OK):  # a set of before there were these files lacks them
            write_classes(root, seed, counts)
        return kept
    root = root.absolute()
    atomic.make_folder(root.parent)
    hidden = root.with_name(f".{root.name}")
    atomic.remove_leftovers(hidden)
    partial = atomic.temporary_name(hidden)
    try:
        _fill(partial, wanted, progress or (lambda n: None))
        # What was there is a set of ours or empty (`_existing`).
        atomic.put_folder(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    written = _read(root)
    assert written is not None, "the marker was just written"
    return _summary(root, written, kept=False)


def _fill(folder: Path, wanted: dict[str, Any], progress: Callable[[int], None]) -> None:
    """Write pictures, annotations and, last, the marker into a new folder."""
    (folder / IMAGES).mkdir(parents=True)
    seed = int(wanted["seed"])
    rows: list[dict[str, Any]] = []
    pictures = hashlib.sha256()
    n_bytes = 0
    for split, count in wanted["images"].items():
        for index in range(count):
            row, png = entry(seed, split, index, len(rows))
            atomic.write_new(folder / IMAGES / row["filename"], png, durable=False)
            pictures.update(png)
            n_bytes += len(png)
            rows.append(row)
            progress(1)
    annotations = _json({"dataset": "scenes", "images": rows})
    atomic.write_new(folder / ANNOTATIONS, annotations)
    digest = hashlib.sha256(annotations + pictures.digest()).hexdigest()
    marker = {**wanted, "digest": digest, "bytes": n_bytes + len(annotations)}
    write_classes(folder, seed, wanted["images"])
    atomic.write_new(folder / MARKER, _json(marker))
    for path in (folder / IMAGES, folder):
        atomic.sync(path)


def entry(seed: int, split: str, index: int, imgid: int) -> tuple[dict[str, Any], bytes]:
    """One picture's row of the annotations, and its PNG.

    Args:
        seed: Of the data set.
        split: The name of the split.
        index: The picture's number in it, from 0.
        imgid: The picture's number in the whole set, from 0.
    """
    first = imgid * CAPTIONS_PER_IMAGE
    captions = captions_of(seed, split, index)
    row = {
        "filename": f"{split}_{index:06d}.png",
        "imgid": imgid,
        "split": split,
        "sentids": list(range(first, first + len(captions))),
        "sentences": [
            {"raw": text, "tokens": tokens(text), "imgid": imgid, "sentid": first + number}
            for number, text in enumerate(captions)
        ],
    }
    return row, encode_png(render(sample_scene(seed, split, index)))


def _json(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode("ascii") + b"\n"


def _existing(root: Path, wanted: dict[str, Any], fresh: bool) -> SceneSummary | None:
    """The set that is there and may stay, or None where one may be written."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    marker = _read(root)
    if marker is None:
        raise DatasetError(
            f"scenes: {str(root)!r} exists and is no `scenes` data set. "
            "Choose another folder, or remove it yourself."
        )
    problem = _difference(root, marker, wanted)
    if fresh:
        return None
    if problem:
        raise DatasetError(
            f"scenes: {str(root)!r} {problem}. Ask for it to be made afresh (--fresh), "
            "or choose another folder."
        )
    return _summary(root, marker, kept=True)


def _difference(root: Path, marker: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What keeps this set from being the wanted one, "" if nothing does."""
    for name, value in wanted.items():
        if marker.get(name) != value:
            return f"was made with {name} {marker.get(name)!r}, not {value!r}"
    try:
        with os.scandir(root / IMAGES) as files:
            sizes = [file.stat().st_size for file in files]
        n_bytes = sum(sizes) + (root / ANNOTATIONS).stat().st_size
    except OSError as error:
        return f"is damaged ({error.strerror}: {error.filename})"
    expected = sum(wanted["images"].values())
    if len(sizes) != expected or n_bytes != marker.get("bytes"):
        return (
            f"is damaged (expected {expected} pictures and {marker.get('bytes')} bytes, "
            f"found {len(sizes)} and {n_bytes})"
        )
    return ""


def _read(root: Path) -> dict[str, Any] | None:
    """The marker of a set, or None where there is none that can be read."""
    try:
        marker = json.loads((root / MARKER).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and "generator" in marker else None


def _summary(root: Path, marker: dict[str, Any], *, kept: bool) -> SceneSummary:
    images = {str(split): int(count) for split, count in marker["images"].items()}
    return SceneSummary(
        root=root,
        images=images,
        captions=CAPTIONS_PER_IMAGE * sum(images.values()),
        seed=int(marker["seed"]),
        digest=str(marker["digest"]),
        n_bytes=int(marker["bytes"]),
        kept=kept,
    )
