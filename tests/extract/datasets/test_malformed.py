"""Captions that are broken, hostile or odd: one line that says what, where and what to do."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import pytest
from click.testing import CliRunner

from hada.extract.cli import extract
from hada.extract.datasets.named import dataset_at
from hada.extract.datasets.read import read_splits

HEADER = "image,caption\n"
A, B = "picture_000.jpg", "picture_002.jpg"


def tar_of(*members: tuple[str, bytes | None], link: str = "") -> bytes:
    """A tar; a member without bytes is a link to `link`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            if data is not None:
                layouts.add_to_tar(tar, name, data)
            else:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.SYMTYPE, link
                tar.addfile(member)
    return stream.getvalue()


def coco(**changes: Any) -> bytes:
    document = {
        "images": [{"id": 1, "file_name": A}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a"}],
    }
    return json.dumps(document | changes).encode()


# File of captions, its bytes, and what the one line of the error says.
MALFORMED: dict[str, tuple[str, bytes, str]] = {
    "an empty file": ("c.csv", b"", "looks like an empty file"),
    "white space alone": ("c.csv", b"\n \n", "no known layout"),
    "a page of a login": ("c.csv", b"<!DOCTYPE html><html>sign in</html>", "a web page or XML"),
    "a picture": ("c.csv", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", "no text at all"),
    "Python's repr": ("c.json", b"[{'image': 'a.jpg', 'caption': 'b'}]", "single quotes"),
    "Latin-1": ("c.csv", HEADER.encode() + f"{A},caf\u00e9\n".encode("latin-1"), "LATIN1"),
    "Windows-1252": (
        "c.csv",
        HEADER.encode() + f"{A},it\u2019s\n".encode("cp1252"),
        "WINDOWS-1252",
    ),
    "cut UTF-16": ("c.csv", (HEADER + f"{A},a\n").encode("utf-16")[:-1], "breaks at byte"),
    "cut gzip": ("c.csv.gz", gzip.compress(HEADER.encode() * 9)[:-12], "cut short"),
    "damaged gzip": ("c.csv.gz", gzip.compress(b"a,b\n" * 99)[:30] + b"x" * 40, "c.csv.gz"),
    "NULs": ("c.csv", HEADER.encode() + b"\0" * 64, "no text at all"),
    "a header without an image": ("c.csv", b"caption,id\na dog,1\n", "--columns image=COLUMN"),
    "a header without a caption": ("c.csv", b"file_name,width\na.jpg,1\n", "caption=COLUMN"),
    "a header of other words": ("c.csv", b"foo,bar\na,b\n", "names neither an image nor a caption"),
    "a comma without quotes": (
        "c.csv",
        f"{HEADER}{A},a dog, running\n".encode(),
        "line 2: 3 columns, the first line has 2",
    ),
    "a quote that never ends": (
        "c.csv",
        f'{HEADER}{A},ok\n{B},"a dog\n{A},more\n'.encode(),
        "line 3: broken quotes",
    ),
    "a quote in the middle of a cell": (
        "c.csv",
        f'{HEADER}{A},"a dog" runs\n'.encode(),
        "line 2: broken quotes",
    ),
    "a row without an image": (
        "c.csv",
        f"{HEADER},a dog\n".encode(),
        "line 2: the row names no image",
    ),
    "a row without a caption": (
        "c.csv",
        f"{HEADER}{A},\n".encode(),
        "line 2: the row has an empty",
    ),
    "traversal": ("c.csv", f"{HEADER}../../etc/passwd,a\n".encode(), "points outside"),
    "traversal of Windows": ("c.csv", f"{HEADER}..\\..\\x.jpg,a\n".encode(), "points outside"),
    "an absolute path": ("c.csv", f"{HEADER}/etc/passwd,a\n".encode(), "pictures are missing"),
    "a newline in an id": ("c.csv", f'{HEADER}"a\nb.jpg",a\n'.encode(), "control character"),
    "an escape sequence in an id": (
        "c.csv",
        f"{HEADER}\x1b[31m.jpg,a\n".encode(),
        "control character",
    ),
    "an image that is not there": (
        "c.csv",
        f"{HEADER}{A},a\nb.jpg,b\n".encode(),
        "1 of 2 pictures",
    ),
    "another case": (
        "c.csv",
        f"{HEADER}{A.upper()},a\n".encode(),
        f"There is '{A}': --loose-names",
    ),
    "cut JSON": (
        "c.json",
        f'[{{"image": "{A}", "caption": "a"}}, {{"ima'.encode(),
        "broken JSON at line 1",
    ),
    "a list of numbers": ("c.json", b"[1, 2, 3]", "a JSON list of something other than records"),
    "a record that is none": (
        "c.json",
        f'[{{"image": "{A}", "caption": "a"}}, 3]'.encode(),
        r"[1]: expected a record",
    ),
    "a record without an image": (
        "c.json",
        f'[{{"image": "{A}", "caption": "a"}}, {{"caption": "b"}}]'.encode(),
        "[1]: 'image' is missing",
    ),
    "a caption that is a number": (
        "c.json",
        f'[{{"image": "{A}", "caption": 3}}]'.encode(),
        "expected a caption as text",
    ),
    "a line of JSON lines": (
        "c.jsonl",
        f'{{"image": "{A}", "caption": "a"}}\n{{"image": "{A}"\n'.encode(),
        "line 2: broken JSON",
    ),
    "an annotation of no image": (
        "c.json",
        coco(annotations=[{"image_id": 7, "caption": "a"}]),
        "annotations[0] is of image 7",
    ),
    "an image id of COCO twice": (
        "c.json",
        coco(images=[{"id": 1, "file_name": A}, {"id": 1, "file_name": B}]),
        "an image id stands twice",
    ),
    "COCO without captions of one": (
        "c.json",
        coco(images=[{"id": 1, "file_name": A}, {"id": 2, "file_name": B}]),
        f"'{B}' has no captions",
    ),
    "Karpathy's file without names": (
        "c.json",
        b'{"images": [{"filename": 3, "sentences": []}]}',
        "expected text",
    ),
    "a token file with a line of another kind": (
        "c.token",
        f"{A}#0\ta dog\n{A}#1\ta cat\nno tab here\n".encode(),
        "line 3: expected NAME#k, a tab",
    ),
    "results.csv with a line of another kind": (
        "results.csv",
        f"image_name| comment_number| comment\n{A}| 0| a dog\n{A} 1 a cat\n".encode(),
        "line 3: expected NAME| k| caption",
    ),
    "a parquet that was cut": ("c.parquet", b"PAR1" + b"x" * 80, "not a parquet file"),
    "a parquet in name alone": (
        "c.parquet",
        b"image,caption\n",
        "no column looks like|parquet|pictures|no image",
    ),
    "a tar that was cut": (
        "c.tar",
        tar_of(("a.jpg", b"x" * 3000), ("a.txt", b"a"))[:2000],
        "cut short",
    ),
    "a tar that is none": ("c.tar", b"this is not a tar" * 99, "not a tar"),
    "a compressed tar": ("c.tar", gzip.compress(tar_of(("a.jpg", b"x"))), "gunzip"),
    "a link in a tar": ("c.tar", tar_of(("a.jpg", None), link="/etc/passwd"), "a link or a device"),
    "traversal in a tar": (
        "c.tar",
        tar_of(("../../a.jpg", b"x"), ("../../a.txt", b"a")),
        "points outside",
    ),
    "one image twice in a tar": (
        "c.tar",
        tar_of(("a.jpg", b"x"), ("a.txt", b"a"), ("b.jpg", b"x"), ("b.txt", b"b"), ("a.jpg", b"x")),
        "appears twice",
    ),
}


def outcome(folder: Path, *arguments: str) -> Any:
    """`hada-extract --data photos ...` as typed in a folder."""
    return CliRunner().invoke(
        extract,
        [
            *("--data", f"{folder}/photos", "--model", "toy=fake:a", "--device", "cpu"),
            *("--root", f"stores={folder}/stores", *arguments),
        ],
    )


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_one_clear_line(name: str, tmp_path: Path) -> None:
    file, data, message = MALFORMED[name]
    if file.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="needs the extra parquet")
    layouts.make_sample(tmp_path / "photos", images=4)
    (tmp_path / file).write_bytes(data)
    result = outcome(tmp_path, "--captions", str(tmp_path / file))
    assert result.exit_code == 2, result.output + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert any(part in lines[0] for part in message.split("|")), lines[0]
    assert "(unexpected;" not in lines[0]
    assert not (tmp_path / "stores").exists(), "something was written"


def _captions(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "captions.csv"
    file.write_text(HEADER + text)
    return file


def test_odd_and_honest_names_are_read(tmp_path: Path) -> None:
    sample = layouts.make_sample(tmp_path / "drawn", images=1)
    data = (sample.folder / sample.names[0]).read_bytes()
    long = "/".join(["folder " + "x" * 90] * 3) + "/p.jpg"
    names = ["a b.jpg", "\U0001f415.jpg", "a/b/c.jpg", "caf\u00e9.jpg", "#1.jpg", "-x.jpg", long]
    assert len(long) > 295
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    captions = _captions(tmp_path, "".join(f"{name},caption {name[:5]}\n" for name in names))
    result = outcome(tmp_path, "--captions", str(captions))
    assert result.exit_code == 0, result.stderr
    (found,) = read_splits(dataset_at(tmp_path / "photos", captions=captions))
    assert list(found.image_ids) == names


def test_two_hundred_captions_of_one_image(tmp_path: Path) -> None:
    layouts.make_sample(tmp_path / "photos", images=2)
    rows = "".join(f"{A},caption number {k}\n" for k in range(200))
    result = outcome(tmp_path, "--captions", str(_captions(tmp_path, rows)))
    assert result.exit_code == 0, result.stderr
    assert "1 images, 200 captions" in result.output


def test_an_image_without_a_row_is_told_and_left_out(tmp_path: Path) -> None:
    layouts.make_sample(tmp_path / "photos", images=4)
    captions = _captions(tmp_path, f"{A},one\n")
    result = outcome(tmp_path, "--captions", str(captions), "--describe")
    assert "3 image files are in no row and are left out" in result.output
    (data,) = read_splits(dataset_at(tmp_path / "photos", captions=captions))
    assert data.image_ids == (A,)


def test_loose_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    layouts.make_sample(tmp_path / "photos", images=4)
    captions = _captions(tmp_path, f"{A},one\n,two\n{B},\nmissing.jpg,four\n{A},five\n")
    result = outcome(tmp_path, "--captions", str(captions), "--loose-rows")
    assert result.exit_code == 0, result.stderr
    assert "1 images, 2 captions" in result.output
    for said in ("1 rows that name no image", "1 rows that have an empty caption", "not there"):
        assert said in result.stderr


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("PICTURE_000.JPG", A),
        ("picture_000", A),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
    ],
)
def test_loose_names_take_other_forms_of_one_name(tmp_path: Path, written: str, there: str) -> None:
    sample = layouts.make_sample(tmp_path / "photos", images=2)
    if there not in sample.names:
        os.rename(tmp_path / "photos" / A, tmp_path / "photos" / there)
    captions = _captions(tmp_path, f"{written},one\n")
    strict = outcome(tmp_path, "--captions", str(captions))
    assert strict.exit_code == 2
    assert f"There is {there!r}: --loose-names" in strict.stderr
    loose = outcome(tmp_path, "--captions", str(captions), "--loose-names")
    assert loose.exit_code == 0, loose.stderr
    entry = dataset_at(tmp_path / "photos", captions=captions, loose_names=True)
    assert read_splits(entry)[0].image_ids == (there,)


def test_loose_names_never_choose_between_two(tmp_path: Path) -> None:
    sample = layouts.make_sample(tmp_path / "photos", images=2)
    for name in ("A.jpg", "a.JPG"):
        (tmp_path / "photos" / name).write_bytes((sample.folder / A).read_bytes())
    result = outcome(tmp_path, "--captions", str(_captions(tmp_path, "a.jpg,x\n")), "--loose-names")
    assert result.exit_code == 2
    assert "1 of 1 pictures are missing" in result.stderr


USAGE: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no such folder": (lambda d: ["--data", f"{d}/nowhere"], "no such folder or file"),
    "captions without data": (
        lambda d: ["--captions", f"{d}/c.csv"],
        "--captions belongs to --data",
    ),
    "data and dataset": (lambda d: ["--data", f"{d}/photos", "--dataset", "x"], "give one of them"),
    "an unknown reader": (
        lambda d: ["--data", f"{d}/photos", "--reader", "karpaty"],
        "Did you mean 'karpathy'",
    ),
    "shares of two": (
        lambda d: ["--data", f"{d}/photos", "--split-by", "0.8,0.3"],
        "expected shares that add up to 1",
    ),
    "a column that is not there": (
        lambda d: [
            *("--data", f"{d}/photos", "--captions", f"{d}/c.csv"),
            *("--columns", "caption=captoin"),
        ],
        "no column 'captoin'. Did you mean 'caption'",
    ),
    "columns of no meaning": (
        lambda d: ["--data", f"{d}/photos", "--columns", "text=a"],
        "the meanings are image, caption, split",
    ),
    "a name of the manifest": (
        lambda d: ["--data", f"scenes={d}/photos"],
        "--dataset scenes --root",
    ),
    "a split that is not there": (
        lambda d: ["--data", f"{d}/photos", "--split", "test"],
        "It has no splits: leave --split out",
    ),
    "a list of other images": (
        lambda d: ["--data", f"{d}/photos", "--split-ids", f"val={d}/ids.txt"],
        "ids.txt, line 1: 'nobody.jpg' names no image",
    ),
}


@pytest.mark.parametrize("name", USAGE)
def test_a_wrong_request_is_one_clear_line(name: str, tmp_path: Path) -> None:
    arguments, message = USAGE[name]
    layouts.make_sample(tmp_path / "photos", images=2)
    (tmp_path / "c.csv").write_text(f"{HEADER}{A},a\n")
    (tmp_path / "ids.txt").write_text("nobody.jpg\n")
    result = CliRunner().invoke(
        extract,
        [*arguments(tmp_path), "--model", "toy=fake:a", "--root", f"stores={tmp_path}/stores"],
    )
    assert result.exit_code == 2, result.output + result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "stores").exists()
