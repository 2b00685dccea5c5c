"""An exported fusion's folder: its weights carry the digests of themselves and of `config.json`."""

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
from hada.fuse.run_files.config import check_branch
from hada.fuse.run_files.sealed import (
    CHECKSUM,
    FaultError,
    check_safetensors,
    digest_json,
    seal_safetensors,
)

REMEDY = "export or download it again"


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


def seal_weights(file: Path, config: Mapping[str, Any]) -> None:
    """Give a safetensors file its checksum and that of the `config` beside it."""
    plain = json.loads(json.dumps(config))
    data, _ = seal_safetensors(file.read_bytes(), {"config": digest_json(plain)})
    atomic.write_bytes(file, data)


def check_export(config_file: Path, weights: Path) -> None:
    """Raise `RunError` where a configuration and weights are not whole or not of each other.

    Exports of before there were checksums are looked at as far as their shapes go.
    """
    config = read_json(config_file, RunError, remedy=f"{REMEDY[:1].upper()}{REMEDY[1:]}")
    _read(weights, config, config_file)
    where = str(config_file)
    conform(config, _Config, where, RunError, REMEDY)
    for side in ("image", "caption"):
        branch = check_branch(config["branches"][side], f"{where}: branches.{side}")
        if len(branch.models) != len(config["features"]):
            raise RunError(f"{where}: branches.{side}.models: not as many as features; {REMEDY}")


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
    """The weights of an exported folder, from bytes that were checked."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = file.read_bytes()
    try:
        check_safetensors(data)
        return {name: value.to(device) for name, value in load(data).items()}
    except (SafetensorError, ValueError, KeyError) as error:
        raise FaultError("damaged", file, str(error), REMEDY) from error
