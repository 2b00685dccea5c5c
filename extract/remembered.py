"""What a command line said of a dataset and its models, kept beside the stores.

`hada-extract --data photos/ --model mine=dual:weights` needs no manifest, and later commands need
to know both. `STORES/DATASET/dataset.yaml` and `STORES/DATASET/model-NAME.yaml` hold them as a
manifest would. A manifest's own entry wins over the first and loses to the second, because a store
belongs to the weights that it was made with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hada.extract.common import atomic, remote
from hada.extract.common.errors import ManifestError
from hada.extract.common.names import is_name
from hada.extract.common.strict_yaml import read_yaml
from hada.extract.manifest_entries import (
    AUTO,
    DatasetEntry,
    ModelEntry,
    each,
    read_dataset_entry,
    read_model_entry,
)

_DATASET = "dataset.yaml"
_HEAD = (
    "# Written by hada-extract: what its command line said, for later commands. It may be pasted\n"
    "# into a data_manifest.yaml.\n"
)


def dataset_file(stores: str, name: str) -> Path:
    """Where the entry of a dataset is kept that a command line named."""
    return remote.place(f"{stores.rstrip('/')}/{name}/{_DATASET}")


def model_file(stores: str, dataset: str, model: str) -> Path:
    """Where the entry of a model is kept that a command line named."""
    return remote.place(f"{stores.rstrip('/')}/{dataset}/model-{model}.yaml")


def remembered_dataset(stores: str, name: str) -> DatasetEntry | None:
    """The dataset that a command line named, None where none did.

    Args:
        stores: The folder or URL above all stores.
        name: Of the dataset.

    Raises:
        ManifestError: What is kept is damaged.
    """
    entries = _read(dataset_file(stores, name), "datasets", name, read_dataset_entry)
    return None if entries is None else entries[name]


def remembered_model(stores: str, dataset: str, name: str) -> ModelEntry | None:
    """The model that a command line named for a dataset, None where none did.

    Args:
        stores: The folder or URL above all stores.
        dataset: The name of the dataset.
        name: Of the model.

    Raises:
        ManifestError: What is kept is damaged.
    """
    entries = _read(model_file(stores, dataset, name), "models", name, read_model_entry)
    return None if entries is None else entries[name]


def remembered_names(stores: str) -> list[str]:
    """Datasets that command lines have named, where stores are in a local folder."""
    folder = remote.place(stores)
    if remote.is_remote(folder) or not folder.is_dir():
        return []
    return sorted(path.parent.name for path in folder.glob(f"*/{_DATASET}"))


def remember_dataset(stores: str, entry: DatasetEntry, *, anew: bool) -> None:
    """Keep a dataset's entry beside its stores.

    Args:
        stores: The folder or URL above all stores.
        entry: What the command line said.
        anew: Whether one that is there is replaced.
    """
    file = dataset_file(stores, entry.name)
    _write(file, {"datasets": {entry.name: dataset_values(entry)}}, anew=anew)


def remember_model(stores: str, dataset: str, entry: ModelEntry, *, anew: bool) -> None:
    """Keep a model's entry beside its stores.

    Args:
        stores: The folder or URL above all stores.
        dataset: The name of the dataset.
        entry: What the command line said; a local path of weights is kept as an absolute one.
        anew: Whether one that is there is replaced.
    """
    weights = entry.weights["default"]
    if Path(weights).exists():  # later commands may run in another folder
        weights = str(Path(weights).absolute())
    values: dict[str, Any] = {"family": entry.family, "weights": weights}
    if entry.options:
        values["options"] = dict(entry.options)
    file = model_file(stores, dataset, entry.name)
    _write(file, {"models": {entry.name: values}}, anew=anew)


def dataset_values(entry: DatasetEntry) -> dict[str, Any]:
    """A dataset's entry as plain values, as a manifest has them; defaults are left out."""
    values: dict[str, Any] = {"reader": entry.reader} if entry.reader != AUTO else {}
    values["root"] = str(entry.root)
    for key in ("annotations", "published"):
        if getattr(entry, key):
            values[key] = getattr(entry, key)
    if entry.images != ".":
        values["images"] = entry.images
    if entry.columns:
        values["columns"] = {meaning: list(names) for meaning, names in entry.columns.items()}
    if entry.split_by:
        values["split_by"] = ",".join(f"{name}={share!r}" for name, share in entry.split_by)
    for key in ("loose_names", "loose_rows"):
        if getattr(entry, key):
            values[key] = True
    if entry.splits:
        values["splits"] = {}
        for name, split in entry.splits.items():
            plain: dict[str, Any] = {}
            if split.sources != (name,) and any(split.sources):
                plain["from"] = list(split.sources)
            for key in ("images", "captions", "annotations", "ids"):
                if getattr(split, key):
                    plain[key] = getattr(split, key)
            values["splits"][name] = plain
    return values


def as_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML that a manifest can take."""
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def _read(file: Path, section: str, name: str, build: Any) -> Any:
    if not is_name(name) or not file.exists():
        return None
    top = read_yaml(file)
    entries = each(top.take_section(section), build)
    top.finish()
    if name not in entries:
        raise ManifestError(f"{file}: expected an entry {name!r}, got {', '.join(entries) or '-'}")
    return entries


def _write(file: Path, values: dict[str, Any], *, anew: bool) -> None:
    data = (_HEAD + as_yaml(values)).encode()
    if file.exists() and (not anew or remote.read_bytes(file) == data):
        return
    if not remote.is_remote(file):
        atomic.make_folder(file.parent)
    atomic.write_bytes(file, data)
