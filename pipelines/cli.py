"""hada-pipeline: the stages as jobs, and the demo."""

from __future__ import annotations

from pathlib import Path

import click

from hada.extract.cli_options import device_option
from hada.extract.common.console import HadaGroup
from hada.extract.manifest import PRECISIONS
from hada.pipelines.commands import COMMANDS


@click.group(cls=HadaGroup)
def pipeline() -> None:
    """Run extraction, training and evaluation together."""


@pipeline.command()
@click.option(
    "--output",
    default=".",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for data, stores and runs.",
)
@click.option(
    "--pictures",
    type=(click.IntRange(min=1), click.IntRange(min=1), click.IntRange(min=1)),
    default=(4000, 500, 1000),
    show_default=True,
    metavar="TRAIN VAL TEST",
    help="How many to draw.",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Training's."
)
@device_option
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="What the frozen models compute in.",
)
@click.option("--data-only", is_flag=True, help="Draw the data set and stop.")
@click.option("--fresh", is_flag=True, help="Start everything again.")
def demo(
    output: Path,
    pictures: tuple[int, int, int],
    seed: int,
    device: str,
    precision: str,
    data_only: bool,
    fresh: bool,
) -> None:
    r"""Show the whole of HADA on pictures that it draws itself; no download, no GPU.

    Draws 5,500 pictures with captions, runs a small real BLIP and a small real CLIP over them,
    trains the fusion on their features, and compares: each model alone, their mean, a tuned
    weighted sum, concatenation + linear, and HADA. A second call skips what is done.

    \b
    Examples:
      hada-pipeline demo
      hada-pipeline demo --output demo --seed 1
      hada-pipeline demo --data-only
    """
    from hada.extract.manifest import load_shipped
    from hada.pipelines.demo import DATASET, Demo, draw, run_demo

    roots = {
        DATASET: str(output / "data" / DATASET),
        "stores": str(output / "stores"),
        "runs": str(output / "runs"),
    }
    wanted = Demo(
        manifest=load_shipped(roots),
        pictures=pictures,
        seed=seed,
        device=device,
        precision=precision,
        fresh=fresh,
    )
    if data_only:
        draw(wanted)
    else:
        run_demo(wanted)


for _command in COMMANDS:
    pipeline.add_command(_command)
