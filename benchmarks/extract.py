"""How much of a model's own speed an extraction keeps, and that its memory does not grow.

    python benchmarks/extract.py speed --model ViT-B-32 --images 256
    python benchmarks/extract.py speed --model builtin:scenes/blip --pictures data/scenes/images
    python benchmarks/extract.py speed --model blip-base-384 --device cuda --precision bf16
    python benchmarks/extract.py batch --model ViT-B-32
    python benchmarks/extract.py memory --images 1000 10000

`speed` runs these on the same pictures and weights, in turns, and prints the medians:

    bare            the model's forward pass on batches that are tensors in memory already
    plain loop      the model driven by hand: open, preprocess, stack, encode, one after the other
    hada            `runner.run`: decode, forward, write a verified store with all tokens
    clip-retrieval  its own reader, mapper and writer, where `--peer` names an interpreter that has
                    it (`python -m venv E; E/bin/pip install clip-retrieval 'setuptools<81'`)

On a CPU `reachable` is what no program can exceed: bare's processor time over that of bare and of
decoding together. `cpu_of_bare` is the ratio in processor time, which other work on the machine
disturbs less.

`batch` runs the bare forward pass with batches of several sizes. `memory` extracts different
numbers of pictures, each in a process of its own, and compares their largest resident sets.
Weights other than the built-in ones are random: they cost the same time as trained ones.
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
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from extract_inputs import (
    find_pictures,
    forward_pass,
    load,
    make_dataset,
    make_model,
    make_pictures,
)
from interleaved import Way, measure, rates, ratios

from hada.extract import one_model
from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.report import Report
from hada.extract.engine.runner import run


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peer(arguments: argparse.Namespace, work: Path, batch: int) -> Way:
    """clip-retrieval in its own environment, loaded once; it must know the architecture."""
    file = work / "model" / "open_clip_pytorch_model.bin"
    model = f"open_clip:{arguments.model}/{file}"
    script = Path(__file__).with_name("peer_clip_retrieval.py")
    process = subprocess.Popen(
        [arguments.peer, str(script), str(work / "images"), model, str(batch), "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    ask, answer = process.stdin, process.stdout
    if answer.readline() != "ready\n":
        raise SystemExit("clip-retrieval does not run there: try the script by hand")

    def once() -> tuple[float, float]:
        ask.write("\n")
        ask.flush()
        wall, cpu = answer.readline().split()
        return float(wall), float(cpu)

    return once


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images per second of all ways, and what bound the store's."""
    workers = arguments.workers
    workers = one_model.default_workers(arguments.device) if workers is None else workers
    work = Path(tempfile.mkdtemp(prefix="hada-bench-"))
    if arguments.pictures:
        paths = find_pictures(arguments.pictures, work / "images", arguments.images)
    else:
        paths = make_pictures(work / "images", arguments.images, tuple(arguments.size))
    reports: list[Report] = []
    ways = ways_to_extract(arguments, work, paths, workers, reports)
    seconds, processor = measure(ways, arguments.repeat)
    bare_cpu = statistics.median(processor["bare"])
    decode_cpu = statistics.median(processor.pop("decode", [0.0]))
    seconds.pop("decode", None)
    counted = reports[1:]
    binding = {key: sum(report.seconds[key] for report in counted) for key in counted[0].seconds}
    return {
        "model": arguments.model,
        "device": arguments.device,
        "precision": arguments.precision,
        "images": len(paths),
        "batch": arguments.batch_size,
        "workers": workers,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "images_per_second": rates(seconds, len(paths)),
        "of_bare": ratios(seconds),
        "cpu_of_bare": ratios(processor),
        "cpu_ms_per_image": {
            "bare": round(1000 * bare_cpu / len(paths), 2),
            "decode": round(1000 * decode_cpu / len(paths), 2),
        },
        "reachable": round(bare_cpu / (bare_cpu + decode_cpu), 3),
        "hada_seconds": {key: round(value, 2) for key, value in binding.items()},
    }


def ways_to_extract(
    arguments: argparse.Namespace,
    work: Path,
    paths: list[Path],
    workers: int,
    reports: list[Report],
) -> dict[str, Way]:
    """What `speed` times; the store's way adds its report to `reports`."""
    backbone = load(arguments, work)
    forward, batch = forward_pass(backbone), arguments.batch_size
    pixels = np.stack([backbone.preprocess(PIL.Image.open(path)) for path in paths[:batch]])
    tensor = torch.from_numpy(pixels).to(arguments.device)

    def bare() -> float:
        with backbone.running():
            for start in range(0, len(paths), batch):
                forward(tensor[: min(batch, len(paths) - start)])
            wait(arguments.device)
        return 0.0

    def plain_loop() -> float:
        kept = []
        with backbone.running():
            for start in range(0, len(paths), batch):
                pictures = [PIL.Image.open(path) for path in paths[start : start + batch]]
                stacked = torch.from_numpy(np.stack([backbone.preprocess(p) for p in pictures]))
                kept.append(forward(stacked.to(arguments.device)).cpu())
        return 0.0

    def hada() -> float:
        report = run(
            backbone,
            make_dataset(paths),
            work / f"store-{len(reports)}",
            ExtractOptions(batch_size=batch, workers=workers, tokens=arguments.tokens or "all"),
        )
        reports.append(report)
        return report.side_seconds["image"]

    def decode() -> float:
        for path in paths:
            backbone.preprocess(PIL.Image.open(path))
        return 0.0

    ways: dict[str, Way] = {"bare": bare, "plain loop": plain_loop, "hada": hada}
    if arguments.peer:
        ways["clip-retrieval"] = peer(arguments, work, batch)
    if arguments.device == "cpu":
        ways["decode"] = decode
    return ways


def batch_sizes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images per second of the bare forward pass by the size of its batches."""
    work = Path(tempfile.mkdtemp(prefix="hada-bench-"))
    backbone = load(arguments, work)
    forward = forward_pass(backbone)
    shape = backbone.preprocess(PIL.Image.new("RGB", (64, 64))).shape
    tensor = torch.randn(max(arguments.sizes), *shape, device=arguments.device)

    def way(size: int) -> Way:
        def once() -> float:
            with backbone.running():
                for _ in range(arguments.images // size):
                    forward(tensor[:size])
                wait(arguments.device)
            return 0.0

        return once

    ways = {str(size): way(size) for size in arguments.sizes}
    seconds, processor = measure(ways, arguments.repeat)
    return {
        "model": arguments.model,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "images_per_second": rates(seconds, arguments.images),
        "images_per_cpu_second": rates(processor, arguments.images),
    }


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Largest resident set in MiB for each number of pictures."""
    peaks = {}
    for count in arguments.images:
        command = [sys.executable, __file__, "one", "--images", str(count)]
        command += ["--workers", str(arguments.workers)]
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
    family, weights = make_model(work / "model", "tiny")
    backbone = load_backbone(
        BackboneRequest(name="bench", family=family, weights=weights, options={})
    )
    run(backbone, dataset, work / "store", ExtractOptions(workers=arguments.workers))
    return {"peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}


def main() -> None:
    """Read the command line and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    ways = parser.add_subparsers(required=True)
    for way, name in ((speed, "speed"), (batch_sizes, "batch")):
        part = ways.add_parser(name)
        part.set_defaults(way=way)
        part.add_argument(
            "--model",
            default="tiny",
            help="tiny, a model name of open_clip, blip-base-384, or builtin:scenes/blip or clip",
        )
        part.add_argument("--images", type=int, default=128)
        part.add_argument("--repeat", type=int, default=3)
        part.add_argument("--device", default="cpu")
        part.add_argument("--precision", default="fp32")
        if way is batch_sizes:
            part.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128])
            continue
        part.add_argument("--size", type=int, nargs=2, default=(500, 375))
        part.add_argument("--pictures", type=Path, help="a folder of pictures instead of noise")
        part.add_argument("--batch-size", type=int, default=32)
        part.add_argument("--workers", type=int, help="as hada-extract's; by default, too")
        part.add_argument("--tokens", help="as hada-extract's")
        part.add_argument("--peer", help="a Python interpreter that has clip-retrieval")
    part = ways.add_parser("memory")
    part.set_defaults(way=memory)
    part.add_argument("--images", type=int, nargs="+", default=[1000, 10000])
    part.add_argument("--workers", type=int, default=0)
    part = ways.add_parser("one")
    part.set_defaults(way=one)
    part.add_argument("--images", type=int, default=1000)
    part.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(arguments.way(arguments), indent=None if arguments.way is one else 2))


if __name__ == "__main__":
    main()
