"""Public docstrings: what other sub-rooms use says what it takes, and no Args section has aged."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from import_graph import module_files
from places import ROOT

ROOMS = ("extract", "fuse", "evaluate", "pipelines")
# Not described yet; names leave this list, and none may come.
UNDESCRIBED = {
    "hada.evaluate.pages.report.file_name",
    "hada.evaluate.pages.thumbnails.thumbnail",
    "hada.fuse.network.build.branch_config",
    "hada.fuse.network.build.build_fuser",
    "hada.fuse.network.fuser.Fuser.encode",
    "hada.fuse.network.global_layer.GraphLayer.forward",
    "hada.fuse.network.maxsim.NodeSet.part",
    "hada.fuse.network.nodes.NodeMatcher.encode",
    "hada.fuse.network.nodes.NodeMatcher.scores",
    "hada.fuse.scores.embedded.Embedded.pair_scores",
    "hada.fuse.scores.heads.Heads.applied",
    "hada.fuse.scores.heads.cca_pair",
    "hada.fuse.scores.heads.node_popularity",
    "hada.fuse.scores.heads.side_by_side",
    "hada.fuse.scores.heads.with_tokens",
    "hada.fuse.scores.item_nodes.ItemNodes.joined",
    "hada.fuse.scores.item_nodes.score_matrix",
    "hada.fuse.scores.shares.ScoreTable.of",
    "hada.fuse.scores.shares.score_loss",
    "hada.fuse.scores.stored_tokens.TokenSpace.nodes",
}


class Function(NamedTuple):
    """A function of a module or a method of one of its classes."""

    module: str
    name: str
    node: ast.FunctionDef

    @property
    def parameters(self) -> list[str]:
        """Without `self`; `*args` and `**kwargs` have their stars."""
        found = self.node.args
        names = [one.arg for one in (*found.posonlyargs, *found.args)]
        names = names[1:] if "." in self.name and names[:1] in (["self"], ["cls"]) else names
        names += [f"*{found.vararg.arg}"] if found.vararg else []
        names += [one.arg for one in found.kwonlyargs]
        return [*names, f"**{found.kwarg.arg}"] if found.kwarg else names

    @property
    def described(self) -> list[str] | None:
        """The names in its Args section, None where it has none."""
        text = inspect.cleandoc(ast.get_docstring(self.node) or "")
        section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
        return re.findall(r"^    ([\w*]+):", section[1], re.MULTILINE) if section else None


def functions(files: Mapping[str, Path]) -> Iterator[Function]:
    for module, path in files.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                yield Function(module, node.name, node)
            elif isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef):
                        yield Function(module, f"{node.name}.{method.name}", method)


def used_elsewhere(files: Mapping[str, Path]) -> set[tuple[str, str]]:
    """(module, name) of all that another sub-room imports, also as `module.name`."""
    found = set()
    for own, path in files.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names, modules = set(), {}
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                for one in node.names:
                    names.add((node.module or "", one.name))
                    modules[one.asname or one.name] = f"{node.module}.{one.name}"
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names.add((modules.get(node.value.id, ""), node.attr))
        found |= {one for one in names if one[0] in files and sub_room(one[0]) != sub_room(own)}
    return found


def sub_room(module: str) -> str:
    return ".".join(module.split(".")[:3])


def undescribed(files: Mapping[str, Path], used: set[tuple[str, str]]) -> set[str]:
    """Functions of two and more arguments that another sub-room uses and that describe none.

    A command's arguments are its options, and an overload has its text behind it. A method may
    leave it to another class's method of the same name and arguments, such as its protocol's.
    """
    every = list(functions(files))
    said = {
        (one.name.partition(".")[2], *one.parameters)
        for one in every
        if one.described is not None and "." in one.name
    }
    found = set()
    for one in every:
        owner, _, method = one.name.partition(".")
        decorators = " ".join(map(ast.unparse, one.node.decorator_list))
        if (
            (one.module, owner) in used
            and not any(part.startswith("_") for part in (owner, method))
            and not re.search(r"command|overload|property", decorators)
            and sum(not name.startswith("*") for name in one.parameters) > 1
            and one.described is None
            and (not method or (method, *one.parameters) not in said)
        ):
            found.add(f"{one.module}.{one.name}")
    return found


def test_what_other_sub_rooms_use_describes_its_arguments() -> None:
    files = module_files(ROOT, ROOMS)
    used = used_elsewhere(files)
    assert len(used) > 500, "the imports were not read"
    assert undescribed(files, used) - UNDESCRIBED == set()


def test_an_args_section_names_the_arguments_there_are() -> None:
    described = [one for one in functions(module_files(ROOT, ROOMS)) if one.described is not None]
    assert len(described) > 300

    def plain(names: list[str] | None) -> list[str]:
        # What is only let pass, such as `**_others`, has no line.
        return [name.strip("*") for name in names or () if not name.startswith(("*_", "**_"))]

    aged = {
        f"{one.module}.{one.name}": (one.described, one.parameters)
        for one in described
        if plain(one.described) != plain(one.parameters)
    }
    assert aged == {}


def test_an_undescribed_function_is_seen(tmp_path: Path) -> None:
    sources = {
        "fuse/one/a.py": "def told(x, y):\n"
        '    """Do.\n\n    Args:\n        x: A.\n        y: B.\n    """\n'
        'def bare(x, y):\n    """Do."""\n'
        'def alone(x, y):\n    """Do."""\n'
        'class Kind:\n    def method(self, x, *, y):\n        """Do."""\n',
        "fuse/two/b.py": "from hada.fuse.one import a\nfrom hada.fuse.one.a import Kind\n"
        "a.told(1, 2)\na.bare(1, 2)\n",
        "fuse/one/c.py": "from hada.fuse.one.a import alone\n",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    files = module_files(tmp_path, ["fuse"])
    bare = {"hada.fuse.one.a.bare", "hada.fuse.one.a.Kind.method"}
    assert undescribed(files, used_elsewhere(files)) == bare
    described = {one.name: one.described for one in functions(files)}
    assert described["told"] == ["x", "y"]
    assert described["bare"] is None
