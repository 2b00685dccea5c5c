"""CSV and TSV: a row a caption, or a row an image with several captions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import listed, shown
from hada.extract.datasets.annotations import ReadOptions, Row, Sample, read_text
from hada.extract.datasets.columns import (
    Columns,
    cell_captions,
    find_columns,
    looks_like_an_image,
)

LAYOUT = "CSV or TSV"
_DELIMITERS = ("\t", ",", ";", "|")
_LONGEST_CELL = 2**24


def recognises(sample: Sample) -> bool:
    """A header that names an image and captions, or a first cell that is an image's name."""
    first = next((line for line in sample.lines if line.strip()), "")
    if not first or first.lstrip()[:1] in ("{", "["):
        return False
    cells = _cells(first, _delimiter(first))
    if len(cells) < 2:
        return False
    try:
        return find_columns(cells, {}, "") is not None or looks_like_an_image(cells[0])
    except DatasetError:  # a header of which one meaning is missing: reading it says so
        return True


def read(path: Path, options: ReadOptions) -> Iterator[Row]:
    """One row for each line of the table."""
    text = read_text(path)
    end = text.find("\n")
    first = text[: end if end >= 0 else len(text)].rstrip("\r")
    if not first.strip():
        raise DatasetError(f"{path}: the first line is empty, expected a header or a row")
    dialect = _Dialect.of(first, text)
    rows = dialect.rows(text, path)
    where = f"{path}, line 1"
    header = next(rows, (1, []))[1]
    columns = find_columns(header, options.columns, where)
    if columns is not None:
        yield from _rows(rows, columns, header, path)
        return
    if not looks_like_an_image(header[0]) or len(header) < 2:
        raise DatasetError(
            f"{where}: neither a header that names the image and the captions nor a row that "
            f"begins with the name of an image: {shown(first)}. Say which columns they are: "
            "--columns image=COLUMN,caption=COLUMN"
        )
    # No header: the image, then its captions.
    columns = Columns(0, tuple(range(1, len(header))))
    yield from _rows(dialect.rows(text, path), columns, header, path)


def _rows(
    rows: Iterator[tuple[int, list[str]]], columns: Columns, header: Sequence[str], path: Path
) -> Iterator[Row]:
    width, several = len(header), len(columns.captions) > 1
    image, split, single = columns.image, columns.split, columns.captions[0]
    for line, cells in rows:
        if len(cells) != width:
            if not cells or (len(cells) == 1 and not cells[0].strip()):
                continue  # an empty line
            raise DatasetError(
                f"{path}, line {line}: {len(cells)} columns, the first line has {width} "
                f"({listed(header, 4)}): {shown(' | '.join(cells), 120)}. A caption with a "
                "delimiter in it must be in quotes"
            )
        captions = (
            [
                text
                for column in columns.captions
                for text in cell_captions(cells[column])
                if text.strip()
            ]
            if several
            else cell_captions(cells[single])
        )
        yield Row(
            cells[image].strip(),
            captions,
            f"{path}, line {line}",
            cells[split].strip() if split is not None else "",
        )


@dataclass(frozen=True)
class _Dialect:
    """How a table is written. `quoted`: cells may stand in double quotes."""

    delimiter: str
    quoted: bool

    @classmethod
    def of(cls, first: str, text: str) -> _Dialect:
        delimiter = _delimiter(first)
        if delimiter != "\t" or '"' not in text:
            return cls(delimiter, quoted=True)
        # Tab-separated captions with quotes in them are written both ways. Quoted cells end with
        # a quote before a tab or the end of the line; a quotation at the start of one need not.
        dialect = cls(delimiter, quoted=True)
        try:
            widths = {len(cells) for _, cells in dialect.rows(text, Path())}
        except DatasetError:
            return cls(delimiter, quoted=False)
        return cls(delimiter, quoted=len(widths - {0}) == 1)

    def rows(self, text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
        """The line's number and the cells of each row."""
        csv.field_size_limit(_LONGEST_CELL)
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            strict=True,
            skipinitialspace=self.delimiter in ",;|",
        )
        line = 1
        try:
            for cells in reader:
                yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise DatasetError(
                f"{path}, line {line}: broken quotes ({error}): "
                f"{shown(_line(text, line), 120)}. A cell with a delimiter, a quote or a line "
                'break stands in double quotes, and a quote inside is doubled ("")'
            ) from error


def _line(text: str, number: int) -> str:
    for _ in range(number - 1):
        text = text[text.find("\n") + 1 :]
    return text[: text.find("\n") if "\n" in text else len(text)]


def _delimiter(line: str) -> str:
    """A tab where there is one, else what the first line has most of."""
    if "\t" in line:
        return "\t"
    return max(_DELIMITERS[1:], key=line.count)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    except (csv.Error, StopIteration):
        return []
