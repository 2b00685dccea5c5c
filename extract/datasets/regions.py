"""Region features of a detector (bottom-up attention), read from the files that people have.

Layouts, told apart by their keys:

    UNITER / LightningDOT npz      norm_bb, features, conf
    their LMDB, plain and compressed (`feat_th0.2_max100_min10`, `all`, `..._compressed`)
    HADA's bottom-up-attention npz bbox_ft, bbox_pos, objects_conf, attrs_conf, image_w, image_h
    bottom-up-attention.pytorch npz x, bbox, image_w, image_h (its pickled `info` is never opened)
    the original bottom-up attention TSV

Letters: N regions, F feature width (2048).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import array_files
from hada.extract.common.errors import DatasetError, UsageError
from hada.extract.common.shapes import listed

# Tried in this order where no pattern is given: HADA's, COCO's and Flickr30k's names.
DEFAULT_NAMES = ("{stem}.npz", "{lower}.npz", "{dataset}_{number:012d}.npz")
_UNITER = ("norm_bb", "features", "conf")
_HADA = ("bbox_ft", "bbox_pos", "objects_conf", "attrs_conf", "image_w", "image_h")
_PYTORCH = ("x", "bbox", "image_w", "image_h")
LAYOUTS = (_UNITER, _HADA, _PYTORCH)

# The regions of one picture are below one megabyte.
_MOST_BYTES = 2**28

Arrays = Mapping[str, NDArray[Any]]


class RegionError(DatasetError):
    """The region features of one picture cannot be used; the message names the file and why."""


@dataclass(frozen=True)
class Regions:
    """The regions of one picture.

    features: (N, F) float32. boxes: (N, 7) float32, x1, y1, x2, y2, width, height as shares of
    the picture's size, and the area.
    """

    features: NDArray[np.float32]
    boxes: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, kw_only=True)
class RegionRules:
    """Where region files lie and which of a file's regions are taken.

    place: Folder of npz files, LMDB folder or TSV file; may hold `{dataset}` and `{split}`.
    name: Pattern of a file's name (see `region_names`), None to try `DEFAULT_NAMES`.
    threshold: Regions more confident than this are taken, but at least `fewest` and at most
        `most` of them; they are the first of the file (HADA's files: the most confident).
    """

    place: str
    name: str | None = None
    threshold: float = 0.2
    fewest: int = 10
    most: int = 100

    def count(self, confidence: NDArray[Any]) -> int:
        """How many regions to take of those with these confidences (N,)."""
        above = int((confidence.reshape(-1) > self.threshold).sum())
        return min(self.most, max(self.fewest, above), confidence.size)


class RegionSource(Protocol):
    """Region files of some layout, by image id. Safe to call from threads."""

    def count(self, image_id: str) -> int:
        """How many regions `read` will give, without reading features where that is possible."""
        ...

    def read(self, image_id: str) -> Regions:
        """The regions of an image; raises `RegionError`."""
        ...


def region_names(rules: RegionRules, dataset: str, image_id: str) -> list[str]:
    """The names under which an image's regions may be found.

    Fields of a pattern: `{id}` the image id as in the annotations, `{stem}` without its suffix,
    `{lower}` that in lower case, `{number}` the number at the end of the stem, `{dataset}`.
    Raises `UsageError` for a pattern that is none, or that leaves the folder.

    >>> region_names(RegionRules(place="x"), "flickr30k", "1000092795.jpg")
    ['1000092795.npz', 'flickr30k_001000092795.npz']
    """
    stem = PurePosixPath(image_id).stem
    digits = re.search(r"(\d{1,100})$", stem)
    fields: dict[str, Any] = {
        "id": image_id,
        "stem": stem,
        "lower": stem.lower(),
        "dataset": dataset,
    }
    if digits:
        fields["number"] = int(digits.group(1))
    names = []
    if rules.name is not None and re.search(r"\d{4}", rules.name):
        raise UsageError(f"region_name {rules.name!r}: no name is so wide")
    for pattern in DEFAULT_NAMES if rules.name is None else (rules.name,):
        try:
            name = pattern.format(**fields)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            if rules.name is None:  # a default that needs a number, and there is none
                continue
            raise UsageError(
                f"region_name {pattern!r}: does not work for image {image_id!r} "
                f"({type(error).__name__}: {error}). Fields: {{{'}, {'.join(fields)}}}"
            ) from error
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise UsageError(f"region_name {pattern!r}: {name!r} leaves the folder of regions")
        names.append(name)
    return list(dict.fromkeys(names))


def select(arrays: Arrays, rules: RegionRules, label: str, *, cut: bool = False) -> Regions:
    """The regions to take of a file's arrays.

    Args:
        arrays: By name, of one image.
        rules: How many regions are taken, and above which confidence.
        label: The file in messages.
        cut: The file holds the regions to take and no others.

    Raises:
        RegionError: The arrays have no known layout or wrong shapes, or are not finite.
    """
    with _fitting(arrays, label):
        return _select(arrays, rules, label, cut)


def _select(arrays: Arrays, rules: RegionRules, label: str, cut: bool) -> Regions:
    if all(key in arrays for key in _UNITER):
        conf = arrays["conf"]
        taken = np.arange(conf.shape[0] if cut else rules.count(conf))
        features, boxes = arrays["features"], arrays["norm_bb"]
    elif all(key in arrays for key in _HADA):
        taken = order_by_confidence(arrays, rules)
        features, boxes = arrays["bbox_ft"], _shares(arrays["bbox_pos"], arrays)
    elif all(key in arrays for key in _PYTORCH):
        # Its confidences are inside a pickle; its boxes were chosen by them when it was made.
        taken = np.arange(min(len(arrays["x"]), rules.most))
        features, boxes = arrays["x"], _shares(arrays["bbox"], arrays)
    else:
        raise unknown_layout(label, arrays)
    if features.ndim != 2 or boxes.shape != (len(features), 6):
        raise RegionError(
            f"regions {label}: features {features.shape} and boxes {boxes.shape}: "
            "expected (N, F) and as many boxes"
        )
    if len(taken) == 0 or taken.max() >= len(features):
        raise RegionError(f"regions {label}: {len(features)} regions, expected {len(taken) or 1}")
    features, boxes = features[taken].astype(np.float32), boxes[taken].astype(np.float32)
    if not (np.isfinite(features).all() and np.isfinite(boxes).all()):
        raise RegionError(f"regions {label}: NaN or infinity among features or boxes")
    return Regions(features, np.concatenate([boxes, boxes[:, 4:5] * boxes[:, 5:6]], axis=1))


def how_many(arrays: Arrays, rules: RegionRules, label: str, *, cut: bool = False) -> int:
    """The length of `select`, from the small arrays of a file.

    Args:
        arrays: As for `select`; boxes and features may be absent.
        rules: As for `select`.
        label: As for `select`.
        cut: As for `select`.

    Raises:
        RegionError: As for `select`.
    """
    with _fitting(arrays, label):
        if "conf" in arrays:
            conf = arrays["conf"]
            return conf.shape[0] if cut else rules.count(conf)
        if "objects_conf" in arrays and "attrs_conf" in arrays:
            return rules.count(_score(arrays))
        if "bbox" in arrays:
            return min(len(arrays["bbox"]), rules.most)
    raise unknown_layout(label, arrays)


def order_by_confidence(arrays: Arrays, rules: RegionRules) -> NDArray[np.intp]:
    """HADA's choice from its own files: two thirds object, one third attribute confidence."""
    score = _score(arrays)
    return np.argsort(-score, kind="stable")[: rules.count(score)]


def unknown_layout(label: str, keys: Sequence[str] | Arrays) -> RegionError:
    """The error for a file whose keys are those of no layout."""
    known = "; or ".join(", ".join(layout) for layout in LAYOUTS)
    return RegionError(f"regions {label}: its keys are {listed(keys)}; expected {known}")


@contextlib.contextmanager
def _fitting(arrays: Arrays, label: str) -> Iterator[None]:
    """Arrays that hold no numbers, or do not go together, are told and not met."""
    for key, array in arrays.items():
        if array.dtype.kind not in "fiu" or array.ndim > 2:
            raise RegionError(
                f"regions {label}: {key!r} is {array.dtype} of shape {array.shape}, expected "
                "numbers in one or two dimensions"
            )
    try:
        with np.errstate(all="ignore"):  # what comes of it is looked at
            yield
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        if isinstance(error, RegionError):
            raise
        shapes = ", ".join(f"{key} {array.shape}" for key, array in arrays.items())
        raise RegionError(f"regions {label}: arrays that do not fit together: {shapes}") from error


def _score(arrays: Arrays) -> NDArray[Any]:
    if arrays["objects_conf"].size != arrays["attrs_conf"].size:
        raise ValueError("one confidence of each kind a region")
    score: NDArray[Any] = (2 * arrays["objects_conf"] + arrays["attrs_conf"]) / 3
    return score.reshape(-1)


def _shares(pixels: NDArray[Any], arrays: Arrays) -> NDArray[Any]:
    """(N, 4) corners in pixels to (N, 6): corners, width and height as shares of the picture."""
    if pixels.ndim != 2 or pixels.shape[1] != 4:
        return pixels  # `select` names the shape
    width, height = float(arrays["image_w"]), float(arrays["image_h"])
    corners = pixels / np.array([width, height, width, height], pixels.dtype)
    return np.concatenate([corners, corners[:, 2:] - corners[:, :2]], axis=1)


def read_npz(source: Path | bytes, label: str, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those of the `wanted` arrays that an npz (its path or bytes) holds; no pickle is opened.

    Raises `RegionError` where the file is damaged or holds none of them.
    """
    found = array_files.read_npz(source, f"regions {label}", RegionError, wanted, most=_MOST_BYTES)
    if not found:
        with array_files.opened(source, f"regions {label}", RegionError) as archive:
            raise unknown_layout(label, archive.names)
    return found
