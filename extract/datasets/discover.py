"""What a folder of data holds: which files are its annotations, of which split each."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import listed
from hada.extract.datasets.annotations import Sample
from hada.extract.datasets.columns import looks_like_an_image
from hada.extract.datasets.folder import image_names
from hada.extract.datasets.layouts import OF_FOLDERS, not_recognised, recognised

# A split's name in that of a file or folder: train2017, captions_val, Flickr_8k.devImages.txt.
_SPLIT = re.compile(
    r"(?:^|[^a-z])(train|restval|val|validation|valid|dev|test|testing)"
    r"(?:[0-9]{0,4})(?:images)?(?![a-z])"
)
CANONICAL_SPLITS = {"validation": "val", "valid": "val", "dev": "val", "testing": "test"}
_ANNOTATION_SUFFIXES = frozenset(
    (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".token", ".parquet", ".tar")
)
# Beside the folder itself, annotations are looked for in these and in folders of splits.
_USUAL_FOLDERS = ("annotations", "data", "captions", "text")
_METADATA = re.compile(r"metadata\.(?:csv|jsonl|parquet)(?:\.gz)?")
_ID_LISTS = re.compile(
    r"(?:flickr_?(?:8k|30k)[._])?(?:train|val|valid|validation|dev|test)(?:_?images|_?ids)?\.txt"
)
# What lies beside annotations and is none.
_OTHERS = re.compile(
    r"readme.*|license.*|classnames.*|nshards\.txt|dataset_type\.txt|.*templates\.txt|.*_stats\.json"
    r"|dataset_infos?\.json|requirements\.txt|config\.json|sha256sums.*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Place:
    """One file or folder of annotations.

    Attributes:
        path: The file or folder.
        reader: Its layout.
        split: Its split, empty where nobody says.
        fixed: Whether `split` is the manifest's, and stands before what rows say.
    """

    path: Path
    reader: str
    split: str = ""
    fixed: bool = False


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """Where the annotations of a dataset lie.

    Attributes:
        places: In the order in which they are read.
        id_lists: Files that list the images of a split.
    """

    places: tuple[Place, ...]
    id_lists: dict[str, Path]


def split_in(name: str) -> str:
    """The split that a file's or folder's name says, empty where it says none.

    >>> split_in("captions_train2017.json"), split_in("dev.txt"), split_in("latest.csv")
    ('train', 'val', '')
    """
    found = {CANONICAL_SPLITS.get(word, word) for word in _SPLIT.findall(name.lower())}
    return found.pop() if len(found) == 1 else ""


def discover(root: Path) -> Discovery:
    """Find the annotations below a folder, or say that it is a folder of images alone.

    Raises:
        DatasetError: There are several layouts and nothing says which, or neither annotations nor
            images.
    """
    files = _candidates(root)
    tars = [file for file in files if file.suffix == ".tar"]
    if tars:
        return _found([Place(file, "webdataset", _split_of(file, root)) for file in tars])
    metadata = [file for file in files if _METADATA.fullmatch(file.name)]
    lists = {
        split_in(file.name): file
        for file in files
        if _ID_LISTS.fullmatch(file.name.lower()) and _is_list_of_ids(file)
    }
    known = [
        Place(file, name, _split_of(file, root))
        for file in metadata or files
        if file not in lists.values() and (name := recognised(file)) is not None and name != "texts"
    ]
    pairs = None if known else _pairs(root)
    if pairs is not None:
        return _found([pairs])
    if known:
        return _found(_one_layout(known, root), lists)
    if image_names(root):
        return _found([Place(root, "folder")], lists)
    odd = [file for file in files if file.suffix != ".txt"]
    if odd:
        raise not_recognised(odd[0])
    raise DatasetError(
        f"{root}: neither annotations nor images in it. Give the folder of the images as --data "
        "and the file of captions as --captions"
    )


def place_of(path: Path, reader: str) -> Place:
    """One file that the user named, with the reader that they named or that it looks like.

    Raises `DatasetError` where it looks like none.
    """
    if path.is_dir():
        return Place(path, reader if reader in OF_FOLDERS else "folder", "")
    name = recognised(path) if reader == "auto" else reader
    # Any text is a list of lines: captions of images must not be taken for texts without images.
    if name is None or (name == "texts" and reader == "auto"):
        raise not_recognised(path)
    return Place(path, name, split_in(path.name))


def _found(places: list[Place], lists: dict[str, Path] | None = None) -> Discovery:
    return Discovery(places=tuple(places), id_lists=lists or {})


def _candidates(root: Path) -> list[Path]:
    """Files that may be annotations, in the folder, its usual folders and those of splits."""
    folders = [root]
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("."):
            name = entry.name.lower()
            if name in _USUAL_FOLDERS or split_in(name) or name.isdigit():
                folders.append(Path(entry.path))
    files = []
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            suffixes = Path(name.lower().removesuffix(".gz")).suffixes
            if (
                suffixes
                and suffixes[-1] in _ANNOTATION_SUFFIXES
                and not name.startswith((".", "~"))
                and not _OTHERS.fullmatch(name)
                and (folder / name).is_file()
                # One .txt a picture is no file of captions.
                and not (folder.name.isdigit() and suffixes[-1] != ".tar")
            ):
                files.append(folder / name)
    texts = [file for file in files if file.suffix == ".txt"]
    if len(texts) > 20:  # pairs of image and text
        files = [file for file in files if file.suffix != ".txt"]
    return sorted(files, key=_natural)


def _natural(path: Path) -> tuple[str, int, str]:
    """`2.tar` before `10.tar`."""
    number = re.search(r"\d+", path.name)
    return str(path.parent), int(number[0]) if number and path.suffix == ".tar" else 0, path.name


def _split_of(file: Path, root: Path) -> str:
    """Of the file's name, else of the folder below `root` that it lies in."""
    own = split_in(file.name)
    return own or (split_in(file.parent.name) if file.parent != root else "")


def _is_list_of_ids(file: Path) -> bool:
    """Names of images, or words without a blank: `1000268201_693b08cb0e`."""
    lines = [line.strip() for line in Sample.of(file).lines if line.strip()]
    return bool(lines) and all(
        len(line.split()) == 1 or looks_like_an_image(line) for line in lines[:100]
    )


def _pairs(root: Path) -> Place | None:
    """The folder where most images have a text of their name beside them."""
    images = image_names(root)[:200]
    beside = sum(
        (root / name).with_suffix(".txt").is_file() or (root / name).with_suffix(".json").is_file()
        for name in images
    )
    return Place(root, "image-text-files") if images and 2 * beside > len(images) else None


def _one_layout(known: list[Place], root: Path) -> list[Place]:
    """The places, where they are one dataset: one file, or one for each split or part of it."""
    if len(known) == 1:
        return known
    readers = {place.reader for place in known}
    splits = [place.split for place in known]
    parts = all(re.search(r"\d{5}-of-\d{5}", place.path.name) for place in known)
    if len(readers) == 1 and (parts or (all(splits) and len(set(splits)) == len(splits))):
        return known
    names = listed((os.path.relpath(place.path, root) for place in known), 6)
    raise DatasetError(
        f"{root}: several files of captions: {names}. Say which one to read: --captions FILE"
    )
