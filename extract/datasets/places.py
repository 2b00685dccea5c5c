"""Finds the image files that annotations name.

Annotations name images below some folder, which need not be the one that holds them: COCO's have
bare names in `train2017/`, others begin with folders of their author's machine. Where the names do
not lie below the images' folder as they are written, its subfolders are tried, and leading
folders of the names are dropped, the same for all names of one file.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import listed, shown
from hada.extract.datasets.caption_dataset import check_id

# So many names, spread over the file, decide where the images lie.
_PROBED = 40
_MOST_FOLDERS = 2000
_DEEPEST = 3


@dataclass(frozen=True)
class NameRule:
    """How the names of one file of annotations become paths below the images' folder.

    prefix: A folder that is put before each. dropped: Leading folders that are taken away.
    """

    prefix: str = ""
    dropped: int = 0

    def path(self, name: str) -> str:
        """The posix path below the images' folder."""
        if self.dropped:
            name = "/".join(name.split("/")[self.dropped :])
        return f"{self.prefix}/{name}" if self.prefix else name


def plain_name(name: str, where: str) -> str:
    r"""A name as a posix path without `.` and `..`.

    Raises `DatasetError` for what no path below a folder is. An absolute path loses its slash:
    whether the rest of it lies below the images' folder is found out later.

    >>> plain_name("./a/b.jpg", ""), plain_name("a\\b.jpg", "")
    ('a/b.jpg', 'a/b.jpg')
    """
    check_id(name, where)
    if "/" not in name and "\\" not in name:
        if name in (".", ".."):
            raise DatasetError(f"{where}: {name!r} is no name of an image")
        return name
    # Written on Windows; a backslash within a name of Linux is so rare that nobody misses it.
    parts = name.replace("\\", "/").split("/")
    if parts[0].endswith(":") and len(parts[0]) == 2:
        parts = parts[1:]
    if ".." in parts:
        raise DatasetError(f"{where} points outside the dataset's folder: {shown(name)}")
    kept = [part for part in parts if part not in ("", ".")]
    if not kept:
        raise DatasetError(f"{where}: {shown(name)} is no name of an image")
    return "/".join(kept)


def find_rule(
    images: Path, annotations: Path, names: Sequence[str], split: str = ""
) -> NameRule | None:
    """How `names` become paths below `images`; None where no rule finds half of them.

    Args:
        images: The images' folder.
        annotations: The file that names them; its own folder is tried, too.
        names: All names, plain, as the file has them.
        split: The file's split; of two folders that both fit, the one of that name is taken.

    Raises:
        DatasetError: Several folders fit equally well, and images of equal names lie in them.
    """
    probed = names[:: max(1, len(names) // _PROBED)]
    if not probed or not images.is_dir():
        return None
    folders = [""]
    own = os.path.relpath(annotations.parent, images).replace(os.sep, "/")
    if own != "." and not own.startswith(".."):
        # Hugging Face's metadata.csv names what lies beside it.
        folders.insert(0 if annotations.name.startswith("metadata.") else 1, own)
    if rule := _first(images, folders, probed):
        return rule
    others = [folder for folder in _subfolders(images) if folder not in folders]
    deepest = min(name.count("/") for name in probed)
    fits = [
        (_share(images, rule, probed), rule)
        for dropped in range(min(deepest, 8) + 1)
        for folder in (["", *others] if dropped else others)
        if (rule := NameRule(folder, dropped))
    ]
    fits = [(share, rule) for share, rule in fits if share >= 0.5]
    if not fits:
        return None
    best = max(share for share, _ in fits)
    rules = [rule for share, rule in fits if share == best]
    # The fewest dropped folders keep most of what tells images apart.
    rules = [rule for rule in rules if rule.dropped == min(rule.dropped for rule in rules)]
    named = [rule for rule in rules if split and split in rule.prefix]
    if len(named) == 1 or len(rules) == 1:
        return (named or rules)[0]
    raise DatasetError(
        f"{annotations}: its names fit images in several folders of {str(images)!r}: "
        f"{listed(rule.prefix or '.' for rule in rules)}. Say which: --images FOLDER"
    )


def _first(images: Path, folders: Sequence[str], names: Sequence[str]) -> NameRule | None:
    for folder in folders:
        rule = NameRule(folder)
        if _share(images, rule, names) >= 0.5:
            return rule
    return None


def _share(images: Path, rule: NameRule, names: Sequence[str]) -> float:
    """The share of names that are there; nothing is looked up further once the first miss it."""
    found = 0
    for number, name in enumerate(names):
        found += os.path.exists(images / rule.path(name))
        if number == 7 and not found:
            return 0
    return found / len(names)


def _subfolders(root: Path) -> list[str]:
    """Folders below `root`, the nearest first."""
    level: list[str] = [""]
    found: list[str] = []
    for _ in range(_DEEPEST):
        below: list[str] = []
        for folder in level:
            with os.scandir(root / folder) as entries:
                below += [
                    f"{folder}/{entry.name}" if folder else entry.name
                    for entry in entries
                    if entry.is_dir() and not entry.name.startswith(".")
                ]
            if len(found) + len(below) > _MOST_FOLDERS:
                return found + sorted(below)
        found += sorted(below)
        level = below
    return found


class Folders:
    """The files below the images' folder; each folder is listed once.

    A stat for each image takes minutes on network file systems.
    """

    def __init__(self, images: Path) -> None:
        self._images = images
        self._listed: dict[str, frozenset[str]] = {}
        self._loose: dict[str, dict[str, list[str]]] = {}

    def holds(self, path: str) -> bool:
        """Whether there is a file of this posix path below the folder."""
        folder, _, name = path.rpartition("/")
        return name in self._names(folder)

    def alike(self, path: str) -> str | None:
        """The path that differs only in case, Unicode form or an absent suffix, if there is one."""
        folder, _, name = path.rpartition("/")
        parts = [part for part in folder.split("/") if part]
        actual = ""
        for part in parts:
            entry = self._entry(actual, part)
            if entry is None:
                return None
            actual = f"{actual}/{entry}" if actual else entry
        entry = self._entry(actual, name)
        return None if entry is None else f"{actual}/{entry}" if actual else entry

    def _entry(self, folder: str, name: str) -> str | None:
        """What a folder has under a name, or else the one that differs from it as `alike` says."""
        if name in self._names(folder):
            return name
        if folder not in self._loose:
            table: dict[str, list[str]] = {}
            for entry in self._names(folder):
                table.setdefault(_folded(entry), []).append(entry)
                table.setdefault(_folded(os.path.splitext(entry)[0]), []).append(entry)
            self._loose[folder] = table
        fits = set(self._loose[folder].get(_folded(name), ()))
        return fits.pop() if len(fits) == 1 else None

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._listed:
            place = self._images / folder
            names = os.listdir(place) if place.is_dir() else []
            self._listed[folder] = frozenset(names)
        return self._listed[folder]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
