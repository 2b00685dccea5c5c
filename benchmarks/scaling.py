"""What pipelines cost: workers against one, overhead per shard, and a plan of many shards.

    benchmarks/scaling.py workers    shards a second with 1 and 2 workers, one thread each
    benchmarks/scaling.py overhead   seconds per shard beyond the work, shards of nearly nothing
    benchmarks/scaling.py plan       a plan of 100,000 shards, none and all of them there

`workers` runs the shipped BLIP over drawn pictures, so it measures the machine as well: with fewer
free cores than workers it shows the others' load, and only the shards per second of processor time
still tell what a second worker costs the first. Start-up (processes, PyTorch, the model) is
measured apart: it is paid once a run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

STUDY = """\
schema: 1
name: scaling
device: cpu
extract:
  - {{dataset: {dataset}, models: [{model}], splits: [{split}], shard_size: {size}, batch_size: 32}}
"""
FAKE = """\
schema: 1
defaults: {dataset: many, models: [one]}
stores: stores
runs: runs
datasets:
  many:
    reader: karpathy
    root: data
    annotations: dataset.json
    images: images
    splits: {train: {}}
models:
  one: {family: fake, weights: a}
"""


def make_many(count: int) -> None:
    """A data set of `count` pictures, one file, five captions each."""
    images = Path("data/images")
    images.mkdir(parents=True)
    records = []
    for number in range(count):
        name = f"{number:06d}.jpg"
        (images / name).touch()
        sentences = [{"raw": f"a red thing {k}", "sentid": f"{number}-{k}"} for k in range(5)]
        records.append({"filename": name, "split": "train", "sentences": sentences})
    Path("data/dataset.json").write_text(json.dumps({"images": records}))
    Path("data_manifest.yaml").write_text(FAKE)


def study(dataset: str, model: str, split: str, size: int, manifest: Path | None = None) -> Any:
    """The jobs' states and the folder of a pipeline that extracts one store."""
    from hada.extract.manifest import load_manifest, load_shipped
    from hada.pipelines.state import Folder
    from hada.pipelines.study.config import load_pipeline
    from hada.pipelines.study.resolve import build_jobs

    file = Path("study.yaml")
    file.write_text(STUDY.format(dataset=dataset, model=model, split=split, size=size))
    loaded = load_manifest(manifest) if manifest else load_shipped({})
    return build_jobs(load_pipeline(file, loaded), loaded), Folder("runs", "scaling")


def extract(jobs: Any, folder: Any, workers: int) -> tuple[float, float, int, float]:
    """Seconds with all workers, seconds before, shards that ended meanwhile, their processor time.

    The clock starts when the last of the workers has finished its first shard, for which it loads
    the model, and stops with the last shard.
    """
    from hada.pipelines.execution.dask_pools import local_pool
    from hada.pipelines.execution.display import Display
    from hada.pipelines.execution.driver import Driver, Limits
    from hada.pipelines.study.survey import survey

    class Clock(Display):
        def outcome(self, outcome: Any, slots: int) -> None:
            assert outcome["status"] == "done", outcome
            ends.append((time.monotonic(), outcome["pid"], outcome["cpu_seconds"]))

    ends: list[tuple[float, int, float]] = []
    states = survey(jobs)
    clock = Clock(states)
    began = time.monotonic()
    with local_pool(workers, []) as pool:
        while pool.slots() < workers:
            time.sleep(0.1)
        Driver(states, pool, folder, Limits(retries=0), clock, threads=1).run()
    ends.pop()  # the task after the last shard
    firsts = {pid: at for at, pid, _ in reversed(ends)}
    assert len(firsts) == workers, firsts
    start = max(firsts.values())
    cpu = [seconds for at, _, seconds in ends if at > start]
    return ends[-1][0] - start, start - began, len(cpu), sum(cpu)


def measure_workers(repeats: int) -> None:
    """Shards a second with one and with two workers, in turn."""
    from hada.extract.scenes import write_scenes

    write_scenes(Path("data/scenes"), train=3072, val=1, test=1)
    rates: dict[int, list[float]] = {1: [], 2: []}
    frugal: dict[int, list[float]] = {1: [], 2: []}
    for number in range(repeats):
        for workers, found in rates.items():
            jobs, folder = study("scenes", "blip", "train", 128)
            for job in jobs:
                object.__setattr__(job, "store", f"stores/{number}-{workers}")
            seconds, start, shards, cpu = extract(jobs, folder, workers)
            found.append(shards / seconds)
            frugal[workers].append(shards / cpu)
            print(
                f"{workers} workers: {shards / seconds:.2f} shards/s, {shards / cpu:.2f} a second "
                f"of processor time, start-up {start:.1f} s, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    for name, both in (("shards/s", rates), ("shards/s of processor time", frugal)):
        one, two = (statistics.median(found) for found in both.values())
        ratios = [b / a for a, b in zip(*both.values(), strict=True)]
        print(f"median: {one:.2f} and {two:.2f} {name}, {statistics.median(ratios):.2f} times")


def measure_overhead(repeats: int) -> None:
    """Shards of one tiny picture: what is left is opening, committing and scheduling."""
    from PIL import Image

    make_many(200)
    for path in Path("data/images").iterdir():
        Image.new("RGB", (32, 24), (200, 30, 120)).save(path, quality=95)
    for number in range(repeats):
        jobs, folder = study("many", "one", "train", 1, Path("data_manifest.yaml"))
        for job in jobs:
            object.__setattr__(job, "store", f"stores/{number}")
        seconds, _, shards, _ = extract(jobs, folder, 1)
        spent = [r["seconds"] for r in folder.records() if r.get("side") != "finish"][-shards:]
        own = sum(spent) / len(spent)
        print(
            f"{1000 * seconds / shards:.1f} ms a shard, of which {1000 * own:.1f} ms are the task "
            f"itself (commit with fsync) and {1000 * (seconds / shards - own):.1f} ms scheduling"
        )


def measure_plan(count: int) -> None:
    """`count` images and 5 / 8 as many shards of captions, one image a shard."""
    from hada.pipelines.study import plan_table
    from hada.pipelines.study.survey import survey

    make_many(round(count / 1.625))
    jobs, _ = study("many", "one", "train", 1, Path("data_manifest.yaml"))
    _plan(survey, plan_table, jobs, "none there")
    fill(jobs[0])
    _plan(survey, plan_table, jobs, "all there")


def _plan(survey: Any, planning: Any, jobs: Any, name: str) -> None:
    from hada.pipelines.study.datasets import forget_datasets

    forget_datasets()
    began, worked = time.monotonic(), time.process_time()
    states = survey(jobs)
    planning.table(states, {})
    seconds, cpu = time.monotonic() - began, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (state,) = states.values()
    print(
        f"{state.done:,}/{state.total:,} shards, {name}: {seconds:.1f} s, of which the processor "
        f"{cpu:.1f} s, peak {peak:.2f} GiB",
        flush=True,
    )


def fill(job: Any) -> None:
    """Markers and files as a finished store has them, one byte each: the plan reads no more."""
    from hada.extract.backbones import load_backbone
    from hada.extract.backbones.base import BackboneRequest
    from hada.extract.engine.extraction import Extraction
    from hada.extract.store import commit, digests
    from hada.extract.store.record import read_record, shard_names
    from hada.pipelines.study.datasets import dataset_of

    request = BackboneRequest(name="one", family="fake", weights="a", options={})
    writer = Extraction.open(load_backbone(request), dataset_of(job), job.store, job.options).writer
    record = read_record(writer.folder)
    features, digest = record.features, writer.spec.digest()
    for side in ("image", "caption"):
        for shard in range(writer.shards(side)):
            files: dict[str, tuple[int, str | int]] = {}
            arrays = shard_names(writer.spec, side)
            for name in record.form.shard_files(side, shard, arrays):
                (features / name).parent.mkdir(parents=True, exist_ok=True)
                (features / name).write_bytes(b"x")
                files[name] = 1, "0"
            body = commit.marker_body(
                commit.Marker(
                    side=side,
                    shard=shard,
                    spec_digest=digest,
                    files=files,
                    failed={},
                    provenance={"batch_size": 32},
                    root=record.root,
                    crcs=dict.fromkeys(arrays, "AAAAAA=="),
                )
            )
            marker = json.dumps(body | {"digest": digests.of_json(body)})
            commit.marker_path(writer.folder, side, shard).write_text(marker)
    writer.finish()


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["workers", "overhead", "plan"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shards", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if arguments.what == "plan":
            measure_plan(arguments.shards)
        elif arguments.what == "overhead":
            measure_overhead(arguments.repeats)
        else:
            measure_workers(arguments.repeats)
        os.chdir("/")


if __name__ == "__main__":
    main()
