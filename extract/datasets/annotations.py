"""What every reader of captions shares: rows, the place they are read from, and text files."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hada.extract.common.documents import LARGE_BYTES, decode, parse_json, read_bytes
from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import shown
from hada.extract.datasets.image_files import ImageFile

_GZIP = b"\x1f\x8b"
_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_SAMPLE_BYTES = 65536


class Row(NamedTuple):
    """What one row, record or line says.

    image: The image's name as written; empty where the row is a text without an image.
    captions: Its captions, not stripped; empty where the layout has images alone.
    where: The row's place for messages, e.g. `captions.csv, line 7`.
    split: The split that the row itself names; empty where it names none.
    caption_ids: An id for each caption, None where it has none or the layout has none at all.
    file: Where the image's bytes lie, None where its name is a path below the images' folder.
    """

    image: str
    captions: Sequence[str]
    where: str
    split: str = ""
    caption_ids: Sequence[str | None] | None = None
    file: ImageFile | None = None


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What the user says about a layout.

    Attributes:
        columns: Column names by meaning: "image", "caption" (several), "split".
    """

    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The beginning and the end of a file, by which readers recognise their layout.

    Attributes:
        path: The file.
        suffix: Of its name without `.gz`, in small letters, e.g. ".csv".
        head: The first bytes, unpacked where the file is gzip-compressed.
        text: `head` as text, empty where it is none.
        tail: The last bytes as text, empty where the file is compressed or not text.
    """

    path: Path
    suffix: str
    head: bytes
    text: str
    tail: str

    @property
    def lines(self) -> list[str]:
        """The whole lines of `text`."""
        lines = self.text.splitlines()
        return lines[:-1] if len(self.head) >= _SAMPLE_BYTES and len(lines) > 1 else lines

    @classmethod
    def of(cls, path: Path) -> Sample:
        """Read a sample of a file; raises `DatasetError` where it cannot be read."""
        try:
            with path.open("rb") as stream:
                head = stream.read(_SAMPLE_BYTES)
                packed = head.startswith(_GZIP)
                size = stream.seek(0, 2)
                stream.seek(max(len(head), size - _SAMPLE_BYTES))
                tail = b"" if packed else stream.read()
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
        if packed:
            with contextlib.suppress(zlib.error):  # reading the whole of it says what is wrong
                head = zlib.decompressobj(wbits=31).decompress(head, _SAMPLE_BYTES)
        encoding = _encoding(head)
        suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
        # What is no text has NULs or control characters; a letter of Latin-1 must not hide a CSV.
        text = head.decode(encoding, "replace").removeprefix("\ufeff")
        if "\0" in text:
            text = ""
        return cls(
            path=path,
            suffix=suffixes[-1] if suffixes else "",
            head=head,
            text=text,
            tail=tail.decode(encoding, "replace") if text else "",
        )


class Reader(Protocol):
    """One layout of captions: a module with these two functions and a sentence, `LAYOUT`."""

    LAYOUT: str

    @property
    def recognises(self) -> Callable[[Sample], bool]:
        """Whether a file looks like this layout; never raises."""

    @property
    def read(self) -> Callable[[Path, ReadOptions], Iterator[Row]]:
        """The rows of a file or folder, in its order.

        Raises `DatasetError` that names the file, the line or record, and what was expected.
        """


def read_text(path: Path) -> str:
    """The text of an annotation file: UTF-8 or UTF-16, packed by gzip or not.

    Raises `DatasetError` for other encodings, by name, and for more than 2 GiB.
    """
    data = read_bytes(path, DatasetError, LARGE_BYTES)
    if data.startswith(_GZIP):
        data = _unpacked(data, path)
    encoding = _encoding(data)
    if encoding != "utf-8":
        try:
            return data.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise DatasetError(
                f"{path}: begins as UTF-16 text and breaks at byte {error.start:,}: the file was "
                "cut short or is damaged. Fetch it again"
            ) from error
    try:
        return decode(data, str(path), DatasetError)
    except DatasetError as error:
        odd = error.__cause__
        if not isinstance(odd, UnicodeDecodeError):
            raise
        raise DatasetError(
            f"{error}: it looks like {_likely(odd)}. "
            f"Convert it: iconv -f {_likely(odd)} -t UTF-8 {path.name}"
        ) from odd


def read_document(path: Path) -> Any:
    """The JSON document of a stranger's file, packed or not; raises `DatasetError`.

    What is not used may be NaN or there twice, and captions may end in half a character.
    """
    return parse_json(
        read_text(path),
        str(path),
        DatasetError,
        finite=False,
        unique=False,
        halves=True,
        digits=100,
        remedy="Perhaps the download was cut short: fetch the file again",
    )


def _likely(error: UnicodeDecodeError) -> str:
    """The encoding that a text which is not UTF-8 most likely has."""
    data: bytes = error.object
    # Bytes 0x80 to 0x9f are control characters in Latin-1, and quotes and dashes in Windows-1252.
    return "WINDOWS-1252" if any(0x80 <= byte < 0xA0 for byte in data[: 2**20]) else "LATIN1"


def _encoding(data: bytes) -> str:
    for mark, encoding in _UTF_16.items():
        if data.startswith(mark) and not data.startswith(codecs.BOM_UTF32_LE):
            return encoding
    # Without a mark: Latin letters in UTF-16 have a NUL in every other byte.
    probe = data[:200]
    if len(probe) > 3 and not len(probe) % 2:
        if not any(probe[1::2]) and all(probe[0::2]):
            return "utf-16-le"
        if not any(probe[0::2]) and all(probe[1::2]):
            return "utf-16-be"
    return "utf-8"


def _unpacked(data: bytes, path: Path) -> bytes:
    """The contents of gzip-compressed bytes."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            contents = stream.read(LARGE_BYTES + 1)
    except EOFError as error:
        raise DatasetError(
            f"{path}: gzip-compressed and cut short. Fetch the file again"
        ) from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(
            f"{path}: gzip-compressed and damaged ({error}). Fetch the file again"
        ) from error
    if len(contents) > LARGE_BYTES:
        raise DatasetError(f"{path}: unpacks to more than 2 GiB: not a file of captions")
    return contents


def whole_characters(text: str) -> str:
    """A text in which halves of surrogate pairs, as cut-off emoji leave them, are replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def captions_of(value: object, where: str) -> list[str]:
    """The captions in a value of JSON: a text, a list of texts, or records with a text.

    Raises `DatasetError` that names `where` for anything else.
    """
    if isinstance(value, str):
        return [value]
    if value is None:
        return []
    if isinstance(value, list):
        texts = []
        for item in value:
            if isinstance(item, Mapping):
                item = next((item[key] for key in ("raw", "caption", "text") if key in item), None)
            if not isinstance(item, str):
                break
            texts.append(item)
        else:
            return texts
    raise DatasetError(
        f"{where}: expected a caption as text or a list of texts, got {shown(value)}"
    )


def rows_of_lines(
    path: Path, pattern: re.Pattern[str], expected: str, *, header: re.Pattern[str] | None = None
) -> Iterator[Row]:
    """Rows of a text file with one caption a line, numbered within its image.

    Args:
        path: The file; blank lines are left out.
        pattern: What a whole line is: the image's name, the caption's number and the caption.
        expected: That pattern in words, for the error.
        header: What the first line begins with where it is none of the rows.

    Raises:
        DatasetError: A line does not fit the pattern.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip() or (number == 1 and header is not None and header.match(line.strip())):
            continue
        fits = pattern.fullmatch(line.strip("\r "))
        if fits is None:
            raise DatasetError(f"{path}, line {number}: expected {expected}, got {shown(line)}")
        name, position, caption = fits.groups()
        yield Row(name, [caption], f"{path}, line {number}", caption_ids=[f"{name}#{position}"])
