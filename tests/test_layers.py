"""The house's rules: imports run downwards, heavy packages stay in their room, --help is light."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from import_graph import circle, import_graph, module_files, sub_rooms
from places import ROOT, commands

ROOMS = ("extract", "fuse", "evaluate", "pipelines")
PAGES = ROOT / "evaluate" / "pages"
# Package -> the only places that may import it.
OWNERS = {
    "open_clip": ("extract/backbones/", "extract/pretraining/"),
    "transformers": ("extract/backbones/", "extract/pretraining/"),
    "timm": ("extract/backbones/",),
    "sentence_transformers": ("extract/backbones/",),
    "zarr": ("extract/store/zarr_format.py",),
    "h5py": ("extract/store/",),
    "torch_geometric": ("fuse/",),
    "dask": ("pipelines/",),
    "distributed": ("pipelines/",),
}


def sources() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def pages() -> set[Path]:
    found = {path for kind in ("templates", "vendor") for path in (PAGES / kind).iterdir()}
    assert len(found) > 15
    return found


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room is meant"
            module = node.module or ""
            names.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards_and_stay_in_their_room(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    room = relative.partition("/")[0]
    above = ROOMS[ROOMS.index(room) + 1 :]
    for name in imported(path):
        for other in above:
            assert not name.startswith(f"hada.{other}"), f"{relative} imports upwards: {name}"
        assert name.partition(".")[0] not in ROOMS, f"{relative}: {name} lacks the hada. prefix"
        places = OWNERS.get(name.partition(".")[0])
        assert places is None or relative.startswith(places), f"{relative} may not import {name}"


def test_the_import_graph_has_no_circle_and_no_upward_arrow() -> None:
    graph = import_graph(module_files(ROOT, ROOMS))
    assert len(graph) > 200
    assert sum(map(len, graph.values())) > 500, "the graph was not drawn"
    assert not circle(graph), f"files import each other: {circle(graph)}"
    rooms = sub_rooms(graph)
    assert not circle(rooms), f"sub-rooms import each other: {circle(rooms)}"
    rank = {room: number for number, room in enumerate(ROOMS)}
    upward = [
        f"{name} -> {other}"
        for name, others in graph.items()
        for other in others
        if rank[name.split(".")[1]] < rank[other.split(".")[1]]
    ]
    assert not upward


def test_the_import_graph_sees_circles_of_files_and_of_sub_rooms(tmp_path: Path) -> None:
    sources = {
        "fuse/one/a.py": "def late():\n    from hada.fuse.two import b\n",
        "fuse/two/b.py": "",
        "fuse/two/c.py": "from hada.fuse.one.d import x\n",
        "fuse/one/d.py": "x = 1\n",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = import_graph(module_files(tmp_path, ["fuse"]))
    assert not circle(graph)
    assert {"hada.fuse.one", "hada.fuse.two"} == set(circle(sub_rooms(graph)))
    (tmp_path / "fuse/two/b.py").write_text("import hada.fuse.one.a\n")
    assert circle(import_graph(module_files(tmp_path, ["fuse"])))


def modules() -> list[str]:
    found = []
    for room in ROOMS:
        package = importlib.import_module(f"hada.{room}")
        found += [
            room_module.name
            for room_module in pkgutil.walk_packages(package.__path__, f"hada.{room}.")
        ]
    return [f"hada.{room}" for room in ROOMS] + found


def test_fuse_and_evaluate_work_without_the_backbones_libraries() -> None:
    names = [name for name in modules() if name.startswith(("hada.fuse", "hada.evaluate"))]
    code = (
        "import sys, importlib\n"
        "for name in ('open_clip', 'transformers', 'timm'): sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_ground_floor_costs_numpy_at_most() -> None:
    code = (
        "import sys, hada.extract\n"
        "heavy = {'torch', 'zarr', 'PIL', 'yaml', 'click', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("script", commands())
def test_help_is_light_and_teaches(script: str) -> None:
    module, _, attribute = commands()[script].partition(":")
    code = (
        "import sys, importlib, click\n"
        f"command = getattr(importlib.import_module({module!r}), {attribute!r})\n"
        "def show(command, path):\n"
        "    context = click.Context(command, info_name=path)\n"
        "    text = command.get_help(context)\n"
        "    assert '\\\\b' not in text, f'{path}: help shows a mark of its source'\n"
        "    assert (command.help or '').strip(), f'{path}: no help'\n"
        "    for name, child in getattr(command, 'commands', {}).items():\n"
        "        show(child, f'{path} {name}')\n"
        f"show(command, {script!r})\n"
        "big = {'torch', 'numpy', 'zarr', 'transformers', 'open_clip', 'dask'}\n"
        "heavy = big & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", modules())
def test_doctests(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name != "sentence_transformers":
            raise
        pytest.skip("needs sentence-transformers: pip install 'hada[sentence]'")
    assert doctest.testmod(module).failed == 0


def test_every_package_and_file_of_the_pages_is_listed_for_the_wheel() -> None:
    """What is not listed is there in a checkout and missing from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in sources()}
    names = ["hada", *(f"hada.{'.'.join(folder.parts)}" for folder in folders)]
    assert sorted(settings["packages"]) == sorted(names)
    patterns = settings["package-data"]["hada.evaluate.pages"]
    listed = {path for pattern in patterns for path in PAGES.glob(pattern)}
    assert pages() <= listed


@pytest.mark.slow
def test_the_wheel_holds_every_package_and_no_bare_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("hada-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in [*sources(), *pages()]:
        assert f"hada/{path.relative_to(ROOT)}" in names
    assert {name.partition("/")[0] for name in names} <= {
        "hada",
        next(name.partition("/")[0] for name in names if ".dist-info" in name),
    }
    assert not [name for name in names if "golden" in name or name.endswith(".tar.xz")]
    with zipfile.ZipFile(wheel) as archive:
        shipped = archive.read("hada/extract/data_manifest.yaml")
    assert shipped == (ROOT / "data_manifest.yaml").read_bytes()


def test_no_large_file_is_committed() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    sizes = {
        name: (ROOT / name).stat().st_size
        for name in listed.stdout.split("\0")
        if name and (ROOT / name).exists()
    }
    assert max(sizes.values()) < 5_000_000
    # Weights that a wheel ships; the golden vectors of the tests are not among them.
    shipped = [
        size
        for name, size in sizes.items()
        if name.endswith((".safetensors", ".bin")) and name.startswith(ROOMS)
    ]
    assert sum(shipped) < 12_000_000
    golden = [size for name, size in sizes.items() if name.startswith("tests/golden/")]
    assert sum(golden) < 18_500_000


def test_the_source_archive_holds_no_golden_vectors(tmp_path: Path) -> None:
    code = "import sys, setuptools.build_meta as build; build.build_sdist(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("hada-*.tar.gz")
    with tarfile.open(archive) as file:
        names = file.getnames()
    assert any(name.endswith("/fuse/network/fuser.py") for name in names)
    assert not [name for name in names if "tests/golden" in name or name.endswith(".tar.xz")]
    assert archive.stat().st_size < 12_000_000
