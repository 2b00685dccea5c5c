"""`last.pt` and the one before it: where a training goes on.

Both are what `torch.save` writes, with a head behind it (see `sealed`) that says of which run
they are, how far it is, and what `metrics.jsonl` and `best.safetensors` were at that moment.
"""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch

from hada.extract.common import atomic
from hada.extract.common.documents import parse_json
from hada.extract.common.errors import RunError
from hada.extract.common.shapes import conform
from hada.extract.common.tensor_files import read_torch
from hada.fuse.run_files.sealed import FaultError, check_sealed, digest, read_head, write_sealed

LAST, PREVIOUS = "last.pt", "previous.pt"
FORMAT, UNBOUND = 2, 1
HOLDS = "training"
START_OVER = "put it back from a copy, or start over with --fresh"
_PARTS = ("objective", "optimizer", "position", "metrics_bytes", "rng", "rng_devices")


@dataclass
class Position:
    """How far a training is: `step` steps of `epoch` are done."""

    epoch: int = 0
    step: int = 0
    best_rsum: float = -1.0
    best_loss: float = float("inf")
    best_epoch: int = -1
    stale: int = 0
    finished: str = ""
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step}"


@dataclass(frozen=True)
class Point:
    """One checkpoint, as its head tells.

    metrics_bytes, metrics_digest: how long `metrics.jsonl` was, and the digest of so much of it.
    best: the digest of the tensors in `best.safetensors`, None where there was none yet.
    sealed: False for one of before there were checksums, which knows neither digest.
    """

    path: Path
    position: Position
    metrics_bytes: int
    metrics_digest: str | None = None
    best: str | None = None
    sealed: bool = True


def write_last(folder: Path, state: Mapping[str, Any], head: Mapping[str, Any]) -> None:
    """Write `last.pt`; the one that was there stays as `previous.pt`.

    Args:
        folder: The run's.
        state: What `torch.save` takes.
        head: What `head_of` says of it.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    seal_last(folder / LAST, buffer.getbuffer(), head, keep=folder / PREVIOUS)


def seal_last(
    path: Path, data: bytes | memoryview, head: Mapping[str, Any], *, keep: Path | None = None
) -> None:
    """Write what `torch.save` gave, with its head, in one step.

    Args:
        path: The checkpoint's file.
        data: The bytes that `torch.save` gave.
        head: What `head_of` says of them.
        keep: What the file that was there becomes; None replaces it.
    """
    with atomic.writing(path) as file:
        write_sealed(file, data, {**head, "holds": HOLDS, "format": FORMAT})
        file.sync()
        if keep is not None:
            _keep(path, keep)


def _keep(path: Path, keep: Path) -> None:
    """Give a file a second name, so that at no moment it has none."""
    second = atomic.temporary_name(keep)
    with contextlib.suppress(FileNotFoundError):
        try:
            second.unlink(missing_ok=True)
            os.link(path, second)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links
            os.replace(path, keep)
            return
        os.replace(second, keep)
        second.unlink(missing_ok=True)  # where both were one file, renaming does nothing


def head_of(position: Position, owner: str, metrics: bytes, best: str | None) -> dict[str, Any]:
    """What a checkpoint's head says.

    Args:
        position: Where the training is.
        owner: The run's `identity`.
        metrics: All of metrics.jsonl so far.
        best: The digest of the best weights, None where there are none yet.
    """
    return {
        "config": owner,
        "position": asdict(position),
        "metrics_bytes": len(metrics),
        "metrics_digest": digest(metrics),
        "best": best,
    }


def read_point(path: Path, owner: str, *, bound: bool) -> Point:
    """A checkpoint, after a look at every byte of it.

    Args:
        path: The file.
        owner: The run's `identity`.
        bound: Whether the run's configuration has a checksum: then this must have one, too.

    Raises:
        FaultError: It is damaged, or of another run.
    """
    try:
        head = check_sealed(path)
    except (ValueError, OSError) as error:
        raise FaultError("damaged", path, str(error), START_OVER) from error
    if head is not None:
        return _of_head(path, head, owner)
    point = _unsealed(path)
    if bound:
        raise FaultError("foreign", path, "it has no checksum, the run's files have", START_OVER)
    return point


def peek(path: Path, owner: str) -> Point | None:
    """A checkpoint by its head alone; None where there is no good one.

    Args:
        path: The checkpoint's file; it may be missing.
        owner: The run's `identity`.
    """
    try:
        head = read_head(path)
        return None if head is None else _of_head(path, head, owner)
    except (ValueError, OSError):  # among them a FaultError
        return None


def _of_head(path: Path, head: Mapping[str, Any], owner: str) -> Point:
    if head.get("holds") != HOLDS:
        raise FaultError("foreign", path, "it is no checkpoint of a training", START_OVER)
    if head.get("format") != FORMAT:
        raise FaultError("foreign", path, f"its format is not {FORMAT}", START_OVER)
    conform(head, _Head, str(path), RunError, START_OVER)
    if head["config"] != owner:
        raise FaultError("foreign", path, "it belongs to another run", START_OVER)
    position = Position(**head["position"])
    return Point(path, position, head["metrics_bytes"], head["metrics_digest"], head["best"])


def _unsealed(path: Path) -> Point:
    """A checkpoint of before there were checksums; its zip has those of its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # zipfile raises many kinds for a damaged file
        raise FaultError("damaged", path, f"no file of ours ({error})", START_OVER) from error
    if broken is not None:
        raise FaultError("damaged", path, f"its part {broken} is not what was written", START_OVER)
    state = load_state(path)
    if state["format"] != UNBOUND:
        raise FaultError("damaged", path, "its checksum is missing", START_OVER)
    return Point(path, Position(**state["position"]), state["metrics_bytes"], sealed=False)


def load_state(path: Path) -> dict[str, Any]:
    """What `write_last` was given, its tensors on the CPU.

    Args:
        path: The checkpoint's file.

    Raises:
        FaultError: The file is damaged, or no checkpoint of a training.
        RunError: Its position is of another shape than this version's.
    """
    try:
        state = read_torch(path, RunError, device="cpu")
    except RunError as error:
        raise FaultError("damaged", path, f"no file of ours ({error})", START_OVER) from error
    if not isinstance(state, dict) or state.get("format") not in (UNBOUND, FORMAT):
        raise FaultError("foreign", path, "it is no checkpoint of a training", START_OVER)
    missing = [name for name in _PARTS if name not in state]
    if missing:
        raise FaultError("foreign", path, f"it has no {missing[0]}", START_OVER)
    conform(state["position"], Position, f"{path}: position", RunError, START_OVER)
    conform(state["metrics_bytes"], int, f"{path}: metrics_bytes", RunError, START_OVER)
    if state["metrics_bytes"] < 0:
        raise FaultError("damaged", path, "metrics_bytes is negative", START_OVER)
    result: dict[str, Any] = state
    return result


def check_metrics(file: Path, point: Point) -> bytes:
    """The lines that a checkpoint remembers.

    Args:
        file: metrics.jsonl of the run; it may have grown since.
        point: The checkpoint.

    Returns:
        Its first bytes, up to where the checkpoint was written.

    Raises:
        FaultError: The file is missing, too short, or its first bytes are others.
    """
    remedy = "the weights are not concerned; " + START_OVER
    data = file.read_bytes() if file.exists() else b""
    if len(data) < point.metrics_bytes:
        kind = "damaged" if file.exists() else "missing"
        reason = f"{len(data)} bytes, {point.path.name} remembers {point.metrics_bytes}"
        raise FaultError(kind, file, reason, remedy)
    data = data[: point.metrics_bytes]
    if point.metrics_digest not in (None, digest(data)):
        raise FaultError("damaged", file, f"not the lines {point.path.name} remembers", remedy)
    return data


class _Head(TypedDict):
    config: str
    position: Position
    metrics_bytes: int
    metrics_digest: str
    best: str | None


class _Line(TypedDict):
    epoch: int
    best_epoch: int
    loss: dict[str, float]
    val: dict[str, float]


def read_lines(file: Path, *, checked: bool) -> list[dict[str, Any]]:
    """All whole lines of metrics.

    Args:
        file: metrics.jsonl of a run.
        checked: Whether a checkpoint has checked the file: then what is no JSON is half a line,
            which a full disk or a killed process left, and is left out.

    Returns:
        A table for each epoch, in the order of the file.

    Raises:
        RunError: A line is not ours; the message has its number.
    """
    lines = []
    for number, text in enumerate(file.read_bytes().rpartition(b"\n")[0].splitlines(), start=1):
        if not text:  # what follows half a line begins with a line break
            continue
        where = f"{file}, line {number}"
        try:
            line = parse_json(text, where, RunError, finite=False)
        except RunError:
            if checked:
                continue
            raise
        conform(line, _Line, where, RunError, START_OVER)
        for part, key in (("val", "rsum"), ("loss", "total")):
            if key not in line[part]:
                raise RunError(f"{where}: {part}: {key!r} is missing; {START_OVER}")
        lines.append(line)
    return lines
