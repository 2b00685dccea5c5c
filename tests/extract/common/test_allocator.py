"""Keeping freed memory changes where memory comes from, and no number."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys, torch
from torch import nn
from hada.extract.common.host import reuse_freed_memory
torch.set_num_threads(1)

def total():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3))
    with torch.inference_mode():
        return float(sum(model(torch.rand(4, 3, 96, 96)).double().sum() for _ in range(3)))

plain = total()
assert plain == total(), "not the allocator makes the difference"
assert reuse_freed_memory() == sys.platform.startswith("linux")
assert plain == total() == total()
"""


def test_results_are_the_same_to_the_bit() -> None:
    """In a process of its own: what it sets is never unset."""
    subprocess.run([sys.executable, "-c", CODE], check=True)
