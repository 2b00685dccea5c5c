"""Markers and attributes with anything in them: an error that says so, or the truth; no more."""

from __future__ import annotations

import contextlib
import copy
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import makers
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import PROGRAMS

from hada.extract.common.errors import HadaError
from hada.extract.store import commit, open_store
from hada.extract.store.maintain import describe, repair
from hada.extract.store.reader import read_spec, shard_status
from hada.extract.testing.store_contract import Content

pytestmark = pytest.mark.slow

FORMATS = pytest.mark.parametrize("form", ["zarr", "hdf5"])
# The same examples every time: a run of the tests must not fail by chance. `--hypothesis-seed`
# with `derandomize=False` looks further.
SOME = settings(
    max_examples=80,
    derandomize=True,
    deadline=5000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "x", "../../etc/passwd", "/etc/passwd", "NaN", "\0", "float16", "c/0"])
    | st.text(max_size=8)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=6) | st.sampled_from(["files", "spec"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a JSON value, itself included."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """`value` with `new` at one place."""
    if not path:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


@st.composite
def damaged(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one or two places replaced by anything."""
    for _ in range(draw(st.integers(1, 2))):
        value = replaced(value, draw(st.sampled_from(list(places(value)))), draw(JSON))
    return value


def use(path: Path, tokens: Any) -> None:
    """Do with a store whatever one does: it answers truly, or with an error of ours."""
    for call in (read_spec, describe, lambda p: shard_status(p, read_spec(p), deep=True)):
        with contextlib.suppress(HadaError):
            call(path)
    try:
        got = open_store(path).image.tokens(slice(None))
    except HadaError as error:
        assert str(error)  # noqa: PT017
    else:
        assert got.dtype != np.float16 or np.array_equal(got.ravel(), tokens.ravel())


@FORMATS
@given(data=st.data())
@SOME
def test_any_marker(
    form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, tokens = _store(form, tmp_path_factory)
    marker = commit.marker_path(path, "image", 0)
    whole = marker.read_bytes()
    try:
        value = data.draw(damaged(json.loads(whole)))
        marker.write_text(json.dumps(value))
        use(path, tokens)
        raw = data.draw(st.binary(max_size=40))
        marker.write_bytes(raw)
        use(path, tokens)
    finally:
        marker.write_bytes(whole)


@FORMATS
@given(data=st.data())
@SOME
def test_any_attributes(
    form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, tokens = _store(form, tmp_path_factory)
    file = path / ("features.zarr/zarr.json" if form == "zarr" else "features.hdf5/index.h5")
    whole = file.read_bytes()
    try:
        if form == "zarr":
            file.write_text(json.dumps(data.draw(damaged(json.loads(whole)))))
        else:
            with h5py.File(file, "r+") as index:
                name = data.draw(st.sampled_from(["hada", "arrays"]))
                index.attrs[name] = json.dumps(data.draw(damaged(json.loads(index.attrs[name]))))
        use(path, tokens)
    finally:
        file.write_bytes(whole)


@given(data=st.data())
@SOME
def test_any_array_metadata(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path, tokens = _store("zarr", tmp_path_factory)
    file = path / "features.zarr" / "image" / "tokens" / "zarr.json"
    whole = file.read_bytes()
    try:
        file.write_text(json.dumps(data.draw(damaged(json.loads(whole)))))
        use(path, tokens)
    finally:
        file.write_bytes(whole)


def test_repair_deletes_nothing_that_a_marker_names(tmp_path: Path) -> None:
    Content(makers.make_spec()).write(tmp_path / "s")
    (tmp_path / "thesis.txt").write_text("precious")
    marker = commit.marker_path(tmp_path / "s", "image", 0)
    value = json.loads(marker.read_text())
    for name in ("../../thesis.txt", str(tmp_path / "thesis.txt"), "image/ids/c/0/0"):
        marker.write_text(json.dumps(value | {"files": {name: [1, 2]}}))
        repair(tmp_path / "s")
        assert (tmp_path / "thesis.txt").read_text() == "precious"
        assert (tmp_path / "s" / "features.zarr" / "image" / "ids" / "c" / "0" / "0").exists()


_MADE: dict[str, tuple[Path, Any]] = {}


def _store(form: str, factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """One store for all examples: each mends what it broke."""
    if form not in _MADE:
        path = factory.mktemp(form) / "s"
        content = Content(makers.make_spec(), format=form)
        content.write(path)
        _MADE[form] = path, np.concatenate(content.tokens["image"]).astype("f2")
    return _MADE[form]


def test_atheris_finds_nothing(tmp_path: Path) -> None:
    """Mutations guided by which lines they reach; `fuzz_store.py` says how to run it for longer."""
    pytest.importorskip("atheris", reason="needs atheris: pip install atheris")
    harness = PROGRAMS / "fuzz_store.py"
    # Linux hands on the peak memory of this process, and libFuzzer takes it for the harness's own.
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    done = subprocess.run(
        [
            sys.executable,
            harness,
            "corpus",
            "-runs=200000",
            "-seed=1",
            "-timeout=5",
            "-max_len=2000",
            f"-rss_limit_mb={2048 + inherited}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 200000 runs" in done.stderr
