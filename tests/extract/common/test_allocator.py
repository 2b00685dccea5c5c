"""Keeping freed memory changes where memory comes from, and no number."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys, torch
from hada.extract.common.host import reuse_freed_memory
if sys.argv[1] == "reuse":
    assert reuse_freed_memory() == sys.platform.startswith("linux")
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 8, 3))
with torch.inference_mode():
    total = sum(model(torch.rand(4, 3, 96, 96)).double().sum() for _ in range(3))
print(repr(float(total)))
"""


def test_results_are_the_same_to_the_bit() -> None:
    results = [
        subprocess.run(
            [sys.executable, "-c", CODE, way], capture_output=True, text=True, check=True
        ).stdout
        for way in ("plain", "reuse")
    ]
    assert results[0] == results[1]
