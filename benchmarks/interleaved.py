"""Ways of doing one thing, timed in turns, so that other work disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

Way = Callable[[], "float | tuple[float, float]"]
Seconds = dict[str, list[float]]


def measure(ways: dict[str, Way], repeat: int) -> tuple[Seconds, Seconds]:
    """Wall and processor seconds of each way in each turn; the first turn is not counted.

    A way returns the wall seconds that count, or 0 where all of its time does; or both kinds,
    where another process did the work.
    """
    wall: Seconds = {name: [] for name in ways}
    processor: Seconds = {name: [] for name in ways}
    for turn in range(repeat + 1):
        for name, way in ways.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            own = way()
            taken, cpu = time.perf_counter() - began, time.process_time() - began_cpu
            if isinstance(own, tuple):
                taken, cpu = own
            elif own:
                taken = own
            if turn:
                wall[name].append(taken)
                processor[name].append(cpu)
    return wall, processor


def rates(seconds: Seconds, images: int) -> dict[str, float]:
    """Median images per second of each way."""
    return {name: round(images / statistics.median(taken), 2) for name, taken in seconds.items()}


def ratios(seconds: Seconds) -> dict[str, float]:
    """Median ratio of each way's speed to that of `bare` in the same turn."""
    return {
        name: round(
            statistics.median(b / s for b, s in zip(seconds["bare"], taken, strict=True)), 3
        )
        for name, taken in seconds.items()
    }
