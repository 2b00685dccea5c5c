"""`hada` has the very commands of the other programs, light help, and completion by real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import makers
import pytest
from click.testing import CliRunner
from places import ROOT, commands

from hada.pipelines.umbrella import COMMANDS, hada

PROGRAM = "from hada.pipelines.umbrella import hada; hada(prog_name='hada')"


def test_it_has_every_installed_command_and_no_other() -> None:
    installed = {name: target for name, target in commands().items() if name != "hada"}
    assert {f"hada-{name}": target for name, target in COMMANDS.items()} == installed
    context = click.Context(hada)
    for name, target in COMMANDS.items():
        module, _, attribute = target.partition(":")
        assert hada.get_command(context, name) is getattr(sys.modules[module], attribute)


def test_help_loads_nothing_heavy_and_one_command_loads_no_other() -> None:
    code = (
        "import sys\n"
        "from hada.pipelines.umbrella import hada\n"
        "def run(*words):\n"
        "    try: hada([*words], prog_name='hada')\n"
        "    except SystemExit as end: assert end.code == 0, words\n"
        "run('store', '--help')\n"
        "assert 'hada.fuse.cli' not in sys.modules\n"
        "assert 'hada.pipelines.cli' not in sys.modules\n"
        "run('--help')\n"
        "big = {'torch', 'numpy', 'zarr', 'transformers', 'open_clip', 'dask'}\n"
        "assert not big & set(sys.modules), big & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_command_does_what_its_own_program_does(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    done = CliRunner().invoke(hada, ["extract", "--split", "val", "--model", "one"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(hada, ["store", "info", "stores/tiny/val/one"])
    assert "one (fake) on tiny/val" in done.stdout
    # Through the umbrella a failure is one message and its code, too.
    done = CliRunner().invoke(hada, ["evaluate", "search", "red", "--run", "nowhere"])
    assert done.exit_code == 2
    assert "no training run there" in done.stderr
    done = CliRunner().invoke(hada, ["trian"])
    assert done.exit_code == 2
    assert "No such command 'trian'" in done.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("hada ", {"extract", "store", "fuse", "evaluate", "pipeline"}),
        ("hada fu", {"fuse"}),
        ("hada fuse tr", {"train"}),
        ("hada evaluate recall --transd", {"--transductive"}),
        ("hada store convert a b --format ", {"zarr", "hdf5"}),
    ],
)
def test_click_offers_what_can_follow(typed: str, offered: set[str]) -> None:
    words = typed.split(" ")
    environment = {
        **os.environ,
        "_HADA_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == offered


def test_bash_completes_by_the_script_that_the_readme_shows(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    # The line of the README, run as it stands, where `hada` is a program on PATH.
    (line,) = [
        line.partition(" #")[0].strip()
        for line in (ROOT / "README.md").read_text().splitlines()
        if "bash_source" in line
    ]
    program = tmp_path / "bin" / "hada"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{PROGRAM}\n")
    program.chmod(0o755)
    script = (
        f"{line}\n"
        "COMP_WORDS=(hada evaluate sea); COMP_CWORD=2\n"
        '_hada_completion hada sea evaluate; echo "${COMPREPLY[@]}"\n'
    )
    path = f"{program.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "--norc", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["search"], done.stderr
