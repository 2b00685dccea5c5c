"""Parses YAML into nodes and plain values, with limits: no tags, no loops, no alias bombs.

PyYAML composes the nodes. What a short file can make large is refused while it is composed: the
depth of nesting, an alias inside of what it stands for, and the number of values that the file
has with every alias written out. Of the tags only YAML's own plain ones are known; a date is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from hada.extract.common.documents import decode, read_bytes
from hada.extract.common.errors import ManifestError
from hada.extract.common.shapes import shown

# PyYAML reads some 100 kB a second; a manifest of a hundred models has 20 kB.
MOST_BYTES = 512 * 1024
DEPTH, VALUES = 32, 50_000
_LIMIT = 2**63
_UNFIT = re.compile("[\0\ud800-\udfff]")
_CORE = "tag:yaml.org,2002:"
_PLAIN = frozenset(
    _CORE + name
    for name in ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge", "value")
)


class _RefusedError(Exception):
    """What is wrong, and the mark where it is."""

    def __init__(self, mark: yaml.Mark, what: str) -> None:
        super().__init__(what)
        self.mark = mark


class _Loader(yaml.SafeLoader):
    """Composes nodes, and counts what they would be with every alias written out."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}
        self._kept: list[yaml.Node] = []  # so that no id is given twice

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if self._depth >= DEPTH:
            raise _RefusedError(mark, f"nested more than {DEPTH} deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _RefusedError(mark, f"*{event.anchor} lies inside of what it stands for")
            return node
        if node.tag not in _PLAIN:
            raise _RefusedError(
                mark,
                f"the tag {node.tag.replace(_CORE, '!!')!r} is not read. Expected plain texts, "
                "numbers, lists and mappings",
            )
        size = 1 + sum(self._sizes[id(child)] for child in _children(node))
        if size > VALUES:
            raise _RefusedError(
                mark, f"more than {VALUES:,} values with every alias (*) written out"
            )
        self._sizes[id(node)] = size
        self._kept.append(node)
        return node


def compose(path: Path) -> yaml.MappingNode:
    """The top mapping of a file; raises `ManifestError` with file and line."""
    text = decode(read_bytes(path, ManifestError, MOST_BYTES), str(path), ManifestError)
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except _RefusedError as refusal:
        raise ManifestError(f"{path}, line {refusal.mark.line + 1}: {refusal}") from refusal
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ManifestError(f"{path}, line {line}: not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ManifestError(
            f"{path}, line {line}: not YAML: a control character (U+{error.character:04X})"
        ) from error
    except (ValueError, OverflowError, RecursionError) as error:
        # An escape such as "\UFFFFFFFF", which PyYAML hands to chr() as it is.
        raise ManifestError(f"{path}: not YAML: {error}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ManifestError(
            f"{path}, line 1: expected a mapping (key: value), found something else"
        )
    return node


def plain(node: yaml.Node, path: Path, name: str) -> Any:
    """A node as texts, numbers, true, false, None, lists and dicts with keys of text.

    Raises `ManifestError` naming `path`, the line and `name` for whatever else it is.
    """
    try:
        return _plain(node, name)
    except _RefusedError as refusal:
        raise ManifestError(f"{path}, line {refusal.mark.line + 1}: {refusal}") from refusal


def _plain(node: yaml.Node, name: str) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, f"{name}[{place}]") for place, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, name)
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node, name)


def _mapping(node: yaml.MappingNode, name: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key_node, value in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _RefusedError(key_node.start_mark, f"{name!r}: keys must be plain words")
        key = key_node.value
        if _UNFIT.search(key):
            raise _RefusedError(key_node.start_mark, f"{name!r}: a key holds what no text has")
        if key_node.tag == f"{_CORE}merge":
            _merge(merged, value, name)
            continue
        if key in own:
            raise _RefusedError(key_node.start_mark, f"{f'{name}.{key}'!r} is written twice")
        own[key] = _plain(value, f"{name}.{key}")
    return merged | own


def _merge(merged: dict[str, Any], value: yaml.Node, name: str) -> None:
    """`<<`: the keys of a mapping or of a list of them, the first of which wins."""
    for given in value.value if isinstance(value, yaml.SequenceNode) else [value]:
        if not isinstance(given, yaml.MappingNode):
            raise _RefusedError(given.start_mark, f"{name!r}: '<<' takes mappings")
        for key, inner in _mapping(given, name).items():
            merged.setdefault(key, inner)


def _scalar(node: yaml.ScalarNode, name: str) -> Any:
    kind = node.tag.removeprefix(_CORE)

    def refuse(what: str) -> NoReturn:
        raise _RefusedError(node.start_mark, f"{name!r}: {what}")

    if _UNFIT.search(node.value):
        refuse(f"{shown(node.value)} holds a NUL or half of a surrogate pair, which no text has")
    if kind in ("str", "timestamp", "merge", "value"):
        return node.value
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError, KeyError, IndexError, OverflowError, AttributeError):
        refuse(f"{shown(node.value)} is no {kind} that can be read")
    if isinstance(value, int) and not -_LIMIT <= value < _LIMIT:
        refuse(f"{shown(value)} is too large for a whole number")
    if isinstance(value, float) and not math.isfinite(value):
        refuse(f"expected a finite number, got {shown(node.value)}")
    return value


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
