"""What the benchmarks compare is the same computation, and their measurements work."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from places import ROOT

pytestmark = pytest.mark.slow

FOLDER = ROOT / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_plain_step_and_ours_give_the_same_losses(norm):
    ours, plain = load("train_step").equal_losses(norm)
    assert ours == pytest.approx(plain, rel=2e-5)
    assert len(set(ours)) == 3


@pytest.mark.parametrize("reading", ["device", "memory"])
def test_a_small_study_is_timed(capsys, monkeypatch, reading):
    study = load("study")
    monkeypatch.setattr(study, "COPIED_BYTES", 1 << 20)
    words = ["--images", "6", "--epochs", "1", "--device", "cpu", "--reading", reading]
    study.main(words)
    said = capsys.readouterr().out
    assert f"6 images, 30 captions, 0.0 GiB of tokens, reading {reading}, fast, bf16, cpu" in said
    assert "30 epochs" in said
