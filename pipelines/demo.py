"""The whole of HADA on data that it draws itself: draw, extract, train, evaluate, show.

Every stage is the one that its command runs, and skips what is done, so the demo goes on where it
stopped and the commands go on where the demo ended.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hada.extract.common.console import say, tell
from hada.extract.common.progress import duration
from hada.extract.manifest import Manifest

if TYPE_CHECKING:
    from hada.fuse.plan import Plan

DATASET = "scenes"
MODELS = ("blip", "clip")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What to do.

    `pictures` are the sizes of train, val and test. `seed` is the training's; the data set has its
    own, so that all seeds share it. `settings` change the recipe, as `hada-fuse train --set` does.
    """

    manifest: Manifest
    pictures: tuple[int, int, int] = (4000, 500, 1000)
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    fresh: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


def run_demo(demo: Demo) -> dict[str, Any]:
    """All stages; returns the evaluation's result (see `hada.evaluate.results.measure.measure`)."""
    from hada.extract.common.host import reuse_freed_memory

    reuse_freed_memory()
    started = time.monotonic()
    stages = ("draw the data set", "extract features", "train the fusion", "evaluate")
    timings: dict[str, float] = {}
    outcome: Any = None
    for number, (name, stage) in enumerate(
        zip(stages, (draw, extract, train, evaluate), strict=True), start=1
    ):
        say(f"[{number}/{len(stages)}] {name}")
        began = time.monotonic()
        outcome = stage(demo)
        timings[name] = time.monotonic() - began
    result, page = outcome
    from hada.evaluate.results.text import render

    tell(render(result), lines=True)
    tell(_farewell(demo, page, timings, time.monotonic() - started), lines=True)
    done: dict[str, Any] = result
    return done


def draw(demo: Demo) -> None:
    """Make the pictures and captions, or keep what lies there."""
    from hada.extract.common.progress import progress
    from hada.extract.scenes import write_scenes

    root = demo.manifest.dataset(DATASET).root
    with progress("draw scenes", sum(demo.pictures), "pictures") as advance:
        summary = write_scenes(
            root,
            **dict(zip(SPLITS, demo.pictures, strict=True)),
            fresh=demo.fresh,
            progress=lambda n: advance(n),
        )
    state = "there already" if summary.kept else "drawn"
    say(f"{sum(summary.images.values())} pictures, {summary.captions} captions, {state}: {root}")


def extract(demo: Demo) -> None:
    """Run both frozen models over all splits."""
    from hada.extract.datasets.read import read_dataset
    from hada.extract.engine.options import ExtractOptions
    from hada.extract.engine.summary import summary
    from hada.extract.one_model import extract_model

    entry = demo.manifest.dataset(DATASET)
    data = [read_dataset(entry, split) for split in SPLITS]
    for name in MODELS:
        reports = extract_model(
            demo.manifest,
            demo.manifest.model(name),
            data,
            ExtractOptions(dtype=demo.manifest.defaults.store_dtype, batch_size=64),
            device=demo.device,
            precision=demo.precision,
            fresh=demo.fresh,
        )
        for report in reports:
            say(summary(name, report))


def train(demo: Demo) -> None:
    """Train the fusion on the stores of train, stopping by val."""
    from hada.fuse.job import train_run

    train_run(_plan(demo), device=demo.device, fresh=demo.fresh)


def _plan(demo: Demo) -> Plan:
    from hada.fuse.plan import plan_training
    from hada.fuse.recipes import DEFAULT_RECIPE, recipe

    settings = recipe(DEFAULT_RECIPE).with_settings(demo.settings)
    return plan_training(demo.manifest, DATASET, MODELS, settings, seed=demo.seed)


def evaluate(demo: Demo) -> tuple[dict[str, Any], Path]:
    """All methods on test as JSON, and the run's page; returns the result and the page's path."""
    from hada.evaluate.methods.build import build, finished_runs
    from hada.evaluate.methods.request import Request
    from hada.evaluate.pages.report import write_page
    from hada.evaluate.results.measure import measure
    from hada.extract.common import atomic
    from hada.fuse.run_folder import RunFolder

    folder = Path(demo.manifest.runs) / DATASET
    runs = tuple(finished_runs(folder))
    request = Request(dataset=DATASET, split="test", runs=runs, device=demo.device)
    gallery, methods = build(demo.manifest, request)
    result = measure(gallery, methods)
    atomic.write_json(folder / "recall-test.json", result)
    run = RunFolder(_plan(demo).folder)
    page = run.path / "report-test.html"
    command = "hada-pipeline demo"
    return result, write_page(page, demo.manifest, run, gallery, methods, result, command=command)


def _farewell(demo: Demo, page: Path, timings: dict[str, float], seconds: float) -> str:
    manifest = demo.manifest
    spent = ", ".join(f"{name} {duration(took)}" for name, took in timings.items())
    return f"""
Done in {duration(seconds)} ({spent}).

  page     {page}
  runs     {Path(manifest.runs) / DATASET}
  stores   {Path(manifest.stores) / DATASET}
  data     {manifest.dataset(DATASET).root}

Type next, in the same folder:
  hada-extract --model blip --split test      what is stored already is skipped
  hada-fuse train --seed 1                    another seed
  hada-evaluate recall                        the table above, with the new run in it
Your own pictures: add a dataset to data_manifest.yaml, then the same three commands."""
