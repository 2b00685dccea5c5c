"""What the benchmark compares is the same computation, and its measurement works."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "train_step.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("train_step", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_step"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_plain_step_and_ours_give_the_same_losses(benchmark, norm):
    ours, plain = benchmark.equal_losses(norm)
    assert ours == pytest.approx(plain, rel=2e-5)
    assert len(set(ours)) == 3
