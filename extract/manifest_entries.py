"""The entries of a manifest: datasets and models, each checked when it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from hada.extract.common.errors import (
    CheckpointError,
    ManifestError,
    UnknownNameError,
    UsageError,
    nearest,
)
from hada.extract.common.names import NO_NAME, is_name
from hada.extract.common.plain_words import MEANINGS, parse_shares
from hada.extract.common.strict_yaml import Section
from hada.extract.common.variables import Rule

PRECISIONS = ("fp32", "bf16", "fp16")
# `reader:` -> the module that reads such a layout of captions, imported when it is needed; in the
# order in which files are offered to them. `hada.extract.datasets.annotations` says what it has.
READERS = {
    "parquet": "hada.extract.datasets.parquet",
    "webdataset": "hada.extract.datasets.webdataset",
    "coco": "hada.extract.datasets.coco",
    "karpathy": "hada.extract.datasets.karpathy",
    "json-lines": "hada.extract.datasets.json_lines",
    "json": "hada.extract.datasets.json_records",
    "flickr-results": "hada.extract.datasets.flickr_results",
    "flickr-tokens": "hada.extract.datasets.flickr_tokens",
    "csv": "hada.extract.datasets.delimited",
    "texts": "hada.extract.datasets.texts",
    "image-text-files": "hada.extract.datasets.image_text_files",
    "folder": "hada.extract.datasets.folder",
}
# The layout is found by looking.
AUTO = "auto"
# Packages of others offer readers by entry points of this group.
READER_ENTRY_POINTS = "hada.datasets"
_BUILTIN = "builtin:"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SplitEntry:
    """One split of a dataset.

    Attributes:
        sources: The annotations' own splits that it joins.
        images: How many are expected, None where nobody knows.
        captions: The same of captions.
        annotations: A file that is of this split alone, below the root or absolute.
        ids: A file that lists its images, one a line.
    """

    sources: tuple[str, ...]
    images: int | None = None
    captions: int | None = None
    annotations: str = ""
    ids: str = ""


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """A dataset of the manifest, or one that a command line names.

    Attributes:
        name: Its name, a folder's below the stores.
        reader: The layout of its captions: a name of `READERS` or of an entry point, or "auto".
        root: The folder that it lies in.
        annotations: The file of captions, relative to `root` or absolute; empty where it is to be
            found.
        images: The folder that images' ids are relative to, itself relative to `root` or absolute.
        published: Where it can be fetched, for messages.
        splits: Name -> split; empty where the annotations say.
        columns: Columns of a table by meaning: image, caption (several), split.
        split_by: Shares of the images by split, decided by a hash of the id; empty for none.
        loose_names: Take image files whose names differ in case, Unicode form or an absent suffix.
        loose_rows: Leave out rows without image, caption or image file instead of refusing them.
    """

    name: str
    reader: str = AUTO
    root: Path
    annotations: str = ""
    images: str = "."
    published: str = ""
    splits: Mapping[str, SplitEntry] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split_by: tuple[tuple[str, float], ...] = ()
    loose_names: bool = False
    loose_rows: bool = False

    def split(self, name: str) -> SplitEntry:
        """The split called `name`; raises `UnknownNameError`.

        Where the annotations say which splits there are, any name passes until they are read.
        """
        if self.splits and name not in self.splits:
            raise UnknownNameError(
                f"dataset {self.name!r} has no split {name!r}. {nearest(name, self.splits)}"
            )
        if not is_name(name):
            raise UsageError(f"split {name!r}: {NO_NAME}")
        return self.splits.get(name, SplitEntry(sources=(name,)))


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model of the manifest: a family, its weights (per dataset or one), its options."""

    name: str
    family: str
    weights: Mapping[str, str]
    precision: str | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def weights_for(self, dataset: str) -> str:
        """Folder, file or id of the weights to use on `dataset`."""
        weights = self.weights.get(dataset, self.weights.get("default"))
        if weights is None:
            raise ManifestError(
                f"model {self.name!r} has no weights for dataset {dataset!r} and no default. "
                f"Known: {', '.join(sorted(self.weights))}."
            )
        if weights.startswith(_BUILTIN):
            return str(_builtin(weights.removeprefix(_BUILTIN)))
        return weights


def read_dataset_entry(name: str, section: Section) -> DatasetEntry:
    """One dataset of a manifest.

    Args:
        name: Its key in the manifest.
        section: Its mapping there.

    Raises:
        ManifestError: Something is missing or wrong; the message has file, line and what was
            expected.
    """
    columns = section.take_section("columns", required=False)
    asked = {meaning: columns.take_names(meaning) for meaning in MEANINGS if meaning in columns}
    columns.finish()
    shares = section.take("split_by", str, "")
    try:
        split_by = parse_shares(shares) if shares else ()
    except UsageError as error:
        raise ManifestError(f"{section.where('split_by')}: {error}") from error
    entry = DatasetEntry(
        name=name,
        reader=choice(section, "reader", reader_names(), AUTO),
        root=Path(section.take("root", str, variables=Rule.PLACE)).expanduser(),
        annotations=section.take("annotations", str, ""),
        images=section.take("images", str, "."),
        published=section.take("published", str, ""),
        splits=each(section.take_section("splits", required=False), _split),
        columns=asked,
        split_by=split_by,
        loose_names=section.take("loose_names", bool, False),
        loose_rows=section.take("loose_rows", bool, False),
    )
    section.finish()
    return entry


def reader_names() -> tuple[str, ...]:
    """All names that `reader:` may have; imports nothing."""
    return (AUTO, *READERS, *(entry.name for entry in entry_points(group=READER_ENTRY_POINTS)))


def _split(name: str, section: Section) -> SplitEntry:
    entry = SplitEntry(
        sources=section.take_names("from", (name,)),
        images=section.take("images", int, None),
        captions=section.take("captions", int, None),
        annotations=section.take("annotations", str, ""),
        ids=section.take("ids", str, ""),
    )
    section.finish()
    return entry


def read_model_entry(name: str, section: Section) -> ModelEntry:
    """One model of a manifest.

    Args:
        name: Its key in the manifest.
        section: Its mapping there.

    Raises:
        ManifestError: As for `read_dataset_entry`.
    """
    where = section.where("weights")
    weights = section.take_plain("weights", variables=Rule.WEIGHTS)
    if isinstance(weights, str):
        weights = {"default": weights}
    if not isinstance(weights, dict) or not all(isinstance(w, str) for w in weights.values()):
        raise ManifestError(
            f"{where}: 'weights' of model {name!r}: expected a folder, file or id, "
            f"or one for each dataset (dataset: weights, default: weights), got {weights!r}"
        )
    options = section.take_plain("options", {}, places=("regions",))
    if not isinstance(options, dict):
        raise ManifestError(f"{section.where('options')}: 'options' must be a mapping")
    precision = choice(section, "precision", PRECISIONS, "") if "precision" in section else None
    entry = ModelEntry(
        name=name,
        family=section.take("family", str),
        weights=MappingProxyType(weights),
        precision=precision,
        options=MappingProxyType(options),
    )
    section.finish()
    return entry


def each(section: Section, build: Callable[[str, Section], T]) -> Mapping[str, T]:
    """The entries of a section by name.

    Args:
        section: A mapping of mappings.
        build: Is called with each name and its mapping.

    Returns:
        Name -> what `build` gave, read-only.

    Raises:
        ManifestError: A name cannot be the name of a folder.
    """
    entries = {}
    for name in section:
        if not is_name(name):
            raise ManifestError(f"{section.where(name)}: {name!r} {NO_NAME}")
        entries[name] = build(name, section.take_section(name))
    return MappingProxyType(entries)


def choice(section: Section, key: str, choices: tuple[str, ...], default: str | None) -> str:
    """The value of a key that has few values.

    Args:
        section: The mapping that has the key.
        key: The key.
        choices: The values that it may have.
        default: What an absent key gives; None where it must be there.

    Raises:
        ManifestError: The value is none of `choices`.
    """
    value = section.take(key, str) if default is None else section.take(key, str, default)
    if value not in choices:
        raise ManifestError(
            f"{section.where(key)}: {key!r} is {value!r}. {nearest(value, choices)}"
        )
    return value


def _builtin(name: str) -> Path:
    """The folder of weights that HADA ships: `scenes/blip` -> extract/scenes/weights/blip."""
    package, _, model = name.partition("/")
    folder = Path(__file__).parent / package / "weights" / model
    if not folder.is_dir():
        raise ManifestError(f"builtin weights {name!r} do not exist in this installation")
    check_sums(folder)
    return folder


def check_sums(folder: Path) -> None:
    """Compare shipped weights with the SHA256SUMS beside their folder (`sha256sum -c` reads it).

    Raises `CheckpointError` naming the first file that is missing or has other bytes.
    """
    for line in (folder.parent / "SHA256SUMS").read_text().splitlines():
        expected, _, name = line.partition("  ")
        path = folder.parent / name
        if path.parent != folder:
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if digest != expected:
            raise CheckpointError(
                f"{path}: shipped weights are damaged (sha256 {digest[:12]}, expected "
                f"{expected[:12]}). Install HADA again, or `git checkout` the file."
            )
