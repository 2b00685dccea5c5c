"""`hada-evaluate report`, `search` and `zeroshot`.

Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hada.evaluate.cli_options import bootstrap_options, p_values_option
from hada.extract.cli_options import device_option, manifest_options
from hada.extract.common.console import HadaCommand, tell

if TYPE_CHECKING:
    from hada.extract.manifest import Manifest


@click.command(cls=HadaCommand)
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--dataset", "-d", help="Dataset of the manifest. [default: the run's]")
@click.option("--split", "-s", default="test", show_default=True, help="Split to evaluate.")
@click.option("--quick", is_flag=True, help="Only the models, their mean, and the run.")
@bootstrap_options
@p_values_option
@device_option
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page. [default: RUN/report-SPLIT.html; of an exported run "
    "RUNS/DATASET/NAME-exported/report-SPLIT.html; on another dataset report-DATASET-SPLIT.html]",
)
@manifest_options
def report(
    manifest: Manifest,
    run: Path,
    dataset: str | None,
    split: str,
    quick: bool,
    resamples: int,
    seed: int,
    p_values_anyway: bool,
    device: str,
    output: Path | None,
) -> None:
    r"""Write one HTML page about a run: figures, curves, gains, losses and attention.

    RUN is a run's folder, one of hada-fuse export, or hf-hub:ORG/NAME.

    \b
    Examples:
      hada-evaluate report runs/scenes/blip+clip-fast-s0
      hada-evaluate report runs/flickr8k/mine --split val -o mine.html
      hada-evaluate report blip-clip --dataset photos
    """
    from hada.evaluate.pages.report import file_name
    from hada.evaluate.pages.report import report as write_report
    from hada.fuse.run_folder import RunFolder

    if output is None:
        folder = RunFolder(run)
        output = folder.derived(manifest.runs) / file_name(folder, dataset, split)
    target = write_report(
        manifest,
        run,
        dataset=dataset,
        split=split,
        device=device,
        quick=quick,
        resamples=resamples,
        seed=seed,
        p_values_anyway=p_values_anyway,
        output=output,
    )
    tell(target)


@click.command(cls=HadaCommand)
@click.argument("text", required=False)
@click.option(
    "--image", type=click.Path(path_type=Path, dir_okay=False), help="The query is this image."
)
@click.option(
    "--queries",
    type=click.Path(path_type=Path),
    help="Many queries: a file with a sentence a line, or a folder of images.",
)
@click.option("--dataset", "-d", help="Dataset of the manifest. [default: the run's]")
@click.option("--split", "-s", default="test", show_default=True, help="Split to search.")
@click.option(
    "--run",
    "-r",
    type=click.Path(path_type=Path),
    help="A run's folder, one of hada-fuse export, or hf-hub:ORG/NAME. "
    "[default: the dataset's newest run, where --model is not given]",
)
@click.option("--model", "-m", metavar="NAME", help="One frozen model in place of a run.")
@click.option(
    "--find",
    type=click.Choice(["images", "captions"]),
    help="What to find. [default: images for a text, captions for an image]",
)
@click.option("--top", default=10, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--faiss",
    is_flag=True,
    help="Search approximately, and print how many exact results were found.",
)
@click.option("--jsonl", is_flag=True, help="One JSON object a result.")
@click.option(
    "--page", type=click.Path(path_type=Path, dir_okay=False), help="Also as an HTML page."
)
@device_option
@manifest_options
def search(manifest: Manifest, **request: Any) -> int:
    r"""Find the images for a sentence, or the captions for an image.

    Every result has its id, the score, each model's own cosine, the file and a caption.

    \b
    Examples:
      hada-evaluate search "two hearts on a mint background"
      hada-evaluate search --image photo.jpg --split val --top 3 --jsonl
      hada-evaluate search --queries queries.txt --run blip-clip --jsonl
    """
    from hada.extract.common.host import sleep_while_waiting

    # Before torch is imported: its threads read the policy once.
    sleep_while_waiting()

    from hada.evaluate.search.query import search as find

    return find(manifest, **request)


@click.command(cls=HadaCommand)
@click.option("--model", "-m", required=True, metavar="NAME", help="A model with stored crops.")
@click.option("--dataset", "-d", help="Dataset of the manifest. [default: the manifest's]")
@click.option("--split", "-s", default="test", show_default=True, help="Split to evaluate.")
@click.option(
    "--classes",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Classify: JSON of class name -> list of descriptions. [default: retrieval]",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --classes: JSON of image id -> class name, or several, any of which is right.",
)
@click.option("--prompt", default="a photo of a {}.", show_default=True, help="{} is the class.")
@click.option(
    "--whole",
    type=click.FloatRange(0, 1),
    help="Share of the whole image beside its crops. [default: 0 to classify, as published; "
    "0.5 for retrieval]",
)
@click.option("--keep", default=0.5, show_default=True, type=click.FloatRange(0, 1, min_open=True))
@click.option(
    "--normalize",
    default="official",
    show_default=True,
    type=click.Choice(["official", "none"]),
    help="official: as WCA's code; none: the plain double sum of its formula.",
)
@bootstrap_options
@device_option
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False))
@manifest_options
def zeroshot(manifest: Manifest, **request: Any) -> None:
    r"""Compare WCA and LGCA with the plain model: weighted, selected and expanded random crops.

    \b
    Examples:
      hada-extract --model clip --split test --crops lgca
      hada-evaluate zeroshot --model clip
      hada-evaluate zeroshot --model clip --classes classes.json --labels labels.json
    """
    from hada.evaluate.crops.zeroshot import zeroshot as evaluate_crops

    evaluate_crops(manifest, **request)
