"""What checksums cost a run: seconds to save and load its files, with them and without.

    OMP_NUM_THREADS=1 python benchmarks/run_files.py [--recipe hada] [--queue 64000] [--times 5]

Widths are the recipe's, inputs two models of 768 wide tokens and 256 wide embeddings. "bare" is
`torch.save` or safetensors through the same atomic write, read back without a look at checksums.
The order of the two changes from round to round; the median is printed.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hada.extract.common import atomic
from hada.fuse.batch import ModelShape
from hada.fuse.network.build import branch_config
from hada.fuse.network.fuser import Fuser
from hada.fuse.recipes import RECIPES
from hada.fuse.run_files.checkpoint import LAST, Position
from hada.fuse.run_files.weights import BEST
from hada.fuse.run_folder import RunFolder
from hada.fuse.training.checkpoint import load_last, save_best, save_last
from hada.fuse.training.objective import Objective
from hada.fuse.training.trainer import build_optimizer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="hada")
    parser.add_argument("--queue", type=int)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    recipe = RECIPES[options.recipe]
    if options.queue is not None:
        recipe = recipe.changed(queue=options.queue)
    shapes = (ModelShape(node_width=768, embedding_width=256),) * 2
    objective = Objective(
        Fuser(branch_config(recipe, shapes), branch_config(recipe, shapes)),
        recipe.loss,
        recipe.scores,
    )
    optimizer = build_optimizer(recipe, objective)
    for parameter in objective.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), objective, optimizer, options.times)


def measure(folder: Path, objective: Objective, optimizer: Any, times: int) -> None:
    """Time both ways of each step, and print the table."""
    run, bare = RunFolder(folder / "run"), folder / "bare"
    run.path.mkdir()
    bare.mkdir()
    position = Position(best_epoch=0)

    def save_bare() -> None:
        state = {"objective": objective.state_dict(), "optimizer": optimizer.state_dict()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic.write_bytes(bare / LAST, buffer.getvalue())

    def load_bare() -> None:
        state = torch.load(bare / LAST, weights_only=True)
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])

    def best_bare() -> None:
        from safetensors.torch import save

        tensors = {k: v.contiguous() for k, v in objective.fuser.state_dict().items()}
        atomic.write_bytes(bare / BEST, save(tensors))

    def read_bare() -> None:
        from safetensors.torch import load_file

        load_file(bare / BEST)

    def load() -> None:
        load_last(run, objective, optimizer, torch.device("cpu"))

    steps: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "save best": (lambda: save_best(run, objective, 0), best_bare),
        "save last": (lambda: save_last(run, objective, optimizer, position), save_bare),
        "load last": (load, load_bare),
        "load best": (run.load_tensors, read_bare),
    }
    print("| step | MB | bare s | checked s | ratio |\n| --- | --- | --- | --- | --- |")
    for name, ways in steps.items():
        seconds: tuple[list[float], list[float]] = ([], [])
        for turn in range(times + 1):
            for way in (0, 1) if turn % 2 else (1, 0):
                began = time.perf_counter()
                ways[way]()
                if turn:  # the first one warms up
                    seconds[way].append(time.perf_counter() - began)
        checked, plain = (statistics.median(some) for some in seconds)
        size = (run.path / (LAST if "last" in name else BEST)).stat().st_size / 1e6
        print(f"| {name} | {size:.0f} | {plain:.3f} | {checked:.3f} | {checked / plain:.2f} |")


if __name__ == "__main__":
    main()
