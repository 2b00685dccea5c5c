"""How much of a model's own speed an extraction keeps, and that its memory does not grow.

    python benchmarks/extract.py speed --model ViT-B-32 --images 256
    python benchmarks/extract.py memory --images 1000 10000

`speed` runs three things on the same pictures and weights, in turns, and prints the medians:

    bare        the model's forward pass on batches that are tensors in memory already
    plain loop  open_clip driven by hand: open, preprocess, stack, encode, one after the other
    hada        `runner.run`: decode, forward, write a verified store

`memory` extracts different numbers of pictures, each in a process of its own, and compares their
largest resident sets. Weights are random: they cost the same time as trained ones.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import torch

from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.captions import CaptionDataset
from hada.extract.runner import run

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 2,
    },
}


def make_pictures(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEGs of a photograph's size and about a photograph's bytes: smooth noise."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        small = random.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
        paths.append(folder / f"{number:06d}.jpg")
        picture = PIL.Image.fromarray(small).resize(size, PIL.Image.Resampling.BICUBIC)
        picture.save(paths[-1], quality=90)
    return paths


def make_dataset(paths: list[Path]) -> CaptionDataset:
    """The pictures with one short caption each."""
    return CaptionDataset(
        name="bench",
        split="test",
        image_ids=tuple(path.name for path in paths),
        image_paths=tuple(paths),
        caption_ids=tuple(f"{path.name}#0" for path in paths),
        captions=("a photograph",) * len(paths),
        caption_to_image=np.arange(len(paths), dtype=np.int64),
    )


def make_model(folder: Path, name: str) -> Path:
    """A `local-dir:` folder of a CLIP with random weights."""
    config = TINY if name == "tiny" else open_clip.get_model_config(name)
    folder.mkdir()
    document = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images per second of the three ways, and what bound the store's."""
    work = Path(tempfile.mkdtemp(prefix="hada-bench-"))
    paths = make_pictures(work / "images", arguments.images, tuple(arguments.size))
    backbone: Any = load_backbone(
        BackboneRequest(
            name="bench",
            family="clip",
            weights=str(make_model(work / "model", arguments.model)),
            device=arguments.device,
            precision=arguments.precision,
            options={},
        )
    )
    batch = arguments.batch_size
    pixels = np.stack([backbone.preprocess(PIL.Image.open(path)) for path in paths[:batch]])
    tensor = torch.from_numpy(pixels).to(arguments.device)

    def bare() -> float:
        with backbone.running():
            for start in range(0, len(paths), batch):
                backbone.model.encode_image(tensor[: min(batch, len(paths) - start)])
            wait(arguments.device)
        return 0.0

    def plain_loop() -> float:
        kept = []
        with backbone.running():
            for start in range(0, len(paths), batch):
                pictures = [PIL.Image.open(path) for path in paths[start : start + batch]]
                stacked = torch.from_numpy(np.stack([backbone.preprocess(p) for p in pictures]))
                kept.append(backbone.model.encode_image(stacked.to(arguments.device)).cpu())
        return 0.0

    runs = iter(range(1000))
    reports = []

    def hada() -> float:
        report = run(
            backbone,
            make_dataset(paths),
            work / f"store-{next(runs)}",
            batch_size=batch,
            decoders=arguments.decoders,
        )
        reports.append(report)
        return report.side_seconds["image"]

    rates = measure({"bare": bare, "plain loop": plain_loop, "hada": hada}, arguments)
    binding = {key: sum(report.seconds[key] for report in reports) for key in reports[0].seconds}
    return {
        "model": arguments.model,
        "device": arguments.device,
        "precision": arguments.precision,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "images_per_second": rates,
        "hada_of_bare": round(rates["hada"] / rates["bare"], 3),
        "plain_loop_of_bare": round(rates["plain loop"] / rates["bare"], 3),
        "hada_seconds": {key: round(value, 2) for key, value in binding.items()},
    }


def measure(
    ways: dict[str, Callable[[], float]], arguments: argparse.Namespace
) -> dict[str, float]:
    """Median images per second of each way, taken in turns; the first turn is not counted.

    A way returns the seconds that count, or 0 where all of its time does.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.repeat + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            own = way()
            if turn:
                seconds[name].append(own or time.perf_counter() - began)
    return {
        name: round(arguments.images / statistics.median(taken), 2)
        for name, taken in seconds.items()
    }


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Largest resident set in MiB for each number of pictures."""
    peaks = {}
    for count in arguments.images:
        command = [sys.executable, __file__, "one", "--images", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[count] = json.loads(done.stdout.splitlines()[-1])["peak_mib"]
    values = list(peaks.values())
    return {"peak_mib": peaks, "growth": round(values[-1] / values[0] - 1, 4)}


def one(arguments: argparse.Namespace) -> dict[str, Any]:
    """One extraction with the tiny model, for `memory`."""
    work = Path(tempfile.mkdtemp(prefix="hada-bench-"))
    # A hundred files under many names: the pictures' bytes are not what is measured.
    files = make_pictures(work / "images", 100, (160, 120))
    names = [f"{number:06d}.jpg" for number in range(arguments.images)]
    paths = [files[number % len(files)] for number in range(arguments.images)]
    dataset = make_dataset([Path(name) for name in names])
    dataset = CaptionDataset(**{**vars(dataset), "image_paths": tuple(paths)})
    weights = str(make_model(work / "model", "tiny"))
    backbone = load_backbone(
        BackboneRequest(name="bench", family="clip", weights=weights, options={})
    )
    run(backbone, dataset, work / "store")
    return {"peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}


def main() -> None:
    """Read the command line and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    ways = parser.add_subparsers(required=True)
    part = ways.add_parser("speed")
    part.set_defaults(way=speed)
    part.add_argument("--model", default="tiny", help="tiny, or a model name of open_clip")
    part.add_argument("--images", type=int, default=128)
    part.add_argument("--size", type=int, nargs=2, default=(500, 375))
    part.add_argument("--batch-size", type=int, default=32)
    part.add_argument("--decoders", type=int, default=2)
    part.add_argument("--repeat", type=int, default=3)
    part.add_argument("--device", default="cpu")
    part.add_argument("--precision", default="fp32")
    part = ways.add_parser("memory")
    part.set_defaults(way=memory)
    part.add_argument("--images", type=int, nargs="+", default=[1000, 10000])
    part = ways.add_parser("one")
    part.set_defaults(way=one)
    part.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    print(json.dumps(arguments.way(arguments), indent=None if arguments.way is one else 2))


if __name__ == "__main__":
    main()
