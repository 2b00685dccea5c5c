"""The errors a user of HADA can meet: what was wrong, what was expected, what to do.

Every room raises these. A command turns them into one line on stderr and an exit code
(`hada.extract.common.console`); a program that imports HADA catches `HadaError`.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class HadaError(Exception):
    """Work that failed for a reason a user can act on. Exit code 1."""

    exit_code = 1


class UsageError(HadaError):
    """The request itself is wrong: an unknown name, a bad value, a missing file. Exit code 2."""

    exit_code = 2


class ManifestError(UsageError, ValueError):
    """`data_manifest.yaml` says something it must not; the message names file and line."""


class UnknownNameError(UsageError, LookupError):
    """A name that is not among the known ones; the message lists them and the nearest."""


class DatasetError(UsageError, ValueError):
    """Annotations or pictures are missing, broken or not what the manifest expects."""


class CheckpointError(UsageError, ValueError):
    """Weights that are damaged, of another family, or not safe to load."""


class StoreError(HadaError):
    """A feature store is incomplete, damaged or does not fit the request."""


class UnreachableError(StoreError):
    """A store behind a URL does not answer: nothing is known of it, and trying again may help."""


class StoreMismatchError(StoreError, UsageError):
    """A store holds something other than what was asked for; the message names the field."""

    exit_code = 2


class RunError(UsageError, ValueError):
    """A training run's folder is missing, incomplete or does not fit its stores."""


class NonFiniteError(HadaError, ArithmeticError):
    """NaN or infinity where finite numbers are needed."""


# The machine's troubles, not a file's: another time the same file can be read.
_TROUBLE = {
    *(errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EINTR),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENXIO),
}


def trouble_behind(error: BaseException | None) -> OSError | None:
    """The trouble of the machine that an error comes of, None where the file itself is to blame.

    Whoever leaves out what cannot be read asks this first: a disk that fails once must not make a
    picture one that has no features for ever.

    >>> trouble_behind(OSError("broken data stream")) is None
    True
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _TROUBLE:
            return error
        error = error.__cause__
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """The words that help with a mistyped name: the nearest known one, then all of them.

    >>> nearest("blp", ["clip", "blip"])
    "Did you mean 'blip'? Known: blip, clip."
    >>> nearest("anything", [])
    'None are known.'

    Args:
        name: What was asked for.
        known: All names there are, in any order.
    """
    names = sorted(known)
    if not names:
        return "None are known."
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names)}."


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that nobody knows; the caller raises it.

    Args:
        kind: What the name should be of: "model", "split".
        name: What was asked for.
        known: The names there are, for the message.
    """
    return UnknownNameError(f"unknown {kind} {name!r}. {nearest(name, known)}")
