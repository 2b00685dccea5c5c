"""The parsers that `fuzz.py` feeds: each with real examples, through what a command calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from fuzz_arrays import checkpoint, imports, regions, weights
from fuzz_documents import captions, index, labels, manifest, result, runs, state, study
from fuzz_layouts import Made, annotations, datasets


@dataclass(frozen=True)
class Parser:
    """make: in a folder of its own, the function that takes one input, and real inputs.

    text: Whether inputs are JSON, or YAML that may be JSON, to be mutated as trees.
    """

    make: Callable[[Path], Made]
    text: bool = False


def store(folder: Path) -> Made:
    """A store's record, markers, arrays' metadata, plans and indexes of shards."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "programs"))
    import fuzz_store

    fuzz_store.prepare(folder)
    return fuzz_store.one_input, fuzz_store.examples()


PARSERS = {
    "manifest": Parser(manifest, text=True),
    "study": Parser(study, text=True),
    "captions": Parser(captions, text=True),
    "annotations": Parser(annotations),
    "datasets": Parser(datasets),
    "result": Parser(result, text=True),
    "labels": Parser(labels, text=True),
    "regions": Parser(regions),
    "imports": Parser(imports),
    "weights": Parser(weights),
    "checkpoint": Parser(checkpoint),
    "runs": Parser(runs, text=True),
    "index": Parser(index),
    "state": Parser(state, text=True),
    "store": Parser(store),
}
