"""The list of mutations follows the code; `benchmarks/mutate.py` runs them."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from types import ModuleType

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def mutate() -> ModuleType:
    path = ROOT / "benchmarks" / "mutate.py"
    spec = importlib.util.spec_from_file_location("mutate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module
    spec.loader.exec_module(module)
    return module


def test_every_mutation_still_applies(mutate: ModuleType) -> None:
    """Its text stands in its file once, the mutated file compiles, and its tests are there."""
    mutations = mutate.read_list()
    assert len(mutations) > 300
    assert mutate.misfits(mutations) == []
    same = Counter((one.file, one.old, one.new) for one in mutations)
    assert max(same.values()) == 1
    assert all(one.old != one.new for one in mutations)


def test_what_no_longer_applies_is_named(mutate: ModuleType) -> None:
    one = mutate.read_list()[0]
    for change, says in (
        ({"old": "no such text"}, "is there 0 times, expected once"),
        ({"old": "import"}, "times, expected once"),
        ({"new": "(("}, "does not compile"),
        ({"tests": ["tests/test_nothing.py"]}, "no test tests/test_nothing.py"),
        ({"file": "gone.py"}, "is there 0 times, expected once"),
    ):
        (found,) = mutate.misfits([mutate.Mutation(**{**vars(one), **change})])
        assert says in found
