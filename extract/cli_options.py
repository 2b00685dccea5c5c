"""Options that several commands share: the manifest and its roots."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hada.extract.common.errors import UsageError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def number_or_auto(_context: click.Context, _parameter: click.Parameter, value: str) -> int | None:
    """Callback of an option: a whole number from 1, or `auto`, which becomes None.

    Args:
        _context: Click's; not read.
        _parameter: Click's; not read.
        value: What stands on the command line.

    Raises:
        BadParameter: The value is neither.
    """
    if value == "auto":
        return None
    if not value.isascii() or not value.isdigit() or not 1 <= len(value) < 10 or int(value) < 1:
        raise click.BadParameter(f"{value[:40]!r} is neither a whole number from 1 nor 'auto'")
    return int(value)


def manifest_options(command: Decorated) -> Decorated:
    """Add --manifest and --root; the command receives the loaded `manifest`."""

    @click.option(
        "--manifest",
        "manifest_path",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The data manifest. [default: ./data_manifest.yaml, else the one HADA ships]",
    )
    @click.option(
        "--root",
        "roots",
        multiple=True,
        metavar="NAME=PATH",
        help="Where dataset NAME lies on this machine; may be given several times. "
        "NAME may also be 'stores' or 'runs'.",
    )
    @functools.wraps(command)
    def wrapper(*args: Any, manifest_path: Path | None, roots: tuple[str, ...], **rest: Any) -> Any:
        from hada.extract.manifest import load_manifest

        manifest = load_manifest(manifest_path, roots=parse_assignments(roots, "--root"))
        return command(*args, manifest=manifest, **rest)

    return wrapper  # type: ignore[return-value]


def parse_assignments(values: tuple[str, ...], option: str) -> dict[str, str]:
    """`("a=1", "b=2")` to a dict.

    >>> parse_assignments(("flickr8k=/data/f8k",), "--root")
    {'flickr8k': '/data/f8k'}

    Args:
        values: Texts of the form NAME=VALUE; a later one of the same name counts.
        option: The option that they were given to, for the message.

    Returns:
        Name -> value; the value is everything behind the first `=`.

    Raises:
        UsageError: A text has no name or no `=`.
    """
    pairs = {}
    for value in values:
        name, equals, assigned = value.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {value!r}: expected NAME=VALUE, e.g. {option} name=value")
        pairs[name.strip()] = assigned
    return pairs


def device_option(command: Decorated) -> Decorated:
    """Add --device; `hada.extract.common.device.choose_device` says what it means."""
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps.",
    )(command)
