"""A pipeline's YAML as frozen, checked objects: what to extract, to fuse and to evaluate.

It names datasets, splits and models of the manifest. Whatever it must not say is an error that
names file, line and the nearest valid word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hada.extract.common.errors import ManifestError, UsageError, nearest
from hada.extract.common.strict_yaml import Section, read_yaml
from hada.extract.manifest import PRECISIONS, STORE_FORMATS, DatasetEntry, Manifest, is_name
from hada.extract.remembered import remembered_names
from hada.extract.spec import STORE_DTYPES
from hada.extract.store.pooling import pool_size
from hada.fuse.recipes import DEFAULT_RECIPE, RECIPES, Recipe


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Some models over some splits of a dataset; the fields are `hada-extract`'s options.

    `views` augmented views of the pictures follow view 0. `batch_size` None is automatic.
    """

    where: str
    dataset: str
    splits: tuple[str, ...]
    models: tuple[str, ...]
    views: int = 0
    view_seed: int = 0
    precision: str | None = None
    store_dtype: str | None = None
    store_format: str | None = None
    tokens: str = "all"
    shard_size: int = 256
    batch_size: int | None = None
    max_errors: int = 10


@dataclass(frozen=True, kw_only=True)
class Fuse:
    """Fusions of sets of models, each trained once with every seed."""

    where: str
    dataset: str
    models: tuple[tuple[str, ...], ...]
    recipe: Recipe
    seeds: tuple[int, ...] = (0,)
    train_split: str = "train"
    val_split: str = "val"
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Recall on one split: every fusion of the dataset in this pipeline, and `models` alone."""

    where: str
    dataset: str
    split: str
    models: tuple[str, ...] = ()
    train_split: str = "train"
    val_split: str = "val"
    quick: bool = False


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a job asks a batch system for; `directives` are lines of its own language."""

    queue: str | None = None
    account: str | None = None
    walltime: str = "01:00:00"
    cores: int = 1
    memory: str = "4GB"
    gpus: int = 0
    elements: int = 64
    interface: str | None = None
    directives: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A whole pipeline. `name` is its folder's, below RUNS/pipelines."""

    path: Path
    name: str
    extract: tuple[Extract, ...] = ()
    fuse: tuple[Fuse, ...] = ()
    evaluate: tuple[Evaluate, ...] = ()
    device: str = "auto"
    cluster: Cluster = field(default_factory=Cluster)


def load_pipeline(path: Path, manifest: Manifest) -> Pipeline:
    """Read and check a pipeline's YAML.

    Args:
        path: The YAML file; its stem is the pipeline's name where it has none.
        manifest: Checks names of data sets, splits and models.

    Raises:
        ManifestError: The file is missing or something in it is wrong; the message has the line.
    """
    if not path.exists():
        raise ManifestError(f"{path}: no such pipeline. docs/pipelines.md shows one.")
    top = read_yaml(path)
    schema = top.take("schema", int)
    if schema != 1:
        raise ManifestError(f"{top.where('schema')}: expected schema 1, got {schema}")
    name = top.take("name", str, path.stem)
    if not is_name(name):
        raise ManifestError(f"{top.where('name')}: {name!r} cannot be a name: it becomes a folder")
    pipeline = Pipeline(
        path=path,
        name=name,
        extract=tuple(_extract(s, manifest) for s in top.take_sections("extract")),
        fuse=tuple(_fuse(s, manifest) for s in top.take_sections("fuse")),
        evaluate=tuple(_evaluate(s, manifest) for s in top.take_sections("evaluate")),
        device=top.take("device", str, "auto"),
        cluster=_cluster(top.take_section("cluster", required=False)),
    )
    top.finish()
    if not (pipeline.extract or pipeline.fuse or pipeline.evaluate):
        raise ManifestError(f"{path}: nothing to do: no extract, fuse or evaluate in it")
    return pipeline


def _extract(section: Section, manifest: Manifest) -> Extract:
    dataset = _dataset(section, manifest)
    models = section.take_names("models", manifest.defaults.models)
    tokens = section.take("tokens", str, "all")
    try:
        pool_size(tokens)
    except UsageError as error:
        raise ManifestError(f"{section.where('tokens')}: {error}") from error
    entry = Extract(
        where=section.where(),
        dataset=dataset,
        splits=_splits(section, "splits", section.take_names("splits"), manifest.dataset(dataset)),
        models=_known(section, "models", models, manifest.models),
        views=_whole(section, "views", 0),
        view_seed=_whole(section, "view_seed", 0),
        precision=_choice(section, "precision", PRECISIONS),
        store_dtype=_choice(section, "store_dtype", STORE_DTYPES),
        store_format=_choice(section, "store_format", STORE_FORMATS),
        tokens=tokens,
        shard_size=_whole(section, "shard_size", 256, least=1),
        batch_size=_whole(section, "batch_size", 0, least=1) if "batch_size" in section else None,
        max_errors=_whole(section, "max_errors", 10),
    )
    section.finish()
    return entry


def _fuse(section: Section, manifest: Manifest) -> Fuse:
    dataset = _dataset(section, manifest)
    data = manifest.dataset(dataset)
    recipe = _recipe(section)
    seeds = section.take_plain("seeds", [0])
    seeds = [seeds] if isinstance(seeds, int) else seeds
    if (
        not isinstance(seeds, list)
        or not seeds
        or not all(type(seed) is int and seed >= 0 for seed in seeds)
    ):
        raise ManifestError(
            f"{section.where('seeds')}: 'seeds': expected whole numbers from 0, got {seeds!r}"
        )
    name = section.take("name", str, None)
    if name is not None and not is_name(name):
        raise ManifestError(f"{section.where('name')}: {name!r} cannot be a name")
    entry = Fuse(
        where=section.where(),
        dataset=dataset,
        models=_sets(section, manifest),
        recipe=recipe,
        seeds=tuple(dict.fromkeys(seeds)),
        train_split=_split(section, "train_split", "train", data),
        val_split=_split(section, "val_split", "val", data),
        name=name,
    )
    section.finish()
    if name is not None and len(entry.models) > 1:
        raise ManifestError(f"{section.where('name')}: a name needs a single set of models")
    return entry


def _sets(section: Section, manifest: Manifest) -> tuple[tuple[str, ...], ...]:
    """`models: [a, b]` is one set, `models: [[a, b], [a, c]]` are two."""
    given = section.take_plain("models", list(manifest.defaults.models))
    if isinstance(given, list) and given and all(isinstance(item, str) for item in given):
        given = [given]
    if not isinstance(given, list) or not all(
        isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        for names in given
    ):
        raise ManifestError(
            f"{section.where('models')}: 'models': expected a list of models, or a list of such "
            f"lists, got {given!r}"
        )
    for names in given:
        _known(section, "models", names, manifest.models)
    return tuple(dict.fromkeys(tuple(names) for names in given))


def _recipe(section: Section) -> Recipe:
    name = _one(section, "recipe", DEFAULT_RECIPE, RECIPES)
    settings = section.take_plain("set", {})
    if not isinstance(settings, dict):
        raise ManifestError(f"{section.where('set')}: 'set' must be a mapping of recipe settings")
    try:
        changes = {str(key): _text(value) for key, value in settings.items()}
        return RECIPES[name].with_settings(changes)
    except UsageError as error:
        raise ManifestError(f"{section.where('set')}: {error}") from error


def _text(value: Any) -> str:
    """A YAML value as `--set` takes it on a command line."""
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _evaluate(section: Section, manifest: Manifest) -> Evaluate:
    dataset = _dataset(section, manifest)
    data = manifest.dataset(dataset)
    entry = Evaluate(
        where=section.where(),
        dataset=dataset,
        split=_split(section, "split", "test", data),
        models=_known(section, "models", section.take_names("models", ()), manifest.models),
        train_split=_split(section, "train_split", "train", data),
        val_split=_split(section, "val_split", "val", data),
        quick=section.take("quick", bool, False),
    )
    section.finish()
    return entry


def _cluster(section: Section) -> Cluster:
    plain = Cluster()
    cluster = Cluster(
        queue=section.take("queue", str, None),
        account=section.take("account", str, None),
        walltime=_walltime(section),
        cores=_whole(section, "cores", plain.cores, least=1),
        memory=section.take("memory", str, plain.memory),
        gpus=_whole(section, "gpus", 0),
        elements=_whole(section, "elements", plain.elements, least=1),
        interface=section.take("interface", str, None),
        directives=section.take_names("directives", ()),
        setup=section.take_names("setup", (), shell=True),
    )
    section.finish()
    return cluster


def _walltime(section: Section) -> str:
    text: str = section.take("walltime", str, Cluster.walltime)
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ManifestError(
            f"{section.where('walltime')}: expected hours:minutes:seconds in quotes, "
            f'as in "04:00:00", got {text!r}'
        )
    return text


def _dataset(section: Section, manifest: Manifest) -> str:
    # Those that `hada-extract --data` has named are known beside their stores.
    known = [*manifest.datasets, *remembered_names(manifest.stores)]
    return _one(section, "dataset", manifest.defaults.dataset, known)


def _splits(
    section: Section, key: str, names: Iterable[str], entry: DatasetEntry
) -> tuple[str, ...]:
    """Splits of a dataset; any name passes where only its annotations say which there are."""
    return _known(section, key, names, entry.splits or names)


def _split(section: Section, key: str, default: str, entry: DatasetEntry) -> str:
    return _splits(section, key, (section.take(key, str, default),), entry)[0]


def _one(section: Section, key: str, default: str, known: Iterable[str]) -> str:
    return _known(section, key, [section.take(key, str, default)], known)[0]


def _known(
    section: Section, key: str, names: Iterable[str], known: Iterable[str]
) -> tuple[str, ...]:
    words = list(known)
    for name in names:
        if name not in words:
            raise ManifestError(
                f"{section.where(key)}: {key!r}: unknown {name!r}. {nearest(name, words)}"
            )
    return tuple(dict.fromkeys(names))


def _choice(section: Section, key: str, choices: tuple[str, ...]) -> str | None:
    return _known(section, key, [section.take(key, str)], choices)[0] if key in section else None


def _whole(section: Section, key: str, default: int, *, least: int = 0) -> int:
    value = section.take(key, int, default)
    if key in section and value < least:
        raise ManifestError(f"{section.where(key)}: {key!r}: expected {least} or more, got {value}")
    return value
