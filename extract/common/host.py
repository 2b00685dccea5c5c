"""This machine: its cores and memory, and how PyTorch's threads and the C library use them."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


_NEVER_TRIM = 2**31 - 1


_LARGEST_KEPT = 2**30  # bytes; a single larger block still goes back


def reuse_freed_memory() -> bool:
    """Ask the C library to keep freed blocks of memory for this whole process.

    glibc gives every large block back to the kernel as soon as it is freed, and the kernel zeroes
    its pages again for the next forward pass. With convolutional towers on two cores nearly half
    of the time went there (`benchmarks/allocator.py`); keeping the blocks costs no more memory
    than the largest batch needs anyway. There is one heap for all threads: of several, each would
    keep its own.

    Returns:
        Whether it did: only glibc can, elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        and mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
        and mallopt(_M_ARENA_MAX, 1)
    )


def sleep_while_waiting() -> None:
    """Let PyTorch's threads sleep while they wait for each other on the CPU.

    By default they spin. Beside decoding threads, or other people's work, a spinning thread keeps
    the one that it waits for from its core: two threads on two busy cores were many times slower
    than one. `OMP_WAIT_POLICY` overrides this. Call it before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> float:
    """Bytes that can be had without swapping; infinite where the system does not tell.

    Pages that hold copies of files count as free: the system gives them up when asked. A limit
    of the job (Slurm, a container) counts like the machine's own.
    """
    return min(_free_of_machine(), _free_of_job())


def free_on_device(device: torch.device) -> float:
    """Bytes that a GPU has free; 0 for whatever has no memory of its own, or does not tell.

    What PyTorch keeps of freed tensors is free, too, though the driver counts it as taken: else
    the second of several trainings in one process would find no room for its tokens.
    """
    if device.type != "cuda":
        return 0.0
    import torch

    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + kept)


def _free_of_machine() -> float:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return float(value.split()[0]) * 1024
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, AttributeError, IndexError):
        return float("inf")


def _free_of_job(root: Path = _CGROUP, own: Path = Path("/proc/self/cgroup")) -> float:
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
            left = min(left, _free_of_group(folder))
    return left


def _free_of_group(folder: Path) -> float:
    try:
        limit = float((folder / "memory.max").read_text())
        used = float((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        # "max", or no limit kept here.
        return float("inf")
    cached = sum(float(x.split()[1]) for x in lines if x.split()[0] == "inactive_file")
    return max(0.0, limit - used + cached)
