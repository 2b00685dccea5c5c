"""Edit small stores in every structural way and count what stays silent.

    python benchmarks/store_edits.py

For both formats: each file replaced by that of another split, model, dtype or an older version of
the same spec; removed; doubled; shards and markers swapped, overwritten and renamed, with and
without each other; markers edited, with and without a digest that fits again; attributes edited;
arrays added and removed. Of each it says whether `verify --deep` calls the result whole (silent),
and whether a reader refuses it, returns what was in the store, or returns something else (wrong).
Exits with 1 where anything is silent or wrong.
"""

from __future__ import annotations

import collections
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/support"))

import store_edits


def main() -> None:
    """See the module."""
    bad = 0
    for form in ("zarr", "hdf5"):
        counts: collections.Counter[str] = collections.Counter()
        with tempfile.TemporaryDirectory() as folder:
            whole = store_edits.make_stores(Path(folder), form)
            truth = store_edits.content_of(whole)
            for name, edit in store_edits.edits(whole):
                victim = Path(folder) / "victim"
                shutil.rmtree(victim, ignore_errors=True)
                shutil.copytree(whole, victim)
                edit(victim)
                for deep in (False, True):
                    silent, read = store_edits.outcome(victim, truth, deep=deep)
                    if not deep:
                        counts["called whole by verify without --deep"] += silent
                counts["edits"] += 1
                counts[f"reading: {read}"] += 1
                if silent or read == "wrong":
                    bad += 1
                    print(f"{form}: {name}: {'SILENT' if silent else 'named'}, reading: {read}")
        print(f"{form}: {dict(counts)}", flush=True)
    print(f"{bad} silent or wrong")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
