"""hada: every command of this project under one name, each imported when it is asked for."""

from __future__ import annotations

import importlib

import click

from hada.extract.common.console import HadaGroup

# In the order of the work; each is also installed as hada-NAME.
COMMANDS = {
    "extract": "hada.extract.cli:extract",
    "store": "hada.extract.cli:store",
    "fuse": "hada.fuse.cli:fuse",
    "evaluate": "hada.evaluate.cli:evaluate",
    "pipeline": "hada.pipelines.cli:pipeline",
}


class Umbrella(HadaGroup):
    """A group whose commands are those of other modules, imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the work."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name; None for one that there is not."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=Umbrella)
def hada() -> None:
    r"""Fuse frozen vision-language models for image-text retrieval.

    \b
    The same commands as hada-extract, hada-store, hada-fuse, hada-evaluate and hada-pipeline:
      hada extract --model blip --split test
      hada fuse train
      hada evaluate recall
    \b
    Completion in bash (zsh and fish: bash_source becomes zsh_source, fish_source):
      eval "$(_HADA_COMPLETE=bash_source hada)"
    """
