"""A run's folder: what it was asked, how it went, its best weights, and where it stopped.

    config.json        the resolved request: recipe, seed, stores, shapes, environment
    metrics.jsonl      one line an epoch
    best.safetensors   the weights with the best validation RSum: all that retrieval needs
    last.pt            everything: weights, optimiser, queues, random states, position

Every file is written beside and renamed. `metrics.jsonl` is appended to and cut back to the
length that `last.pt` remembers, so a killed run leaves no line twice and none by halves.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hada.extract.common import atomic
from hada.extract.common.errors import RunError
from hada.fuse.batch import ModelShape
from hada.fuse.network.config import BranchConfig
from hada.fuse.network.fuser import Fuser
from hada.fuse.network.graph import EdgeWeights
from hada.fuse.network.score_mix import ScoreMix, mixable_models
from hada.fuse.training.objective import Objective

CONFIG, METRICS, BEST, LAST = "config.json", "metrics.jsonl", "best.safetensors", "last.pt"
FORMAT = 1
# Fields of config.json that say how and where, not what: they may differ when a run goes on.
FREE_FIELDS = ("environment", "paths", "init_fitted")


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


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The folder's name, which also names the run."""
        return self.path.resolve().name

    def config(self) -> dict[str, Any]:
        """The resolved configuration; raises `RunError` where there is none."""
        try:
            values = json.loads((self.path / CONFIG).read_text())
        except FileNotFoundError:
            raise RunError(
                f"{self.path}: no training run there ({CONFIG} is missing). "
                f"Train one first: hada-fuse train --run {self.path}"
            ) from None
        except ValueError as error:
            raise RunError(f"{self.path / CONFIG}: not valid JSON ({error})") from error
        if values.get("format") != FORMAT:
            raise RunError(
                f"{self.path / CONFIG}: format: expected {FORMAT}, got {values.get('format')!r}; "
                "train again with this version of HADA"
            )
        result: dict[str, Any] = values
        return result

    def window_shards(self) -> int | None:
        """Shards of the windows that a run shuffles, 0 for the whole split; None without a run."""
        return int(self.config().get("window_shards", 0)) if (self.path / CONFIG).exists() else None

    def claim(self, config: dict[str, Any], *, fresh: bool = False) -> None:
        """Make the folder this run's, or find that it already is.

        Raises `RunError`, naming the first field that differs, where it belongs to another.
        """
        atomic.make_folder(self.path)
        for leftover in self.path.glob(f"*{atomic.TEMPORARY}*"):
            if atomic.is_left_over(leftover):
                with contextlib.suppress(OSError):
                    leftover.unlink()
        if fresh:
            for name in (LAST, BEST, METRICS, CONFIG):
                (self.path / name).unlink(missing_ok=True)
        if not (self.path / CONFIG).exists():
            if (self.path / LAST).exists():
                raise RunError(f"{self.path}: {LAST} without {CONFIG}; use --fresh to start over")
            atomic.write_json(self.path / CONFIG, config)
            return
        found = differences(self.config(), json.loads(json.dumps(config)))
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
        """The lines of metrics so far."""
        path, lines = self.path / METRICS, []
        for line in path.read_bytes().splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError):  # half a line, of a killed process
                lines.append(json.loads(line))
        return lines

    def save_last(
        self, objective: Objective, optimizer: torch.optim.Optimizer, position: Position
    ) -> None:
        """Write everything that a later process needs to go on as if nothing had happened."""
        metrics = self.path / METRICS
        state = {
            "format": FORMAT,
            "objective": objective.state_dict(),
            "optimizer": optimizer.state_dict(),
            "position": asdict(position),
            "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
            "rng": torch.get_rng_state(),
            "rng_devices": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic.write_bytes(self.path / LAST, buffer.getvalue())

    def load_last(
        self, objective: Objective, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> Position:
        """Put everything back where `save_last` left it; a new run starts at the beginning."""
        metrics = self.path / METRICS
        if not (self.path / LAST).exists():
            metrics.unlink(missing_ok=True)
            return Position()
        state = self._read_last(device)
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        if metrics.exists() and metrics.stat().st_size != state["metrics_bytes"]:
            os.truncate(metrics, state["metrics_bytes"])
        torch.set_rng_state(state["rng"].cpu())
        if device.type == "cuda" and state["rng_devices"]:
            torch.cuda.set_rng_state_all([s.cpu() for s in state["rng_devices"]])
        return Position(**state["position"])

    def position(self) -> Position:
        """Where the run stopped."""
        if not (self.path / LAST).exists():
            return Position()
        return Position(**self._read_last(torch.device("cpu"))["position"])

    def _read_last(self, device: torch.device) -> dict[str, Any]:
        try:
            state = torch.load(self.path / LAST, map_location=device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise RunError(
                f"{self.path / LAST}: damaged or not ours ({error}); use --fresh to start over"
            ) from error
        if state.get("format") != FORMAT:
            raise RunError(f"{self.path / LAST}: format: expected {FORMAT}; use --fresh")
        result: dict[str, Any] = state
        return result

    def save_best(self, objective: Objective) -> None:
        """Write what retrieval needs, and what another training may start from, as safetensors."""
        parts = {"fuser": objective.fuser, "mix": objective.mix}
        if objective.discriminator is not None:
            parts["discriminator"] = objective.discriminator
        tensors = {f"{p}.{k}": v for p, part in parts.items() for k, v in part.state_dict().items()}
        self.save_tensors({**tensors, "temperature": objective.temperature.detach()})

    def save_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write `best.safetensors`: names begin with fuser, mix, discriminator or temperature."""
        from safetensors.torch import save

        data = save({k: v.cpu().contiguous() for k, v in tensors.items()}, {"format": str(FORMAT)})
        atomic.write_bytes(self.path / BEST, data)

    def load_tensors(self) -> dict[str, torch.Tensor]:
        """What `save_tensors` wrote; raises `RunError` where it is not there or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not (self.path / BEST).exists():
            raise RunError(
                f"{self.path}: {BEST} is missing: no epoch is finished yet. "
                f"Go on training: hada-fuse train --run {self.path}"
            )
        try:
            tensors: dict[str, torch.Tensor] = load_file(self.path / BEST)
        except (SafetensorError, OSError) as error:
            raise RunError(f"{self.path / BEST}: damaged ({error}); train again") from error
        return tensors

    def start_from(self, objective: Objective) -> None:
        """Give a fresh objective this run's encoders and matching head, slow encoders included.

        Temperature, score weights and queues begin anew, as in the published second step; there
        the slow encoders begin at random too, by a mistake that is not repeated.
        """
        tensors = self.load_tensors()
        parts: list[tuple[str, torch.nn.Module | None]] = [
            ("fuser.", objective.fuser),
            ("fuser.", objective.slow),
            ("discriminator.", objective.discriminator),
        ]
        for prefix, part in parts:
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if part is None or not own:
                continue
            try:
                part.load_state_dict(own)
            except RuntimeError as error:
                first = str(error).strip().splitlines()[1].strip()
                raise RunError(
                    f"{self.path}: its weights do not fit this recipe: {first} Use the same "
                    "widths and norm as that run (the paper's two steps differ in norm)"
                ) from error

    def load_best(self) -> tuple[Fuser, ScoreMix]:
        """The trained fusion in eval mode; raises `RunError` where it is not there yet."""
        config, tensors = self.config(), self.load_tensors()
        fuser = Fuser(*(branch_from_json(config["branches"][s]) for s in ("image", "caption")))
        settings = config["recipe"]
        mix = ScoreMix(
            settings["scores"], settings["score_weights"], len(mixable_models(fuser)), False
        )
        parts = {
            prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            for prefix in ("fuser.", "mix.")
        }
        try:
            fuser.load_state_dict(parts["fuser."])
            mix.load_state_dict(parts["mix."])
        except RuntimeError as error:
            raise RunError(
                f"{self.path / BEST}: does not fit {CONFIG}; train again. {error}"
            ) from error
        return fuser.eval().requires_grad_(False), mix.eval().requires_grad_(False)


def weights_digest(run: Path) -> str:
    """SHA-256 of a run's weights; raises `RunError` where there are none."""
    folder = RunFolder(run)
    folder.config()
    if not (folder.path / BEST).exists():
        raise RunError(f"{run}: {BEST} is missing: no epoch is finished yet")
    return hashlib.sha256((folder.path / BEST).read_bytes()).hexdigest()


def differences(own: Any, other: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The fields that differ, as (dotted name, own value, other value), free ones left out."""
    if isinstance(own, dict) and isinstance(other, dict):
        found = []
        for key in sorted(own.keys() | other.keys()):
            if path or key not in FREE_FIELDS:
                name = f"{path}.{key}" if path else key
                found += differences(own.get(key), other.get(key), name)
        return found
    return [] if own == other else [(path, own, other)]


def branch_to_json(config: BranchConfig) -> dict[str, Any]:
    """A branch's configuration as plain values."""
    return asdict(config)


def branch_from_json(values: dict[str, Any]) -> BranchConfig:
    """Back from `branch_to_json`."""
    models = tuple(ModelShape(**m) for m in values["models"])
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return BranchConfig(**{**plain, "models": models, "edges": EdgeWeights(**values["edges"])})
