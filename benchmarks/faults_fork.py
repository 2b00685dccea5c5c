"""Forks a warmed-up process for each fault of `faults.py`, and runs one command in the child."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

KINDS = ("write", "fsync", "rename", "open", "create", "read", "close", "mkdir", "unlink")
MODES = {"count": 0, "fail": 1, "short": 2, "kill before": 3, "kill after": 4, "ctrl-c": 5}
LIBRARY = "HADA_FAULTS_LIBRARY"
WARM = (
    "h5py",
    "zarr",
    "hada.extract.backbones.fake",
    "hada.extract.importers.hada_npz",
    "hada.extract.importers.write",
    "hada.extract.job",
    "hada.extract.store.hdf5_format",
    "hada.extract.store.maintain",
    "hada.extract.store.zarr_format",
)
# For training and what follows it.
HEAVY = (
    "torch",
    "torch._dynamo",
    "hada.evaluate.pages.report",
    "hada.evaluate.results.eccv",
    "hada.evaluate.search.query",
    "hada.fuse.exchange.hub",
    "hada.fuse.job",
    "hada.fuse.training.lock",
    "hada.fuse.training.prepare",
    "hada.fuse.training.trainer",
    "huggingface_hub",
    "rich.table",
)
LIGHT = ("extract", "int8", "zarr", "hdf5", "import")


@dataclass(frozen=True)
class Fault:
    """The `at`-th of these calls meets this fate."""

    calls: str
    mode: str
    error: str
    lasting: bool
    at: int

    def __str__(self) -> str:
        what = self.error if self.mode == "fail" else self.mode
        return f"{self.calls} #{self.at} {what}{' from then on' if self.lasting else ''}"


class ForkServer:
    """Forks children that run commands in `place`, with or without a fault."""

    def __init__(self, work: Path) -> None:
        self.place, self.said = work / "project", work / "said.txt"
        self.codes = work / "codes.json"
        self.library = ctypes.CDLL(os.environ[LIBRARY])
        lines = Path("/proc/self/maps").read_text().splitlines()
        self.hdf5 = next((w[-1] for line in lines if "/libhdf5-" in (w := line.split())[-1]), "")
        self.library.faults_what.restype = ctypes.c_char_p
        self.library.faults_struck.restype = ctypes.c_long
        self.library.faults_seen.restype = ctypes.c_long

    def fresh(self, base: Path) -> None:
        """The project as its stage begins."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(base, self.place)

    def run(
        self,
        words: tuple[str, ...],
        fault: Fault | None = None,
        first: list[tuple[str, ...]] | None = None,
    ) -> tuple[int, str]:
        """Exit code (negative: the signal) and what was said; `codes` are those of `first`."""
        self.library.faults_disarm()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            self._child(words, fault, first or [])
        end = time.monotonic() + 120
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > end:
                os.kill(child, 9)
                os.waitpid(child, 0)
                self.library.faults_disarm()
                return 99, "it hung"
            time.sleep(0.002)
        self.library.faults_disarm()  # what this process does there is no part of it
        return os.waitstatus_to_exitcode(status), self.said.read_text(errors="replace")

    def _child(
        self, words: tuple[str, ...], fault: Fault | None, first: list[tuple[str, ...]]
    ) -> None:
        code = 71
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(self.place)
            said = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            os.dup2(said, 1)
            os.dup2(said, 2)
            codes = []
            for other in first:
                try:
                    commands()[other[0]].main(list(other[1:]), prog_name=other[0])
                except SystemExit as stop:
                    codes.append(stop.code)
            self.codes.write_text(json.dumps(codes))
            command = commands()[words[0]]
            calls = fault.calls if fault else " ".join(KINDS)
            mask = sum(1 << KINDS.index(kind) for kind in calls.split())
            error = getattr(errno, fault.error) if fault and fault.error else 0
            self.library.faults_arm(
                f"{self.place}/".encode(),
                mask,
                ctypes.c_long(fault.at if fault else 0),
                MODES[fault.mode if fault else "count"],
                error,
                int(bool(fault and fault.lasting)),
            )
            try:
                command.main(list(words[1:]), prog_name=words[0])
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            # As the interpreter would: threads first, then what was registered, then objects.
            threading._shutdown()
            atexit._run_exitfuncs()
            gc.collect()
            sys.stdout.flush()
            # What HDF5 still holds is closed here, as when a process ends.
            if self.hdf5:
                ctypes.CDLL(self.hdf5).H5close()
            sys.stdout.flush()
            os._exit(code)
        except BaseException:
            traceback.print_exc()
        os._exit(70)

    def struck(self) -> bool:
        """Whether the fault was met."""
        return bool(self.library.faults_struck())

    def what(self) -> str:
        """The path, below the project, where it was met."""
        return str(self.library.faults_what().decode(errors="replace"))

    def seen(self) -> dict[str, int]:
        """Calls of each kind in the last run."""
        return {kind: self.library.faults_seen(number) for number, kind in enumerate(KINDS)}


def commands() -> dict[str, object]:
    """The commands by the name of their room."""
    from hada.evaluate.cli import evaluate
    from hada.extract.cli import extract
    from hada.extract.store_cli import store
    from hada.fuse.cli import fuse

    return {"extract": extract, "store": store, "fuse": fuse, "evaluate": evaluate}


def warm_up(heavy: bool) -> None:
    """Import what children would import, and nothing that starts a thread."""
    for name in (*WARM, *(HEAVY if heavy else ())):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    commands()
    # Children look at what they made themselves: the rest would be copied page by page.
    gc.collect()
    gc.freeze()
