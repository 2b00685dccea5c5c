"""What README and docs name exists: commands and their options, files, links, modules."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from places import ROOT

from hada.fuse.recipes import RECIPES

PAGES = sorted(
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
    if path.exists()
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(
    r"(?<![\w./-])(?:extract|fuse|evaluate|pipelines|tests|benchmarks|docs|scripts|typings)/[\w./-]*\w"
)
PROGRAM = r"hada(?:-| )(?:extract|store|fuse|evaluate|pipeline)(?=\s|$)"
# Words that look like paths of the checkout and are places of other things.
NO_PATHS = {"docs/stores"}
# Inline words that begin as a command does.
NAMES = {*RECIPES, "hada-study.timer", "hada-study.service"}
# Options of programs that are not HADA's.
OF_OTHERS = {
    "--nthreads", "--memory-limit", "--no-deps", "--no-build-isolation", "--build-arg",
    "--time", "--mem", "--chdir", "--constraint",
}  # fmt: skip

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@cache
def programs() -> dict[str, click.Command]:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    found = {}
    for name, target in scripts.items():
        module, _, attribute = target.partition(":")
        found[name] = getattr(importlib.import_module(module), attribute)
    return found


def subcommands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from subcommands(child)


@cache
def options() -> frozenset[str]:
    """Every option of HADA's commands and of the benchmarks."""
    names = {
        name
        for program in programs().values()
        for command in subcommands(program)
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    for path in (ROOT / "benchmarks").glob("*.py"):
        names |= set(re.findall(r'"(--[\w-]+)"', path.read_text()))
    return frozenset(names | {"--help", "--version"})


def blocks(text: str) -> list[tuple[str, str]]:
    return FENCE.findall(text)


def inline(text: str) -> list[str]:
    """Inline code; a span may be broken over two lines."""
    prose = FENCE.sub("", text)
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose)]


def command_lines(text: str) -> list[str]:
    """Every call of a HADA command, in blocks and inline, without comments and redirections."""
    lines = [
        code
        for code in inline(text)
        if code not in NAMES and (code.startswith("hada-") or re.match(PROGRAM, code))
    ]
    for language, block in blocks(text):
        if language not in ("", "sh", "bash", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;|>>|<<", line.partition(" #")[0]):
                call = re.search(rf"(?:^|[\s/])({PROGRAM}.*)", part)
                if call:
                    # A listing of commands explains each after a gap of spaces.
                    lines.append(re.split(r"\s{3,}", call[1].strip())[0])
    return lines


def check_line(line: str) -> None:
    """Raise where the line names a command, an option or a choice that does not exist."""
    name, *words = shlex.split(line)
    command = programs()[name]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        child = command.get_command(click.Context(command), words[0])
        assert child is not None, f"{line}: {name} has no command {words[0]!r}"
        command, words = child, words[1:]
    context = click.Context(command)
    if words and words[-1] in {name for parameter in command.params for name in parameter.opts}:
        words = words[:-1]  # "`hada-fuse train --reading` says ...": an option by its name alone
    values, rest, _ = command.make_parser(context).parse_args(words)
    assert not rest or isinstance(command, click.Group), f"{line}: too many arguments: {rest}"
    for parameter in command.params:
        given = values.get(parameter.name)
        if isinstance(parameter.type, click.Choice) and given and parameter.nargs == 1:
            for value in given if isinstance(given, list) else [given]:
                if isinstance(value, str):
                    parameter.type.convert(value, parameter, context)
        if "--recipe" in parameter.opts and isinstance(given, str):
            assert given in RECIPES, f"{line}: no such recipe"


def anchors(path: Path) -> set[str]:
    """The anchors that a Markdown page gives its headings."""
    text = FENCE.sub("", path.read_text())
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def missing_files(page: Path, text: str) -> set[str]:
    """Paths, test files and link targets in the text of a page that do not exist."""
    code = [*inline(text), *(block for _, block in blocks(text))]
    missing = {
        path
        for piece in code
        for path in PATH.findall(piece)
        if path not in NO_PATHS and not (ROOT / path).exists()
    }
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    defined = set(re.findall(r"^`(\w+\.py)`$", text, re.MULTILINE))
    missing |= {
        piece
        for piece in inline(text)
        if re.fullmatch(r"test_\w+\.py", piece) and piece not in tests | defined
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            missing.add(target)
    return missing


def resolve(dotted: str) -> None:
    """Import the longest module that a dotted name begins with, and look the rest up in it."""
    parts = dotted.split(".")
    for length in range(len(parts), 1, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            value = getattr(value, attribute)
        return
    raise AssertionError(f"{dotted} is no module")


@by_page
def test_every_command_line_is_one_that_the_command_takes(page: Path) -> None:
    wrong = []
    for line in command_lines(page.read_text()):
        try:
            check_line(line)
        except (click.UsageError, KeyError, AssertionError) as error:
            wrong.append(f"{line}: {error}")
    assert not wrong, "\n".join(wrong)


@by_page
def test_every_option_in_the_text_exists(page: Path) -> None:
    named = {
        option
        for code in inline(page.read_text())
        if not code.startswith(("docker", "pip", "hada-"))
        for option in re.findall(r"(?:^|\s)(--[a-z][\w-]*)", code)
    }
    assert named - options() - OF_OTHERS == set()


@by_page
def test_every_file_and_link_exists(page: Path) -> None:
    assert missing_files(page, page.read_text()) == set()


def test_a_missing_file_or_link_is_noticed() -> None:
    text = (
        "`extract/cli.py`, `extract/clip.py`, `test_nowhere.py`, [a](docs/store.md#layout), "
        "[b](docs/store.md#lay-out), [c](docs/shop.md)\n\n```sh\npython benchmarks/recal.py\n```\n"
    )
    assert missing_files(ROOT / "README.md", text) == {
        "extract/clip.py", "test_nowhere.py", "docs/store.md#lay-out", "docs/shop.md",
        "benchmarks/recal.py",
    }  # fmt: skip


@by_page
def test_every_module_and_name_can_be_imported(page: Path) -> None:
    text = page.read_text()
    for dotted in set(re.findall(r"(?<![\w./\"-])hada(?:\.[A-Za-z_]\w*)+", text)):
        if dotted not in ("hada.backbones", "hada.datasets"):  # groups of entry points
            resolve(dotted)
    for language, block in blocks(text):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hada."):
                for alias in node.names:
                    resolve(f"{node.module}.{alias.name}")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("hada-extract --splitt test", click.NoSuchOption),
        ("hada-store mend PATH", AssertionError),
        ("hada-extract --store-dtype float8", click.BadParameter),
        ("hada-store info A B C --output", click.UsageError),
        ("hada-look at this", KeyError),
        ("hada-fuse train --recipe fastest", (AssertionError, click.UsageError)),
    ],
)
def test_a_wrong_line_is_noticed(
    line: str, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    with pytest.raises(error):
        check_line(line)


def test_a_wrong_name_is_noticed() -> None:
    resolve("hada.extract.store.open_store")
    with pytest.raises(AttributeError):
        resolve("hada.extract.store.open_shop")
    with pytest.raises(AssertionError):
        resolve("hada.nothing.here")
