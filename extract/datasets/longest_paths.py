"""Which name shares most of its path's end with each of many wanted paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hada.extract.datasets.name_keys import last_part, shared_parts
from hada.extract.datasets.name_table import NameTable


class LongestPaths:
    """For each of the wanted keys the rows of the names that share most trailing parts with it.

    Level by level from the end, over what is still undecided: a wanted key and a name that alone
    share an ending belong together, whatever stands before it. Each level is one pass.
    """

    def __init__(self, wanted: Sequence[str], names: Sequence[str]) -> None:
        # The rows of wanted key i are pool[start[i] : stop[i]].
        self.start = np.zeros(len(wanted), np.int64)
        self.stop = np.zeros(len(wanted), np.int64)
        self._pools: list[NDArray[np.int64]] = []
        keys = np.arange(len(wanted))
        rows = np.arange(len(names))
        key_ends, row_ends = [len(key) for key in wanted], [len(name) for name in names]
        size = 0
        while len(keys) and len(rows):
            endings: dict[str, int] = {}
            starts = [
                wanted[i].rfind("/", 0, end) for i, end in zip(keys.tolist(), key_ends, strict=True)
            ]
            groups = np.array(
                [
                    endings.setdefault(wanted[i][start + 1 :], len(endings))
                    for i, start in zip(keys.tolist(), starts, strict=True)
                ]
            )
            row_starts = [
                names[i].rfind("/", 0, end) for i, end in zip(rows.tolist(), row_ends, strict=True)
            ]
            row_groups = np.array(
                [
                    endings.get(names[i][start + 1 :], -1)
                    for i, start in zip(rows.tolist(), row_starts, strict=True)
                ]
            )
            there = row_groups >= 0
            rows, row_groups = rows[there], row_groups[there]
            row_cuts = np.array(row_starts)[there]
            counts = np.bincount(row_groups, minlength=len(endings))
            self._pools.append(rows[np.argsort(row_groups, kind="stable")])
            last = size + np.cumsum(counts)
            found = counts[groups] > 0
            keys, groups, cuts = keys[found], groups[found], np.array(starts)[found]
            self.start[keys], self.stop[keys] = (last - counts)[groups], last[groups]
            size += len(rows)
            open_ = (counts > 1) | (np.bincount(groups, minlength=len(endings)) > 1)
            # A key or name without a further part goes no further.
            further = open_[groups] & (cuts > 0)
            keys, key_ends = keys[further], cuts[further].tolist()
            further = open_[row_groups] & (row_cuts > 0)
            rows, row_ends = rows[further], row_cuts[further].tolist()
        self.pool = np.concatenate([*self._pools, np.zeros(0, np.int64)])

    def rows(self, index: int) -> NDArray[np.int64]:
        """The rows of a wanted key, none where no name shares its last part."""
        return self.pool[self.start[index] : self.stop[index]]


class PathChoice:
    """One row for each id out of the names that share the longest trailing path with it.

    table: The names. ids: All ids. equal: The row of each id that equals a name. rest: The ids to
    decide about. folders: Whether ids are known to be found with their folders; true from the
    first that is.
    """

    def __init__(
        self,
        table: NameTable,
        ids: Sequence[str],
        equal: Mapping[int, int],
        rest: Sequence[int],
        *,
        folders: bool,
    ) -> None:
        self._table, self._ids, self._equal, self.folders = table, ids, dict(equal), folders
        self.elsewhere: list[int] = []  # ids whose folders are not the name's
        self._rest, self._rest_keys = rest, table.keys_of([ids[index] for index in rest])
        self._paths = LongestPaths(self._rest_keys, table.keys if rest else [])
        self._in_group: dict[tuple[int, bool], list[int]] = {}

    def best(self, *, alone: bool = False) -> dict[int, int]:
        """The row of each id that has one; raises `DatasetError` where two fit equally well.

        alone: the ids are not all that are wanted, so that their common folder tells nothing.
        """
        names = self._table.keys if self._rest else []
        start, stop = self._paths.start, self._paths.stop
        first = self._paths.pool[start[stop > start]].tolist() if self._rest else []
        found = np.flatnonzero(stop > start).tolist()
        # All rows of an id share equally much with it, so the first one tells.
        shared = {
            at: shared_parts(self._rest_keys[at], names[row])
            for at, row in zip(found, first, strict=True)
        }
        self.folders |= any(whole and parts > 1 for parts, whole in shared.values())
        chosen: dict[int, int] = {}
        several: list[int] = []
        for at, row in zip(found, first, strict=True):
            parts, whole = shared[at]
            if stop[at] - start[at] > 1:
                several.append(at)
            elif whole or names[row].count("/") < parts:
                chosen[self._rest[at]] = row
            elif not self.folders:
                self.elsewhere.append(self._rest[at])
                chosen[self._rest[at]] = row
        if several:
            self._choose(several, shared, chosen, alone)
        return chosen

    def strength(self, index: int, row: int) -> tuple[int, ...]:
        """How well an id matches a row, for comparison with another id on the same row."""
        (key,), name = self._table.keys_of([self._ids[index]]), self._table.keys[row]
        same_suffix = last_part(self._ids[index]) == last_part(self._table.source.names[row])
        return (index in self._equal, shared_parts(key, name)[0], key == name, same_suffix)

    def _choose(
        self,
        several: Sequence[int],
        shared: dict[int, tuple[int, bool]],
        chosen: dict[int, int],
        alone: bool,
    ) -> None:
        """Decide between several names for an id, or refuse."""
        top: str | None = None
        looked = alone
        for at in several:
            index, key = self._rest[at], self._rest_keys[at]
            parts, whole = shared[at]
            rows = self._table.with_key(key)
            if not rows:
                fitting = self._group(at, parts, drop=self.folders and not whole)
                if len(fitting) > 1 and whole and not looked:
                    top, looked = self._only_folder(at), True
                if len(fitting) > 1 and (not whole or top is None):
                    raise self._table.two_rows(self._ids[index], fitting)
                if not fitting:
                    continue
                found = self._table.keys[fitting[0]] if len(fitting) == 1 else f"{top}{key}"
                rows = self._table.with_key(found)
            rows = self._with_suffix(index, rows)
            if len(rows) > 1:
                raise self._table.two_rows(self._ids[index], rows)
            chosen[index] = rows[0]
            if not whole and self._table.keys[rows[0]].count("/") >= parts:
                self.elsewhere.append(index)

    def _with_suffix(self, index: int, rows: Sequence[int]) -> list[int]:
        """Those of the rows whose file name is the id's with its suffix; all where none is."""
        if len(rows) < 2:
            return list(rows)
        name, names = last_part(self._ids[index]), self._table.source.names
        return [row for row in rows if last_part(names[row]) == name] or list(rows)

    def _group(self, at: int, parts: int, *, drop: bool) -> list[int]:
        """A row for each different key of an ending, remembered: many ids may share it.

        drop: leave out names with further folders, which contradict the id's.
        """
        group = int(self._paths.start[at]), drop
        if group not in self._in_group:
            keys = {
                key: row
                for row in reversed(self._paths.rows(at).tolist())
                if (key := self._table.keys[row]).count("/") < parts or not drop
            }
            self._in_group[group] = list(keys.values())[::-1]
        return self._in_group[group]

    def _only_folder(self, at: int) -> str | None:
        """The leading folders below which all wanted ids are found, if that is one place."""
        keys = self._table.keys_of(self._ids)
        length = len(self._rest_keys[at])
        tops = dict.fromkeys(self._table.keys[row][:-length] for row in self._paths.rows(at))
        # A folder fails at its first missing id, or holds as many names as there are ids.
        fitting = (top for top in tops if all(self._table.with_key(top + key) for key in keys))
        first, second = next(fitting, None), next(fitting, None)
        return first if second is None else None
