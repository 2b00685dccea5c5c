"""Live progress of a pipeline: fixed lines on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from hada.extract.common.console import say
from hada.extract.common.progress import duration
from hada.extract.common.terminal import console, in_line
from hada.extract.spec import SIDES
from hada.pipelines.execution.worker import FINISH
from hada.pipelines.study.jobs import ExtractJob
from hada.pipelines.study.survey import State

LOG_EVERY_S = 30.0
RECENT_S = 60.0
STAGES = ("extract", "train", "evaluate")


class Display:
    """Counts what is done, stage by stage; `hada.pipelines.execution.driver.Listener`."""

    def __init__(self, states: Mapping[str, State]) -> None:
        self._total = dict.fromkeys(STAGES, 0)
        self._done = dict.fromkeys(STAGES, 0)
        self._images: list[tuple[float, int]] = []
        self.failures = 0
        self._said = time.monotonic()
        self._live: Any = None
        for state in states.values():
            stage = state.job.stage
            if isinstance(state.job, ExtractJob):
                pending = sum(len(state.pending.get(side, [])) for side in SIDES)
                self._total[stage] += state.done + pending
                self._done[stage] += state.done
            else:
                self._total[stage] += state.total
                self._done[stage] += state.done

    def outcome(self, outcome: Mapping[str, Any], slots: int) -> None:
        """A task has ended for good."""
        stage = outcome["key"].partition("/")[0]
        if outcome["status"] == "failed":
            self.failures += 1
        elif outcome["side"] != FINISH:
            self._done[stage] += 1
        if outcome["side"] == "image":
            self._images.append((time.monotonic(), outcome["items"]))
        if stage != "extract" and outcome["status"] != "failed":
            self.event(f"done {outcome['key']} in {duration(outcome['seconds'])}")
        elif outcome["side"] == FINISH and outcome["status"] != "failed":
            left_out = f", {outcome['failed']} pictures left out" if outcome["failed"] else ""
            self.event(f"done {outcome['key']}{left_out}")
        self.tick(slots)

    def tick(self, slots: int) -> None:
        """Show it, where it is time to."""
        if self._live is not None:
            self._live.update(self.line(slots))
        elif time.monotonic() - self._said >= LOG_EVERY_S:
            self._said = time.monotonic()
            say(self.line(slots))

    def event(self, text: str) -> None:
        """Something worth a line of its own."""
        if self._live is not None:
            self._live.console.print(in_line(text), markup=False, highlight=False)
        else:
            say(f"{time.strftime('%H:%M:%S')} {text}")

    def line(self, slots: int) -> str:
        """Where everything is, in one line."""
        parts = [f"{s} {self._done[s]:,}/{self._total[s]:,}" for s in STAGES if self._total[s]]
        if self._done["extract"] < self._total["extract"]:
            parts[0] += f" shards, {self._rate():,.0f} images/s"
        if self.failures:
            parts.append(f"{self.failures} failed")
        parts.append(f"{slots} worker{'s' * (slots != 1)}")
        return "; ".join(parts)

    def _rate(self) -> float:
        """Images a second over the last minute."""
        now = time.monotonic()
        self._images = [(at, n) for at, n in self._images if now - at <= RECENT_S]
        if not self._images:
            return 0.0
        return sum(n for _, n in self._images) / max(now - self._images[0][0], 1.0)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """While work goes on."""
        if not sys.stderr.isatty():
            yield
            return
        from rich.live import Live

        with Live("", console=console(stderr=True), refresh_per_second=4) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None
