"""What `hada.extract` offers in Python: names, lazily; items of a store, as a sequence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import makers
import numpy as np
import pytest

import hada.extract
from hada.extract.common.errors import UsageError
from hada.extract.store import open_store
from hada.extract.store.side_reader import ITEMS_AT_ONCE, SideReader
from hada.extract.testing.store_contract import Content


def reader(path: Path) -> SideReader:
    Content(makers.make_spec(), format="zarr").write(path)
    return open_store(path).caption


def test_every_public_name_is_there_and_importing_the_package_loads_none() -> None:
    for name in hada.extract.__all__:
        assert getattr(hada.extract, name).__name__ == name
        assert name in dir(hada.extract)
    code = (
        "import sys, hada.extract\n"
        "allowed = {'hada.extract.common', 'hada.extract.common.lazy'}\n"
        "loaded = {name for name in sys.modules if name.startswith('hada.extract.')}\n"
        "assert loaded <= allowed and not {'numpy', 'click', 'torch'} & set(sys.modules), loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="'opn_store'"):
        _ = hada.extract.opn_store


def test_the_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert hada.extract.__version__ == version("hada")


def test_an_item_is_what_the_arrays_hold(tmp_path: Path) -> None:
    side = reader(tmp_path / "s")
    embeddings = side.embeddings()
    assert embeddings is not None
    assert len(side) == len(side.ids) > 3
    for row in (0, 3, np.int64(2), -1):
        item = side[row]
        assert item.id == side.ids[row]
        np.testing.assert_array_equal(item.tokens, side.tokens(np.array([row]) % len(side)))
        np.testing.assert_array_equal(item.embedding, embeddings[row])


def test_slices_rows_masks_and_iteration_give_the_same_items(tmp_path: Path) -> None:
    side = reader(tmp_path / "s")
    n = len(side)
    one_by_one = [side[row] for row in range(n)]
    mask = np.arange(n) % 2 == 1
    wanted = {
        "slice": (side[1:4], range(1, 4)),
        "backwards": (side[::-1], range(n)[::-1]),
        "array": (side[np.array([3, 0, 3])], [3, 0, 3]),
        "list": (side[[2, 1]], [2, 1]),
        "mask": (side[mask], np.flatnonzero(mask).tolist()),
        "none": (side[:0], []),
        "no rows": (side[[]], []),
        "all": (list(side), range(n)),
    }
    for name, (items, rows) in wanted.items():
        assert [item.id for item in items] == [side.ids[row] for row in rows], name
        for item, row in zip(items, rows, strict=True):
            np.testing.assert_array_equal(item.tokens, one_by_one[row].tokens, name)
            np.testing.assert_array_equal(item.embedding, one_by_one[row].embedding, name)
    assert ITEMS_AT_ONCE > 1


def test_iteration_goes_over_the_seams_of_what_is_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = reader(tmp_path / "s")
    monkeypatch.setattr("hada.extract.store.side_reader.ITEMS_AT_ONCE", 3)
    assert [item.id for item in side] == list(side.ids)


@pytest.mark.parametrize("row", [-1000, 1000, np.array([1000])], ids=str)
def test_a_row_that_is_not_there_is_an_index_error(tmp_path: Path, row: int) -> None:
    side = reader(tmp_path / "s")
    with pytest.raises(IndexError):
        _ = side[row]


def test_extract_names_what_is_missing() -> None:
    with pytest.raises(UsageError, match="no split was named"):
        hada.extract.extract("clip")
