"""The plan of a pipeline as text and JSON: work that is done, and the cost of the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hada.extract.common.progress import duration, size
from hada.extract.common.terminal import in_line
from hada.extract.spec import SIDES
from hada.pipelines.state import rate_key
from hada.pipelines.study.jobs import ExtractJob
from hada.pipelines.study.survey import State

WORDS = {"done": "done", "part": "in part", "missing": "missing", "other": "DIFFERS"}


def estimate(states: Mapping[str, State], rates: Mapping[str, float]) -> dict[str, float | None]:
    """Seconds of one worker that each job still needs; None where none of its kind was timed."""
    seconds: dict[str, float | None] = {}
    for key, state in states.items():
        if state.condition == "done":
            seconds[key] = 0.0
        elif isinstance(state.job, ExtractJob):
            total: float | None = 0.0
            for side in SIDES:
                count, rate = len(state.pending.get(side, [])), rates.get(rate_key(key, side))
                total = (
                    None
                    if total is None or (count and rate is None)
                    else total + count * (rate or 0.0)
                )
            seconds[key] = total
        else:
            seconds[key] = rates.get(rate_key(key, ""))
    return seconds


def pending_bytes(states: Mapping[str, State]) -> dict[str, int | None]:
    """Bytes that each extraction still needs, from its own shards or a kindred store's.

    None where no store of the model exists yet to tell what one of its items takes.
    """
    known: dict[tuple[str, str, str], float] = {}
    for state in states.values():
        if isinstance(state.job, ExtractJob) and state.done and state.total:
            written = sum(state.items.values()) * state.done / state.total
            known[_kin(state.job)] = state.bytes / written
    needed: dict[str, int | None] = {}
    for key, state in states.items():
        if isinstance(state.job, ExtractJob):
            rate = known.get(_kin(state.job))
            left = sum(state.items.values()) * (1 - state.done / max(1, state.total))
            needed[key] = 0 if not left else None if rate is None else int(rate * left)
    return needed


def _kin(job: ExtractJob) -> tuple[str, str, str]:
    return job.model.name, job.options.dtype, f"{job.options.tokens} {bool(job.view)}"


def to_json(states: Mapping[str, State], rates: Mapping[str, float]) -> dict[str, Any]:
    """The plan as plain values.

    Args:
        states: Key -> how far the job is.
        rates: `rate_key` -> seconds of one task, as they were measured.
    """
    needed, seconds = pending_bytes(states), estimate(states, rates)
    return {
        "jobs": [
            {
                "key": key,
                "needs": list(state.job.needs),
                "condition": state.condition,
                "done": state.done,
                "total": state.total,
                "damaged": state.damaged,
                "failed_pictures": state.failed,
                "differs": state.other or None,
                "bytes": state.bytes,
                "bytes_to_write": needed.get(key),
                "seconds": seconds[key],
            }
            for key, state in states.items()
        ]
    }


def table(states: Mapping[str, State], rates: Mapping[str, float]) -> str:
    """The plan as a table.

    Args:
        states: Key -> how far the job is.
        rates: `rate_key` -> seconds of one task, as they were measured.
    """
    needed, seconds = pending_bytes(states), estimate(states, rates)
    rows = [("stage", "job", "state", "shards", "damaged", "there", "to write", "time")]
    for key, state in states.items():
        extraction = isinstance(state.job, ExtractJob)
        left, time = needed.get(key), seconds[key]
        rows.append(
            (
                state.job.stage,
                state.job.label,
                WORDS[state.condition],
                f"{state.done:,}/{state.total:,}" if extraction else "",
                f"{state.damaged:,}" if state.damaged else "",
                size(state.bytes) if state.bytes else "",
                "" if not extraction or left == 0 else "?" if left is None else size(left),
                "" if time == 0 else "?" if time is None else duration(time),
            )
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if n < 3 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.append(_total(states, needed, seconds))
    lines += [
        f"{key} differs from what is there: {state.other}. Give it another place, or take the old "
        "one away"
        for key, state in states.items()
        if state.other
    ]
    return "\n".join(map(in_line, lines))


def _total(
    states: Mapping[str, State],
    needed: Mapping[str, int | None],
    seconds: Mapping[str, float | None],
) -> str:
    open_jobs = {key: state for key, state in states.items() if state.condition != "done"}
    if not open_jobs:
        return "everything is done"
    tasks = sum(state.total - state.done for state in open_jobs.values())
    rooms = [needed[key] for key in open_jobs if key in needed]
    times = [seconds[key] for key in open_jobs]
    room, time = _known(rooms, size), _known(times, duration)
    parts = ["1 task" if tasks == 1 else f"{tasks:,} tasks"]
    parts += [f"{room} to write"] if room else []
    parts += [f"{time} of one worker"] if time else []
    line = f"{len(open_jobs)} of {len(states)} jobs to do: {', '.join(parts)}"
    if None not in [*rooms, *times]:
        return line
    first = "shard is written" if rooms else "one is done"
    if not (room or time):
        return f"{line}; nothing is known of their size and time until a first {first}"
    return f"{line} (? is not known until a first {first})"


def _known(values: Sequence[float | None], in_words: Callable[[float], str]) -> str:
    """The sum of what is known in words; nothing where that is nothing."""
    known = sum(value or 0 for value in values)
    if not known:
        return ""
    return f"{'at least ' if None in values else ''}{in_words(known)}"
