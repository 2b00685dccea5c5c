"""Recall from embeddings: this project's blockwise ranking beside the field's usual loops.

    python benchmarks/recall.py [--images 5000] [--per-image 5] [--width 512] [--rounds 3]
    python benchmarks/recall.py --growth 5000 20000 50000 100000
    python benchmarks/recall.py --bootstrap

Every measurement is a fresh process, so peak memory is its own. `argsort` sorts the whole row of
every query and looks its positives up, as the published retrieval code does; `topk` multiplies
with a whole mask of positives and takes torch's `topk` for each K, as CLIP_benchmark does. Both
are written anew here. Each is timed from the embeddings, and the ranking also without the product.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np

KS = (1, 5, 10)


def embeddings(images: int, per_image: int, width: int) -> tuple[Any, Any, Any]:
    """Unit vectors of which a caption lies near its image: R@1 of about one half."""
    random = np.random.default_rng(0)
    owner = np.repeat(np.arange(images), per_image)
    image = random.standard_normal((images, width), dtype=np.float32)
    caption = random.standard_normal((len(owner), width), dtype=np.float32)
    caption *= np.float32(4.2)
    for start in range(0, len(owner), 10_000):
        caption[start : start + 10_000] += image[owner[start : start + 10_000]]
    for side in (image, caption):
        for start in range(0, len(side), 10_000):
            some = side[start : start + 10_000]
            some /= np.linalg.norm(some, axis=1, keepdims=True)
    return image, caption, owner


def argsort_loops(scores: Any, owner: Any) -> list[float]:
    """Sort each query's scores; the rank of a positive is where it turns up."""
    per_image = len(owner) // len(scores)
    image_ranks = np.zeros(len(scores))
    for row in range(len(scores)):
        order = np.argsort(scores[row])[::-1]
        image_ranks[row] = min(
            np.where(order == per_image * row + other)[0][0] for other in range(per_image)
        )
    caption_ranks = np.zeros(len(owner))
    for column in range(len(owner)):
        order = np.argsort(scores[:, column])[::-1]
        caption_ranks[column] = np.where(order == owner[column])[0][0]
    return [100 * float((r < k).mean()) for r in (image_ranks, caption_ranks) for k in KS]


def topk_way(scores: Any, owner: Any) -> list[float]:
    """A mask of positives as large as the scores, and a `topk` with a one-hot for each K."""
    import torch

    scores_TI = torch.from_numpy(np.ascontiguousarray(scores.T))
    positive_TI = torch.zeros(scores_TI.shape, dtype=torch.bool)
    positive_TI[torch.arange(len(owner)), torch.from_numpy(owner)] = True
    found = []
    for values, truth in ((scores_TI.T, positive_TI.T), (scores_TI, positive_TI)):
        for k in KS:
            hits = []
            for start in range(0, len(values), 64):
                some = slice(start, start + 64)
                best = values[some].topk(k, dim=1)[1]
                chosen = torch.nn.functional.one_hot(best, values.shape[1]).sum(1).bool()
                hits.append((truth[some] & chosen).sum(1) > 0)
            found.append(100 * float(torch.cat(hits).float().mean()))
    return found


def ours(image: Any, caption: Any, owner: Any, device: str = "cpu") -> list[float]:
    """The project's own."""
    from hada.fuse.ranking.ranks import rank_positives, recalls

    table = recalls(rank_positives(image, caption, owner, device=device), KS)
    return [table[f"{way}_R@{k}"] for way in ("i2t", "t2i") for k in KS]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One way in this process: seconds of the product and of the ranking, and peak memory."""
    image, caption, owner = embeddings(arguments.images, arguments.per_image, arguments.width)
    before = forget_peak()
    if arguments.way == "ours":
        figures: list[float] = []
        times = []
        for _ in range(arguments.rounds):
            began, busy = time.perf_counter(), time.process_time()
            figures = ours(image, caption, owner, arguments.device)
            times.append((time.perf_counter() - began, time.process_time() - busy))
        seconds, cpu = min(times)
        again = 0 if arguments.growth_step else arguments.rounds
        product = min((tiles(image, caption) for _ in range(again)), default=0.0)
    else:
        cpu = 0.0
        began = time.perf_counter()
        scores = image @ caption.T
        product = time.perf_counter() - began
        figures = {"argsort": argsort_loops, "topk": topk_way}[arguments.way](scores, owner)
        seconds = time.perf_counter() - began
    after = memory("VmHWM")
    return {
        "seconds": seconds,
        "cpu": cpu,
        "product": product,
        "figures": figures,
        "megabytes": (after - before) / 1024,
    }


def memory(field: str) -> int:
    """Kibibytes of this process: VmRSS is what it holds, VmHWM the most it held."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def forget_peak() -> int:
    """Start the peak anew, so that making the embeddings does not hide it; what is held now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def tiles(image: Any, caption: Any) -> float:
    """Seconds of the product alone, in tiles of the size that ours uses."""
    began = time.perf_counter()
    for top in range(0, len(image), 250):
        for left in range(0, len(caption), 8388):
            image[top : top + 250] @ caption[left : left + 8388].T
    return time.perf_counter() - began


def bootstrap(images: int, per_image: int) -> None:
    """10,000 resamples for two methods of COCO-5K's size."""
    from hada.evaluate.results.significance import Hits, bootstrap_rsums, difference
    from hada.fuse.ranking.ranks import Ranks

    random = np.random.default_rng(0)
    owner = np.repeat(np.arange(images), per_image)
    hits = []
    for _ in range(2):
        i2t, t2i = random.geometric(0.2, images) - 1, random.geometric(0.1, len(owner)) - 1
        ranks = Ranks(i2t, i2t, np.ones_like(i2t), t2i, t2i, np.ones_like(t2i))
        hits.append(Hits.of(ranks, owner))
    began = time.perf_counter()
    one, two = bootstrap_rsums(hits, resamples=10_000)
    found = difference(one, two)
    print(
        f"bootstrap of 10,000 resamples, {images} images, two methods with their difference: "
        f"{time.perf_counter() - began:.2f} s (half width {found.half_width:.2f} RSum)"
    )


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--per-image", type=int, default=5)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="ours: the best of so many")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--growth", type=int, nargs="*", default=())
    parser.add_argument("--bootstrap", action="store_true")
    parser.add_argument(
        "--way", choices=("ours", "argsort", "topk", "product"), help=argparse.SUPPRESS
    )
    parser.add_argument("--growth-step", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments)))
        return
    if arguments.bootstrap:
        bootstrap(arguments.images, arguments.per_image)
        return

    def run(way: str, images: int) -> dict[str, Any]:
        command = [sys.executable, __file__, "--way", way, "--images", str(images)]
        command += ["--per-image", str(arguments.per_image), "--width", str(arguments.width)]
        command += ["--device", arguments.device, "--rounds", str(arguments.rounds)]
        command += ["--growth-step"] if arguments.growth else []
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    for images in arguments.growth:
        found = run("ours", images)
        work = images**2 * arguments.per_image * arguments.width
        print(
            f"{images:7,} x {images * arguments.per_image:9,}: {found['seconds']:8.2f} s, "
            f"{found['cpu']:8.2f} s of processor; {work / 1e9:,.0f} G multiply-adds, "
            f"{work / found['cpu'] / 1e9:6.1f} G a second of processor; "
            f"{found['megabytes']:5.0f} MB above the embeddings",
            flush=True,
        )
    if arguments.growth:
        return
    results = {way: run(way, arguments.images) for way in ("ours", "argsort", "topk")}
    mine = results["ours"]
    own = mine["seconds"] - mine["product"]
    for way, found in results.items():
        np.testing.assert_allclose(found["figures"], mine["figures"], atol=0.03)
        ranking = found["seconds"] - found["product"]
        print(
            f"{way:8} {found['seconds']:7.2f} s, of it the product {found['product']:5.2f} s; "
            f"{found['seconds'] / mine['seconds']:5.1f} times ours, the ranking alone "
            f"{ranking / own:5.1f} times; {found['megabytes']:6.0f} MB above the embeddings"
        )


if __name__ == "__main__":
    main()
