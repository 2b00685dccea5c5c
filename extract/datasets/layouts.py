"""The layouts of captions by name, and which of them a file has."""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import cast

from hada.extract.common.errors import DatasetError, unknown
from hada.extract.common.shapes import shown
from hada.extract.datasets.annotations import Reader, Sample
from hada.extract.manifest_entries import READER_ENTRY_POINTS, READERS, reader_names

# These read a folder, all others a file.
OF_FOLDERS = frozenset({"image-text-files", "folder"})


def reader(name: str, dataset: str) -> Reader:
    """The reader called `name`: a module of HADA's or of an entry point; names win over these.

    Raises `UnknownNameError` that names the dataset.
    """
    if name in READERS:
        return cast(Reader, importlib.import_module(READERS[name]))
    plugins = _third_party()
    if name in plugins:
        return cast(Reader, plugins[name].load())
    raise unknown(f"reader of dataset {dataset!r}", name, reader_names())


def recognised(path: Path) -> str | None:
    """The name of the layout that a file has, None where it looks like none.

    Packages of others are asked first, because they know something that HADA does not.
    """
    sample = Sample.of(path)
    for name, entry in _third_party().items():
        if cast(Reader, entry.load()).recognises(sample):
            return name
    for name, module in READERS.items():
        if name not in OF_FOLDERS and importlib.import_module(module).recognises(sample):
            return name
    return None


def not_recognised(path: Path) -> DatasetError:
    """What a file of captions looks like that no reader takes, and what to do."""
    sample = Sample.of(path)
    first = next((line for line in sample.lines if line.strip()), sample.text).strip()
    tried = ", ".join(name for name in READERS if name not in OF_FOLDERS)
    return DatasetError(
        f"{path}: no known layout of captions. It looks like {_looks(sample, first)}; its first "
        f"line is {shown(first, 100)}. Tried: {tried}. --reader NAME says which it is, and "
        "--columns image=...,caption=... which columns of a table count"
    )


def _looks(sample: Sample, first: str) -> str:
    if not sample.head:
        return "an empty file"
    if not sample.text:
        return "no text at all"
    if first.startswith(("{'", "[{'")):
        return "Python's repr of a value, with single quotes, where JSON has double ones"
    if first.startswith("{"):
        return "a JSON mapping without images that have captions"
    if first.startswith("["):
        return "a JSON list of something other than records"
    if first.startswith("<"):
        return "a web page or XML (a download that ended at a login?)"
    if "\t" in first:
        return "a table with tabs whose header names neither an image nor a caption"
    if "," in first or ";" in first:
        return "a table whose header names neither an image nor a caption"
    return "plain text, or texts without images (--reader texts)"


def _third_party() -> dict[str, EntryPoint]:
    found = {entry.name: entry for entry in entry_points(group=READER_ENTRY_POINTS)}
    # Built-in names win, so that no package can take one over silently.
    return {name: entry for name, entry in found.items() if name not in READERS}
