"""`hada-evaluate serve`; nothing heavy is imported until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hada.extract.cli_options import device_option, manifest_options
from hada.extract.common.console import HadaCommand

if TYPE_CHECKING:
    from hada.extract.manifest import Manifest


@click.command(cls=HadaCommand)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--model", "-m", metavar="NAME", help="One frozen model in place of a run.")
@click.option("--dataset", "-d", help="Dataset of the manifest. [default: the run's]")
@click.option(
    "--split",
    "-s",
    "splits",
    multiple=True,
    default=("test",),
    show_default=True,
    help="Split to search; may be given several times.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one."
)
@click.option(
    "--token",
    envvar="HADA_TOKEN",
    help="What clients must send; needed beyond this machine. Better as HADA_TOKEN: other users "
    "see command lines.",
)
@click.option(
    "--max-bytes",
    default=10 << 20,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of an image that is sent.",
)
@click.option(
    "--max-pixels",
    default=40_000_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="The same.",
)
@device_option
@manifest_options
def serve(
    manifest: Manifest,
    run: Path | None,
    model: str | None,
    dataset: str | None,
    splits: tuple[str, ...],
    host: str,
    port: int,
    token: str | None,
    max_bytes: int,
    max_pixels: int,
    device: str,
) -> None:
    r"""Serve a run: a page and a JSON API that search by text and image.

    RUN is a run's folder, one of hada-fuse export, or hf-hub:ORG/NAME; by default the newest.
    Needs the extra serve. The API is described at /docs and /openapi.json.

    \b
    Examples:
      hada-evaluate serve
      hada-evaluate serve runs/scenes/blip+clip-fast-s0 --split test --split val --port 9000
      HADA_TOKEN=... hada-evaluate serve blip-clip --host 0.0.0.0
    """
    from hada.extract.common.host import sleep_while_waiting

    # Before torch is imported: its threads read the policy once.
    sleep_while_waiting()

    from hada.evaluate.serve.run import serve as start
    from hada.evaluate.serve.settings import Settings

    settings = Settings(host, port, token or None, max_bytes, max_pixels)
    start(
        manifest,
        run=run,
        model=model,
        dataset=dataset,
        splits=splits,
        device=device,
        settings=settings,
    )
