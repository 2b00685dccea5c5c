"""Options that several commands of hada-evaluate share: the bootstrap and its p-values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., object])

p_values_option = click.option(
    "--p-values-anyway",
    is_flag=True,
    help="Give p-values also where a method's parameters saw images of the split; those are too "
    "small.",
)
_resamples = click.option(
    "--resamples", default=10_000, show_default=True, type=click.IntRange(min=100)
)
_seed = click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))


def bootstrap_options(command: Command) -> Command:
    """Give a command `resamples` and `seed`: how often the bootstrap draws, and its seed."""
    return _resamples(_seed(command))
