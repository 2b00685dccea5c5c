"""How much memory a process may still take, of the machine and of a device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> float:
    """Bytes that can be had without swapping; infinite where the system does not tell.

    Pages that hold copies of files count as free: the system gives them up when asked. A limit
    of the job (Slurm, a container) counts like the machine's own.
    """
    return min(_machine(), _job())


def free_on_device(device: torch.device) -> float:
    """Bytes that a GPU has free; 0 for whatever has no memory of its own, or does not tell."""
    if device.type != "cuda":
        return 0.0
    import torch

    return float(torch.cuda.mem_get_info(device)[0])


def _machine() -> float:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return float(value.split()[0]) * 1024
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, AttributeError, IndexError):
        return float("inf")


def _job(root: Path = _CGROUP, own: Path = Path("/proc/self/cgroup")) -> float:
    """What the control groups above this process (version 2) leave it."""
    try:
        entries = own.read_text().splitlines()
    except OSError:
        return float("inf")
    places = [entry[3:].lstrip("/") for entry in entries if entry.startswith("0::")]
    left = float("inf")
    for place in places:
        for folder in (root / place, *(root / place).parents):
            if folder != root and root not in folder.parents:
                break
            left = min(left, _left(folder))
    return left


def _left(folder: Path) -> float:
    try:
        limit = float((folder / "memory.max").read_text())
        used = float((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        # "max", or no limit kept here.
        return float("inf")
    cached = sum(float(x.split()[1]) for x in lines if x.split()[0] == "inactive_file")
    return max(0.0, limit - used + cached)
