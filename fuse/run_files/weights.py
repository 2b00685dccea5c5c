"""`best.safetensors`: a run's weights, sealed, bound to its configuration and its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hada.extract.common.errors import RunError
from hada.fuse.run_files.checkpoint import Point
from hada.fuse.run_files.sealed import CHECKSUM, FaultError, check_safetensors, seal_safetensors

BEST = "best.safetensors"
FORMAT, UNBOUND = "2", "1"
REMEDY = "put it back from a copy, or train again with --fresh"


@dataclass(frozen=True)
class Best:
    """The bytes of the file, checked.

    digest: of its tensors. epoch: counted from 0; -1 where no training wrote it, or in a file of
    before there were checksums (`sealed` False).
    """

    data: bytes
    digest: str
    epoch: int
    sealed: bool

    def tensors(self, file: Path) -> dict[str, Tensor]:
        """The weights by name; raises `FaultError` where they cannot be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors: dict[str, Tensor] = load(self.data)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise FaultError("damaged", file, str(error), REMEDY) from error
        return tensors


def sealed_tensors(tensors: dict[str, Tensor], owner: str, epoch: int) -> tuple[bytes, str]:
    """The file of these weights, and the digest of its tensors.

    Args:
        tensors: By name, on any device.
        owner: The run's `identity`.
        epoch: From 0; -1 for weights of no epoch.
    """
    from safetensors.torch import save

    data = save({k: v.cpu().contiguous() for k, v in tensors.items()})
    return seal_safetensors(data, {"format": FORMAT, "config": owner, "epoch": str(epoch)})


def read_best(file: Path, owner: str, *, bound: bool, point: Point | None) -> Best:
    """The file, checked by itself, against its configuration and against a checkpoint.

    Args:
        file: Where.
        owner: The run's `identity`.
        bound: Whether its configuration has a checksum: then the weights must have one, too.
        point: The checkpoint that tells which weights are the best; None where there is none.

    Raises:
        RunError: No epoch is finished yet.
        FaultError: It is missing though it was there, damaged, or of another run or epoch.
    """
    if not file.exists():
        if point is not None and point.position.best_epoch >= 0:
            raise FaultError("missing", file, "it was there", REMEDY)
        raise RunError(
            f"{file.parent}: {file.name} is missing: no epoch is finished yet. "
            f"Go on training: hada-fuse train --run {file.parent}"
        )
    data = file.read_bytes()
    try:
        metadata, found = check_safetensors(data)
    except ValueError as error:
        raise FaultError("damaged", file, str(error), REMEDY) from error
    if metadata == {"format": UNBOUND}:
        if bound:
            raise FaultError("foreign", file, "it has no checksum, the run has", REMEDY)
        best = Best(data, found, -1, sealed=False)
    elif CHECKSUM not in metadata or metadata.get("format") != FORMAT:
        raise FaultError("damaged", file, "its checksum is missing", REMEDY)
    elif metadata.get("config") != owner:
        raise FaultError("foreign", file, "it belongs to another run", REMEDY)
    else:
        best = Best(data, found, int(metadata.get("epoch", -1)), sealed=True)
    if point is not None:
        _check_epoch(best, point, file)
    return best


def _check_epoch(best: Best, point: Point, file: Path) -> None:
    """Raise `FaultError` where the weights are not those that a checkpoint remembers.

    A process that died between the two files leaves weights of an epoch that the checkpoint does
    not know yet.
    """
    newer = best.epoch >= point.position.epoch and not point.position.finished
    if point.sealed and not newer and best.digest != point.best:
        reason = f"not the weights that {point.path.name} remembers"
        raise FaultError("foreign", file, reason, REMEDY)
