"""No text from a file steers a terminal, whichever command prints it."""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import makers
import pytest
from click.testing import CliRunner
from places import ROOT
from small_trainings import UNFINISHED

from hada.evaluate.cli import evaluate
from hada.evaluate.results.text import render
from hada.extract.cli import extract
from hada.extract.common.progress import progress
from hada.extract.common.terminal import console, guarded, in_line, visible
from hada.extract.store_cli import store
from hada.fuse.cli import fuse
from hada.pipelines.cli import pipeline

# Retitle the window, clear the screen, go back in the line, C1's way of saying ESC [, NEL, a line
# that claims to be a result, bidirectional override and isolate, line separator, delete.
EVIL = "\x1b]0;x\x07\x1b[2J\r\x9b2J\x85\n  1  0.999  forged\u202egpj\u2066\u2028\x7f[red]"
# Control characters in file names and ids are refused when they are read; these are not.
BIDI = "\u202egpj\u2066[red]"
RANGES = ((0, 31), (0x7F, 0x9F), (0x2028, 0x202E), (0x2066, 0x2069))
STEERS = {chr(n) for low, high in RANGES for n in range(low, high + 1)} - {"\n", "\t"}


def check(text: str) -> str:
    assert not STEERS & set(text), repr(text)
    assert "\n  1  0.999  forged" not in text
    return text


def test_what_steers_is_escaped_and_all_else_stays() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        steers = character in STEERS or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        if steers and character not in "\n\t":
            assert visible(character).startswith("\\"), hex(number)
            assert visible(character).isascii()
            assert visible(character).isprintable()
        elif unicodedata.category(character)[0] not in "C":
            assert visible(character) == character, hex(number)
    assert visible("é 日本 👩‍👩‍👧 \t\n") == "é 日本 👩‍👩‍👧 \t\n"
    assert in_line("a\tb\nc") == "a\\tb\\nc"
    assert visible(os.fsdecode(b"caf\xe9.jpg")) == "caf\\xe9.jpg"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data set whose captions, ids and file names are hostile, extracted and trained."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        makers.make_project(folder)
        file = folder / "data/dataset_tiny.json"
        told = json.loads(file.read_text())
        for number, image in enumerate(told["images"]):
            old = folder / "data/images" / image["filename"]
            image["filename"] = f"{BIDI}{image['filename']}"
            if number == 13:
                old.write_bytes(b"no picture")
            old.rename(folder / "data/images" / image["filename"])
            for k, sentence in enumerate(image["sentences"]):
                sentence["raw"] = f"{EVIL} {sentence['raw']}"
                sentence["sentid"] = f"{BIDI}{number}-{k}"
        file.write_text(json.dumps(told))
        said = [ran(extract, "--split", split) for split in ("train", "val")]
        assert f"could not decode {in_line(BIDI)}" in said[1]
        ran(fuse, "train", "--epochs", "1", "--run", "runs/tiny/mine", *UNFINISHED)
        ran(evaluate, "recall", "--split", "val", "--quick", "--resamples", "100")
        yield folder


@pytest.fixture
def inside(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(hostile)
    return hostile


def ran(command: Any, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(command, list(words))
    assert result.exit_code == code, result.output
    return check(result.output)


@pytest.mark.usefixtures("inside")
def test_captions_ids_and_files_as_commands_print_them() -> None:
    for words in (
        ["search", "red above blue", "--split", "val", "--top", "5"],
        ["search", "red above blue", "--split", "val", "--find", "captions"],
        ["search", EVIL, "--split", "val", "--page", "found.html"],
        ["search", "red", "--split", "val", "--jsonl"],
        ["report", "runs/tiny/mine", "--split", "val", "--quick", "--resamples", "100"],
    ):
        ran(evaluate, *words)
    assert "\\x1b[2J\\r\\x9b2J" in ran(evaluate, "search", "red", "--split", "val")
    ran(extract, "--split", "val", "--dry-run")
    ran(store, "info", "stores/tiny/val/one")
    ran(store, "verify", "--deep", "stores/tiny/val/one")


def poisoned(value: Any) -> Any:
    """A result whose every text is hostile, but those that are looked up."""
    if isinstance(value, dict):
        return {k: v if k in ("kind", "ranks", "pair") else poisoned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return f"{EVIL}{value}" if isinstance(value, str) else value


def test_names_in_results_and_stores_of_others(inside: Path, tmp_path: Path) -> None:
    result = json.loads((inside / "runs/tiny/recall-val.json").read_text())
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(poisoned(result)))
    for form in ("md", "csv", "latex"):
        # A newline within a quoted field is CSV's own.
        text = CliRunner().invoke(evaluate, ["table", str(bad), "--format", form]).output
        assert not STEERS & set(text), repr(text)
    for words in (
        ["compare", str(bad), str(bad)],
        ["compare", str(bad), "runs/tiny/recall-val.json"],
    ):
        check(CliRunner().invoke(evaluate, words).output)
    assert "[red]" in check(render(poisoned(result)))  # and no markup is read


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (extract, ["--split", EVIL]),
        (extract, ["--manifest", f"{EVIL}.yaml"]),
        (extract, [EVIL]),
        (extract, [f"--{EVIL}"]),
        (store, [EVIL]),
        (store, ["info", EVIL]),
        (fuse, ["train", "--set", f"{EVIL}=1"]),
        (evaluate, ["recall", "--run", EVIL, "--split", "val"]),
        (evaluate, ["search", "a", "--image", EVIL]),
        (pipeline, ["plan", f"{EVIL}.yaml"]),
    ],
)
@pytest.mark.usefixtures("inside")
def test_errors_name_what_is_wrong_without_obeying_it(command: Any, words: list[str]) -> None:
    result = CliRunner().invoke(command, words)
    assert result.exit_code in (1, 2)
    check(result.output)


def test_errors_about_files_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    makers.make_project(tmp_path)
    quoted = json.dumps(EVIL)
    plain = makers.MANIFEST
    for text in (
        plain.replace("schema: 1", f"schema: {quoted}"),
        plain.replace("schema: 1", f"schema: 1\n{quoted}: 2"),
        plain.replace("family: fake", f"family: {quoted}"),
        plain.replace("  tiny:", f"  {quoted}:"),
        plain.replace("root: data", f"root: {quoted}"),
    ):
        Path("data_manifest.yaml").write_text(text)
        result = CliRunner().invoke(extract, ["--split", "val"])
        assert result.exit_code in (1, 2), text
        check(result.output)


def test_a_traceback_does_not_steer_either(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "hada.pipelines", "plan", "--debug", f"{EVIL}.yaml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert not STEERS & set(done.stderr)


def test_warnings_log_records_bars_and_tables(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with guarded():
        shown = warnings.formatwarning(EVIL, UserWarning, "file.py", 1, "")
        logging.getLogger("other").warning("%s %s", EVIL, "\x1b[1mbold\x1b[0m")
    assert not STEERS & set(shown)
    assert "\x1b[1mbold\x1b[0m" in caplog.records[0].getMessage()  # a colour does no harm
    assert "\x1b[2J" not in caplog.records[0].getMessage()
    with progress(EVIL, 1, "things") as advance:
        advance(1, EVIL)
    check(capsys.readouterr().err)
    from rich.live import Live
    from rich.table import Table

    table = Table(EVIL, title=EVIL, caption=EVIL)
    table.add_row(EVIL)
    screen = console(stderr=True, width=200)
    screen.print(table, EVIL)
    with Live(EVIL, console=screen):
        screen.print(EVIL)
    text = capsys.readouterr().err
    assert not STEERS & set(text)
    assert "[red]" in text


def test_nothing_is_printed_past_the_boundary() -> None:
    """`click.echo`, `print`, Rich's console and the streams are used in two files only."""
    past = {("click", "echo"), ("click", "secho"), ("sys", "stdout"), ("stdout", "write"),
            ("stderr", "write"), ("rich", "print")}  # fmt: skip
    allowed = {"extract/common/console.py", "extract/common/terminal.py"}
    for file in (path for room in ("extract", "fuse", "evaluate", "pipelines")
                 for path in (ROOT / room).rglob("*.py")):  # fmt: skip
        place = str(file.relative_to(ROOT))
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                owner = getattr(node.value, "id", getattr(node.value, "attr", ""))
                assert (owner, node.attr) not in past or place in allowed, f"{place}:{node.lineno}"
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                assert place == "extract/common/progress.py", f"{place}:{node.lineno}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich.console"):
                assert place in allowed, f"{place}:{node.lineno}"
