"""An exported fusion's folder, which `hada-fuse export` writes.

    config.json         what is fused and how; under `run` the configuration of the run behind it
    model.safetensors   the weights, with the digests of themselves and of config.json
    README.md           the model card

`hada.fuse.run_folder.RunFolder` opens one as it opens a run: it retrieves, and does not train on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from torch import Tensor

from hada.extract.common import atomic
from hada.extract.common.documents import read_json
from hada.extract.common.errors import RunError
from hada.extract.common.shapes import conform
from hada.fuse.recipes import Recipe
from hada.fuse.run_files.config import CONFIG, FORMAT, check_branch, check_config
from hada.fuse.run_files.sealed import (
    CHECKSUM,
    FaultError,
    check_safetensors,
    digest_json,
    seal_safetensors,
)

WEIGHTS = "model.safetensors"
REMEDY = "export or download it again"
# What of a run's configuration an export keeps: all but places and machines.
KEPT = (
    "recipe",
    "seed",
    "train_split",
    "val_split",
    "window_shards",
    "stores",
    "init",
    "init_fitted",
    "imported",
)
_HEADS = "heads."


class _Features(TypedDict):
    family: str
    weights_digest: str


class _Branches(TypedDict):
    image: dict[str, Any]
    caption: dict[str, Any]


class _Config(TypedDict):
    branches: _Branches
    features: dict[str, _Features]
    licences: dict[str, str]
    scores: Literal["fused", "first", "all"]
    score_weights: list[float]
    recipe: str
    dataset: str
    nodes: NotRequired[dict[str, Any] | None]
    heads: NotRequired[dict[str, list[Any]] | None]
    match_head: NotRequired[bool]
    run: NotRequired[dict[str, Any] | None]


def seal_weights(file: Path, config: Mapping[str, Any]) -> None:
    """Give a safetensors file its checksum and that of the configuration beside it.

    Args:
        file: The weights; they are written anew.
        config: What config.json beside them says.
    """
    plain = json.loads(json.dumps(config))
    data, _ = seal_safetensors(file.read_bytes(), {"config": digest_json(plain)})
    atomic.write_bytes(file, data)


def is_export(folder: Path) -> bool:
    """Whether a folder is an exported fusion's, not a run's."""
    return (folder / WEIGHTS).is_file()


def read_export(folder: Path) -> dict[str, Any]:
    """An exported fusion's configuration in the form of a run's; raises `RunError`.

    An export of before it kept the run's has a recipe that computes the same, and says nothing of
    the data that fitted it.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise FaultError("missing", file, "the weights have no configuration", REMEDY)
    export = check_export(file, folder / WEIGHTS)
    run = export.get("run") or {"recipe": _recipe(export).to_json(), "imported": {}}
    config = {
        **{key: run[key] for key in KEPT if key in run},
        "format": FORMAT,
        "dataset": export["dataset"],
        "models": [*export["features"]],
        "branches": export["branches"],
        "features": export["features"],
    }
    check_config(config, str(file))
    return config


def export_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of an exported fusion under the names that a run's have; raises `RunError`."""
    tensors = exported_tensors(folder / WEIGHTS, "cpu")
    return {
        # A buffer's name holds no dot; see `hada.fuse.exchange.hub.HadaModel`.
        name.removeprefix(_HEADS).replace("__", ".") if name.startswith(_HEADS) else name: value
        for name, value in tensors.items()
    }


def _recipe(export: Mapping[str, Any]) -> Recipe:
    """What an export of an earlier version was trained by, as far as retrieval needs it."""
    branch = export["branches"]["image"]
    base = Recipe(name=export["recipe"]).to_json()
    others = branch["models"][1:]
    first_only = bool(others) and not any(model["has_tokens"] for model in others)
    base["network"]["inputs"] = branch.get("inputs", "as-is")
    base["nodes"] = export.get("nodes") or {"width": 0}
    base["features"]["first_tokens_only"] = first_only
    base["scores"] = {"mode": export["scores"], "weights": export["score_weights"]}
    return Recipe.from_json(base)


def check_export(config_file: Path, weights: Path) -> dict[str, Any]:
    """The configuration of an export, checked together with the weights.

    Exports of before there were checksums are looked at as far as their shapes go.

    Args:
        config_file: config.json.
        weights: model.safetensors.

    Raises:
        RunError: The two are not whole, not ours, or not of each other.
    """
    config: dict[str, Any] = read_json(
        config_file, RunError, remedy=f"{REMEDY[:1].upper()}{REMEDY[1:]}"
    )
    _read(weights, config, config_file)
    where = str(config_file)
    conform(config, _Config, where, RunError, REMEDY)
    for side in ("image", "caption"):
        branch = check_branch(config["branches"][side], f"{where}: branches.{side}")
        if len(branch.models) != len(config["features"]):
            raise RunError(f"{where}: branches.{side}.models: not as many as features; {REMEDY}")
    return config


def _read(file: Path, config: Any, config_file: Path) -> bytes:
    """The weights' bytes, checked."""
    if not file.exists():
        raise FaultError("missing", file, "no weights there", REMEDY)
    data = file.read_bytes()
    try:
        metadata, _ = check_safetensors(data)
    except ValueError as error:
        raise FaultError("damaged", file, str(error), REMEDY) from error
    if CHECKSUM not in metadata:
        if not metadata.keys() <= {"format"}:
            raise FaultError("damaged", file, "its checksum is missing", REMEDY)
    elif metadata.get("config") != digest_json(config):
        reason = f"damaged, or not the one that {file.name} was written with"
        raise FaultError("foreign", config_file, reason, REMEDY)
    return data


def exported_tensors(file: Path, device: str) -> dict[str, Tensor]:
    """The weights of an exported folder, from bytes that were checked.

    Args:
        file: model.safetensors of an export.
        device: Where the tensors are put.

    Raises:
        FaultError: The file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = file.read_bytes()
    try:
        check_safetensors(data)
        return {name: value.to(device) for name, value in load(data).items()}
    except (SafetensorError, ValueError, KeyError) as error:
        raise FaultError("damaged", file, str(error), REMEDY) from error
