"""Items per forward pass: as requested, as in the store, or as many as the device holds.

A batch's size decides the last bits of its features, so every shard's marker records it, and a
run without a given size goes on with what the store's last shard has.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hada.extract.backbones.base import Backbone, RegionBackbone
from hada.extract.common import atomic
from hada.extract.common.errors import StoreError
from hada.extract.engine.items import ImageItems, PictureItems
from hada.extract.spec import SideName
from hada.extract.store import StoreWriter, commit

# `benchmarks/extract.py batch` measures what other sizes would give.
CPU_BATCH = 32
MOST = 1024
# Of the memory that is free before the first batch.
NEARLY_FULL = 0.85


class BatchSizes:
    """The batch size of each side of a run; `asked` is None for an automatic one."""

    def __init__(
        self,
        asked: int | None,
        backbone: Backbone | RegionBackbone,
        items: ImageItems,
        writer: StoreWriter,
    ) -> None:
        self._asked, self._backbone, self._items, self._writer = asked, backbone, items, writer
        self._chosen: dict[SideName, int] = {}

    def of(self, side: SideName) -> int:
        """The size to use now."""
        if side not in self._chosen:
            self._chosen[side] = self._asked or self._recorded(side) or self._automatic()
        return self._chosen[side]

    def halve(self, side: SideName) -> int:
        """A smaller size, because this one did not fit; remembered where it was automatic."""
        self._chosen[side] = max(1, self.of(side) // 2)
        device = _cuda(self._backbone)
        if self._asked is None and device is not None and side == "image":
            remember(_key(self._backbone, device), self._chosen[side])
        return self._chosen[side]

    def _recorded(self, side: SideName) -> int | None:
        for shard in reversed(range(self._writer.shards(side))):
            with contextlib.suppress(StoreError):
                marker = commit.read_marker(self._writer.folder, side, shard)
                size = marker.provenance.get("batch_size") if marker else None
                if type(size) is int and size > 0:
                    return size
        return None

    def _automatic(self) -> int:
        device = _cuda(self._backbone)
        if device is None or not isinstance(self._items, PictureItems):
            return CPU_BATCH
        key = _key(self._backbone, device)
        known = remembered(key)
        most = min(MOST, self._writer.spec.rows_per_shard["image"])
        if known is None:
            known = grow(_probe(self._backbone, self._items, device), most)
            remember(key, known)
        return min(known, most)


def grow(used: Callable[[int], float], most: int) -> int:
    """The largest power of two up to `most` that fits.

    Args:
        used: Runs a batch of a size and tells which part of the free memory it took; raises where
            it does not fit.
        most: Never more than this.
    """
    size, fits, before = 1, 1, None
    while size <= most:
        try:
            taken = used(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        fits = size
        # What doubles is the batch's part, not the constant one: so much may the next step take.
        if before is not None and taken + 2 * max(0.0, taken - before) > NEARLY_FULL:
            break
        size, before = size * 2, taken
    return fits


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help: a device's or this machine's memory was not enough."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def release_memory(backbone: Backbone | RegionBackbone) -> None:
    """Give a device's unused blocks back before a smaller batch is tried."""
    if _cuda(backbone) is not None:
        import torch

        torch.cuda.empty_cache()


def _cuda(backbone: Any) -> Any:
    device = backbone.device
    return device if device is not None and device.type == "cuda" else None


def _probe(backbone: Any, items: PictureItems, device: Any) -> Callable[[int], float]:
    import torch

    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)

    def used(size: int) -> float:
        torch.cuda.reset_peak_memory_stats(device)
        backbone.encode_images(np.zeros((size, *items.shape), np.float32)).wait()
        # Two batches are on the device at a time: one computes, one is being fetched.
        return 2 * float(torch.cuda.max_memory_allocated(device) - allocated) / max(free, 1)

    return used


def _key(backbone: Any, device: Any) -> str:
    import torch

    properties = torch.cuda.get_device_properties(device)
    spec = backbone.spec
    memory = f"{properties.name} {properties.total_memory >> 20} MiB"
    return f"{spec.weights_digest[:16]} {spec.precision} {memory}"


def cache_file() -> Path:
    """Where sizes are remembered; deleting it only costs measuring again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hada" / "batch_sizes.json"


def remembered(key: str) -> int | None:
    """The size that fitted a model on a device before."""
    size = _read_cache().get(key)
    return size if type(size) is int and 0 < size <= MOST else None


def remember(key: str, size: int) -> None:
    """Keep a size for the next run; a home that cannot be written to is no reason to fail."""
    with contextlib.suppress(OSError):
        atomic.write_json(cache_file(), {**_read_cache(), key: size})


def _read_cache() -> dict[str, Any]:
    try:
        value = json.loads(cache_file().read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
