"""Seconds of a training's epoch on drawn features of Flickr30k's size, and of reading them once.

    python benchmarks/study.py                           # 29,000 images, all tokens on the GPU
    python benchmarks/study.py --reading memory          # all tokens in the machine's memory
    python benchmarks/study.py --images 200 --epochs 2 --device cpu   # a small one, anywhere

The features are BLIP's and CLIP-L/14@336's in size: 577 x 768 and 577 x 1024 image tokens, about
14 x 768 caption tokens of each, five captions an image, in half precision. What the data is makes
no difference to the time. Reading once is the bytes of all tokens over the rate at which the
device copies its own memory (bytes read and bytes written), or, where they lie in the machine's
memory, at which it fetches pinned memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hada.extract.common.device import choose_device
from hada.extract.spec import SideName
from hada.fuse.batch import ModelShape
from hada.fuse.recipes import RECIPES
from hada.fuse.run_files.checkpoint import Position
from hada.fuse.run_folder import RunFolder
from hada.fuse.tokens.loader import Loader
from hada.fuse.tokens.sources import Held, Resident, Source
from hada.fuse.tokens.split import Split
from hada.fuse.training.trainer import Job, build_objective, build_optimizer, train_epoch

IMAGE_TOKENS, PER_IMAGE = 577, 5
CAPTION_LENGTHS = (9, 20)
# Per model: width of image tokens, of caption tokens, of embeddings.
WIDTHS = ((768, 768, 256), (1024, 768, 768))
GIB = 2.0**30
BLOCK = 1 << 24
COPIED_BYTES = 1 << 30

Reading = Literal["device", "memory"]


class DrawnSource(Source):
    """A model's tokens of one side, drawn where they will lie."""

    def __init__(
        self, lengths: Any, width: int, embedding: int, fixed: int | None, device: torch.device
    ) -> None:
        self.lengths, self.width, self.count = lengths, width, fixed
        self.dtype, self.has_tokens, self.global_last = np.dtype(np.float16), True, False
        self.row_bytes = 2 * width
        self.bytes = int(lengths.sum()) * self.row_bytes
        self.embeddings = np.random.default_rng(0).random((len(lengths), embedding), np.float32)
        self.shape = ModelShape(node_width=width, embedding_width=embedding)
        values_SD = drawn((int(lengths.sum()), width), device)
        self.resident = self.held = None
        if device.type == "cpu":
            starts = np.cumsum(lengths) - lengths
            self.held = Held(np.arange(len(lengths)), starts, values_SD.numpy(), fixed)
        else:
            self.resident = Resident(values_SD, lengths)


class DrawnSplit(Split):
    """A split of so many images, all of its tokens on a device or in memory."""

    def __init__(self, images: int, device: torch.device, *, pinned: bool) -> None:
        self.stores = ()
        self.caption_to_image = np.repeat(np.arange(images), PER_IMAGE)
        self.image_rows, self.caption_rows = (
            np.arange(images),
            np.arange(len(self.caption_to_image)),
        )
        self._by_image, self._bounds = self.caption_rows, np.arange(images + 1) * PER_IMAGE
        random = np.random.default_rng(0)
        self.sources = {"image": (), "caption": ()}
        sides: tuple[SideName, SideName] = ("image", "caption")
        for side in sides:
            count = len(self.rows(side))
            fixed = IMAGE_TOKENS if side == "image" else None
            lengths = np.full(count, fixed) if fixed else random.integers(*CAPTION_LENGTHS, count)
            self.sources[side] = tuple(
                DrawnSource(lengths, wide[side == "caption"], wide[2], fixed, device)
                for wide in WIDTHS
            )
        self.bytes = sum(source.bytes for side in sides for source in self.sources[side])
        self.blocks, self._pinned = np.zeros(images, np.int64), pinned


def drawn(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Half precision; the same block over and over, for drawing takes longer than training."""
    values = torch.empty(shape, dtype=torch.float16, device=device)
    block = torch.randn(BLOCK, device=device).half()
    for part in values.view(-1).split(BLOCK):
        part.copy_(block[: len(part)])
    return values


def reading_rate(device: torch.device, reading: Reading) -> float:
    """Bytes a second that the device reads of its own memory, or fetches from the machine's."""
    fetched = reading == "memory" and device.type == "cuda"
    here = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    there = torch.empty_like(here, device="cpu").pin_memory() if fetched else here.clone()
    times = []
    for _ in range(7):
        wait(device)
        began = time.perf_counter()
        here.copy_(there, non_blocking=True)
        wait(device)
        times.append(time.perf_counter() - began)
    return COPIED_BYTES * (1 if fetched else 2) / statistics.median(times)


def wait(device: torch.device) -> None:
    """Until the device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def epochs(job: Job, count: int) -> list[float]:
    """Seconds of each epoch."""
    found = []
    for number in range(count):
        wait(job.device)
        began = time.perf_counter()
        train_epoch(job, Position(epoch=number))
        wait(job.device)
        found.append(time.perf_counter() - began)
    return found


def main(words: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=29_000)
    parser.add_argument("--epochs", type=int, default=4, help="the first one also warms up")
    parser.add_argument("--reading", choices=("device", "memory"), default="device")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="fast")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args(words)
    device = torch.device(choose_device(arguments.device))
    rate = reading_rate(device, arguments.reading)
    place = device if arguments.reading == "device" else torch.device("cpu")
    split = DrawnSplit(arguments.images, place, pinned=device.type == "cuda")
    recipe = RECIPES[arguments.recipe].with_settings({"precision": arguments.precision})
    objective = build_objective(recipe, split, 0).to(device)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            objective=objective,
            optimizer=build_optimizer(recipe, objective),
            loader=Loader(split, recipe.training.order, recipe.training.batch_size, 0),
            val=split,
            recipe=recipe,
            run=RunFolder(Path(folder)),
            device=device,
            report=print,
        )
        times = epochs(job, arguments.epochs)
    epoch, once = statistics.median(times[1:] or times), split.bytes / rate
    print(
        f"{split.images:,} images, {split.captions:,} captions, {split.bytes / GIB:.1f} GiB of "
        f"tokens, reading {arguments.reading}, {recipe.name}, {recipe.training.precision}, "
        f"{device}\n"
        f"epochs {', '.join(f'{t:.2f}' for t in times)} s; median after the first {epoch:.2f} s\n"
        f"reading the tokens once {once:.2f} s at {rate / 1e9:.0f} GB/s; "
        f"an epoch takes {epoch / once:.1f} times as long; 30 epochs {30 * epoch:.0f} s"
    )


if __name__ == "__main__":
    main()
