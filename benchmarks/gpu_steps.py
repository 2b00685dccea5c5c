"""One step of `benchmarks/gpu.py`, which starts this program: see there.

Figures go to `--figures` as lines of JSON as soon as they are known, so that a step that is ended
for want of time leaves those it had. Everything else that is printed goes to the step's log.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import torch
from gpu_extraction import extraction

ROOT = Path(__file__).resolve().parent.parent
EPOCHS_OF_A_TRAINING = 30
Say = Callable[..., None]


def machine(arguments: argparse.Namespace, say: Say) -> None:
    """What all figures were measured on; ends where the device does not work."""
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--device {device}: torch {torch.__version__} sees no CUDA GPU")
    say(python=platform.python_version(), torch=torch.__version__, cuda=torch.version.cuda)
    say(cpus=len(os.sched_getaffinity(0)), load=round(os.getloadavg()[0], 2))
    if device.type == "cuda":
        has = torch.cuda.get_device_properties(device)
        say(gpu=has.name, gpu_bytes=has.total_memory, capability=f"{has.major}.{has.minor}")
    square = torch.randn(64, 64, device=device)
    say(works=bool(torch.isfinite(square @ square).all()))


def gpu_tests(folder: Path) -> list[str]:
    """The tests that are marked `gpu`, as pytest names them; no file is imported for it."""
    found = []
    for path in sorted(folder.rglob("test_*.py")):
        text = path.read_text()
        if "mark.gpu" not in text:
            continue
        body, lines = ast.parse(text).body, text.split("\n")
        whole = any(
            isinstance(node, ast.Assign) and "mark.gpu" in ast.unparse(node) for node in body
        )
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                own = "\n".join(lines[first - 1 : node.end_lineno])
                if whole or "mark.gpu" in own:
                    found.append(f"{path}::{node.name}")
    return found


class Counted:
    """Outcomes of tests, as a plugin of pytest."""

    def __init__(self) -> None:
        self.passed = self.skipped = 0
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count what a test came to; a failed set-up counts as a failed test."""
        self.skipped += report.skipped
        self.passed += report.passed and report.when == "call"
        if report.failed:
            self.failed.append(report.nodeid)


def tests(arguments: argparse.Namespace, say: Say) -> None:
    """The equalities of CPU and GPU that the test suite holds."""
    # Plugins that happen to be installed are no part of what is measured.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest

    names = gpu_tests(ROOT / "tests")
    # The folder of this program has an `extract` of its own.
    sys.path.remove(str(Path(__file__).resolve().parent))
    counted = Counted()
    # Warnings of another torch than the pinned one are no differences of results.
    words = ["-q", "-W", "default", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    code = pytest.main([*words, "-c", str(ROOT / "pyproject.toml"), *names], [counted])
    say(chosen=len(names), **vars(counted))
    if code:
        raise SystemExit(
            f"pytest ended with {int(code)}: {', '.join(counted.failed) or 'see its log'}"
        )


def drawn_training(arguments: argparse.Namespace, say: Say, *, reading: str) -> None:
    """Seconds of an epoch of Flickr30k's size beside one pass over its bytes."""
    import study

    device = torch.device(arguments.device)
    if arguments.tiny:
        study.COPIED_BYTES, study.BLOCK = 1 << 20, 1 << 16
    rate = study.reading_rate(device, reading)
    place = device if reading == "device" else torch.device("cpu")
    images = 6 if arguments.tiny else 29_000
    split = study.DrawnSplit(images, place, pinned=device.type == "cuda")
    once = split.bytes / rate
    say(reading=reading, images=images, token_bytes=split.bytes, bytes_per_second=round(rate))
    say(seconds_of_one_pass=round(once, 4))
    timed(arguments, say, split, once=once)


def timed(
    arguments: argparse.Namespace,
    say: Say,
    split: Any,
    *,
    once: float | None = None,
    shards: int = 0,
    windows: bool = False,
    prefix: str = "",
) -> None:
    """Some epochs of the recipe `fast` on a split; the first one warms up."""
    import study

    from hada.fuse.recipes import RECIPES
    from hada.fuse.tokens.loader import Loader

    device = torch.device(arguments.device)
    recipe = RECIPES["fast"].with_settings({"precision": "bf16"})
    objective = study.build_objective(recipe, split, 0).to(device)
    training = recipe.training
    job = study.Job(
        objective=objective,
        optimizer=study.build_optimizer(recipe, objective),
        loader=Loader(
            split, training.order, training.batch_size, 0, shards=shards, windows=windows
        ),
        val=split,
        recipe=recipe,
        run=study.RunFolder(Path("run")),
        device=device,
        report=print,
    )
    times: list[float] = []
    for number in range(2 if arguments.tiny else 3):
        study.wait(device)
        began = time.perf_counter()
        position = study.Position(epoch=number)
        study.train_epoch(job, position)
        study.wait(device)
        times.append(time.perf_counter() - began)
        epoch = statistics.median(times[1:] or times)
        figures: dict[str, Any] = {"epoch_seconds": [round(t, 3) for t in times]}
        figures["seconds_of_30_epochs"] = round(EPOCHS_OF_A_TRAINING * epoch, 1)
        figures["loss"] = round(position.sums["total"] / position.step, 4)
        if once is not None:
            figures["epoch_over_one_pass"] = round(epoch / once, 2)
        say(**{prefix + key: value for key, value in figures.items()})


def stored_training(arguments: argparse.Namespace, say: Say) -> None:
    """The same small training with tokens from stores, in every way of `--reading`."""
    import study
    from gpu_stores import make_store

    from hada.extract.common.host import reuse_freed_memory
    from hada.fuse.recipes import RECIPES
    from hada.fuse.tokens.placement import choose_reading
    from hada.fuse.tokens.split import Split

    reuse_freed_memory()
    images, count = (32, 5) if arguments.tiny else (2048, study.IMAGE_TOKENS)
    stores = [
        make_store(Path(f"m{number}"), f"m{number}", images, count, widths)
        for number, widths in enumerate(study.WIDTHS)
    ]
    device = torch.device(arguments.device)
    training = RECIPES["fast"].training
    ways = ("memory", "mapped", "window")
    ways = ("device", *ways) if device.type == "cuda" else ways
    say(images=images, token_bytes=Split(stores, in_memory=False).bytes)
    for mode in ways:
        split, val = (
            Split(stores, in_memory=False, pinned=device.type == "cuda") for _ in range(2)
        )
        order, size = training.order, training.batch_size
        way = choose_reading(split, val, order, size, mode=mode, device=device)
        way.apply(split, val)
        windows = way.mode == "window"
        timed(arguments, say, split, shards=way.shards, windows=windows, prefix=f"{mode}_")


def recall(arguments: argparse.Namespace, say: Say, *, images: int, against_cpu: bool) -> None:
    """Recall from embeddings, five captions an image; peak memory of the host beside the GPU's."""
    import recall as bench

    images = images // 100 if arguments.tiny else images
    wanted = argparse.Namespace(
        images=images, per_image=5, width=512, way="ours", rounds=2, growth_step=True
    )
    figures = bench.measure(argparse.Namespace(**vars(wanted), device=arguments.device))
    say(images=images, captions=5 * images, width=512, recall=figures["figures"])
    say(seconds=round(figures["seconds"], 4), host_megabytes=round(figures["megabytes"], 1))
    if against_cpu:
        slow = bench.measure(argparse.Namespace(**vars(wanted), device="cpu"))
        pairs = zip(figures["figures"], slow["figures"], strict=True)
        say(
            cpu_seconds=round(slow["seconds"], 4),
            differs_from_cpu=max(abs(a - b) for a, b in pairs),
        )


RUN: dict[str, Callable[[argparse.Namespace, Say], None]] = {
    "machine": machine,
    "tests": tests,
    "extract-clip-embeddings": partial(extraction, model="ViT-L-14-336", tokens="none"),
    "extract-clip-tokens": partial(extraction, model="ViT-L-14-336", tokens="all"),
    "train-device": partial(drawn_training, reading="device"),
    "recall-5k": partial(recall, images=5_000, against_cpu=True),
    "recall-100k": partial(recall, images=100_000, against_cpu=False),
    "extract-blip-embeddings": partial(extraction, model="blip-base-384", tokens="none"),
    "extract-blip-tokens": partial(extraction, model="blip-base-384", tokens="all"),
    "train-memory": partial(drawn_training, reading="memory"),
    "train-files": stored_training,
    "extract-clip-compiled": partial(
        extraction, model="ViT-L-14-336", tokens="none", compiled=True
    ),
}


def packages() -> list[str]:
    """The packages that this process has imported."""
    owners = packages_distributions()
    names = {name.partition(".")[0] for name in list(sys.modules)}
    return sorted({owner for name in names for owner in owners.get(name, ())})


def main() -> None:
    """Run the step that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("step", choices=RUN)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--figures", type=Path, required=True)
    arguments = parser.parse_args()
    on_gpu = torch.device(arguments.device).type == "cuda"

    def say(**figures: Any) -> None:
        figures["peak_host_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if on_gpu and torch.cuda.is_available():
            figures["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(arguments.device)
        with arguments.figures.open("a") as file:
            file.write(json.dumps(figures) + "\n")

    try:
        RUN[arguments.step](arguments, say)
    finally:
        say(packages=packages())


if __name__ == "__main__":
    main()
