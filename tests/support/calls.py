"""Commands, called in this process."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner


def call(command: Any, *arguments: object) -> tuple[int, str]:
    """Its exit code and all that it printed."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    return result.exit_code, result.output
