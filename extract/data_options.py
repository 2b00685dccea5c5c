"""Options that name a dataset without a manifest: --data and what belongs to it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hada.extract.cli_options import parse_assignments
from hada.extract.common.errors import UsageError
from hada.extract.manifest_entries import AUTO, READERS

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)

_OPTIONS = (
    click.option(
        "--data",
        metavar="[NAME=]PATH",
        help="A dataset without a manifest: a folder of images, a file of captions, tars, parquet. "
        "Later commands know it by its name: --dataset NAME.",
    ),
    click.option(
        "--captions",
        "caption_file",
        type=_PATH,
        help="With --data: the file of captions. [default: found in the folder]",
    ),
    click.option(
        "--images",
        "image_folder",
        type=_PATH,
        help="With --data: the folder that image names are relative to. [default: --data's]",
    ),
    click.option(
        "--reader",
        metavar="LAYOUT",
        help=f"With --data: the layout, one of {', '.join(READERS)}. [default: recognised]",
    ),
    click.option(
        "--columns",
        metavar="image=COLUMN,caption=COLUMN",
        help="With --data: the columns of a table, or keys of records. caption=... may be given "
        "several times.",
    ),
    click.option(
        "--split-by",
        metavar="SHARES",
        help="With --data: split by a hash of the image's id, e.g. 0.8,0.1,0.1 for train, val and "
        "test. An image stays in its split when others are added.",
    ),
    click.option(
        "--split-ids",
        multiple=True,
        metavar="SPLIT=FILE",
        help="With --data: a file that lists the images of a split, one a line.",
    ),
    click.option(
        "--loose-names",
        is_flag=True,
        help="With --data: take image files whose names differ in case, Unicode form or suffix.",
    ),
    click.option(
        "--loose-rows",
        is_flag=True,
        help="With --data: leave out rows without an image, a caption or an image file, and say "
        "how many.",
    ),
)


def data_options(command: Decorated) -> Decorated:
    """Add --data and its options; the command receives `data`, a `DatasetEntry` or None."""

    @functools.wraps(command)
    def wrapper(
        *args: Any,
        data: str | None,
        caption_file: Path | None,
        image_folder: Path | None,
        reader: str | None,
        columns: str | None,
        split_by: str | None,
        split_ids: tuple[str, ...],
        loose_names: bool,
        loose_rows: bool,
        **rest: Any,
    ) -> Any:
        belonging = {
            "--captions": caption_file,
            "--images": image_folder,
            "--reader": reader,
            "--columns": columns,
            "--split-by": split_by,
            "--split-ids": split_ids,
            "--loose-names": loose_names,
            "--loose-rows": loose_rows,
        }
        if data is None:
            given = [name for name, value in belonging.items() if value]
            if given:
                raise UsageError(
                    f"{given[0]} belongs to --data PATH. What the manifest's datasets are is "
                    "written in the manifest"
                )
            return command(*args, data=None, **rest)
        if rest.get("dataset") is not None:
            raise UsageError("--data and --dataset: give one of them")
        from hada.extract.datasets.named import dataset_at

        entry = dataset_at(
            data,
            captions=caption_file,
            images=image_folder,
            reader=reader or AUTO,
            columns=columns or "",
            split_by=split_by or "",
            split_ids=parse_assignments(split_ids, "--split-ids"),
            loose_names=loose_names,
            loose_rows=loose_rows,
        )
        return command(*args, data=entry, **rest)

    decorated: Any = wrapper
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
