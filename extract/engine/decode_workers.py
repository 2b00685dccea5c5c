"""Worker processes that decode images into memory shared with the loop.

Each process is served by a thread of ours, which knows at any moment which pictures it has. When a
process dies, or hangs, those pictures are tried again one by one: a picture that kills its
decoder twice is reported as any other that cannot be read, and the run goes on.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import DatasetError, HadaError, trouble_behind
from hada.extract.datasets.image_files import ImageFile
from hada.extract.engine.model_input import PictureReader

# Slot of the shared memory, place of the image, image id.
Task = tuple[int, ImageFile, str]

START_LIMIT_S = 120.0
PICTURE_LIMIT_S = 120.0
MOST_DEATHS = 50

# Starting a process looks after all others, too, and their exit codes can be read only once.
_PROCESSES = threading.Lock()


class Workers:
    """Processes that fill slots of shared memory with preprocessed pictures.

    pixels: (slots, 3, H, W) float32, the shared memory; row s is what the last task of slot s
        left there.
    """

    def __init__(
        self, reader: PictureReader, count: int, shape: tuple[int, ...], slots: int
    ) -> None:
        n_bytes = max(1, slots * prod(shape) * 4)
        self._file = _memory_file(n_bytes)
        memory = mmap.mmap(self._file, n_bytes)
        self.pixels = np.frombuffer(memory, np.float32).reshape(slots, *shape)
        self._setup = pickle.dumps((reader, n_bytes, self.pixels.shape))
        self._context = _context(reader)
        self._mine = threading.local()
        self._all: list[_Worker] = []
        self._deaths: list[str] = []
        self.count = count
        self._threads = ThreadPoolExecutor(
            count, thread_name_prefix="decode", initializer=self._begin
        )
        for _ in range(count):  # all start at once, while the caller does something else
            self._threads.submit(self._start_early)

    def submit(self, tasks: Sequence[Task]) -> Future[list[str | None]]:
        """Start on pictures, one after the other; the result says for each why it failed."""
        return self._threads.submit(self._read, list(tasks))

    def close(self) -> None:
        """Stop; what has not begun is dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._all:
            worker.stop()
        os.close(self._file)

    def _begin(self) -> None:
        self._mine.worker = _Worker(self._context, self._setup, self._file)
        self._all.append(self._mine.worker)

    def _start_early(self) -> None:
        worker: _Worker = self._mine.worker
        if not worker.running:
            worker.start()

    def _read(self, tasks: list[Task]) -> list[str | None]:
        try:
            return self._ask(tasks)
        except _WorkerDiedError:
            return [self._alone(task) for task in tasks]

    def _alone(self, task: Task) -> str | None:
        """One picture in a process that has no other; here at last its death is explained."""
        try:
            return self._ask([task])[0]
        except _WorkerDiedError as death:
            if death.killed:
                raise HadaError(
                    f"a worker process was killed while it decoded {task[1]}, probably for want "
                    "of memory: fewer --workers, or --workers 0"
                ) from death
            return f"picture {task[1]}: cannot be decoded (its decoder {death})"

    def _ask(self, tasks: list[Task]) -> list[str | None]:
        worker: _Worker = self._mine.worker
        try:
            return worker.ask(tasks)
        except _WorkerDiedError as death:
            self._deaths.append(str(death))
            if len(self._deaths) > MOST_DEATHS:
                raise HadaError(
                    f"{len(self._deaths)} worker processes have died, the last one {death}: "
                    "this is more than single pictures. Try --workers 0"
                ) from death
            raise


class _WorkerDiedError(Exception):
    """A worker process ended, or had to be ended, while it had work."""

    def __init__(self, reason: str, *, killed: bool = False) -> None:
        super().__init__(reason)
        self.killed = killed


class _Worker:
    """One process and our end of its pipe. Used by one thread only."""

    def __init__(self, context: Any, setup: bytes, file: int) -> None:
        self._context, self._setup, self._file = context, setup, file
        self._process: Any = None
        self._connection: Any = None

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Raises `HadaError` where the process cannot do its work at all."""
        self._connection, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        try:
            with _PROCESSES:
                process.start()
            self._process = process
            theirs.close()
            reduction.send_handle(self._connection, self._file, process.pid)
            self._connection.send_bytes(self._setup)
            trouble = self._answer(START_LIMIT_S)
        except (_WorkerDiedError, OSError) as error:
            trouble = str(error)
        if trouble is not None:
            self.stop()
            raise HadaError(f"a worker process cannot start: {trouble}. Try --workers 0")

    def ask(self, tasks: list[Task]) -> list[str | None]:
        if not self.running:
            self.start()
        try:
            self._connection.send(tasks)
        except OSError:
            self._raise_cause_of_death()
        answers: list[str | None] = []
        for answer in self._answer(PICTURE_LIMIT_S * len(tasks)):
            if isinstance(answer, OSError):
                raise answer
            answers.append(answer)
        return answers

    def stop(self) -> None:
        """End the process: it leaves by itself when its pipe is closed."""
        process, self._process = self._process, None
        if self._connection is not None:
            self._connection.close()
        if process is not None:
            with _PROCESSES:
                process.join(5)
                if process.is_alive():
                    process.kill()
                    process.join()

    def _answer(self, limit_s: float) -> Any:
        try:
            if self._connection.poll(limit_s):
                return self._connection.recv()
        except (EOFError, OSError):
            self._raise_cause_of_death()
        self._process.kill()
        self.stop()
        raise _WorkerDiedError(f"took longer than {limit_s:.0f} s")

    def _raise_cause_of_death(self) -> None:
        """Raise what the process died of."""
        process = self._process
        with _PROCESSES:
            process.join(10)
            code = process.exitcode
        self.stop()
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            raise _WorkerDiedError(f"died of {name}", killed=-code == signal.SIGKILL)
        raise _WorkerDiedError(f"ended with exit code {code}")


def _context(reader: PictureReader) -> Any:
    """Processes that inherit no thread, lock or device of ours.

    Where there is a fork server, it imports what all workers need once.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, type(reader.preprocess).__module__])
    return context


def _memory_file(n_bytes: int) -> int:
    """A file without a name, in memory where the system can: not in /dev/shm, small in containers.

    The kernel frees it with the last process that has it.
    """
    if sys.platform == "linux":
        descriptor = os.memfd_create("hada-pictures")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, n_bytes)
    return descriptor


def _serve(connection: Connection) -> None:
    """What a worker process does until the other end of its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then closes us
    try:
        file = reduction.recv_handle(connection)
        reader, n_bytes, shape = pickle.loads(connection.recv_bytes())
        pixels = np.frombuffer(mmap.mmap(file, n_bytes), np.float32).reshape(shape)
        os.close(file)
        if "torch" in sys.modules:
            # One thread a process: the others have the remaining cores.
            sys.modules["torch"].set_num_threads(1)
        connection.send(None)
    except EOFError:
        return
    except Exception as error:  # whatever the reader's own library may raise
        # The other end may be gone: killed while we started, which is not our failure.
        with contextlib.suppress(OSError):
            connection.send(f"{type(error).__name__}: {error}")
        return
    while True:
        try:
            tasks = connection.recv()
            connection.send([_fill(reader, pixels, task) for task in tasks])
        except (EOFError, OSError):
            return


def _fill(reader: PictureReader, pixels: NDArray[np.float32], task: Task) -> str | OSError | None:
    slot, path, image_id = task
    try:
        values = reader.read(path, image_id)
    except DatasetError as error:
        return trouble_behind(error) or str(error)
    if values.shape != pixels.shape[1:]:
        return f"picture {path}: preprocessed to {values.shape}, expected {pixels.shape[1:]}"
    pixels[slot] = values
    return None
