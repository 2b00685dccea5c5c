"""What was understood of a dataset, as text: `hada-extract --describe`."""

from __future__ import annotations

import numpy as np

from hada.extract.common.shapes import listed, shown
from hada.extract.datasets.folder import image_names
from hada.extract.datasets.layouts import reader
from hada.extract.datasets.named import settled
from hada.extract.datasets.read import split_images, split_names
from hada.extract.datasets.table import Table, missing_images
from hada.extract.remembered import as_yaml, dataset_values

_EXAMPLES = 3


def describe(table: Table) -> str:
    """Layout, splits, counts, examples, what is missing, and an entry for a manifest.

    Args:
        table: All annotations of the dataset.

    Returns:
        Lines of text.
    """
    layouts = dict.fromkeys(reader(place.reader, table.entry.name).LAYOUT for place in table.places)
    lines = [
        f"{table.entry.name}: {'; '.join(layouts)}",
        f"  read from  {table.label}",
        f"  images in  {table.folder}" if _has_files(table) else "",
        "",
        *_splits(table),
        "",
        *_examples(table),
        *_troubles(table),
        "",
        "entry for a data_manifest.yaml, below `datasets:`",
        *(f"  {line}" for line in _entry(table).splitlines()),
    ]
    return "\n".join(line for number, line in enumerate(lines) if line or number != 2)


def _entry(table: Table) -> str:
    return as_yaml({table.entry.name: dataset_values(settled(table))})


def _has_files(table: Table) -> bool:
    return any(image.file is None for image in table.images)


def _splits(table: Table) -> list[str]:
    rows = [("split", "images", "captions", "captions an image")]
    for name in split_names(table):
        images, texts = split_images(table, name)
        counts = np.array([len(image.captions) for image in images] or [0])
        per_image = f"{counts.min()} to {counts.max()}, mean {counts.mean():.2f}"
        total = f"{int(counts.sum()) + len(texts):,}"
        rows.append((name, f"{len(images):,}", total, per_image if images else "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _examples(table: Table) -> list[str]:
    chosen = table.images[:: max(1, len(table.images) // _EXAMPLES)][:_EXAMPLES]
    lines = [
        f"  {image.id}  {shown(image.captions[0][1], 80) if image.captions else '(no caption)'}"
        for image in chosen
    ]
    lines += [f"  {id_}  {shown(text, 80)}" for id_, text, _ in table.texts[:_EXAMPLES]]
    return ["examples", *lines]


def _troubles(table: Table) -> list[str]:
    """What will be refused or left out, a line each."""
    lines = list(table.notes)
    lines += [f"{count:,} {what}: left out" for what, count in table.left_out.items()]
    missing = missing_images(table, table.images)
    if missing:
        first, alike = missing[0]
        lines.append(
            f"{len(missing):,} images are not there, the first is {str(table.folder / first.id)!r}"
            + (f" (there is {alike!r}: --loose-names takes it)" if alike else "")
        )
    bare = [image for image in table.images if not image.captions]
    if bare and len(bare) < len(table.images):
        lines.append(f"{len(bare):,} images have no captions, the first is {bare[0].id!r}")
    if _has_files(table) and table.folder.is_dir():
        known = {image.id for image in table.images}
        others = [name for name in image_names(table.folder) if name not in known]
        if others:
            lines.append(
                f"{len(others):,} image files are in no row and are left out: {listed(others, 3)}"
            )
    if bare and len(bare) == len(table.images):
        lines.append("no captions: the images can be embedded and searched, not evaluated")
    return ["", "to know", *(f"  {line}" for line in lines)] if lines else []
