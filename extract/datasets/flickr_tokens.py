"""Flickr30k's results_20130124.token and Flickr8k's Flickr8k.token.txt: `NAME#k<tab>caption`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hada.extract.datasets.annotations import ReadOptions, Row, Sample, rows_of_lines

LAYOUT = "Flickr's token file, NAME#k<tab>caption"
_LINE = re.compile(r"(\S[^\t]*?)#(\d+)[ ]*\t(.*)")


def recognises(sample: Sample) -> bool:
    """Most lines are such."""
    lines = [line for line in sample.lines if line.strip()][:50]
    fits = sum(_LINE.fullmatch(line.strip()) is not None for line in lines)
    return bool(lines) and 2 * fits > len(lines)


def read(path: Path, _options: ReadOptions) -> Iterator[Row]:
    """One row for each line.

    Flickr8k has three pictures whose names end in .1 or .2 here and not in the folder; its lists of
    splits do not name them, so they are left out with the lists.
    """
    return rows_of_lines(path, _LINE, "NAME#k, a tab and a caption")
