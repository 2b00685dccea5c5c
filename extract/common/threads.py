"""How PyTorch's threads wait for each other on the CPU.

By default they spin. Beside decoding threads, or other people's work, a spinning thread keeps the
one that it waits for from its core: two threads on two busy cores were many times slower than one.
"""

from __future__ import annotations

import os


def sleep_while_waiting() -> None:
    """Let them sleep, unless `OMP_WAIT_POLICY` says otherwise; call it before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
