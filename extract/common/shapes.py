"""Checks the shape of a plain value against a type, and formats values for messages.

The check is msgspec's: it knows TypedDicts, dataclasses, unions and limits, names the place of
what is wrong, and costs 20 ms to import where it is used and nothing where it is not.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hada.extract.common.errors import HadaError, UsageError

T = TypeVar("T")
_NAMES = {
    "object": "a mapping",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing (null)",
}


def conform(
    value: Any,
    kind: type[T] | Any,
    where: str,
    error: type[HadaError] = UsageError,
    remedy: str = "",
    at: str = "",
) -> T:
    """Check that plain values are of the shape that `kind` describes.

    Args:
        value: Plain values.
        kind: Anything that msgspec knows: a TypedDict, a dataclass, `list[str]`, `Annotated` with
            limits. Keys that it does not name are let pass.
        where: The name of the document in messages.
        error: The kind of error that is raised; it names the place by its keys.
        remedy: What to do, for the end of the message.
        at: The keys of `value` where it is a part of the document.

    Returns:
        `value` itself.
    """
    converted(value, kind, where, error, remedy, at)
    return value  # type: ignore[no-any-return]


def converted(
    value: Any,
    kind: type[T],
    where: str,
    error: type[HadaError] = UsageError,
    remedy: str = "",
    at: str = "",
) -> T:
    """The object of type `kind` that plain values describe.

    Args:
        value: Plain values; a path may be a text.
        kind: As for `conform`.
        where: The name of the document in messages.
        error: The kind of error that is raised; it names the place by its keys.
        remedy: What to do, for the end of the message.
        at: The keys of `value` where it is a part of the document.
    """
    import msgspec

    try:
        return msgspec.convert(value, kind, dec_hook=_from_text)
    except (msgspec.ValidationError, RecursionError) as failure:
        tail = f". {remedy}" if remedy else ""
        raise error(f"{where}: {_in_words(str(failure), value, at)}{tail}") from failure
    except UnicodeEncodeError as failure:
        raise error(
            f"{where}: {at or 'a key'}: half of a surrogate pair, which is no character"
        ) from failure


def _from_text(kind: type[Any], value: Any) -> Any:
    """Msgspec's hook for types that it does not know."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected {kind.__name__}, got {shown(value)}")


def shown(value: Any, most: int = 60) -> str:
    """A value for a message: its `repr`, on one line, never longer than `most` characters.

    Args:
        value: Anything, also what others wrote.
        most: Characters; what is longer is cut.
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**most:
        return f"a number of about {int(value.bit_length() * math.log10(2)) + 1:,} digits"
    if isinstance(value, str | bytes):
        value = value[:most]
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number of more digits than Python prints, inside
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def listed(names: Iterable[Any], most: int = 8) -> str:
    r"""The first names of a file's parts for a message, each shown, and how many more there are.

    >>> listed(["a", "b\n"]), listed("abc", 2), listed([])
    ("'a', 'b\\n'", "'a', 'b' and 1 more", 'nothing')

    Args:
        names: In the order in which they are shown.
        most: How many of them are shown.
    """
    found = list(names)
    more = f" and {len(found) - most:,} more" if len(found) > most else ""
    return ", ".join(map(shown, found[:most])) + more if found else "nothing"


def _in_words(message: str, value: Any, at: str) -> str:
    """A message of msgspec as ours: the place first, kinds by plain names, the nearest key."""
    what, _, path = message.partition(" - at `$")
    path = path.rstrip("`").removeprefix(".").replace("[...]", ".*")
    missing = re.fullmatch(r"Object missing required field `(.+)`", what)
    if missing:
        there = _at(value, path)
        others = [str(key) for key in there] if isinstance(there, Mapping) else []
        close = difflib.get_close_matches(missing[1], others, n=1, cutoff=0.6)
        hint = f" (there is {close[0]!r})" if close else ""
        what = f"{missing[1]!r} is missing{hint}"
    else:
        what = re.sub(r"`([^`]*)`", lambda match: _kinds(match[1]), what)
        what = what[:1].lower() + what[1:]
    path = f"{at}{path}" if path.startswith("[") else ".".join(filter(None, (at, path)))
    return f"{path}: {what}" if path else what


def _kinds(text: str) -> str:
    return " or ".join(_NAMES.get(kind.strip(), kind.strip()) for kind in text.split("|"))


def _at(value: Any, path: str) -> Any:
    for name, number in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            value = value[int(number)] if number else value[name]
        except (KeyError, IndexError, TypeError):
            return None
    return value
