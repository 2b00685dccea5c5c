"""The commands of `hada-pipeline` on a pipeline's YAML; nothing heavy is imported before."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hada.extract.cli_options import manifest_options
from hada.extract.common.console import HadaCommand, tell

if TYPE_CHECKING:
    from hada.extract.manifest import Manifest
    from hada.pipelines.study.config import Pipeline

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
EXIT_CODES = """
Exit codes: 0 everything is done; 1 something failed; 2 the request is wrong; 3 --max-hours left
some to do; 4 another process drives this pipeline; 130 or 143 after Ctrl-C or SIGTERM. After all
but 2 the same command continues."""


def _pipeline_argument(command: Decorated) -> Decorated:
    """Add FILE, --manifest and --root; the command receives `pipeline` and `manifest`."""

    @click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
    @manifest_options
    @functools.wraps(command)
    def wrapper(*args: Any, file: Path, manifest: Manifest, **rest: Any) -> Any:
        from hada.pipelines.study.config import load_pipeline

        return command(*args, pipeline=load_pipeline(file, manifest), manifest=manifest, **rest)

    return wrapper  # type: ignore[return-value]


@click.command(cls=HadaCommand)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON instead of a table.")
@_pipeline_argument
def plan(pipeline: Pipeline, manifest: Manifest, as_json: bool) -> None:
    r"""Show what of a pipeline is done, missing or damaged, and what is left; writes nothing.

    \b
    Examples:
      hada-pipeline plan pipelines/examples/scenes.yaml
      hada-pipeline plan study.yaml --root stores=/scratch/stores --json
    """
    from hada.pipelines.state import Folder
    from hada.pipelines.study import plan_table
    from hada.pipelines.study.resolve import build_jobs
    from hada.pipelines.study.survey import survey

    states = survey(build_jobs(pipeline, manifest))
    rates = Folder(manifest.runs, pipeline.name).rates()
    if as_json:
        tell(json.dumps(plan_table.to_json(states, rates), indent=2), lines=True)
    else:
        tell(plan_table.table(states, rates), lines=True)


@click.command(
    cls=HadaCommand,
    help="""Do what a pipeline still needs: shards, then trainings, then evaluations.

\b
Examples:
  hada-pipeline run study.yaml --workers 4
  hada-pipeline run study.yaml --gpus all --max-hours 8
  hada-pipeline run study.yaml --on slurm --workers 16
  hada-pipeline run study.yaml --on tls://scheduler:8786
  hada-pipeline run study.yaml --retry-failed

What is done is skipped, so the same command continues after an interruption, on any machine that
sees the same stores and runs.
"""
    + EXIT_CODES,
)
@click.option(
    "--on",
    default="local",
    show_default=True,
    metavar="WHERE",
    help="local, slurm, pbs, sge, lsf, htcondor, or the address of a Dask scheduler.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Worker processes of this machine, or jobs of the batch system.",
)
@click.option(
    "--gpus",
    metavar="all|0,1,...",
    help="One worker process for each of these devices, instead of --workers.",
)
@click.option(
    "--decoders",
    type=click.IntRange(min=0),
    help="Processes of each worker that decode pictures. [default: 0, beside GPUs the cores "
    "shared out]",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Further attempts of a task that failed or lost its worker.",
)
@click.option(
    "--max-hours",
    type=click.FloatRange(min=0, min_open=True),
    help="Begin nothing that may not end in this time.",
)
@click.option("--retry-failed", is_flag=True, help="Only what failed last time.")
@click.option(
    "--dashboard",
    is_flag=True,
    help="Start Dask's monitoring pages on 127.0.0.1, where every user of this machine reads them.",
)
@_pipeline_argument
def run(pipeline: Pipeline, manifest: Manifest, **options: Any) -> int:
    """Do what a pipeline still needs (the text for people is above)."""
    from hada.pipelines.execution.run import Request, run_pipeline

    return run_pipeline(pipeline, manifest, Request(**options))


@click.command(cls=HadaCommand)
@click.option(
    "--on", type=click.Choice(["slurm"]), default="slurm", show_default=True, help="The system."
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Elements of an array that may run at once."
)
@click.option("--dry-run", is_flag=True, help="Print the scripts; write and submit nothing.")
@_pipeline_argument
def submit(
    pipeline: Pipeline,
    manifest: Manifest,
    on: str,
    workers: int | None,
    dry_run: bool,
) -> None:
    r"""Submit what a pipeline still needs as plain batch jobs; no process stays behind.

    Every extraction is an array that shares its shards, trainings and evaluations wait for what
    they need. `status` tells how it goes, `cancel` ends it. Submitting again does what is left.

    \b
    Examples:
      hada-pipeline submit study.yaml --dry-run
      hada-pipeline submit study.yaml --workers 8
    """
    from hada.pipelines.execution import slurm
    from hada.pipelines.lock import driving
    from hada.pipelines.state import Folder
    from hada.pipelines.study.resolve import build_jobs
    from hada.pipelines.study.survey import survey

    folder = Folder(manifest.runs, pipeline.name)
    states = survey(build_jobs(pipeline, manifest))
    scripts = slurm.scripts(pipeline, states, folder, workers)
    if dry_run:
        for script in scripts:
            tell(f"# {script.key}, after: {', '.join(script.needs) or 'nothing'}")
            tell(script.text, lines=True)
        return
    if not scripts:
        tell("everything is done")
        return
    with driving(folder):
        for key, id_ in slurm.submit(pipeline, states, folder, scripts).items():
            tell(f"{id_}  {key}")


@click.command(cls=HadaCommand)
@_pipeline_argument
def status(pipeline: Pipeline, manifest: Manifest) -> None:
    r"""Tell where everything is: in stores and runs, in the queue, and what failed last.

    \b
    Examples:
      hada-pipeline status study.yaml
    """
    from hada.pipelines.execution import slurm
    from hada.pipelines.lock import holder
    from hada.pipelines.state import Folder
    from hada.pipelines.study import plan_table
    from hada.pipelines.study.resolve import build_jobs
    from hada.pipelines.study.survey import survey

    folder = Folder(manifest.runs, pipeline.name)
    states = survey(build_jobs(pipeline, manifest))
    tell(plan_table.table(states, folder.rates()), lines=True)
    if who := holder(folder):
        tell(f"driven by {who}")
    for key, counts in slurm.queue(folder).items():
        if counts:
            counted = ", ".join(f"{n} {state.lower()}" for state, n in sorted(counts.items()))
            tell(f"in the queue: {key}: {counted} (job {slurm.submitted(folder)[key]})")
    for (key, side, shard), record in folder.failures().items():
        if key in states and states[key].condition != "done":
            name = " ".join(str(part) for part in (key, side, shard) if part not in ("", -1))
            tell(f"failed last: {name}: {record.get('error', '')}")


@click.command(cls=HadaCommand)
@_pipeline_argument
def cancel(pipeline: Pipeline, manifest: Manifest) -> None:
    r"""End the batch jobs that `submit` has put into the queue; what is done is kept.

    \b
    Examples:
      hada-pipeline cancel study.yaml
    """
    from hada.pipelines.execution import slurm
    from hada.pipelines.state import Folder

    ended = slurm.cancel(Folder(manifest.runs, pipeline.name))
    for key in ended:
        tell(f"cancelled {key}")
    if not ended:
        tell("nothing of this pipeline is in the queue")


@click.command(cls=HadaCommand, hidden=True)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("key")
@click.option("--part", type=click.IntRange(min=0), default=0, help="Which share of the shards.")
def work(file: Path, key: str, part: int) -> int:
    """Do one job of a submitted pipeline: what its batch scripts call."""
    from hada.pipelines.execution import batch_job as module

    return module.work(file, key, part)


COMMANDS = [plan, run, submit, status, cancel, work]
