"""The fields in which two records differ."""

from __future__ import annotations

from typing import Any


def differences(own: Any, other: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The fields that differ, as (dotted name, own value, other value).

    Args:
        own: A record as plain JSON values, mappings in mappings.
        other: Another.
        path: The dotted name of both in what holds them.

    >>> differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
    [('b.c', 2, 3)]
    """
    if isinstance(own, dict) and isinstance(other, dict):
        found = []
        for key in sorted(own.keys() | other.keys()):
            name = f"{path}.{key}" if path else str(key)
            found += differences(own.get(key), other.get(key), name)
        return found
    return [] if own == other else [(path, own, other)]
