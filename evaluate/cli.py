"""`hada-evaluate`: the figures of frozen models and their fusions, from stores and runs alone.

Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hada.evaluate.cli_options import bootstrap_options, p_values_option
from hada.evaluate.inspect_cli import report, search, zeroshot
from hada.evaluate.serve.cli import serve
from hada.extract.cli_options import device_option, manifest_options
from hada.extract.common.console import HadaGroup, say, tell

if TYPE_CHECKING:
    from hada.extract.manifest import Manifest


@click.group(cls=HadaGroup)
def evaluate() -> None:
    """Measure frozen models and their fusions, side by side."""


@evaluate.command()
@click.option("--dataset", "-d", help="Dataset of the manifest. [default: the manifest's]")
@click.option("--split", "-s", default="test", show_default=True, help="Split to evaluate.")
@click.option(
    "--run",
    "-r",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A run's folder, one of hada-fuse export, or hf-hub:ORG/NAME; may be given several times. "
    "[default: all runs of the dataset]",
)
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="NAME",
    help="Models to show beside the runs'. [default: the manifest's where there is no run]",
)
@click.option(
    "--train-split", default="train", show_default=True, help="Trains concatenation + linear."
)
@click.option(
    "--val-split",
    default="val",
    show_default=True,
    help="Tunes the weighted sum, stops the linear.",
)
@click.option("--quick", is_flag=True, help="Only the models, their mean, and the runs.")
@click.option(
    "--folds",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of galleries of consecutive images, averaged; 5 on COCO's test is COCO 1K.",
)
@click.option(
    "--rerank",
    metavar="K",
    default=0,
    type=click.IntRange(min=0),
    help="Also reorder the first K results of each run by its match head, as methods of their own.",
)
@click.option(
    "--rerank-with",
    metavar="MODEL",
    help="With --rerank: use this frozen model's match head, and re-rank the model itself too; "
    "late:MODEL is late interaction over its stored tokens, cross-encoder:PATH-OR-ID a model of "
    "sentence-transformers.",
)
@click.option(
    "--late",
    metavar="MODEL",
    multiple=True,
    help="Also late interaction over this model's stored tokens; several times for several. "
    "[always: multi-vector models]",
)
@click.option(
    "--correct",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="auto: also every simple method with its hubs corrected, and a closed-form head.",
)
@click.option(
    "--transductive",
    is_flag=True,
    help="Also, set apart, corrections that look at all queries of the split at once.",
)
@click.option(
    "--eccv", is_flag=True, help="COCO's test: also ECCV Caption's mAP@R and R-Precision, and CxC."
)
@bootstrap_options
@p_values_option
@device_option
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The result as JSON. [default: RUNS/DATASET/recall-SPLIT.json]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of the table.")
@click.option(
    "--plan",
    metavar="[IxT]",
    is_flag=False,
    flag_value="stores",
    help="Only print the cost: for the stores, or for I images and T captions.",
)
@manifest_options
def recall(
    manifest: Manifest,
    dataset: str | None,
    split: str,
    runs: tuple[Path, ...],
    models: tuple[str, ...],
    train_split: str,
    val_split: str,
    quick: bool,
    folds: int,
    rerank: int,
    rerank_with: str | None,
    late: tuple[str, ...],
    correct: Literal["auto", "none"],
    transductive: bool,
    eccv: bool,
    resamples: int,
    seed: int,
    p_values_anyway: bool,
    device: str,
    output: Path | None,
    as_json: bool,
    plan: str | None,
) -> None:
    r"""R@1/5/10 both ways and RSum: each model, simple combinations, every fusion.

    \b
    Examples:
      hada-evaluate recall
      hada-evaluate recall --dataset flickr8k --split val
      hada-evaluate recall --split val --run runs/scenes/blip+clip-fast-s0 --quick
      hada-evaluate recall --quick --plan 1000000x5000000
    """
    from hada.evaluate.results.recall import make_request
    from hada.evaluate.results.recall import recall as measure_recall
    from hada.evaluate.results.text import render
    from hada.extract.common import atomic
    from hada.extract.common.device import choose_device

    asked: dict[str, Any] = {
        "dataset": dataset,
        "split": split,
        "runs": runs or None,
        "models": models,
        "train_split": train_split,
        "val_split": val_split,
        "quick": quick,
        "device": device,
        "rerank": rerank,
        "rerank_with": rerank_with,
        "late": late,
        "correct": correct,
        "transductive": transductive,
    }
    if plan is not None:
        from hada.evaluate.results import cost, cost_rates

        request = make_request(manifest, **asked)
        planned = cost.make_plan(manifest, request, plan, folds=folds, resamples=resamples)
        ranked_on = choose_device(device)
        tell(cost.as_text(planned, cost_rates.seconds(planned, ranked_on), ranked_on), lines=True)
        return
    result = measure_recall(
        manifest,
        **asked,
        folds=folds,
        eccv=eccv,
        resamples=resamples,
        seed=seed,
        p_values_anyway=p_values_anyway,
    )
    suffix = f"-{folds}folds" if folds > 1 else ""
    name = manifest.dataset(dataset).name
    target = output or Path(manifest.runs) / name / f"recall-{split}{suffix}.json"
    atomic.write_json(target, result)
    tell(json.dumps(result, indent=2) if as_json else render(result), lines=True)
    say(f"written to {target}")


@evaluate.command()
@click.argument("first", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("second", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option(
    "--method", metavar="NAME", help="Method of FIRST. [default: its last fusion, else its best]"
)
@click.option("--with-method", metavar="NAME", help="Method of SECOND. [default: as for FIRST]")
@bootstrap_options
@p_values_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(
    first: Path,
    second: Path | None,
    method: str | None,
    with_method: str | None,
    resamples: int,
    seed: int,
    p_values_anyway: bool,
    as_json: bool,
) -> None:
    r"""Compare two results: is SECOND better than FIRST, or is the difference noise?

    \b
    Examples:
      hada-evaluate compare before.json after.json
      hada-evaluate compare recall-test.json --method clip --with-method "mean of cosines"
    """
    from hada.evaluate.results.compare import choose_method, compare, sentences
    from hada.evaluate.results.read import read_result

    paths = (first, second or first)
    results = [read_result(path) for path in paths]
    methods = [
        choose_method(result, name, path)
        for result, name, path in zip(results, (method, with_method), paths, strict=True)
    ]
    difference = compare(
        (results[0], methods[0]),
        (results[1], methods[1]),
        resamples=resamples,
        seed=seed,
        p_values_anyway=p_values_anyway,
    )
    for result, asked, chosen in zip(results, (method, with_method), methods, strict=True):
        if asked is None and chosen["kind"] != "hada" and len(result["methods"]) > 1:
            say(
                f"{chosen['name']}: picked as the best on this very split, which flatters it; "
                "choose it beforehand with --method and --with-method"
            )
    if as_json:
        tell(json.dumps(difference, indent=2), lines=True)
        return
    for line in sentences(difference):
        tell(line)


@evaluate.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--format", "form", type=click.Choice(["md", "csv", "latex"]), default="md")
def table(results: tuple[Path, ...], form: str) -> None:
    r"""Results as one table to paste: Markdown, CSV or LaTeX.

    \b
    Examples:
      hada-evaluate table runs/*/recall-test.json
      hada-evaluate table runs/coco/recall-test.json --format latex
    """
    from hada.evaluate.results.export import as_table
    from hada.evaluate.results.read import read_result

    tell(as_table([read_result(path) for path in results], form), lines=True)


for command in (report, search, serve, zeroshot):
    evaluate.add_command(command)
