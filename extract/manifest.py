"""`data_manifest.yaml` as frozen, checked objects.

The manifest names datasets, models and places. Everything in it is checked when it is read:
unknown keys, wrong types and impossible values are errors that name the line and the nearest
valid name. Files are looked for only when a dataset is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from hada.extract.common.errors import ManifestError, UsageError, nearest, unknown
from hada.extract.common.names import is_name
from hada.extract.common.strict_yaml import Section, read_yaml
from hada.extract.common.variables import Rule
from hada.extract.manifest_entries import (
    PRECISIONS,
    READERS,
    DatasetEntry,
    ModelEntry,
    SplitEntry,
    check_sums,
    choice,
    each,
    read_dataset_entry,
    read_model_entry,
)
from hada.extract.remembered import remembered_dataset, remembered_model, remembered_names
from hada.extract.spec import STORE_DTYPES

__all__ = [
    "PRECISIONS",
    "READERS",
    "STORE_FORMATS",
    "DatasetEntry",
    "Defaults",
    "Manifest",
    "ModelEntry",
    "SplitEntry",
    "StoreRoot",
    "check_sums",
    "default_path",
    "is_name",
    "load_manifest",
    "load_shipped",
]

FILE_NAME = "data_manifest.yaml"
STORE_FORMATS = ("zarr", "hdf5")
_SHIPPED = Path(__file__).parent / FILE_NAME


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
        """Where the store of a model on a split lies; the store need not be there.

        Args:
            dataset: Its name.
            split: Its name.
            model: Its name, with a view's or crops' suffix if it is one.
        """
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
        """The dataset called `name`, or the default one; raises `UnknownNameError`.

        A dataset that `hada-extract --data` has named before is found beside its stores.
        """
        name = name or self.defaults.dataset
        if name in self.datasets:
            return self.datasets[name]
        entry = remembered_dataset(self.stores, name)
        if entry is None:
            raise unknown("dataset", name, [*self.datasets, *remembered_names(self.stores)])
        return entry

    def model(self, name: str, dataset: str | None = None) -> ModelEntry:
        """A model by its name.

        With a dataset, a model that `hada-extract --model NAME=FAMILY:WEIGHTS` has named for it
        stands before the manifest's, because the dataset's store was made with it.

        Args:
            name: Of the model.
            dataset: The dataset that it is asked for.

        Raises:
            UnknownNameError: Nobody knows the model.
        """
        entry = None if dataset is None else remembered_model(self.stores, dataset, name)
        if entry is not None:
            return entry
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
        """As `StoreRoot.store_path`.

        Args:
            dataset: Its name.
            split: Its name.
            model: Its name.
        """
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
        datasets=each(top.take_section("datasets"), read_dataset_entry),
        # Stores that were imported need no model to extract them with.
        models=each(top.take_section("models", required=False), read_model_entry),
        defaults=_defaults(top.take_section("defaults")),
    )
    top.finish()
    _check_defaults(manifest, top)
    return _with_roots(manifest, roots or {})


def _defaults(section: Section) -> Defaults:
    defaults = Defaults(
        dataset=section.take("dataset", str),
        models=section.take_names("models", ()),
        precision=choice(section, "precision", PRECISIONS, "fp32"),
        store_dtype=choice(section, "store_dtype", STORE_DTYPES, "float16"),
        store_format=choice(section, "store_format", STORE_FORMATS, "zarr"),
    )
    section.finish()
    return defaults


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
