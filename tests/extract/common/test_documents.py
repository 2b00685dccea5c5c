"""Text, arrays and weights of others: read within limits, or told in one line with the place."""

from __future__ import annotations

import io
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import pytest
import torch

from hada.extract.common.array_files import map_npy, read_npz
from hada.extract.common.documents import parse_json, read_json
from hada.extract.common.errors import CheckpointError, ManifestError, StoreError, UsageError
from hada.extract.common.shapes import conform, shown
from hada.extract.common.strict_yaml import read_yaml
from hada.extract.common.tensor_files import read_safetensors, read_torch

BROKEN_JSON = {
    "empty": (b" \n", "line 2, column 1: the file is empty"),
    "a comma too many": (b'{"a": 1,}', "line 1, column 9: expecting property name"),
    "NaN": (b'[1,\n "NaN", NaN]', "line 2, column 9: NaN is no number"),
    "infinity by overflow": (b"[1e5, 1e999]", "line 1, column 7: the number 1e999 is too large"),
    "5,000 digits": (b'{"a": -' + b"9" * 5000 + b"}", "column 7: a whole number of 5,000 digits"),
    "20 digits": (b"[99999999999999999999]", "a whole number of 20 digits"),
    "deep lists": (b"[" * 70 + b"]" * 70, "nested more than 64 deep"),
    "endless lists": (b"[" * 100_000, "nested more than 64 deep"),
    "endless mappings": (b'{"a":' * 100_000, "nested more than 64 deep"),
    "a key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is written twice"),
    "half a character": (b'["\\ud83d"]', "line 1, column 3: half of a surrogate pair"),
    "Latin-1": ('["a",\n"ü"]'.encode("latin-1"), "line 2, column 2: not UTF-8 text (byte 0xfc)"),
    "UTF-16": ('["a"]'.encode("utf-16"), "UTF-16 text, expected UTF-8. Convert it: iconv"),
    "UTF-32": ('["a"]'.encode("utf-32"), "UTF-32 text, expected UTF-8"),
    "NUL": (b'{"a": 1\0\0\0', "a NUL byte at byte 7"),
    "gzip": (b"\x1f\x8b\x08\x00", "gzip-compressed"),
}


@pytest.mark.parametrize("name", BROKEN_JSON)
def test_broken_json_is_told_with_its_place_in_one_line(name: str) -> None:
    data, expected = BROKEN_JSON[name]
    with pytest.raises(StoreError) as told:
        parse_json(data, "FILE", StoreError)
    message = str(told.value)
    assert message.startswith("FILE")
    assert expected in message
    assert "\n" not in message
    assert len(message) < 250


def test_json_with_a_mark_numbers_of_64_bits_and_whole_pairs_is_read() -> None:
    text = '\ufeff{"a": [-9223372036854775808, 1.5e300], "b": "\\ud83d\\ude00"}'
    assert parse_json(text.encode(), "x") == {"a": [-(2**63), 1.5e300], "b": "😀"}


def test_json_of_strangers_may_say_nan_twice_and_half_a_character_where_asked() -> None:
    text = b'{"a": NaN, "a": 1, "b": "\\ud83d"}'
    assert parse_json(text, "x", finite=False, unique=False, halves=True)["a"] == 1


def test_a_file_that_is_absent_a_folder_endless_or_too_large_is_told(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b" " * 101)
    for path, expected in (
        (tmp_path / "none", "no such file. Make it first"),
        (tmp_path, "a folder, expected a file"),
        (Path("/dev/zero"), "more than 100 bytes"),
        (tmp_path / "large", "more than 100 bytes"),
    ):
        with pytest.raises(UsageError, match=expected):
            read_json(path, most=100, absent="Make it first")


class Gain(TypedDict):
    rsum: float


class Result(TypedDict):
    name: str
    gain: Gain | None
    items: NotRequired[list[int]]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "f: expected a mapping, got a list"),
        ({"nam": "a", "gain": None}, "f: 'name' is missing (there is 'nam')"),
        ({"name": "a", "gain": {"rsum": "1"}}, "f: gain.rsum: expected a number, got text"),
        ({"name": "a", "gain": []}, "f: gain: expected a mapping or nothing (null), got a list"),
        ({"name": "a", "gain": {"rsum": True}}, "got true or false"),
        ({"name": "a", "gain": None, "items": [1, {}]}, "f: items[1]: expected a whole number"),
    ],
)
def test_a_value_of_another_shape_is_told_by_its_keys(value: object, expected: str) -> None:
    with pytest.raises(UsageError) as told:
        conform(value, Result, "f")
    assert expected in str(told.value)


def test_a_value_is_shown_on_one_line_of_moderate_length() -> None:
    assert shown("x" * 1000).endswith("...")
    assert shown(10**6000) == "a number of about 6,001 digits"
    assert shown([10**6000]) == "a list"
    assert shown({"a": "b\n"}) == repr({"a": "b\n"})


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
BROKEN_YAML = {
    "a bomb of aliases": (BOMB, "line 5: more than 50,000 values with every alias"),
    "lists 5,000 deep": ("a: " + "[" * 5000, "line 1: nested more than 32 deep"),
    "mappings 5,000 deep": ("a: " + "{b: " * 5000, "line 1: nested more than 32 deep"),
    "an alias inside of itself": ("a: 1\nb: &x [1, *x]", "line 2: *x lies inside of what it"),
    "a tag": ("a: !!python/object/apply:os.system [ls]", "line 1: the tag '!!python/object"),
    "binary": ("a: !!binary YQ==", "line 1: the tag '!!binary' is not read"),
    "5,000 digits": ("a: " + "9" * 5000, "line 1: 'a': '9999"),
    "20 digits": ("a: 99999999999999999999", "line 1: 'a': 99999999999999999999 is too large"),
    "infinity": ("a: [1, .inf]", "line 1: 'a[1]': expected a finite number, got '.inf'"),
    "no number": ("a: !!int x", "line 1: 'a': 'x' is no int"),
    "a key twice": ("a:\n  b: {c: 1, c: 2}", "line 2: 'a.b.c' is written twice"),
    "a list as key": ("a: {[1]: 2}", "line 1: 'a': keys must be plain words"),
    "control": ("a: 1\nb: \x07", "line 2: not YAML: a control character (U+0007)"),
    "an escape of no character": ('a: "\\UFFFFFFFF"', "not YAML"),
    "NUL by an escape": ('a: ["x\\0"]', "line 1: 'a[0]': 'x\\x00' holds a NUL"),
    "half a character": ('a: "\\uD83D"', "line 1: 'a': '\\ud83d' holds a NUL or half"),
    "two documents": ("a: 1\n---\nb: 2", "line 2: not YAML"),
    "an alias to nothing": ("a: *x", "line 1: not YAML"),
}


@pytest.mark.parametrize("name", BROKEN_YAML)
def test_odd_yaml_is_told_with_its_line_in_bounded_time_and_memory(
    name: str, tmp_path: Path
) -> None:
    text, expected = BROKEN_YAML[name]
    (tmp_path / "m.yaml").write_text(text)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ManifestError) as told:
        read_yaml(tmp_path / "m.yaml").take_plain("a")
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert expected in str(told.value)
    assert len(str(told.value)) < 350
    assert seconds < 5
    assert peak < 50e6


def test_yaml_with_aliases_merges_and_dates_is_plain_values(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(
        "\ufeffa: {x: &x {b: 1, c: 2}, y: {<<: *x, c: 3}, z: [*x, *x], day: 2024-99-31, 8: e}\n"
    )
    x = {"b": 1, "c": 2}
    found = read_yaml(tmp_path / "m.yaml").take_plain("a")
    assert found == {"x": x, "y": {"b": 1, "c": 3}, "z": [x, x], "day": "2024-99-31", "8": "e"}


def npz(**arrays: object) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def npz_of(header: bytes, numbers: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + numbers
        archive.writestr("a.npy", raw)
    return stream.getvalue()


HEADER = "{{'descr': {}, 'fortran_order': False, 'shape': {}}}\n"


@pytest.mark.parametrize(
    ("descr", "shape"),
    [
        ("'<f4'", "(99999999999999,)"),
        ("'<f4'", "(2,-1)"),
        ("'<f4'", "(2,'x')"),
        ("'<f4'", "((((((((((((((((1,)" + ")" * 16),
        ("'|O'", "(1,)"),
        ("'|V0'", "(4611686018427387904,)"),
        ("[('x', '<f4')]", "(9,)"),
        ("'<f4'", f"({'9' * 5000},)"),
        ("'<f4'", "(" * 900 + ")" * 900),
        ("'<f99'", "(1,)"),
        ("[(1, 2)]", "(1,)"),
    ],
)
def test_an_array_whose_header_lies_is_told_and_not_allocated(descr: str, shape: str) -> None:
    data = npz_of(HEADER.format(descr, shape).encode(), bytes(8))
    with pytest.raises(UsageError, match="FILE") as told:
        read_npz(data, "FILE", UsageError)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300


def test_an_npz_gives_the_wanted_arrays_and_is_no_bomb() -> None:
    data = npz(a=np.arange(3), b=np.zeros((0, 4)), c=np.float64(2))
    found = read_npz(data, "x", UsageError, ["a", "c", "d"])
    assert found["a"].tolist() == [0, 1, 2]
    assert set(found) == {"a", "c"}
    with pytest.raises(UsageError, match="unpacks to 8,000,000 bytes"):
        read_npz(npz(a=np.zeros(10**6)), "x", UsageError, most=10**6)


def test_a_mapped_array_is_as_long_as_it_says(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, np.eye(3))
    assert map_npy(file, UsageError).sum() == 3
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    assert map_npy(tmp_path / "none.npy", UsageError).shape == (0, 3)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UsageError, match="64 bytes of numbers, its header says 72"):
        map_npy(file, UsageError)


ODD_TENSORS = {
    "expanded": (lambda: torch.zeros(1).expand(10**12), "holds fewer numbers"),
    "sparse": (lambda: torch.eye(3).to_sparse(), r"is not dense \(sparse_coo\)"),
    "compressed": (lambda: torch.eye(3).to_sparse_csr(), r"is not dense \(sparse_csr\)"),
    "meta": (lambda: torch.zeros(3, device="meta"), "has no numbers"),
    "complex": (lambda: torch.zeros(3, dtype=torch.complex64), "complex64, expected real numbers"),
    "eight bits": (lambda: torch.zeros(3).to(torch.float8_e4m3fn), "float8_e4m3fn, expected"),
}


@pytest.mark.parametrize("name", ODD_TENSORS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_a_tensor_that_is_not_what_it_seems_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, expected = ODD_TENSORS[name]
    torch.save({"model": {"weights": [make()]}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=rf"'model.weights.0' .*{expected}"):
        read_torch(tmp_path / "x.pt")


def test_weights_that_are_cut_deep_or_of_another_kind_are_told(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"a": torch.ones(3, 2), "b": [1, "x", None]}, file)
    assert read_torch(file)["a"].sum() == 6
    whole = file.read_bytes()
    for data in (b"", whole[:100], whole[:-200], b"PK\x03\x04", b"\x80\x02.", b"[" * 99):
        file.write_bytes(data)
        for read in (read_torch, read_safetensors):
            with pytest.raises(CheckpointError) as told:
                read(file)
            assert "\n" not in str(told.value)
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    torch.save(deep, file)
    with pytest.raises(CheckpointError):
        read_torch(file)
