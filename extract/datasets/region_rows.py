"""Which entry of a container of region features belongs to which image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from hada.extract.common.console import say
from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import shown
from hada.extract.datasets.matching import Source, match
from hada.extract.datasets.name_keys import without_suffix
from hada.extract.datasets.regions import RegionError, RegionRules, region_names

_REMEDY = (
    "Name the regions by the images' paths below the images' folder, such as cats/001.npz, or set "
    "the model's option `region_name` to a pattern that gives each image a name of its own"
)


class RegionRows:
    """The rows of a container by image id.

    place: The container, for messages. names: What each of its rows is called. image_ids: All
    images that will be asked for; an image beside them is looked for alone. suffix: What names of
    the pattern end in that the container's do not.

    Raises `DatasetError` where one row would serve two images, or two rows fit one.
    """

    def __init__(
        self,
        place: Path,
        rules: RegionRules,
        dataset: str,
        names: Sequence[str],
        image_ids: Sequence[str],
        suffix: str = "",
    ) -> None:
        self._place, self._rules, self._dataset, self._suffix = place, rules, dataset, suffix
        self._source = Source(names=names, where=f"regions {place}", remedy=_REMEDY)
        self._row_of_name = {name: row for row, name in enumerate(names)} if rules.name else {}
        self._rows = self._find(image_ids) if image_ids else {}

    def row(self, image_id: str) -> int:
        """The row of an image; raises `RegionError` where there is none."""
        rows = self._rows if image_id in self._rows else self._find([image_id])
        row = rows[image_id]
        if row < 0:
            raise RegionError(
                f"no regions of {image_id!r} in {self._place}: looked for "
                f"{' and '.join(self._patterns(image_id))}. "
                "The model's option `region_name` sets another pattern"
            )
        return row

    def _patterns(self, image_id: str) -> list[str]:
        names = region_names(self._rules, self._dataset, image_id)
        return [name.removesuffix(self._suffix) for name in names]

    def _find(self, image_ids: Sequence[str]) -> dict[str, int]:
        if self._rules.name is not None:
            return self._by_pattern(image_ids)
        stems = [without_suffix(id_) for id_ in image_ids]
        numbered = [
            f"{self._dataset}_{int(digits[1]):012d}"
            if (digits := re.search(r"([0-9]{1,100})$", PurePosixPath(stem).name))
            else ""
            for stem in stems
        ]
        lower = [stem.lower() for stem in stems]
        matches = match(image_ids, self._source, stems, lower, numbered)
        if matches.note:
            say(f"note: {matches.note}")
        return dict(zip(image_ids, matches.rows.tolist(), strict=True))

    def _by_pattern(self, image_ids: Sequence[str]) -> dict[str, int]:
        """Rows by the names that the user's own pattern gives, and by no others."""
        found: dict[str, int] = {}
        image_of: dict[int, str] = {}
        for id_ in image_ids:
            (name,) = self._patterns(id_)
            row = self._row_of_name.get(name, -1)
            found[id_] = row
            if row >= 0 and image_of.setdefault(row, id_) != id_:
                raise DatasetError(
                    f"regions {self._place}: region_name {self._rules.name!r} gives the images "
                    f"{shown(image_of[row])} and {shown(id_)} one name, {shown(name)}: its regions "
                    "would serve both. Use {id}, which has the image's folders"
                )
        return found
