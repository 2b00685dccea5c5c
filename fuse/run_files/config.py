"""`config.json` of a run: reading it, checking it field by field, and the run's identity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from hada.extract.common.differences import differences as all_differences
from hada.extract.common.documents import read_json
from hada.extract.common.errors import HadaError, RunError
from hada.extract.common.shapes import conform
from hada.fuse.batch import ModelShape
from hada.fuse.network.config import BranchConfig
from hada.fuse.recipes import Recipe, nested
from hada.fuse.run_files.sealed import CHECKSUM, FaultError, digest_json
from hada.fuse.settings import EdgeWeights

CONFIG = "config.json"
# A run of format 1 is of before there were checksums.
FORMAT, UNBOUND = 2, 1
# Fields that say how and where, not what: they may differ when a run goes on.
FREE_FIELDS = ("environment", "paths", "init_fitted")
MOST_MODELS, WIDEST = 64, 1 << 20
_WIDTHS = ("node_width", "heads", "head_width", "graph_width", "out_width")
# What a branch that does not say has: files of before these settings were of the paper's network.
_PAPER: dict[str, Any] = {
    **dict.fromkeys(("node_width", "head_width", "graph_width", "out_width"), 512),
    "norm": "batch",
    "inputs": "as-is",
}
_DROPOUTS = ("dropout_nodes", "dropout_graph", "dropout_head")


class _Features(TypedDict):
    family: str
    weights_digest: str
    normalized: NotRequired[bool]
    tokens: NotRequired[Any]


class _Branches(TypedDict):
    image: dict[str, Any]
    caption: dict[str, Any]


class _Config(TypedDict):
    dataset: str
    models: list[str]
    recipe: dict[str, Any]
    branches: _Branches
    features: dict[str, _Features]
    seed: NotRequired[int]
    train_split: NotRequired[str]
    val_split: NotRequired[str]
    window_shards: NotRequired[int]
    init: NotRequired[str]
    paths: NotRequired[dict[str, Any]]
    environment: NotRequired[dict[str, Any]]
    init_fitted: NotRequired[list[dict[str, Any]]]
    stores: NotRequired[dict[str, dict[str, Any]]]
    imported: NotRequired[dict[str, Any]]


def read_config(folder: Path) -> tuple[dict[str, Any], bool]:
    """A run's configuration, and whether it carries a checksum.

    Raises:
        RunError: There is none, or a field is not what it must be; the message names it.
        FaultError: It is not what was written.
    """
    file = folder / CONFIG
    if not file.exists():
        raise RunError(
            f"{folder}: no training run there ({CONFIG} is missing). "
            f"Train one first: hada-fuse train --run {folder}"
        )
    values = read_json(file, RunError)
    if not isinstance(values, dict):
        raise RunError(f"{file}: expected a mapping; put the file back, or train again")
    checksum = values.pop(CHECKSUM, None)
    if values.get("format") not in (FORMAT, UNBOUND) or isinstance(values["format"], bool):
        raise RunError(
            f"{file}: format: expected {FORMAT} or {UNBOUND}, got {values.get('format')!r}; "
            "train again with this version of HADA"
        )
    bound = values["format"] == FORMAT
    check_config(values, str(file))
    if (checksum is not None) != bound or (bound and checksum != digest_json(values)):
        raise FaultError(
            "damaged",
            file,
            "it was changed after it was written (its checksum is of other values)",
            "put the file back, or train again with --fresh",
        )
    return values, bound


def check_config(values: Mapping[str, Any], where: str) -> None:
    """Raise `RunError`, naming the field, where a configuration is not one."""
    remedy = "Put the file back, or train again with --fresh"
    conform(values, _Config, where, RunError, remedy)
    names = values["models"]
    _must(0 < len(names) <= MOST_MODELS, f"{where}: models: expected 1 to {MOST_MODELS}")
    for name in names:
        _must(name in values["features"], f"{where}: features: {name!r} is missing")
    # From 0: a run that reads the whole split says nothing.
    _must(values.get("window_shards", 0) >= 0, f"{where}: window_shards: expected at least 0")
    try:
        conform(nested(values["recipe"]), Recipe, f"{where}: recipe", RunError, remedy)
        Recipe.from_json(values["recipe"])
    except RunError:
        raise
    except HadaError as error:  # a number out of its range
        raise RunError(f"{where}: recipe: {error}") from error
    for side in ("image", "caption"):
        check_branch(values["branches"][side], f"{where}: branches.{side}")
        count = len(values["branches"][side]["models"])
        _must(
            count == len(names),
            f"{where}: branches.{side}.models: {count} of them, {len(names)} in models",
        )


def check_branch(values: Any, where: str) -> BranchConfig:
    """A branch's configuration out of plain values; raises `RunError`, naming the field."""
    try:
        conform(values, BranchConfig, where, RunError)
    except RunError:
        raise
    except HadaError as error:
        raise RunError(f"{where}: {error}") from error
    _known(values, BranchConfig, where)
    _known(values.get("edges", {}), EdgeWeights, f"{where}.edges")
    sizes = {key: values[key] for key in _WIDTHS if key in values}
    for key in ("node_hidden", "graph_hidden", "head_hidden"):
        sizes |= {f"{key}[{n}]": size for n, size in enumerate(values.get(key, ()))}
    for number, model in enumerate(values["models"]):
        _known(model, ModelShape, f"{where}.models[{number}]")
        sizes[f"models[{number}].node_width"] = model["node_width"]
        if model["embedding_width"] is not None:
            sizes[f"models[{number}].embedding_width"] = model["embedding_width"]
    if "evaluation_batch" in values:
        sizes["evaluation_batch"] = values["evaluation_batch"]
    for key, size in sizes.items():
        _must(0 < size <= WIDEST, f"{where}.{key}: expected 1 to {WIDEST}, got {size}")
    for key in _DROPOUTS:
        value = values.get(key, 0)
        _must(0 <= value < 1, f"{where}.{key}: expected at least 0 and below 1, got {value}")
    return branch_from_json(values)


def _known(values: Mapping[str, Any], kind: Any, where: str) -> None:
    for key in values:
        _must(key in kind.__dataclass_fields__, f"{where}: unknown field {key!r}")


def _must(true: bool, text: str) -> None:
    if not true:
        raise RunError(f"{text}. Put the file back, or train again with --fresh")


def identity(values: Mapping[str, Any]) -> str:
    """The digest of all that makes a run what it is: its files carry it."""
    left_out = (*FREE_FIELDS, "format", CHECKSUM)
    return digest_json({key: value for key, value in values.items() if key not in left_out})


def completed(values: Mapping[str, Any], today: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A checked configuration as today's version would write it: new settings at their defaults.

    Args:
        values: What `read_config` gave.
        today: Model -> what `features_of` says of its store now. Whether embeddings were of unit
            length is taken from it where the run does not say.
    """
    features = {
        name: {"normalized": (today or {}).get(name, {}).get("normalized"), **held}
        for name, held in values["features"].items()
    }
    sides = {side: branch_from_json(branch) for side, branch in values["branches"].items()}
    return {
        **values,
        "format": FORMAT,
        "features": features,
        "recipe": Recipe.from_json(values["recipe"]).to_json(),
        "branches": {s: json.loads(json.dumps(branch_to_json(b))) for s, b in sides.items()},
    }


def differences(own: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The fields that differ, as (dotted name, own value, other value), free ones left out.

    Args:
        own: A run's configuration.
        other: Another one.
    """

    def bound(config: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in config.items() if key not in FREE_FIELDS}

    return all_differences(bound(own), bound(other))


def branch_to_json(config: BranchConfig) -> dict[str, Any]:
    """A branch's configuration as plain values."""
    return asdict(config)


def branch_from_json(values: Mapping[str, Any]) -> BranchConfig:
    """Back from `branch_to_json`."""
    models = tuple(ModelShape(**m) for m in values["models"])
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    plain |= {"models": models, "edges": EdgeWeights(**values["edges"])}
    return BranchConfig(**{**_PAPER, **plain})
