"""Files with a digest inside that shows whether they are as written, and what they belong to.

Three forms, all of which stock libraries still open:

    JSON          a field `checksum` over all other fields
    safetensors   metadata `checksum` over the other metadata and all that the tensors are
    zip and more  (torch.save, npz, faiss) a head of plain JSON behind what their readers read

One rename replaces a file together with its digest, so no moment at which a process may die
leaves a file beside the digest of another. The digests (xxh3, 128 bits) tell accidents: a flipped
bit, a cut, another file. They are no signature against somebody who writes new ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from hada.extract.common.errors import RunError
from hada.extract.common.sink import Sink

CHECKSUM = "checksum"
METADATA = "__metadata__"
_PIECE = 1 << 22
# Head, line break, digest of the head, its length, and a mark: the file is read from its end.
_MARK = b" HADA\n"
_FOOT = 1 + 32 + 1 + 5 + len(_MARK)
_ZIP_END, _ZIP_END_SIZE = b"PK\x05\x06", 22


class FaultError(RunError):
    """A file of a run that is not what it should be.

    kind: `missing`, `damaged`, `foreign` (whole, but of another run, epoch or split), `stale`
    (a copy of what has changed since) or `unbound` (without a checksum).
    """

    def __init__(self, kind: str, file: Path, reason: str, remedy: str) -> None:
        super().__init__(f"{file}: {kind}: {reason}; {remedy}")
        self.kind, self.file, self.reason, self.remedy = kind, file, reason, remedy


def digest(data: bytes | memoryview) -> str:
    """128 bits of xxh3, as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def digest_json(value: Any) -> str:
    """The digest of plain values; keys in any order are the same."""
    return digest(json.dumps(value, sort_keys=True).encode())


def seal_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with a checksum of them."""
    return {**values, CHECKSUM: digest_json(json.loads(json.dumps(values)))}


def seal_safetensors(data: bytes, metadata: Mapping[str, str]) -> tuple[bytes, str]:
    """A safetensors file with more metadata and a checksum.

    Args:
        data: The file's bytes.
        metadata: Is added to its own; a text that it has already is replaced.

    Returns:
        (the new file's bytes, the digest of its tensors).
    """
    header, body = _split(data)
    rest = {key: value for key, value in header.items() if key != METADATA}
    kept = {k: v for k, v in header.get(METADATA, {}).items() if k != CHECKSUM}
    sealed = {METADATA: dict(sorted({**kept, **metadata}.items())), **rest}
    tensors = _tensors_digest(rest, body)
    sealed[METADATA][CHECKSUM] = digest_json([sealed[METADATA], tensors])
    text = json.dumps(sealed).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight, as the format wants
    return b"".join((len(text).to_bytes(8, "little"), text, body)), tensors


def check_safetensors(data: bytes) -> tuple[dict[str, str], str]:
    """Metadata of a safetensors file, and the digest of its tensors, whatever the metadata.

    Without the field `checksum` in its metadata a file is unsealed. Raises `ValueError`, saying
    why, where the file is broken or not what was written.
    """
    header, body = _split(data)
    metadata = header.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not texts")
    tensors = _tensors_digest({k: v for k, v in header.items() if k != METADATA}, body)
    rest = {k: v for k, v in metadata.items() if k != CHECKSUM}
    if CHECKSUM in metadata and metadata[CHECKSUM] != digest_json([rest, tensors]):
        raise ValueError("its bytes are not those that were written")
    return metadata, tensors


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 10 or size > len(data) - 8:
        raise ValueError("cut short, or no safetensors file")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise ValueError("its header is broken") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    return header, memoryview(data)[8 + size :]


def _tensors_digest(entries: Mapping[str, Any], body: memoryview) -> str:
    """Of names, types, shapes, places and bytes."""
    state = xxhash.xxh3_128(json.dumps(entries, sort_keys=True).encode())
    state.update(body)
    return str(state.hexdigest())


def write_sealed(file: Sink, data: bytes | memoryview, head: Mapping[str, Any]) -> None:
    """Write bytes and a head behind them; in a zip it becomes the comment, which has 64 KiB.

    Args:
        file: Where to; its position moves to the end.
        data: The bytes; a zip stays one.
        head: Plain JSON values.
    """
    view = memoryview(data)
    is_zip = _is_zip(view)
    foot = _foot({**head, "zip": is_zip, CHECKSUM: digest(view)})
    file.write(view[:-2] if is_zip else view)
    if is_zip:
        file.write(len(foot).to_bytes(2, "little"))
    file.write(foot)


def _is_zip(view: memoryview) -> bool:
    """Whether it ends as a zip without a comment does."""
    end = bytes(view[-_ZIP_END_SIZE:])
    return end[:4] == _ZIP_END and end[-2:] == b"\0\0"


def _foot(head: Mapping[str, Any]) -> bytes:
    text = json.dumps(head, sort_keys=True).encode()
    if len(text) > 60_000:
        raise ValueError(f"a head of {len(text)} bytes does not fit behind a file")
    return text + f"\n{digest(text)} {len(text):05}".encode() + _MARK


def read_head(path: Path) -> dict[str, Any] | None:
    """The head of a sealed file, itself checked; None where the file has none.

    Reads the end of the file alone: what stands before it is for `check_sealed`. Raises
    `ValueError` where there is a head that is not what was written.
    """
    with path.open("rb") as file:
        return _read_head(file)[0]


def _read_head(file: BinaryIO) -> tuple[dict[str, Any] | None, int]:
    size = file.seek(0, 2)
    file.seek(max(0, size - _FOOT))
    foot = file.read()
    if not foot.endswith(_MARK) or len(foot) < _FOOT:
        return None, size
    count = foot[34:39]
    start = size - _FOOT - (int(count) if count.isdigit() else size)
    if start < 0 or foot[33:34] != b" " or foot[:1] != b"\n":
        raise ValueError("its checksum is broken")
    file.seek(start)
    text = file.read(size - _FOOT - start)
    if digest(text).encode() != foot[1:33]:
        raise ValueError("its checksum is broken")
    head = json.loads(text)
    if not isinstance(head, dict):
        raise ValueError("its checksum is broken")
    return head, start


def check_sealed(path: Path) -> dict[str, Any] | None:
    """The head of a sealed file after a look at every byte; None where the file has none.

    Raises `ValueError`, saying why, where the file is not what was written.
    """
    with path.open("rb") as file:
        head, length = _read_head(file)
        if head is None:
            return None
        foot_size = file.seek(0, 2) - length
        file.seek(0)
        is_zip = head.get("zip") is True
        state, left = xxhash.xxh3_128(), length - 2 * is_zip
        while left > 0 and (piece := file.read(min(_PIECE, left))):
            state.update(piece)
            left -= len(piece)
        if is_zip:
            if file.read(2) != foot_size.to_bytes(2, "little"):
                raise ValueError("its end is broken")
            state.update(b"\0\0")
        if left or state.hexdigest() != head.get(CHECKSUM):
            raise ValueError("its bytes are not those that were written")
    return head
