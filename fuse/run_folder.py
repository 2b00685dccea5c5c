"""A run's folder: configuration, metrics, best weights and checkpoints.

    config.json        the resolved request: recipe, seed, stores, shapes, environment
    metrics.jsonl      one line an epoch
    best.safetensors   the weights with the best validation RSum: all that retrieval needs
    last.pt            everything: weights, optimiser, queues, random states, position
    previous.pt        the last.pt before it, for the day on which that one is damaged

Every file is written beside and renamed, and carries a checksum (`run_files.sealed`); weights and
checkpoints carry their configuration's, too, and a checkpoint those of the weights and of the
metrics at its moment. `metrics.jsonl` is appended to and cut back to the length that the
checkpoint remembers, so a killed run leaves no line twice and none by halves. Runs of before
there were checksums open as they are; `hada-fuse verify --bind` gives them theirs.

An exported fusion opens as a run does, from its folder or by its Hub id, and retrieves the same; it
has no metrics and no checkpoints, and training does not go on in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hada.extract.common import atomic
from hada.extract.common.errors import RunError
from hada.fuse.network.fuser import Fuser
from hada.fuse.network.score_mix import ScoreMix, mixable_models
from hada.fuse.recipes import Recipe
from hada.fuse.run_files.checkpoint import FORMAT as STATE_FORMAT
from hada.fuse.run_files.checkpoint import (
    LAST,
    PREVIOUS,
    Point,
    Position,
    check_metrics,
    head_of,
    peek,
    read_lines,
    read_point,
    write_last,
)
from hada.fuse.run_files.config import (
    CONFIG,
    FORMAT,
    branch_from_json,
    branch_to_json,
    completed,
    differences,
    identity,
    read_config,
)
from hada.fuse.run_files.exported import WEIGHTS, export_tensors, is_export, read_export
from hada.fuse.run_files.named import located, name_of
from hada.fuse.run_files.sealed import FaultError, seal_json
from hada.fuse.run_files.weights import BEST, Best, read_best, sealed_tensors
from hada.fuse.scores.heads import Heads

__all__ = [
    "BEST",
    "CONFIG",
    "FORMAT",
    "LAST",
    "METRICS",
    "PREVIOUS",
    "Position",
    "RunFolder",
    "branch_from_json",
    "branch_to_json",
    "differences",
    "weights_digest",
]

METRICS = "metrics.jsonl"


class RunFolder:
    """The files of one run, or of an exported fusion.

    Args:
        path: The run's folder, an exported one, or `hf-hub:ORG/NAME` (or `...@REVISION`), which is
            looked for among what the Hub's client has downloaded, or downloaded.

    Raises:
        RunError: There is no such model on the Hub, or the Hub cannot be reached.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = located(path)
        self._owner: tuple[str, bool] | None = None
        self._best: str | None = None

    @property
    def name(self) -> str:
        """The folder's name, which also names the run."""
        return name_of(self.path)

    @property
    def exported(self) -> bool:
        """Whether this is an exported fusion, not a training's folder."""
        return is_export(self.path)

    def derived(self, runs: Path | str) -> Path:
        """The folder for what is made from the run: indexes and pages.

        A run keeps them itself. An export may be read-only, or uploaded again, so theirs lie
        below `runs`, the manifest's folder of runs.
        """
        if not self.exported:
            return self.path
        return Path(runs) / str(self.config()["dataset"]) / f"{self.name}-exported"

    def config(self) -> dict[str, Any]:
        """The resolved configuration; raises `RunError` where there is none or a broken one."""
        return read_export(self.path) if self.exported else read_config(self.path)[0]

    def recipe(self) -> Recipe:
        """What the run is trained by, settings newer than the run at their defaults."""
        return Recipe.from_json(self.config()["recipe"])

    def owner(self) -> tuple[str, bool]:
        """The configuration's `identity`, and whether it has a checksum. Read once."""
        if self._owner is None:
            if self.exported:
                self._owner = identity(self.config()), True
            elif (self.path / CONFIG).exists():
                config, bound = read_config(self.path)
                self._owner = identity(config), bound
            else:  # a training without a plan
                self._owner = "", False
        return self._owner

    def window_shards(self) -> int | None:
        """Shards of the windows that a run shuffles, 0 for the whole split; None without a run."""
        return int(self.config().get("window_shards", 0)) if (self.path / CONFIG).exists() else None

    def claim(self, config: dict[str, Any], *, fresh: bool = False) -> None:
        """Make the folder this run's, or find that it already is.

        Args:
            config: What `hada.fuse.training.prepare.run_config` says of the run.
            fresh: Whether to throw away what the folder holds.

        Raises:
            RunError: The folder belongs to another run, and the message names the first field that
                differs; or it holds an exported fusion, or a checkpoint without a configuration.
        """
        if self.exported:
            raise RunError(
                f"{self.path}: an exported fusion, in which no training goes on. Choose another "
                f"folder with --run; --init {self.path} begins with its weights"
            )
        atomic.make_folder(self.path)
        self._owner = self._best = None
        for leftover in self.path.glob(f"*{atomic.TEMPORARY}*"):
            if atomic.is_left_over(leftover):
                with contextlib.suppress(OSError):
                    leftover.unlink()
        if fresh:
            # The older checkpoint first: alone it would be gone on with.
            for name in (PREVIOUS, LAST, BEST, METRICS, CONFIG):
                (self.path / name).unlink(missing_ok=True)
        if not (self.path / CONFIG).exists():
            for name in (LAST, PREVIOUS):
                if (self.path / name).exists():
                    raise RunError(f"{self.path}: {name} without {CONFIG}; use --fresh")
            atomic.write_json(self.path / CONFIG, seal_json(config))
            return
        # A run of before there were checksums, or a new setting, goes on as it is.
        wanted = json.loads(json.dumps(config))
        found = differences(completed(self.config(), wanted.get("features", {})), wanted)
        if found:
            name, there, here = found[0]
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise RunError(
                f"{self.path}: that run was made with {name} = {there!r}, "
                f"now it is {here!r}{more}. "
                "Choose another folder with --run, or start over with --fresh"
            )

    def append(self, line: dict[str, Any]) -> None:
        """Add one line of metrics."""
        atomic.append_line(self.path / METRICS, json.dumps(line, sort_keys=True))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics so far, checked against what the last checkpoint remembers.

        A last line by halves, which a killed process leaves, is none. Raises `RunError`, naming
        the line, where one is not what it must be.
        """
        path, point = self.path / METRICS, self.newest()
        if point is not None:
            check_metrics(path, point)
        checked = point is not None and point.sealed
        return read_lines(path, checked=checked) if path.exists() else []

    def save_state(self, state: dict[str, Any], position: Position) -> None:
        """Write `last.pt`: a training's state, how far it is, and what the other files are now.

        Args:
            state: The tensors and states that the training goes on with.
            position: How far it is; a copy of it goes into the file.
        """
        file = self.path / METRICS
        metrics = file.read_bytes() if file.exists() else b""
        if self._best is None and (self.path / BEST).exists():
            self._best = self.read_best(None).digest
        state = {
            **state,
            "format": STATE_FORMAT,
            "position": asdict(position),
            "metrics_bytes": len(metrics),
        }
        write_last(self.path, state, head_of(position, self.owner()[0], metrics, self._best))

    def go_on_from(self, point: Point) -> None:
        """Make a checkpoint the last one and cut the metrics back to what it remembers."""
        if point.path.name == PREVIOUS:
            os.replace(point.path, self.path / LAST)
        metrics = self.path / METRICS
        if metrics.exists() and metrics.stat().st_size != point.metrics_bytes:
            os.truncate(metrics, point.metrics_bytes)

    def position(self) -> Position:
        """Where the run stopped, or would go on; raises as `resume_point` does."""
        point = self.resume_point()[0]
        return Position() if point is None else point.position

    def resume_point(self) -> tuple[Point | None, list[FaultError]]:
        """The newest good checkpoint, None in a new run, and what is wrong with a newer one.

        Raises `RunError` where all are damaged, or where the best weights are not the run's.
        """
        there = [name for name in (LAST, PREVIOUS) if (self.path / name).exists()]
        faults: list[FaultError] = []
        if there == [PREVIOUS]:
            faults.append(FaultError("missing", self.path / LAST, "it was there", ""))
        for name in there:
            try:
                point = read_point(self.path / name, self.owner()[0], bound=self.owner()[1])
                check_metrics(self.path / METRICS, point)
            except FaultError as fault:
                faults.append(fault)
                continue
            if point.position.best_epoch >= 0 or (self.path / BEST).exists():
                self._best = self.read_best(point).digest
            return point, faults
        if faults:
            found = "; ".join(f"{f.file.name}: {f.kind}: {f.reason}" for f in faults)
            raise RunError(
                f"{self.path}: no checkpoint to go on from ({found}). Put one of the files back "
                "from a copy, or start over with --fresh"
            )
        return None, []

    def newest(self) -> Point | None:
        """The newest checkpoint whose head is whole."""
        points = (peek(self.path / name, self.owner()[0]) for name in (LAST, PREVIOUS))
        return next((point for point in points if point is not None), None)

    def save_tensors(self, tensors: dict[str, torch.Tensor], epoch: int = -1) -> None:
        """Write `best.safetensors`.

        Args:
            tensors: By name; names begin with fuser, mix, discriminator or temperature.
            epoch: From 0; -1 for weights of no epoch.
        """
        data, self._best = sealed_tensors(tensors, self.owner()[0], epoch)
        atomic.write_bytes(self.path / BEST, data)

    def read_best(self, point: Point | None) -> Best:
        """The best weights' file, checked; `point` is the checkpoint that knows of it."""
        owner, bound = self.owner()
        return read_best(self.path / BEST, owner, bound=bound, point=point)

    def load_tensors(self) -> dict[str, torch.Tensor]:
        """What `save_tensors` wrote; raises `RunError` where it is not there or not good.

        Those of an export have no temperature.
        """
        if self.exported:
            self.config()  # checks the weights, and that they are of their configuration
            return export_tensors(self.path)
        return self.read_best(self.newest()).tensors(self.path / BEST)

    def load_best(self) -> tuple[Fuser, ScoreMix]:
        """The trained fusion in eval mode; raises `RunError` where it is not there yet."""
        config, tensors = self.config(), self.load_tensors()
        recipe = Recipe.from_json(config["recipe"])
        image, caption = (branch_from_json(config["branches"][s]) for s in ("image", "caption"))
        fuser, scores = Fuser(image, caption, recipe.nodes), recipe.scores
        count, nodes = len(mixable_models(fuser)), fuser.nodes is not None
        mix = ScoreMix(scores.mode, scores.weights, count, False, nodes=nodes)
        parts = {
            prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            for prefix in ("fuser.", "mix.")
        }
        try:
            fuser.load_state_dict(parts["fuser."])
            mix.load_state_dict(parts["mix."])
        except RuntimeError as error:
            raise RunError(
                f"{self.path / (WEIGHTS if self.exported else BEST)}: does not fit {CONFIG}; "
                f"{'export or download it' if self.exported else 'train'} again. {error}"
            ) from error
        return fuser.eval().requires_grad_(False), mix.eval().requires_grad_(False)

    def load_heads(self) -> Heads | None:
        """What was fitted when training was done; None for a run whose recipe fits nothing."""
        return Heads.from_tensors(self.load_tensors())


def weights_digest(run: Path | str) -> str:
    """SHA-256 of the file of a run's weights; raises `RunError` where there are none."""
    folder = RunFolder(run)
    folder.config()
    if folder.exported:
        return hashlib.sha256((folder.path / WEIGHTS).read_bytes()).hexdigest()
    return hashlib.sha256(folder.read_best(folder.newest()).data).hexdigest()
