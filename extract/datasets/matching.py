"""Matches the ids that a data set wants with the names that a source of features has.

An id is an image's path below the images' root, such as `cats/001.png`. A name is what another
program wrote: a path on another machine, with other leading folders, with another suffix or none,
a bare stem, or a number as COCO's image ids are. The rule, in this order:

1. An id that is a name, to the letter, matches it.
2. Otherwise the name matches that shares the longest trailing path with the id, suffixes aside.
   Among several of that length: the one that has no further folders; the one below the only
   folder that has all wanted ids. Among several in one folder: the one with the id's own suffix.
3. Where some ids are found with all their folders, a name whose folders contradict an id's is no
   match for it: `birds/001` is not `cats/001` in a source that has `dogs/001` for `dogs/001`.
4. An id without a name matches a bare number: `42`, `42.jpg` and `COCO_val2014_000000000042.jpg`
   have the number 42. No other wanted id may have it.

A name goes to the id that matches it best. Two ids that match one name equally well, and an id
that two names fit equally well, are errors: nothing is guessed.

Everything is done for all names at once, with one pass for each level of folders that is still
undecided: a million names take seconds, whatever their folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import listed, shown
from hada.extract.datasets.longest_paths import PathChoice
from hada.extract.datasets.name_keys import image_numbers, row_number
from hada.extract.datasets.name_table import NameTable, Source

__all__ = ["Matches", "Source", "match", "require_all"]


@dataclass(frozen=True)
class Matches:
    """Which row each wanted id has.

    rows: (n,) int64, -1 where no name matches. note: for people, what was matched by less than
    the id's own path; empty where nothing was.
    """

    rows: NDArray[np.int64]
    note: str = ""


def match(wanted: Sequence[str], source: Source, *others: Sequence[str]) -> Matches:
    """The row of each wanted id, by the rule at the head of the module.

    Args:
        wanted: The data set's ids, all different, and all of them: what is unambiguous depends on
            which others are wanted.
        source: The names.
        others: Further names by which the ids may be found, each as long as `wanted` ("" for
            none), for the ids that are not found by those before.

    Raises:
        DatasetError: Two ids match one name, or two names fit one id, equally well.

    >>> source = Source(names=["/p/dogs/1", "/p/cats/1"], where="x")
    >>> match(["cats/1.png", "dogs/1.png"], source).rows
    array([1, 0])
    """
    matching = _Matching(wanted, source)
    for ids in (wanted, *others):
        matching.by_path(ids)
    if source.files:
        matching.by_number()
    return Matches(matching.rows, matching.note())


def require_all(matches: Matches, wanted: Sequence[str], source: Source) -> NDArray[np.int64]:
    """The rows of `matches`, which every id must have.

    Args:
        matches: What was found.
        wanted: The ids of the dataset that were looked for, for the message.
        source: Where they were looked for, for the message.

    Returns:
        (len(wanted),) the row in `source` of each.

    Raises:
        DatasetError: An id has no row.
    """
    missing = np.flatnonzero(matches.rows < 0)
    if len(missing):
        raise DatasetError(
            f"{len(missing):,} of {len(wanted):,} {source.kind}s of the dataset are not in "
            f"{source.where}, the first is {shown(wanted[missing[0]])}. The names there are "
            f"{listed(source.names, 3)}"
        )
    return matches.rows


class _Matching:
    """The state of one `match`: the row of each id, and which rows are taken."""

    def __init__(self, wanted: Sequence[str], source: Source) -> None:
        self.wanted, self.source = wanted, source
        self.rows = np.full(len(wanted), -1, np.int64)
        self._taken = np.zeros(len(source.names), bool)
        self.table = NameTable(source)
        self._folders = False  # whether an id was found with its folders
        self._elsewhere: list[int] = []  # ids that are matched in another folder
        self._numbered: list[int] = []

    def by_path(self, ids: Sequence[str]) -> None:
        """Match the ids that have no row yet: equal names, then the longest trailing path."""
        todo = [index for index in np.flatnonzero(self.rows < 0).tolist() if ids[index]]
        equal = [self.table.row_of_name.get(ids[index], -1) for index in todo]
        self._refuse_repeated(todo, equal)
        chosen = {index: row for index, row in zip(todo, equal, strict=True) if row >= 0}
        rest = [index for index, row in zip(todo, equal, strict=True) if row < 0]
        self._folders |= any("/" in ids[index] for index in chosen)
        choice = PathChoice(self.table, ids, chosen, rest, folders=self._folders)
        chosen.update(choice.best(alone=len(todo) < len(ids)))
        self._folders = choice.folders
        if ids is not self.wanted:
            self._refuse_shared(ids, chosen)
        self._claim(chosen, choice)

    def by_number(self) -> None:
        """Match ids without a row by their number, with names that are a number and no more."""
        todo = np.flatnonzero(self.rows < 0).tolist()
        rows: dict[str, list[int]] = {}
        for row, key in enumerate(self.table.keys if todo else []):
            if not self._taken[row] and (number := row_number(key)) is not None:
                rows.setdefault(number, []).append(row)
        numbers = image_numbers(self.table.keys_of(self.wanted)) if rows else []
        holders: dict[str, list[int]] = {}
        for index, number in enumerate(numbers):
            if number in rows:
                holders.setdefault(number, []).append(index)
        for index in todo if holders else []:
            if (number := numbers[index]) is None or number not in rows:
                continue
            if len(holders[number]) > 1:
                first, second = (shown(self.wanted[holder]) for holder in holders[number][:2])
                raise DatasetError(
                    f"{self.source.where}: the {self.source.kind}s {first} and {second} both have "
                    f"the number {number}, and a row is named by that number alone: it would "
                    f"serve both. {self.source.remedy}"
                )
            if len(rows[number]) > 1:
                raise self.table.two_rows(self.wanted[index], rows[number])
            self._take(index, rows[number][0])
            self._numbered.append(index)

    def note(self) -> str:
        """What was matched by less than an id's own path."""
        parts = []
        for indices, how in (
            (self._elsewhere, "by file name, though the folders differ"),
            (self._numbered, "by number alone"),
        ):
            if indices:
                name = self.source.names[int(self.rows[indices[0]])]
                parts.append(
                    f"{len(indices):,} of {len(self.wanted):,} {self.source.kind}s match {how}, "
                    f"such as {shown(self.wanted[indices[0]])} with {shown(name)}"
                )
        return f"{self.source.where}: {'; '.join(parts)}" if parts else ""

    def _refuse_repeated(self, todo: Iterable[int], equal: Iterable[int]) -> None:
        """An id that equals the names of two rows fits both."""
        if len(self.table.row_of_name) == len(self.source.names):
            return
        again = {
            name: row
            for row, name in enumerate(self.source.names)
            if self.table.row_of_name[name] != row
        }
        for index, row in zip(todo, equal, strict=True):
            if row >= 0 and (name := self.source.names[row]) in again:
                raise self.table.two_rows(self.wanted[index], [row, again[name]])

    def _refuse_shared(self, ids: Sequence[str], chosen: dict[int, int]) -> None:
        """A further name that two of the wanted ids have is no name of either."""
        holders: dict[str, list[int]] = {}
        for index, id_ in enumerate(ids):
            holders.setdefault(id_, []).append(index)
        for index, row in chosen.items():
            if len(holders[ids[index]]) > 1 and not self._taken[row]:
                one, other = (self.wanted[holder] for holder in holders[ids[index]][:2])
                raise self.table.two_ids(one, other, row)

    def _claim(self, chosen: dict[int, int], choice: PathChoice) -> None:
        """Give each row to the id that matches it best; the others have none."""
        holder: dict[int, int] = {}
        rivals: dict[int, list[int]] = {}
        for index, row in chosen.items():
            if self._taken[row]:
                continue
            first = holder.setdefault(row, index)
            if first != index:
                rivals.setdefault(row, [first]).append(index)
        for row, indices in rivals.items():
            ranked = sorted(indices, key=lambda index: choice.strength(index, row), reverse=True)
            one, other = ranked[:2]
            if choice.strength(one, row) == choice.strength(other, row):
                first, second = sorted((one, other))
                raise self.table.two_ids(self.wanted[first], self.wanted[second], row)
            holder[row] = one
        for row, index in holder.items():
            self._take(index, row)
        self._elsewhere += [index for index in choice.elsewhere if self.rows[index] >= 0]

    def _take(self, index: int, row: int) -> None:
        self.rows[index] = row
        self._taken[row] = True
