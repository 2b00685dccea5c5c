"""Tars of images and captions: webdatasets, as img2dataset and CLIP_benchmark write them.

A sample is the members whose names agree up to the first dot after the last slash. The tar is read
once for its members and captions; images are read from it by offset later, and nothing is unpacked.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hada.extract.common.documents import decode, parse_json
from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import shown
from hada.extract.datasets.annotations import ReadOptions, Row, Sample, captions_of
from hada.extract.datasets.folder import IMAGE_SUFFIXES
from hada.extract.datasets.image_files import InTar

LAYOUT = "a webdataset: tars of images with .txt or .json beside them"
_LARGEST_TEXT = 2**22
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def recognises(sample: Sample) -> bool:
    """The magic of a tar, or its name."""
    return sample.head[257:262] == b"ustar" or sample.suffix == ".tar"


def read(path: Path, _options: ReadOptions) -> Iterator[Row]:
    """One row for each sample that has an image, in the order of the tar."""
    # Where it is found does not depend on the folder in which a later command runs.
    file = str(path.resolve())
    sample = _Sample("")
    try:
        with path.open("rb") as stream:
            start = stream.read(6)
            for magic, name in _PACKED.items():
                if start.startswith(magic):
                    raise DatasetError(
                        f"{path}: compressed by {name}, and images cannot be read at random from "
                        "it. Unpack the tar itself (not its members): gunzip, unxz, zstd -d"
                    )
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    # What has been seen is not kept: a tar may have millions of members.
                    tar.members = []  # type: ignore[attr-defined]
                    if not member.isfile():
                        if member.isdir():
                            continue
                        raise DatasetError(
                            f"{path}: member {shown(member.name)} is a link or a device, which no "
                            "webdataset has. Make the tar again with the files themselves"
                        )
                    key, suffix = _key(member.name)
                    if key != sample.key:
                        yield from sample.rows(path)
                        sample = _Sample(key)
                    sample.add(suffix, member, tar, file)
                yield from sample.rows(path)
                _check_end(stream, path, tar)
    except tarfile.TarError as error:
        raise DatasetError(
            f"{path}: not a tar, damaged or cut short ({error}). Fetch the file again"
        ) from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error


def _key(name: str) -> tuple[str, str]:
    """`a/b.c.jpg` as `a/b` and `.c.jpg`, as the webdataset library does it."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    key = f"{folder}{slash}{stem}"
    while key.startswith("./"):
        key = key[2:]
    return key, f"{dot}{suffix}".lower()


def _check_end(stream: object, path: Path, tar: tarfile.TarFile) -> None:
    """`tarfile` takes the end of the file for the end of the archive; a cut tar ends otherwise."""
    size = path.stat().st_size
    if tar.offset > size:
        raise DatasetError(
            f"{path}: cut short: its last member ends at byte {tar.offset:,} of {size:,}. "
            "Fetch the file again"
        )


@dataclass
class _Sample:
    """The members of one key."""

    key: str
    images: list[InTar] = field(default_factory=list)
    texts: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def add(self, suffix: str, member: tarfile.TarInfo, tar: tarfile.TarFile, file: str) -> None:
        """Note an image, or read what may hold captions."""
        if suffix in IMAGE_SUFFIXES:
            self.images.append(InTar(file, member.name, member.offset_data, member.size))
        elif suffix in (".txt", ".json", ".caption", ".text"):
            if member.size > _LARGEST_TEXT:
                raise DatasetError(f"{file}: {shown(member.name)}: {member.size:,} bytes of text")
            stream = tar.extractfile(member)
            if stream is not None:
                self.texts[suffix] = member.name, stream.read()

    def rows(self, path: Path) -> Iterator[Row]:
        """No row where there is no image: img2dataset keeps what it could not fetch so."""
        where = f"{path}: {shown(self.key)}"
        if len(self.images) > 1:
            raise DatasetError(f"{where}: two images of one name: {self.images[1].name}")
        if self.images:
            (image,) = self.images
            yield Row(_name(image.name), self._captions(where), where, file=image)

    def _captions(self, where: str) -> list[str]:
        """Those of `.json` where it has a caption, else the lines of `.txt`.

        img2dataset writes both, and its captions may have line breaks; CLIP_benchmark writes
        `.txt` alone, a caption a line.
        """
        if ".json" in self.texts:
            name, data = self.texts[".json"]
            record = parse_json(
                data, f"{where}: {name}", DatasetError, finite=False, unique=False, digits=100
            )
            if isinstance(record, dict):
                for key in ("captions", "caption", "text", "TEXT", "sentences"):
                    if record.get(key) is not None:
                        return captions_of(record[key], f"{where}: {name}: {key!r}")
        for suffix in (".txt", ".caption", ".text"):
            if suffix in self.texts:
                name, data = self.texts[suffix]
                text = decode(data, f"{where}: {name}", DatasetError)
                return [line for line in text.splitlines() if line.strip()]
        return []


def _name(name: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    return name
