"""The names of a source's rows, looked up by name and by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import shown
from hada.extract.datasets.name_keys import keys_of


@dataclass(frozen=True, kw_only=True)
class Source:
    """The names of a source of features, for matching.

    names: One a row, in the order of the rows. where: The file or folder, for messages. kind: What
    a name names, "image" or "caption". files: False where an id names no file: suffixes and
    numbers then mean nothing. remedy: What makes the names unambiguous.
    """

    names: Sequence[str]
    where: str
    kind: str = "image"
    files: bool = True
    remedy: str = "Name them by the images' paths below the images' folder, such as cats/001.png"


class NameTable:
    """The rows of a source by name and by key. `row_of_name`: the first row of each name."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.row_of_name = _first(source.names)

    def keys_of(self, names: Sequence[str]) -> list[str]:
        """Keys that can be compared with those of the rows."""
        return keys_of(names, suffixes=not self.source.files)

    @cached_property
    def keys(self) -> list[str]:
        """The keys of the names."""
        return self.keys_of(self.source.names)

    @cached_property
    def row_of_key(self) -> dict[str, int]:
        """The first row of each key."""
        return _first(self.keys)

    @cached_property
    def _rows_of_repeated_keys(self) -> dict[str, list[int]]:
        """All rows of those keys that several rows have."""
        found: dict[str, list[int]] = {}
        if len(self.row_of_key) != len(self.keys):
            for row, key in enumerate(self.keys):
                if self.row_of_key[key] != row:
                    found.setdefault(key, [self.row_of_key[key]]).append(row)
        return found

    def with_key(self, key: str) -> list[int]:
        """The rows whose key this is."""
        row = self.row_of_key.get(key)
        return [] if row is None else self._rows_of_repeated_keys.get(key, [row])

    def two_rows(self, wanted: str, rows: Sequence[int]) -> DatasetError:
        """The error for an id that several rows fit equally well."""
        names = [self.source.names[row] for row in rows[:2]]
        if names[0] == names[1]:
            return DatasetError(
                f"{self.source.where}: an id appears twice, {shown(names[0])} in rows "
                f"{rows[0]:,} and {rows[1]:,} (counted from 0). Leave one row for each "
                f"{self.source.kind}"
            )
        return DatasetError(
            f"{self.source.where}: {self.source.kind} {shown(wanted)} fits "
            f"{len(rows):,} names equally well, such as {shown(names[0])} and {shown(names[1])}. "
            f"{self.source.remedy}"
        )

    def two_ids(self, one: str, other: str, row: int) -> DatasetError:
        """The error for two ids that match one row equally well."""
        kind, name = self.source.kind, shown(self.source.names[row])
        return DatasetError(
            f"{self.source.where}: the {kind}s {shown(one)} and "
            f"{shown(other)} both match {name}: one row of features would serve "
            f"both. {self.source.remedy}"
        )


def _first(names: Sequence[str]) -> dict[str, int]:
    """The first row of each name."""
    return dict(zip(reversed(names), range(len(names) - 1, -1, -1), strict=True))
