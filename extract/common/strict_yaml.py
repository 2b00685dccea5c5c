"""Strict YAML: every value knows its line, and a key that nobody reads is an error.

`Section` is one mapping of the file. The manifest's loader takes what it knows out of it and
calls `finish`; whatever is left over is a mistake, named with its line and the nearest key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml

from hada.extract.common.errors import ManifestError, nearest
from hada.extract.common.shapes import shown
from hada.extract.common.variables import Rule, expand
from hada.extract.common.yamltext import compose, plain

T = TypeVar("T")
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_REQUIRED: Any = object()


def read_yaml(path: Path) -> Section:
    """The file's top mapping. Raises `ManifestError` naming file and line."""
    return Section(compose(path), path, "")


class Section:
    """One mapping of a YAML file, taken apart key by key."""

    def __init__(self, node: yaml.MappingNode, file: Path, name: str) -> None:
        self.file, self.name = file, name
        self.line = node.start_mark.line + 1
        self._nodes: dict[str, yaml.Node] = {}
        self._lines: dict[str, int] = {}
        self._asked: set[str] = set()
        for key_node, value in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ManifestError(f"{file}, line {line}: keys must be plain words")
            if key in self._nodes:
                raise ManifestError(
                    f"{file}, line {line}: {self._full(key)!r} is written twice "
                    f"(first in line {self._lines[key]})"
                )
            self._nodes[key], self._lines[key] = value, line

    def __contains__(self, key: str) -> bool:
        return key in self._nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    @overload
    def take(self, key: str, kind: type[T], *, variables: Rule = ...) -> T: ...
    @overload
    def take(
        self, key: str, kind: type[T], default: None, *, variables: Rule = ...
    ) -> T | None: ...
    @overload
    def take(self, key: str, kind: type[T], default: T, *, variables: Rule = ...) -> T: ...
    def take(
        self,
        key: str,
        kind: type[T],
        default: Any = _REQUIRED,
        *,
        variables: Rule = Rule.NONE,
    ) -> Any:
        """The value of a key, which must be of one kind.

        Args:
            key: The key; `finish` then counts it as read.
            kind: str, int, float or bool. A whole number is a float, a number is a str, too.
            default: What an absent key gives; without it the key must be there.
            variables: What `${VAR}` and `${VAR:-default}` in text may do.

        Raises:
            ManifestError: The key is absent and must be there, or its value is of another kind.
        """
        value = self._value(key, default)
        if not isinstance(value, yaml.Node):
            return value
        got = self._plain(value, key, variables)
        if kind is float and isinstance(got, int) and not isinstance(got, bool):
            got = float(got)
        if kind is str and isinstance(got, int | float) and not isinstance(got, bool):
            got = str(got)
        if not isinstance(got, kind) or (isinstance(got, bool) and kind is not bool):
            self._wrong(key, _NAMES.get(kind, kind.__name__), got)
        return got

    def take_names(
        self, key: str, default: tuple[str, ...] | None = None, *, shell: bool = False
    ) -> tuple[str, ...]:
        """The value of a key as a list of words; a single word counts as a list of one.

        Args:
            key: The key; `finish` then counts it as read.
            default: What an absent key gives; without it the key must be there.
            shell: The words are lines of a shell, which replaces its variables itself.

        Raises:
            ManifestError: The key is absent and must be there, or its value is no list of words.
        """
        value = self._value(key, _REQUIRED if default is None else default)
        if not isinstance(value, yaml.Node):
            return tuple(value)
        got = self._plain(value, key, None if shell else Rule.NONE)
        words = [got] if isinstance(got, str) else got
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            self._wrong(key, "a word or a list of words", got)
        return tuple(words)

    def take_section(self, key: str, *, required: bool = True) -> Section:
        """The mapping under a key; an empty one where it is absent and not required.

        Args:
            key: The key; `finish` then counts it as read.
            required: Whether the key must be there.

        Raises:
            ManifestError: The key is absent and required, or its value is no mapping.
        """
        value = self._value(key, _REQUIRED if required else None)
        if value is None:
            return Section(yaml.MappingNode("", [], yaml.Mark("", 0, 0, 0, "", 0)), self.file, key)
        if not isinstance(value, yaml.MappingNode):
            self._wrong(key, "a mapping (key: value)", self._plain(value, key))
        return Section(value, self.file, self._full(key))

    def take_sections(self, key: str) -> list[Section]:
        """The list of mappings under `key`; empty where it is absent, and one counts as a list."""
        value = self._value(key, None)
        if value is None:
            return []
        nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(node, yaml.MappingNode) for node in nodes):
            self._wrong(key, "a list of mappings (- key: value)", self._plain(value, key))
        return [Section(node, self.file, self._full(key)) for node in nodes]

    def take_plain(
        self,
        key: str,
        default: Any = _REQUIRED,
        *,
        variables: Rule = Rule.NONE,
        places: Collection[str] = (),
    ) -> Any:
        """The value of a key, whatever plain YAML it is.

        Args:
            key: The key; `finish` then counts it as read.
            default: What an absent key gives; without it the key must be there.
            variables: What `${VAR}` and `${VAR:-default}` in text may do.
            places: The keys of a mapping whose texts are places, whatever `variables` says.

        Raises:
            ManifestError: The key is absent and must be there, or its value is no plain YAML.
        """
        value = self._value(key, default)
        if not isinstance(value, yaml.Node):
            return value
        return self._plain(value, key, variables, places)

    def finish(self) -> None:
        """Refuse every key that nobody asked for."""
        for key in self._nodes:
            if key not in self._asked:
                raise ManifestError(
                    f"{self.where(key)}: unknown key {self._full(key)!r}. "
                    f"{nearest(key, self._asked)}"
                )

    def where(self, key: str | None = None) -> str:
        """`file, line N` of a key, or of the section."""
        return f"{self.file}, line {self._lines.get(key or '', self.line)}"

    def _value(self, key: str, default: Any) -> Any:
        self._asked.add(key)
        if key in self._nodes:
            return self._nodes[key]
        if default is _REQUIRED:
            inside = f" in {self.name!r}" if self.name else ""
            others = [k for k in self._nodes if k not in self._asked]
            hint = f" {nearest(key, others)}" if others else ""
            raise ManifestError(f"{self.where()}: {key!r} is missing{inside}.{hint}")
        return default

    def _plain(
        self,
        node: yaml.Node,
        key: str,
        rule: Rule | None = Rule.NONE,
        places: Collection[str] = (),
    ) -> Any:
        value = plain(node, self.file, self._full(key))
        if rule is None:
            return value

        def with_rule(inner: Any, allowed: Rule) -> Any:
            return _map_text(
                inner, lambda text: expand(text, allowed, self.where(key), self._full(key))
            )

        if places and isinstance(value, Mapping):
            return {
                name: with_rule(inner, Rule.PLACE if name in places else rule)
                for name, inner in value.items()
            }
        return with_rule(value, rule)

    def _full(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def _wrong(self, key: str, expected: str, got: Any) -> None:
        raise ManifestError(
            f"{self.where(key)}: {self._full(key)!r}: expected {expected}, got {shown(got)}"
        )


def _map_text(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(item, change) for item in value]
    if isinstance(value, Mapping):
        return {key: _map_text(item, change) for key, item in value.items()}
    return value
