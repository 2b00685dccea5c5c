"""Stores that lie behind a URL (s3://, gs://, memory://, any fsspec scheme), not in a folder.

A remote place is a `upath.UPath`: it answers the questions a `pathlib.Path` answers, so most of
the store knows no difference. Here is what does differ. Nothing is renamed, appended to or locked
there: an object is put whole or not at all, and the last writer of two wins.
"""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from hada.extract.common.errors import StoreError, UnreachableError, UsageError

# What one request takes where a whole object is read piece by piece.
BLOCK_BYTES = 1 << 26
# Asked for "up to its end", s3fs first asks where that is; asked for more than there is, S3 gives
# what it has.
_ENDLESS = 1 << 40
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs"}


def place(text: str | Path) -> Path:
    """A local folder, or a `UPath` for a URL other than `file://`.

    Raises:
        UsageError: Nobody knows the URL's scheme, or its package is not installed.
        UnreachableError: The place does not answer.
    """
    if is_remote(text) or "://" not in str(text):
        return cast("Path", text) if is_remote(text) else Path(text)
    text = str(text)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    scheme = text.partition("://")[0]
    try:
        from upath import UPath

        # No cached listings: another process may write there while this one looks.
        remote = UPath(text.rstrip("/"), use_listings_cache=False)
        system = remote.fs
    except ImportError as error:
        package = _PACKAGES.get(scheme, f"the fsspec package of {scheme}://")
        raise UsageError(
            f"{text}: {error}. Install what it needs: pip install universal-pathlib {package}"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{text}: expected a folder or a URL that fsspec knows ({error})"
        ) from error
    with contextlib.suppress(FileNotFoundError), _told(cast("Path", remote)):
        system.info(remote.path)
    return cast("Path", remote)


def is_remote(path: object) -> bool:
    """Whether a path is a `UPath` on something other than the local file system."""
    return not isinstance(path, str | Path)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What each scheme raises in its own way (no credentials, no such host), in one."""
    try:
        yield
    except (FileNotFoundError, StoreError):
        raise
    except Exception as error:
        raise _unreachable(path, error) from error


def _unreachable(path: object, error: Exception) -> UnreachableError:
    return UnreachableError(
        f"{path}: cannot be reached ({str(error) or type(error).__name__}). Are address and "
        "credentials right? The same command continues."
    )


def _is_of_the_file(error: Exception) -> bool:
    """Whether an error says something of the file itself, not of the way to it.

    EINVAL is S3's answer to a range beyond a file's end; the others come from who parses files.
    """
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError) or error.errno == errno.EINVAL
    parsing = ValueError | LookupError | TypeError | AttributeError | ArithmeticError | RuntimeError
    return isinstance(error, parsing)


@contextlib.contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Errors of the way to a remote file as `UnreachableError`; those of the file as they are."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if not is_remote(path) or _is_of_the_file(error):
            raise
        raise _unreachable(path, error) from error


def _of(path: Path) -> tuple[Any, str]:
    """The fsspec file system of a remote path, and the path there."""
    remote: Any = path
    return remote.fs, remote.path


def read_bytes(path: Path) -> bytes:
    """A whole file; one request where it is remote."""
    if not is_remote(path):
        return path.read_bytes()
    system, name = _of(path)
    with _told(path):
        return bytes(system.cat_file(name, start=0, end=_ENDLESS))


def read_many(folder: Path, names: Sequence[str]) -> list[bytes | Exception]:
    """Whole files of a folder, or the error of each; remote ones are asked for at once.

    Args:
        folder: A local folder or a URL.
        names: Names relative to it.

    Returns:
        For each name, in order, the file's bytes or why it cannot be read: a `FileNotFoundError`
        where it is missing.

    Raises:
        UnreachableError: The host does not answer or refuses the access.
    """
    if is_remote(folder):
        system, root = _of(folder)
        paths, count = [f"{root}/{name}" for name in names], len(names)
        found = system.cat_ranges(paths, [0] * count, [_ENDLESS] * count, on_error="return")
        for name, value in zip(names, found, strict=True):
            if isinstance(value, Exception) and not _is_of_the_file(value):
                raise _unreachable(f"{folder}/{name}", value) from value
        return list(found)
    result: list[bytes | Exception] = []
    for name in names:
        # A hundred thousand of them: without `Path`, and without a buffer, it takes half the time.
        try:
            with open(f"{folder}/{name}", "rb", buffering=0) as file:
                data = file.read()
        except OSError as error:
            result.append(error)
        else:
            result.append(data)
    return result


def read_ranges(pieces: Sequence[tuple[Path, int, int]]) -> list[bytes]:
    """Bytes start..stop-1 of remote files, all asked for at once; start -n is the last n.

    Raises:
        UnreachableError: The place does not answer.
        OSError: A file is missing or too short.
    """
    if not pieces:
        return []
    system = _of(pieces[0][0])[0]
    names = [_of(path)[1] for path, _, _ in pieces]
    starts = [start for _, start, _ in pieces]
    stops = [None if start < 0 else stop for _, start, stop in pieces]
    found = system.cat_ranges(names, starts, stops, on_error="return")
    for (path, _, _), value in zip(pieces, found, strict=True):
        if isinstance(value, Exception):
            if not _is_of_the_file(value):
                raise _unreachable(path, value) from value
            raise OSError(str(value) or type(value).__name__) from value
    return [bytes(value) for value in found]


def blocks(path: Path, size: int) -> Iterator[bytes]:
    """The `size` bytes of a remote file, `BLOCK_BYTES` at a time.

    Args:
        path: The file's URL.
        size: Its bytes, as `file_size` gives them.

    Yields:
        Consecutive bytes; the last block may be shorter.

    Raises:
        UnreachableError: The host does not answer or refuses the access.
    """
    system, name = _of(path)
    for start in range(0, size, BLOCK_BYTES):
        with reaching(path):
            data = bytes(system.cat_file(name, start=start, end=min(size, start + BLOCK_BYTES)))
        yield data


def put_bytes(path: Path, data: bytes) -> None:
    """Write an object whole."""
    system, name = _of(path)
    with _told(path):
        system.pipe_file(name, data)


@contextlib.contextmanager
def uploading(path: Path) -> Iterator[Path]:
    """Yield a local temporary path; on success its file is put to the remote `path`."""
    with tempfile.TemporaryDirectory(prefix="hada-") as folder:
        local = Path(folder) / path.name
        yield local
        system, name = _of(path)
        with _told(path):
            system.put_file(str(local), name)


def upload_folder(local: Path, target: Path, last: str) -> None:
    """Put every file below `local`; the one called `last` only when all others are there.

    Args:
        local: A folder of this machine.
        target: A URL.
        last: The file whose presence says that the others are there, relative to `local`.
    """
    files = sorted(path for path in local.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda path: str(path.relative_to(local)) == last):
        system, name = _of(target / str(file.relative_to(local)))
        system.put_file(str(file), name)


def file_sizes(folder: Path) -> dict[str, int]:
    """Path below `folder` -> bytes of every file; remote, it is one listing of the whole store."""
    if not is_remote(folder):
        return {
            str(path.relative_to(folder)): path.stat().st_size
            for path in folder.rglob("*")
            if path.is_file()
        }
    system, root = _of(folder)
    with _told(folder):
        found = system.find(root, detail=True)
    return {name.removeprefix(root).lstrip("/"): int(info["size"]) for name, info in found.items()}


def file_size(path: Path) -> int:
    """Bytes of one file. Raises `UnreachableError`, or FileNotFoundError."""
    with reaching(path):
        return path.stat().st_size


def remove_folder(folder: Path) -> None:
    """Delete everything below a remote place."""
    system, name = _of(folder)
    system.rm(name, recursive=True)
