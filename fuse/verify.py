"""Checks a run's folder file by file, and adds checksums to runs without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hada.extract.common import atomic
from hada.extract.common.errors import HadaError, RunError
from hada.fuse.run_files.checkpoint import (
    LAST,
    PREVIOUS,
    Point,
    check_metrics,
    head_of,
    read_lines,
    read_point,
    seal_last,
)
from hada.fuse.run_files.config import CONFIG, FORMAT, read_config
from hada.fuse.run_files.exported import is_export, read_export
from hada.fuse.run_files.named import located
from hada.fuse.run_files.sealed import FaultError, check_sealed, seal_json, seal_safetensors
from hada.fuse.run_files.weights import BEST
from hada.fuse.run_folder import METRICS, RunFolder, weights_digest
from hada.fuse.training.lock import only_trainer

ANEW = "remove it: a search makes it anew"


def examine(name: Path | str) -> list[FaultError]:
    """All that keeps a run, or an exported model, from being whole; every byte is looked at.

    Raises `RunError` where there is no folder.
    """
    folder = located(name)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; expected a run's, or one of hada-fuse export")
    try:
        if is_export(folder):
            read_export(folder)
            RunFolder(folder).load_best()
            return []
        config, bound = read_config(folder)
    except FaultError as fault:
        return [fault]
    except HadaError as error:
        kind = "damaged" if (folder / CONFIG).exists() else "missing"
        return [FaultError(kind, folder / CONFIG, *_halves(error))]
    run = RunFolder(folder)
    faults = [] if bound else [_unbound(folder / CONFIG)]
    points, found = _points(run, config)
    faults += found
    faults += _best_and_metrics(run, points[0] if points else None)
    if not any(fault.file.name == BEST for fault in faults) and (folder / BEST).exists():
        faults += list(_copies(folder))
    return faults


def _halves(error: Exception) -> tuple[str, str]:
    """A message as what is wrong and what to do."""
    what, mark, remedy = str(error).partition("; ")
    return what, remedy if mark else "put it back from a copy, or train again with --fresh"


def _unbound(file: Path) -> FaultError:
    remedy = f"hada-fuse verify --bind {file.parent} gives it one"
    return FaultError("unbound", file, "it is of before there were checksums", remedy)


def _points(run: RunFolder, config: Mapping[str, Any]) -> tuple[list[Point], list[FaultError]]:
    """The good checkpoints, newest first, and what is wrong with the others."""
    owner, bound = run.owner()
    points, faults = [], []
    there = [name for name in (LAST, PREVIOUS) if (run.path / name).exists()]
    if LAST not in there and "imported" not in config:
        fresh = not there and not (run.path / BEST).exists()
        what = "nothing is trained yet" if fresh else "training cannot go on where it was"
        remedy = "train it: hada-fuse train" if fresh else "put it back; retrieval needs it not"
        faults.append(FaultError("missing", run.path / LAST, what, remedy))
    for name in there:
        try:
            point = read_point(run.path / name, owner, bound=bound)
        except FaultError as fault:
            faults.append(fault)
        except RunError as error:
            faults.append(FaultError("damaged", run.path / name, *_halves(error)))
        else:
            points.append(point)
            if not point.sealed:
                faults.append(_unbound(run.path / name))
    return points, faults


def _best_and_metrics(run: RunFolder, point: Point | None) -> Iterator[FaultError]:
    file = run.path / METRICS
    try:
        if point is not None:
            check_metrics(file, point)
        if file.exists():
            read_lines(file, checked=point is not None and point.sealed)
    except FaultError as fault:
        yield fault
    except RunError as error:
        yield FaultError("damaged", file, *_halves(error))
    file = run.path / BEST
    if not file.exists() and (point is None or point.position.best_epoch < 0):
        return  # no epoch is finished yet
    try:
        if not run.read_best(point).sealed:
            yield _unbound(file)
        run.load_best()
    except FaultError as fault:
        yield fault
    except HadaError as error:
        yield FaultError("damaged", file, *_halves(error))


def _copies(folder: Path) -> Iterator[FaultError]:
    """Indexes of searches, which are made from the weights."""
    weights = weights_digest(folder)
    for file in sorted([*folder.glob("index-*.npz"), *folder.glob("index-*.faiss")]):
        try:
            head = check_sealed(file)
        except (ValueError, OSError) as error:
            yield FaultError("damaged", file, str(error), ANEW)
            continue
        if head is None:
            yield FaultError("unbound", file, "it has no checksum, or was cut short", ANEW)
        elif head.get("weights", weights) != weights:
            yield FaultError("stale", file, "it is of other weights", ANEW)


def bind(folder: Path) -> list[str]:
    """Give the files of a run of before there were checksums theirs; returns which got one.

    They are checked first, as far as files without checksums can be. The configuration comes
    last: from then on the others must have theirs.

    Raises `RunError` where something else is wrong with the run.
    """
    with only_trainer(folder):
        others = [fault for fault in examine(folder) if fault.kind not in ("unbound", "stale")]
        if others:
            raise RunError(f"{others[0]}. A run is bound when it is whole otherwise")
        run, config = RunFolder(folder), read_config(folder)[0]
        owner, bound = run.owner()
        points = _points(run, config)[0]
        changed: list[str] = []
        best: tuple[str, int] | None = None
        if (folder / BEST).exists():
            found = run.read_best(points[0] if points else None)
            epoch = points[0].position.best_epoch if points else -1
            best = found.digest, epoch
            if not found.sealed:
                facts = {"format": "2", "config": owner, "epoch": str(epoch)}
                atomic.write_bytes(folder / BEST, seal_safetensors(found.data, facts)[0])
                changed.append(BEST)
        for point in points:
            if point.sealed:
                continue
            known = best and (best[0] if point.position.best_epoch == best[1] else None)
            metrics = check_metrics(folder / METRICS, point)
            head = head_of(point.position, owner, metrics, known)
            seal_last(point.path, point.path.read_bytes(), head)
            changed.append(point.path.name)
        if not bound:
            sealed = seal_json({**config, "format": FORMAT})
            atomic.write_json(folder / CONFIG, sealed)
            changed.append(CONFIG)
    return changed
