"""Parquet tables: images as bytes in a column or as paths, captions beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hada.extract.common.array_files import reason
from hada.extract.common.errors import DatasetError, UsageError
from hada.extract.common.shapes import listed, shown
from hada.extract.datasets.annotations import ReadOptions, Row, Sample, captions_of
from hada.extract.datasets.columns import Columns, find_columns
from hada.extract.datasets.image_files import InParquet

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

LAYOUT = "parquet with a column of images (bytes or paths)"


def recognises(sample: Sample) -> bool:
    """The magic of parquet."""
    return sample.head.startswith(b"PAR1")


def read(path: Path, options: ReadOptions) -> Iterator[Row]:
    """One row for each of the table, row group by row group; image bytes are not kept."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise UsageError("reading .parquet files needs pyarrow: pip install pyarrow") from error
    try:
        with ParquetFile(path) as table:
            yield from _rows(table, path, options)
    except DatasetError:
        raise
    except (ArrowException, OSError, ValueError, KeyError, OverflowError, TypeError) as error:
        raise DatasetError(f"{path}: not a parquet file ({reason(error)})") from error


def _rows(table: ParquetFile, path: Path, options: ReadOptions) -> Iterator[Row]:
    names: list[str] = table.schema_arrow.names
    columns = find_columns(names, options.columns, str(path))
    if columns is None:
        raise DatasetError(
            f"{path}: no column looks like the image or the captions; the columns are "
            f"{listed(names)}. Say which they are: --columns image=COLUMN,caption=COLUMN"
        )
    kind = table.schema_arrow.field(columns.image).type
    embedded = "bytes" in [kind.field(n).name for n in range(kind.num_fields)] or "binary" in str(
        kind
    )
    number = 0
    for group in range(table.num_row_groups):
        # Of images that are bytes only their paths are read now, where they have one.
        wanted = [names[column] for column in columns.captions]
        wanted += [] if columns.split is None else [names[columns.split]]
        image_name = names[columns.image]
        if not embedded:
            wanted.append(image_name)
        elif kind.num_fields and "path" in [kind.field(n).name for n in range(kind.num_fields)]:
            wanted.append(f"{image_name}.path")
        cells = table.read_row_group(group, columns=wanted).to_pylist()
        for inside, record in enumerate(cells):
            where = f"{path}, row {number}"
            number += 1
            yield _row(record, columns, names, where, path, (group, inside) if embedded else None)


def _row(
    record: Mapping[str, Any],
    columns: Columns,
    names: Sequence[str],
    where: str,
    path: Path,
    embedded: tuple[int, int] | None,
) -> Row:
    image_name = names[columns.image]
    captions: list[str] = []
    for column in columns.captions:
        captions += captions_of(record.get(names[column]), f"{where}: {names[column]!r}")
    split = record.get(names[columns.split]) if columns.split is not None else None
    image = record.get(image_name)
    if isinstance(image, Mapping):
        image = image.get("path")
    if embedded is not None:
        # Many tables have bytes without a name; the row is then the only one there is.
        name = (
            image if isinstance(image, str) and image else f"{path.stem}-{where.rpartition(' ')[2]}"
        )
        file = InParquet(str(path.resolve()), image_name, *embedded)
        return Row(name, captions, where, str(split or ""), file=file)
    if image is not None and not isinstance(image, str):
        raise DatasetError(f"{where}: {image_name!r}: expected a path, got {shown(image)}")
    return Row(image or "", captions, where, str(split or ""))
