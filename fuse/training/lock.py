"""One trainer per run folder: a lock that ends with its process.

The kernel holds the lock, so a killed trainer leaves a file and no lock; the next one takes over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from hada.extract.common import atomic
from hada.extract.common.errors import RunError

LOCK = "lock"
# A network file system without locks: the folder is then not guarded, as before.
UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


@contextlib.contextmanager
def only_trainer(folder: Path) -> Iterator[None]:
    """Hold a run's folder; raises `RunError`, naming the holder, where another process trains."""
    atomic.make_folder(folder)
    try:
        opened = (folder / LOCK).open("a+")
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        yield  # nobody can train there; what is finished can be looked at
        return
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunError(
                f"{folder}: {holder} is training there now; wait for it, stop it, or choose "
                "another folder with --run"
            ) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
