"""`data_manifest.yaml` as frozen, checked objects.

The manifest names datasets, models and places. Everything in it is checked when it is read:
unknown keys, wrong types and impossible values are errors that name the line and the nearest
valid name. Files are looked for only when a dataset is used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hada.extract.common.errors import (
    CheckpointError,
    ManifestError,
    UnknownNameError,
    UsageError,
    nearest,
    unknown,
)
from hada.extract.common.strict_yaml import Section, read_yaml
from hada.extract.common.variables import Rule
from hada.extract.spec import STORE_DTYPES

FILE_NAME = "data_manifest.yaml"
PRECISIONS = ("fp32", "bf16", "fp16")
STORE_FORMATS = ("zarr", "hdf5")
# `reader:` -> the module whose `read_images` reads such a dataset, imported when it is needed.
READERS = {
    "karpathy": "hada.extract.datasets.karpathy",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_BUILTIN = "builtin:"
_SHIPPED = Path(__file__).parent / FILE_NAME


@dataclass(frozen=True, kw_only=True)
class SplitEntry:
    """One split of a dataset: which of the file's own splits it joins, and what to expect."""

    sources: tuple[str, ...]
    images: int | None = None
    captions: int | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """A dataset of the manifest. `annotations` and `images` are relative to `root`."""

    name: str
    reader: str
    root: Path
    annotations: str
    images: str
    published: str
    splits: Mapping[str, SplitEntry]

    def split(self, name: str) -> SplitEntry:
        """The split called `name`; raises `UnknownNameError`."""
        if name not in self.splits:
            raise UnknownNameError(
                f"dataset {self.name!r} has no split {name!r}. {nearest(name, self.splits)}"
            )
        return self.splits[name]


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


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What commands use where nothing else is said."""

    dataset: str
    models: tuple[str, ...]
    precision: str = "fp32"
    store_dtype: str = "float16"
    store_format: str = "zarr"


@dataclass(frozen=True)
class StoreRoot:
    """Where stores lie, for those who need no manifest: a folder or URL above all of them."""

    stores: str

    def store_path(self, dataset: str, split: str, model: str) -> str:
        """Where the store of `model` on `split` of `dataset` lies."""
        return f"{self.stores.rstrip('/')}/{dataset}/{split}/{model}"

    def chosen_models(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those that were asked for; raises `UsageError` where there are none."""
        chosen = tuple(names)
        if not chosen:
            raise UsageError("no models: name at least one, or a run, which names its own")
        return chosen


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The datasets and models that are known, and where stores and runs lie.

    Make one with `load_manifest`.

    Attributes:
        path: The file that it was read from.
        defaults: What commands use where nothing else is said.
        stores: Folder or URL below which all stores lie.
        runs: Folder below which all trained runs lie.
        datasets: Name -> dataset.
        models: Name -> frozen model.
    """

    path: Path
    defaults: Defaults
    stores: str
    runs: str
    datasets: Mapping[str, DatasetEntry]
    models: Mapping[str, ModelEntry]

    def dataset(self, name: str | None = None) -> DatasetEntry:
        """The dataset called `name`, or the default one; raises `UnknownNameError`."""
        name = name or self.defaults.dataset
        if name not in self.datasets:
            raise unknown("dataset", name, self.datasets)
        return self.datasets[name]

    def model(self, name: str) -> ModelEntry:
        """The model called `name`; raises `UnknownNameError`."""
        if name not in self.models:
            raise unknown("model", name, self.models)
        return self.models[name]

    def chosen_models(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those that were asked for, or the manifest's; raises `UsageError` where it has none."""
        chosen = tuple(names) or self.defaults.models
        if not chosen:
            raise UsageError(
                f"no models: {self.path} names none under `defaults: models:`; give --model NAME"
            )
        return chosen

    def store_path(self, dataset: str, split: str, model: str) -> str:
        """Where the store of `model` on `split` of `dataset` lies."""
        return StoreRoot(self.stores).store_path(dataset, split, model)


def default_path() -> Path:
    """`./data_manifest.yaml` if there is one, else the manifest that HADA ships."""
    here = Path(FILE_NAME)
    return here if here.exists() else _SHIPPED


def load_shipped(roots: Mapping[str, str]) -> Manifest:
    """The manifest that HADA ships, whatever lies in the current folder."""
    return load_manifest(_SHIPPED, roots)


def load_manifest(
    path: Path | str | None = None, roots: Mapping[str, str] | None = None
) -> Manifest:
    """Read and check a manifest, the YAML file that names datasets and models.

    Args:
        path: The file; None takes `./data_manifest.yaml`, or else the manifest that HADA ships.
        roots: Places that win over the file's: dataset name -> folder, and "stores" or "runs".

    Returns:
        The manifest, with variables like `${HADA_STORES:-stores}` replaced. No dataset is read.

    Raises:
        ManifestError: With file, line, what was expected and the nearest valid name.
        UsageError: `roots` names an unknown dataset.

    Example:
        >>> manifest = load_manifest(roots={"stores": "/data/stores"})
        >>> manifest.store_path("scenes", "test", "clip")
        '/data/stores/scenes/test/clip'
    """
    file = Path(path) if path is not None else default_path()
    if not file.exists():
        raise ManifestError(f"{file}: no such manifest. `--manifest FILE` names one.")
    top = read_yaml(file)
    schema = top.take("schema", int)
    if schema != 1:
        raise ManifestError(f"{top.where('schema')}: expected schema 1, got {schema}")
    manifest = Manifest(
        path=file,
        stores=top.take("stores", str, "stores", variables=Rule.PLACE),
        runs=top.take("runs", str, "runs", variables=Rule.PLACE),
        datasets=_each(top.take_section("datasets"), _dataset),
        # Stores that were imported need no model to extract them with.
        models=_each(top.take_section("models", required=False), _model),
        defaults=_defaults(top.take_section("defaults")),
    )
    top.finish()
    _check_defaults(manifest, top)
    return _with_roots(manifest, roots or {})


def is_name(text: str) -> bool:
    """Whether a text can name a dataset, split or model: it becomes a folder."""
    return _NAME.fullmatch(text) is not None


def _defaults(section: Section) -> Defaults:
    defaults = Defaults(
        dataset=section.take("dataset", str),
        models=section.take_names("models", ()),
        precision=_choice(section, "precision", PRECISIONS, "fp32"),
        store_dtype=_choice(section, "store_dtype", STORE_DTYPES, "float16"),
        store_format=_choice(section, "store_format", STORE_FORMATS, "zarr"),
    )
    section.finish()
    return defaults


def _dataset(name: str, section: Section) -> DatasetEntry:
    splits = section.take_section("splits")
    entry = DatasetEntry(
        name=name,
        reader=_choice(section, "reader", tuple(READERS), None),
        root=Path(section.take("root", str, variables=Rule.PLACE)).expanduser(),
        annotations=section.take("annotations", str),
        images=section.take("images", str, "."),
        published=section.take("published", str, ""),
        splits=_each(splits, _split),
    )
    for key in ("annotations", "images"):
        if Path(getattr(entry, key)).is_absolute() or ".." in Path(getattr(entry, key)).parts:
            raise ManifestError(
                f"{section.where(key)}: {key!r} must lie below the dataset's root, "
                f"got {getattr(entry, key)!r}"
            )
    section.finish()
    return entry


def _split(name: str, section: Section) -> SplitEntry:
    entry = SplitEntry(
        sources=section.take_names("from", (name,)),
        images=section.take("images", int, None),
        captions=section.take("captions", int, None),
    )
    section.finish()
    return entry


def _model(name: str, section: Section) -> ModelEntry:
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
    precision = _choice(section, "precision", PRECISIONS, "") if "precision" in section else None
    entry = ModelEntry(
        name=name,
        family=section.take("family", str),
        weights=MappingProxyType(weights),
        precision=precision,
        options=MappingProxyType(options),
    )
    section.finish()
    return entry


def _each(section: Section, build: Any) -> Mapping[str, Any]:
    entries = {}
    for name in section:
        if not is_name(name):
            raise ManifestError(
                f"{section.where(name)}: {name!r} cannot be a name: it becomes a folder. "
                "Use letters, digits, '.', '_', '+' and '-'."
            )
        entries[name] = build(name, section.take_section(name))
    return MappingProxyType(entries)


def _choice(section: Section, key: str, choices: tuple[str, ...], default: str | None) -> str:
    value = section.take(key, str) if default is None else section.take(key, str, default)
    if value not in choices:
        raise ManifestError(
            f"{section.where(key)}: {key!r} is {value!r}. {nearest(value, choices)}"
        )
    return value


def _check_defaults(manifest: Manifest, top: Section) -> None:
    section = top.take_section("defaults")
    if manifest.defaults.dataset not in manifest.datasets:
        name = manifest.defaults.dataset
        hint = nearest(name, manifest.datasets)
        raise ManifestError(f"{section.where('dataset')}: unknown dataset {name!r}. {hint}")
    for name in manifest.defaults.models:
        if name not in manifest.models:
            hint = nearest(name, manifest.models)
            raise ManifestError(f"{section.where('models')}: unknown model {name!r}. {hint}")


def _with_roots(manifest: Manifest, roots: Mapping[str, str]) -> Manifest:
    datasets = dict(manifest.datasets)
    places = {"stores": manifest.stores, "runs": manifest.runs}
    for name, place in roots.items():
        if not place:
            raise UsageError(f"--root {name}=: expected a folder after the '='")
        if name in places:
            places[name] = place
        elif name in datasets:
            datasets[name] = replace(datasets[name], root=Path(place).expanduser())
        else:
            raise unknown("--root name", name, [*datasets, *places])
    return replace(
        manifest,
        datasets=MappingProxyType(datasets),
        stores=places["stores"],
        runs=places["runs"],
    )


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
