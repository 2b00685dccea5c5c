"""Progress of long work: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from hada.extract.common.terminal import console, in_line

LOG_EVERY_S = 30.0


class Advance(Protocol):
    """Report `n` more units done; `note` is shown beside the bar."""

    def __call__(self, n: int = 1, note: str = "") -> None: ...


@contextlib.contextmanager
def progress(label: str, total: int, unit: str, *, done: int = 0) -> Iterator[Advance]:
    """Show how far work is, its rate in `unit` per second and the time left, on stderr.

    Args:
        label: What is at work.
        total: Units of the whole work.
        unit: What they are called, in the plural.
        done: Units that were there before this process began: they count as done, not in the rate.
    """
    meter = _bar if sys.stderr.isatty() else _lines
    with meter(label, total, unit, done) as advance:
        yield advance


@contextlib.contextmanager
def _bar(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}  {task.fields[note]}", markup=False),
    )
    meter = _Meter(total, unit, done)
    with Progress(*columns, console=console(stderr=True)) as bars:
        task = bars.add_task(in_line(label), total=total, completed=done, rate="", note="")

        def advance(n: int = 1, note: str = "") -> None:
            meter.add(n)
            bars.update(task, advance=n, rate=meter.rate_and_rest(), note=in_line(note))

        yield advance


@contextlib.contextmanager
def _lines(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    meter = _Meter(total, unit, done)
    last = time.monotonic()

    def line(note: str) -> None:
        print(
            in_line(
                f"{label}: {meter.done}/{total} {unit}, {meter.rate_and_rest()} {note}".rstrip()
            ),
            file=sys.stderr,
            flush=True,
        )

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal last
        meter.add(n)
        if time.monotonic() - last >= LOG_EVERY_S or meter.done >= total:
            last = time.monotonic()
            line(note)

    yield advance


class _Meter:
    """Counts units and turns them into a rate and a time left."""

    def __init__(self, total: int, unit: str, done: int) -> None:
        self.total, self.unit, self.done = total, unit, done
        self._before = done
        self._started = time.monotonic()

    def add(self, n: int) -> None:
        self.done += n

    def rate_and_rest(self) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = (self.done - self._before) / elapsed
        if rate <= 0:
            return ""
        rest = (self.total - self.done) / rate
        return f"{rate:,.3g} {self.unit}/s, {duration(rest)} left"


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(42), duration(125), duration(7300)
    ('42s', '2m05s', '2h01m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def size(n_bytes: float) -> str:
    """Bytes for people, in powers of 1,000 as disks are sold.

    >>> size(512), size(1_500_000), size(64e9)
    ('512 B', '1.5 MB', '64.0 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
