"""Late interaction of all pairs: this project's MaxSim against the obvious way and libraries.

    OMP_NUM_THREADS=1 python benchmarks/maxsim.py
    python benchmarks/maxsim.py --images 1000 --captions 5000 --tokens 50 --widths 64 128 --rounds 3

Every way scores the same images and captions, all in one process, in turns: round after round, so
that a busy machine is busy for all of them. Printed are medians of processor seconds, the median of
each round's ratio to ours, the largest difference of a score, and with `--memory` the peak of a
process of its own above its inputs. Ways whose package is not installed are named and left out:
`pip install sentence-transformers maxsim-cpu late-interaction-kernels`.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hada.fuse.scores.item_nodes import ItemNodes, score_matrix

Sides = tuple[ItemNodes, ItemNodes]
Way = Callable[[Sides], Any]
# The obvious product of all tokens with all tokens is as large as memory allows: 2 GB.
EINSUM_NUMBERS = 1 << 29


def drawn(items: int, tokens: int, width: int, ragged: bool, seed: int) -> ItemNodes:
    """Unit vectors at random, in half precision; with `ragged` a third of the tokens and up."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(tokens // 3, tokens + 1, items) if ragged else np.full(items, tokens)
    vectors = draw.standard_normal((int(lengths.sum()), width), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weights = np.repeat((1 / lengths).astype(np.float32), lengths)
    return ItemNodes(vectors.astype(np.float16), weights, lengths)


def padded(nodes: ItemNodes) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, L, W) and which of them are real."""
    real = torch.arange(int(nodes.lengths.max())) < torch.from_numpy(nodes.lengths)[:, None]
    return nodes.tensors().padded()[0], real


def ours(sides: Sides) -> Any:
    """(T, I) as the project scores a split."""
    return score_matrix(*sides, 0.0).T


def einsum(sides: Sides) -> Any:
    """The obvious way: the product of all tokens, its maximum, its mean; in blocks of captions."""
    (image, image_real), (caption, caption_real) = map(padded, sides)
    step = max(1, EINSUM_NUMBERS // (image_real.numel() * caption_real.shape[1]))
    lost = torch.where(image_real, 0.0, -8.0)
    rows = []
    for first in range(0, len(caption), step):
        some = slice(first, first + step)
        product = torch.einsum("tnd,ild->tinl", caption[some], image) + lost[None, :, None]
        best = product.amax(3) * caption_real[some, None]
        rows.append(best.sum(2) / caption_real[some].sum(1)[:, None])
    return torch.cat(rows).numpy()


def sentence_transformers(sides: Sides) -> Any:
    """`sentence_transformers.util.similarity.mean_maxsim`, in its own blocks."""
    library = importlib.import_module("sentence_transformers.util.similarity")
    image, caption = (
        [torch.from_numpy(x.astype(np.float32)) for x in _items(side)] for side in sides
    )
    return library.mean_maxsim(caption, image).numpy()


def maxsim_cpu(sides: Sides) -> Any:
    """maxsim-cpu, a caption after the other, as its interface has it."""
    library = importlib.import_module("maxsim_cpu")
    images = [x.astype(np.float32) for x in _items(sides[0])]
    captions = [x.astype(np.float32) for x in _items(sides[1])]
    if len({len(x) for x in images}) == 1:
        stacked = np.stack(images)
        return np.stack([library.maxsim_scores(x, stacked) / len(x) for x in captions])
    return np.stack([library.maxsim_scores_variable(x, images) / len(x) for x in captions])


def late_interaction_kernels(sides: Sides) -> Any:
    """late-interaction-kernels where there is no GPU: its PyTorch reference, in blocks."""
    library = importlib.import_module("late_interaction_kernels.reference")
    (image, image_real), (caption, caption_real) = map(padded, sides)
    step = max(1, EINSUM_NUMBERS // (image_real.numel() * caption_real.shape[1]))
    rows = []
    for first in range(0, len(caption), step):
        some = slice(first, first + step)
        scores = library.maxsim_reference(
            caption[some], image, q_mask=caption_real[some], d_mask=image_real
        )
        rows.append(scores / caption_real[some].sum(1)[:, None])
    return torch.cat(rows).numpy()


WAYS: dict[str, Way] = {
    "this project": ours,
    "einsum": einsum,
    "sentence-transformers": sentence_transformers,
    "maxsim-cpu": maxsim_cpu,
    "late-interaction-kernels": late_interaction_kernels,
}


def _items(nodes: ItemNodes) -> list[Any]:
    return np.split(nodes.vectors_SW, np.cumsum(nodes.lengths)[:-1])


def compare(sides: Sides, names: list[str], rounds: int) -> None:
    """Print processor seconds and ratios of the ways, measured in turns."""
    spent: dict[str, list[float]] = {name: [] for name in names}
    results: dict[str, Any] = {}
    for name in list(names):
        try:  # a small piece, so that what is compiled or loaded late is there
            WAYS[name]((sides[0].take(np.arange(4)), sides[1].take(np.arange(4))))
        except ImportError as error:
            print(f"  {name}: left out: {error}")
            names.remove(name)
    for _ in range(rounds):
        for name in names:
            began = time.process_time()
            results[name] = WAYS[name](sides)
            spent[name].append(time.process_time() - began)
    for name in names:
        ratio = statistics.median(
            one / own for one, own in zip(spent[name], spent["this project"], strict=True)
        )
        apart = float(np.abs(results[name] - results["this project"]).max())
        print(
            f"  {name:26} {statistics.median(spent[name]):7.2f} s  {ratio:5.2f} of ours"
            f"  differs by {apart:.0e}",
            flush=True,
        )


def _peak(name: str, sizes: Any, pipe: Any) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    sides = drawn(*sizes[0]), drawn(*sizes[1])
    WAYS[name]((sides[0].take(np.arange(4)), sides[1].take(np.arange(4))))
    # A child inherits its parent's peak, so it is set back.
    Path("/proc/self/clear_refs").write_text("5")
    before = _kibibytes("VmRSS")
    WAYS[name](sides)
    pipe.send(_kibibytes("VmHWM") - before)


def _kibibytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def memory(name: str, sizes: Any) -> None:
    """Print the peak of a process of its own, above its inputs."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_peak, args=(name, sizes, there))
    process.start()
    there.close()
    try:
        print(f"  {name:26} {here.recv() / 1024:7.0f} MB above the inputs", flush=True)
    except EOFError:
        print(f"  {name}: ended without a figure")
    process.join()


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ragged", action="store_true", help="lengths from a third to the whole")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--memory", action="store_true", help="also the peak of each")
    asked = parser.parse_args()
    names = ["this project", *(name for name in asked.ways if name != "this project")]
    for width in asked.widths:
        print(
            f"{asked.images} images x {asked.captions} captions, {asked.tokens} tokens a side, "
            f"width {width}, {torch.get_num_threads()} threads"
        )
        sizes = [
            (count, asked.tokens, width, asked.ragged, seed)
            for seed, count in enumerate((asked.images, asked.captions))
        ]
        compare((drawn(*sizes[0]), drawn(*sizes[1])), list(names), asked.rounds)
        for name in names if asked.memory else ():
            memory(name, sizes)


if __name__ == "__main__":
    main()
