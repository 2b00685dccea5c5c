"""The containers of region features: a folder of npz files, an LMDB, a TSV."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from hada.extract.common.array_files import reason
from hada.extract.common.documents import LARGE_BYTES, read_json
from hada.extract.common.errors import DatasetError, UsageError
from hada.extract.common.shapes import conform
from hada.extract.datasets.name_keys import files_below
from hada.extract.datasets.region_rows import RegionRows
from hada.extract.datasets.regions import (
    LAYOUTS,
    RegionError,
    RegionRules,
    Regions,
    RegionSource,
    how_many,
    read_npz,
    select,
)

_ALL_KEYS = tuple(dict.fromkeys(key for layout in LAYOUTS for key in layout))
# Enough to count regions: everything but the features, which are hundreds of times larger.
_SMALL_KEYS = tuple(key for key in _ALL_KEYS if key not in ("features", "bbox_ft", "x"))


class FolderRegions:
    """One npz file an image."""

    def __init__(
        self, place: Path, rules: RegionRules, dataset: str, image_ids: Sequence[str]
    ) -> None:
        self._place, self._rules = place, rules
        files = files_below(place)
        if rules.name is None:
            files = [file for file in files if file.endswith(".npz")]
        self._files = files
        self._rows = RegionRows(place, rules, dataset, files, image_ids)

    def count(self, image_id: str) -> int:
        file = self._file(image_id)
        return how_many(read_npz(file, str(file), _SMALL_KEYS), self._rules, str(file))

    def read(self, image_id: str) -> Regions:
        file = self._file(image_id)
        return select(read_npz(file, str(file), _ALL_KEYS), self._rules, str(file))

    def _file(self, image_id: str) -> Path:
        return self._place / self._files[self._rows.row(image_id)]


class LmdbRegions:
    """UNITER's LMDB, plain (msgpack) or compressed (npz): one value an image.

    A database whose folder is called `feat_...` holds the chosen regions only; one called `all`
    holds every region with its confidence.
    """

    def __init__(
        self, place: Path, rules: RegionRules, dataset: str, image_ids: Sequence[str]
    ) -> None:
        self._place, self._rules = place, rules
        self._cut = place.name.startswith("feat_")
        self._counts = self._side_file()
        self._environment = _environment(place)
        with _told(place), self._environment.begin() as transaction:
            keys = transaction.cursor().iternext(keys=True, values=False)
            self._keys = [bytes(key) for key in keys]
        names = [key.decode("utf-8", "surrogateescape") for key in self._keys]
        self._names, self._rows = names, RegionRows(place, rules, dataset, names, image_ids)

    def count(self, image_id: str) -> int:
        name, value = self._value(image_id)
        if name in self._counts:
            return self._counts[name]
        return how_many(self._arrays(value, name), self._rules, name, cut=self._cut)

    def read(self, image_id: str) -> Regions:
        name, value = self._value(image_id)
        arrays = self._arrays(value, name)
        if name in self._counts:  # what the official reader goes by
            arrays = {key: array[: self._counts[name]] for key, array in arrays.items()}
        return select(arrays, self._rules, name, cut=self._cut)

    def _value(self, image_id: str) -> tuple[str, bytes]:
        row = self._rows.row(image_id)
        with _told(self._place), self._environment.begin() as transaction:
            value = transaction.get(self._keys[row])
            if value is None:
                raise RegionError(f"{self._place}: {self._names[row]} went while it was read")
            return self._names[row], bytes(value)

    def _arrays(self, value: bytes, name: str) -> dict[str, NDArray[Any]]:
        label = f"{self._place}: {name}"
        if value.startswith(b"PK"):
            return read_npz(value, label, _ALL_KEYS)
        return _unpack(value, label)

    def _side_file(self) -> dict[str, int]:
        """`nbb_th0.2_max100_min10.json` beside the database: regions an image."""
        if not self._cut:
            return {}
        stem = self._place.name.removeprefix("feat_").removesuffix("_compressed")
        file = self._place.with_name(f"nbb_{stem}.json")
        if not file.is_file():
            return {}
        counts: dict[str, int] = conform(
            read_json(file, DatasetError, most=LARGE_BYTES),
            dict[str, Annotated[int, Meta(ge=0, le=100_000)]],
            str(file),
            DatasetError,
            "A JSON object of regions an image",
        )
        return counts


class TsvRegions:
    """The original bottom-up attention: a line an image, arrays in base64, by image number."""

    _COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")

    def __init__(
        self, place: Path, rules: RegionRules, dataset: str, image_ids: Sequence[str]
    ) -> None:
        self._place, self._rules = place, rules
        self._names: list[str] = []
        # Where each line starts, and its number of boxes.
        self._lines: list[tuple[int, int]] = []
        start = 0
        with place.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                head = line.split(b"\t", 4)
                if line.strip():
                    if len(head) < 5 or not head[3].isdigit() or len(head[3]) > 6:
                        raise DatasetError(
                            f"{place}, line {number}: expected tab-separated columns "
                            f"{', '.join(self._COLUMNS)}"
                        )
                    self._names.append(head[0].decode("utf-8", "replace"))
                    self._lines.append((start, int(head[3])))
                start += len(line)
        self._rows = RegionRows(place, rules, dataset, self._names, image_ids, suffix=".npz")

    def count(self, image_id: str) -> int:
        return min(self._lines[self._rows.row(image_id)][1], self._rules.most)

    def read(self, image_id: str) -> Regions:
        row = self._rows.row(image_id)
        start, boxes = self._lines[row]
        with self._place.open("rb") as stream:  # own handle: called from threads
            stream.seek(start)
            columns = stream.readline().rstrip(b"\r\n").split(b"\t")
        label = f"{self._place}: image {self._names[row]}"
        try:
            arrays: dict[str, NDArray[Any]] = {
                "image_w": np.asarray(float(columns[1])),
                "image_h": np.asarray(float(columns[2])),
                "bbox": np.frombuffer(base64.b64decode(columns[4]), "<f4").reshape(boxes, 4),
                "x": np.frombuffer(base64.b64decode(columns[5]), "<f4").reshape(boxes, -1),
            }
        except (ValueError, IndexError, OverflowError) as error:
            raise RegionError(f"regions {label}: a truncated or damaged line ({error})") from error
        return select(arrays, self._rules, label)


def _unpack(value: bytes, label: str) -> dict[str, NDArray[Any]]:
    """NumPy arrays in msgpack, as maps {nd, type, kind, shape, data}, without any pickle."""
    try:
        import msgpack
    except ModuleNotFoundError as error:
        raise _missing("msgpack") from error
    try:
        raw = msgpack.unpackb(value, raw=True, strict_map_key=False)
        return {
            key.decode(): _array(entry)
            for key, entry in raw.items()
            if isinstance(entry, dict) and b"nd" in entry
        }
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        SyntaxError,
        OverflowError,
        RecursionError,
    ) as error:
        raise RegionError(f"regions {label}: not a packed record ({reason(error)})") from error
    except msgpack.exceptions.UnpackException as error:
        raise RegionError(f"regions {label}: truncated ({error})") from error


def _array(entry: dict[bytes, Any]) -> NDArray[Any]:
    dtype = np.dtype(entry[b"type"].decode())
    if dtype.kind not in "fiu" or entry.get(b"kind"):
        raise ValueError(f"an array of {dtype}, expected numbers")
    return np.frombuffer(entry[b"data"], dtype).reshape([int(n) for n in entry[b"shape"]])


# One open environment per database and process: LMDB must not be opened twice.
_OPEN: dict[Path, Any] = {}
_OPEN_LOCK = threading.Lock()


def _environment(place: Path) -> Any:
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise _missing("lmdb") from error
    key = place.resolve()
    with _OPEN_LOCK:
        if key not in _OPEN:
            with _told(place):
                found = lmdb.open(str(key), readonly=True, lock=False, readahead=False)
                needed = found.stat()["psize"] * (found.info()["last_pgno"] + 1)
                size = (key / "data.mdb").stat().st_size
                if size < needed:  # reading beyond the end of a mapped file kills the process
                    found.close()
                    raise DatasetError(
                        f"{place}: data.mdb has {size:,} bytes and needs {needed:,}: it was cut "
                        "short. Fetch it again"
                    )
                _OPEN[key] = found
        return _OPEN[key]


@contextlib.contextmanager
def _told(place: Path) -> Iterator[None]:
    import lmdb

    try:
        yield
    except (lmdb.Error, OSError) as error:
        raise DatasetError(f"{place}: not an LMDB that can be read ({reason(error)})") from error


def _missing(package: str) -> UsageError:
    return UsageError(
        f"region features in an LMDB need the package {package!r}, which is not installed: "
        f"pip install {package}"
    )


def open_regions(
    rules: RegionRules, dataset: str, split: str, image_ids: Sequence[str] = ()
) -> RegionSource:
    """The files at `rules.place`, for the images of a split.

    Args:
        rules: Where the files lie and how they are named.
        dataset: Replaces `{dataset}` in the place and in names.
        split: Replaces `{split}` in the place.
        image_ids: All images of the split: what is ambiguous shows only together. An image that
            is not among them is looked for alone, which reads all names once more.

    Raises:
        DatasetError: There are no files, or the regions of one image would serve two, or two
            files fit one image equally well.
    """
    place = Path(rules.place.replace("{dataset}", dataset).replace("{split}", split)).expanduser()
    if not place.exists():
        raise DatasetError(
            f"no region features at {str(place)!r}: expected a folder of .npz files, an LMDB "
            "folder or a .tsv file; set the model's option `regions`"
        )
    if place.is_file():
        return TsvRegions(place, rules, dataset, image_ids)
    if (place / "data.mdb").is_file():
        return LmdbRegions(place, rules, dataset, image_ids)
    return FolderRegions(place, rules, dataset, image_ids)
