r"""Escapes characters in printed text that would control a terminal.

Captions, ids, file names, model names and errors come from files that somebody else may have
written. An escape sequence in them could clear the screen, retitle the window or write a clipboard;
a carriage return or a bidirectional override could show another text than the one that is there.
Everything that a command prints passes through here (`hada.extract.common.console.tell` and `say`,
`console` for what Rich draws, `guarded` for warnings, log records and tracebacks), and shows such
characters as Python would write them: `\x1b`, `\u202e`.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# C0 but tab and newline, DEL, C1 (with NEL); line and paragraph separators; bidirectional
# embeddings, overrides and isolates, deprecated format characters; what surrounds ruby text; lone
# surrogates, which stand for a file name's bytes that are no UTF-8; invisible tag characters.
_STEERING = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f"
)
_UNSAFE = re.compile(f"[{_STEERING}]")
_UNSAFE_IN_LINE = re.compile(f"[{_STEERING}\t\n]")
# Colours and weights change nothing but how the rest looks; other libraries' log lines use them.
_UNSAFE_OR_COLOUR = re.compile(rf"(\x1b\[[0-9;]*m)|[{_STEERING}]")


def visible(text: object) -> str:
    r"""Lines of text with every character that steers a terminal escaped; tabs and newlines stay.

    >>> visible("a\x1b[2Jb\rc\n")
    'a\\x1b[2Jb\\rc\n'
    """
    return _UNSAFE.sub(_escape, str(text))


def in_line(text: object) -> str:
    r"""As `visible`, for a value within a line: newlines and tabs are escaped too.

    >>> in_line("cat\n  1  0.99  forged")
    'cat\\n  1  0.99  forged'
    """
    return _UNSAFE_IN_LINE.sub(_escape, str(text))


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    if "\udc80" <= character <= "\udcff":  # a byte, as os.fsdecode keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode()


def console(**options: Any) -> Console:
    """A Rich console that escapes every text before it measures it; markup is not read.

    Args:
        options: `rich.console.Console`'s, as `stderr=True` or `file=...`.
    """
    from rich.console import Console
    from rich.text import Text

    class Guarded(Console):  # type: ignore[misc]
        def render_str(self, text: str, **rest: Any) -> Text:
            # In "[red]" of a caption nobody asked for a colour.
            return super().render_str(visible(text), **{**rest, "markup": False, "emoji": False})

    return Guarded(**options)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """While a command runs: warnings, log records and tracebacks pass through `visible` too."""
    before = warnings.formatwarning, logging.getLogRecordFactory(), sys.excepthook
    shown, make = before[0], before[1]

    def format_warning(*args: Any, **rest: Any) -> str:
        return visible(shown(*args, **rest))

    def record(*args: Any, **rest: Any) -> logging.LogRecord:
        made = make(*args, **rest)
        with contextlib.suppress(TypeError, ValueError, KeyError):  # the handler tells of these
            made.msg, made.args = _coloured(made.getMessage()), ()
        return made

    warnings.formatwarning = format_warning
    logging.setLogRecordFactory(record)
    sys.excepthook = _show_traceback
    try:
        yield
    finally:
        warnings.formatwarning = before[0]
        logging.setLogRecordFactory(before[1])
        # A traceback that is asked for (--debug) is shown after this.
        if not isinstance(sys.exception(), Exception):
            sys.excepthook = before[2]


def _coloured(text: str) -> str:
    return _UNSAFE_OR_COLOUR.sub(lambda match: match.group(1) or _escape(match), text)


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))
