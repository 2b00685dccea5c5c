"""The list of mutations follows the code; `benchmarks/mutate.py` runs them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
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


def test_a_sample_is_of_all_rooms_and_follows_its_seed(mutate: ModuleType) -> None:
    everything = mutate.read_list()
    some = mutate.drawn(everything, 8, 1)
    there, taken = (
        Counter(one.file.partition("/")[0] for one in ones) for ones in (everything, some)
    )
    assert taken.total() == 8
    assert len(there) == 4
    assert all(taken[room] >= min(2, count) for room, count in there.items())
    assert mutate.drawn(everything, 8, 1) == some == mutate.drawn(everything, 20, 1)[:8]
    assert mutate.drawn(everything, 8, 2) != some
    whole = mutate.drawn(everything, len(everything), 1)
    assert sorted(map(id, whole)) == sorted(map(id, everything))


SLOTS = """
import sys, time
from pathlib import Path
import mutate
for file, quick in (("mixed", True), ("mixed", False), ("slow", True), ("slow", False)):
    slot = mutate.Slot(Path.cwd(), mutate.words_of(["test_other"], quick=quick))
    slot.fork([f"test_{file}.py"])
    while (code := slot.poll(60)) is None:
        time.sleep(0.02)
    print(code)
"""


@pytest.mark.slow
def test_quick_leaves_out_the_tests_that_are_marked_slow(tmp_path: Path) -> None:
    fast = "def test_fast(): pass\ndef test_other(): assert False\n"
    slow = "import pytest\n@pytest.mark.slow\ndef test_slow(): assert False\n"
    (tmp_path / "test_mixed.py").write_text(slow + fast)
    (tmp_path / "test_slow.py").write_text(slow)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: as here\n")
    done = subprocess.run(
        [sys.executable, "-c", SLOTS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "1", "5", "1"], "nothing failed, or no test is left"


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
