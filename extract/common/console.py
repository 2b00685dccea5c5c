"""What all of HADA's commands share: how they fail, and how they find the manifest.

A failure is one line on stderr and an exit code: 2 when the request was wrong, 1 when the work
failed, 130 after Ctrl-C. `--debug` shows the traceback. No heavy import happens here.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from hada.extract.common.errors import HadaError
from hada.extract.common.terminal import guarded, in_line, visible

_OS_REMEDIES = {
    errno.ENOSPC: "The disk is full. Free some space and run the same command again: it continues.",
    errno.EDQUOT: "Your quota is used up. Free some space and run the same command again.",
    errno.EACCES: "You may not write or read there. Choose another place or mend its permissions.",
    errno.EPERM: "You may not write or read there. Choose another place or mend its permissions.",
    errno.EROFS: "That file system is read-only. Choose another place.",
}


def say(text: object, *, lines: bool = False) -> None:
    """A line for the person at the terminal, on stderr, so that stdout stays for results.

    Nothing in it steers the terminal (`hada.extract.common.terminal`).

    Args:
        text: What is said; escapes and, without `lines`, newlines in it are shown, not obeyed.
        lines: The newlines are ours and begin new lines.
    """
    click.echo(visible(text) if lines else in_line(text), err=True)


def tell(text: object, *, lines: bool = False) -> None:
    """A result, on stdout; the rest is as in `say`.

    Args:
        text: The result.
        lines: The newlines are ours and begin new lines.
    """
    click.echo(visible(text) if lines else in_line(text))


def explain(error: BaseException) -> tuple[str, int]:
    """An exception as (one message, exit code). Unknown ones are our own defects: code 1."""
    if isinstance(error, HadaError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted. What is done is kept; the same command continues.", 130
    if isinstance(error, OSError):
        name = f": {error.filename!r}" if error.filename else ""
        remedy = _OS_REMEDIES.get(error.errno or 0, "")
        return f"{error.strerror or error}{name}. {remedy}".strip(), 1
    if isinstance(error, MemoryError):
        return "out of memory. Try a smaller --batch-size.", 1
    kind = type(error).__name__
    return f"{kind}: {error} (unexpected; run again with --debug and report it, please)", 1


class _FriendlyMain:
    """Mixin for click commands: run, and end every failure in one line and a code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("standalone_mode", True)
        if not kwargs.pop("standalone_mode"):
            return super().main(*args, standalone_mode=False, **kwargs)  # type: ignore[misc]
        with guarded():
            return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> NoReturn:
        try:
            result = super().main(*args, standalone_mode=False, **kwargs)  # type: ignore[misc]
        except click.ClickException as error:
            text = io.StringIO()
            # Its words quote what was typed, which may claim to be lines of its own.
            vars(error)["message"] = in_line(error.message)
            error.show(text)
            say(text.getvalue().rstrip("\n"), lines=True)
            sys.exit(error.exit_code)
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except click.Abort:
            _fail(KeyboardInterrupt())
        except BrokenPipeError:
            # The reader of our output (head, less) has gone: not our failure.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            sys.exit(1)
        except (Exception, KeyboardInterrupt) as error:
            _fail(error)
        sys.exit(result if isinstance(result, int) else 0)


def _fail(error: BaseException) -> NoReturn:
    if debugging():
        raise error
    message, code = explain(error)
    # One line, also where a library's words in it have several.
    say("error: " + " ".join(message.split("\n")))
    sys.exit(code)


def debugging() -> bool:
    """Whether tracebacks were asked for, by `--debug` or HADA_DEBUG=1."""
    return bool(os.environ.get("HADA_DEBUG"))


def _set_debug(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        os.environ["HADA_DEBUG"] = "1"


def _shared_parameters() -> list[click.Parameter]:
    debug = click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_debug,
        help="Show the traceback of an error.",
    )

    def show_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            tell(f"hada {importlib.metadata.version('hada')}")
            context.exit()

    version = click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show_version,
        help="Show the version and exit.",
    )
    return [debug, version]


def _keep_lines(text: str | None) -> str | None:
    r"""A help text in which the mark `\b` of a raw docstring is the character that click knows."""
    return None if text is None else text.replace("\\b\n", "\b\n")


class HadaCommand(_FriendlyMain, click.Command):
    """A single command, with --debug and --version."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = _keep_lines(self.help)
        self.params.extend(_shared_parameters())


class HadaGroup(_FriendlyMain, click.Group):
    """A command with subcommands; each takes --debug too, wherever it is typed."""

    command_class = HadaCommand

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("no_args_is_help", True)
        super().__init__(*args, **kwargs)
        self.help = _keep_lines(self.help)
        self.params.extend(_shared_parameters())


@contextlib.contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """End with exit code 143 on SIGTERM, cleanly: what is being written is finished first.

    Does nothing outside the main thread, where Python allows no handlers.
    """

    def stop(_number: int, _frame: Any) -> NoReturn:
        say("terminated. What is done is kept; the same command continues.")
        sys.exit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
