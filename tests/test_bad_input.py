"""Malformed files through the commands that people type: one line, an exit code, no traceback."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import makers
import pytest
import torch
from click.testing import CliRunner, Result

from hada.evaluate.cli import evaluate
from hada.extract.cli import extract
from hada.fuse.cli import fuse

COMMANDS = {"hada-extract": extract, "hada-evaluate": evaluate, "hada-fuse": fuse}
EXTRACT = "hada-extract --model one --split val"


def call(words: str) -> Result:
    name, *rest = words.split()
    return CliRunner().invoke(COMMANDS[name], rest)


def told(result: Result, expected: str, code: int = 2) -> None:
    """Whether a command ended in this one line and code."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == code, result.output
    assert len(lines) == 1
    assert expected in lines[0]
    assert "Traceback" not in result.output
    assert "unexpected" not in result.output
    assert len(lines[0]) < 600


def manifest_with(options: str) -> Callable[[], None]:
    def write() -> None:
        text = makers.MANIFEST.replace("weights: a}", f"weights: a, options: {options}}}")
        Path("data_manifest.yaml").write_text(text)

    return write


def annotations_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    def write() -> None:
        file = Path("data/dataset_tiny.json")
        document = json.loads(file.read_text())
        change(document["images"][-1])
        file.write_text(json.dumps(document))

    return write


def annotations_as(change: Callable[[bytes], bytes]) -> Callable[[], None]:
    def write() -> None:
        file = Path("data/dataset_tiny.json")
        file.write_bytes(change(file.read_bytes()))

    return write


BOMB = "{a0: &a0 [x, x, x, x, x, x, x, x, x], " + ", ".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)
)
HUGE = b"9" * 5000
CASES: dict[str, tuple[Callable[[], None], str]] = {
    "yaml nested 5,000 deep": (manifest_with("[" * 5000), "nested more than 32 deep"),
    "yaml that holds itself": (manifest_with("&o {a: [*o]}"), "*o lies inside of what it"),
    "yaml alias bomb": (manifest_with(BOMB + "}"), "values with every alias (*) written out"),
    "yaml number of 5,000 digits": (
        manifest_with("{width: " + "9" * 5000 + "}"),
        "data_manifest.yaml, line 18: 'models.one.options.width'",
    ),
    "yaml infinity": (manifest_with("{width: .inf}"), "expected a finite number, got '.inf'"),
    "yaml tag": (manifest_with("!!python/name:os.system ''"), "is not read. Expected plain"),
    "yaml key twice": (
        manifest_with("{width: 4, width: 5}"),
        "'models.one.options.width' is written twice",
    ),
    "split as a list": (
        annotations_with(lambda image: image.update(split=["val"])),
        "images[16].split: expected text or nothing (null), got a list",
    ),
    "sentences as a number": (
        annotations_with(lambda image: image.update(sentences=5)),
        "images[16].sentences: expected a list or nothing (null), got a whole number",
    ),
    "a file name as a number": (
        annotations_with(lambda image: image.update(filename=7)),
        "images[16].filename: expected text, got a whole number",
    ),
    "a file name with a NUL": (
        annotations_with(lambda image: image.update(filename="a\0b.jpg")),
        "images[16]: 'a\\x00b.jpg' holds a control character",
    ),
    "json number of 5,000 digits": (
        annotations_as(lambda data: data.replace(b'"images":', b'"x": ' + HUGE + b', "images":')),
        "a whole number of 5,000 digits",
    ),
    "json nested for ever": (annotations_as(lambda _: b"[" * 99999), "nested more than 64 deep"),
    "json in UTF-16, cut": (
        annotations_as(lambda data: data.decode().encode("utf-16")[:-1]),
        "begins as UTF-16 text and breaks at byte",
    ),
    "json in UTF-32": (
        annotations_as(lambda data: data.decode().encode("utf-32")),
        "UTF-32 text, expected UTF-8",
    ),
    "json with a hole": (annotations_as(lambda data: data[:99] + bytes(99)), "a NUL byte at byte"),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    makers.make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", CASES)
def test_a_malformed_manifest_or_annotation_ends_in_one_line(name: str) -> None:
    write, expected = CASES[name]
    write()
    start = time.process_time()
    told(call(EXTRACT), expected)
    assert time.process_time() - start < 5


RESULT_CASES = {
    "[1, 2]": "not a result of hada-evaluate recall",
    '{"schema": 2, "protocol": {}, "rungs": []}': "protocol: 'dataset' is missing",
    '{"schema": 2, "protocol": 3, "items": {"digest": "", "owner": ""}, "rungs": []}': "protocol: "
    "expected a mapping, got a whole number",
    '{"schema": [2], "protocol": {}, "rungs": []}': "schema: expected 3 or 2, got [2]",
    '{"schema": NaN': "broken JSON at line 1, column 12: NaN is no number",
}


@pytest.mark.parametrize("text", RESULT_CASES)
def test_a_file_that_is_no_result_is_told_by_compare_and_table(text: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    for command in ("compare", "table"):
        told(call(f"hada-evaluate {command} {file}"), RESULT_CASES[text])


@pytest.mark.usefixtures("project")
def test_a_checkpoint_of_odd_tensors_is_told_by_import(tmp_path: Path) -> None:
    encoder = {"enc.linear.0.weight": torch.zeros(1).expand(10**6, 10**6)}
    whole = {"img_encoder": encoder, "cap_encoder": encoder, "temp_para": torch.tensor(0.1)}
    torch.save(whole, tmp_path / "best.pth.tar")
    assert call(EXTRACT).exit_code == 0
    words = f"hada-fuse import {tmp_path}/best.pth.tar --model one --split val --run r"
    told(call(words), "holds fewer numbers of it (it was expanded)")
