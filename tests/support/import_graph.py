"""The graph of the rooms' imports: who imports whom, between files and between sub-rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

Graph = dict[str, set[str]]


def module_files(root: Path, rooms: Iterable[str]) -> dict[str, Path]:
    """Module name -> file, of all modules in the rooms."""
    files = {}
    for path in (path for room in rooms for path in sorted((root / room).rglob("*.py"))):
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        files[".".join(("hada", *parts))] = path
    return files


def import_graph(files: Mapping[str, Path]) -> Graph:
    """Which of these modules each one imports, anywhere in it, for types too.

    A module's own packages are left out: a package that gives its parts' names is no circle.
    """
    graph: Graph = {}
    for name, path in files.items():
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                wanted.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
        graph[name] = {
            other for other in wanted & files.keys() if not f"{name}.".startswith(f"{other}.")
        }
    return graph


def sub_rooms(graph: Graph) -> Graph:
    """The same arrows between sub-rooms: `hada.fuse.network`, and `hada.fuse.job` by itself."""
    merged: Graph = {}
    for name, others in graph.items():
        node = ".".join(name.split(".")[:3])
        merged.setdefault(node, set()).update(".".join(o.split(".")[:3]) for o in others)
    return {node: others - {node} for node, others in merged.items()}


def circle(graph: Graph) -> list[str]:
    """One circle of the graph, its first node again at the end; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []
