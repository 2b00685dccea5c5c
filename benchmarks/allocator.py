"""What keeping freed memory gives a convolutional tower on the CPU (`extract/common/host.py`).

    python benchmarks/allocator.py [--rounds 5] [--batch 16]

Runs the same forward passes of a randomly initialised MobileNetV2 in a fresh process, with and
without it, in turn, and prints the medians of images per CPU second and their ratio.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys


def measure(batch: int, reuse: bool) -> float:
    """Images per CPU second (user and system) of one process."""
    import torch
    from transformers import MobileNetV2Config, MobileNetV2Model

    from hada.extract.common.host import reuse_freed_memory

    if reuse and not reuse_freed_memory():
        sys.exit("this C library has no mallopt: nothing to measure")
    torch.set_num_threads(1)
    model = MobileNetV2Model(MobileNetV2Config(image_size=224)).eval()
    pixels = torch.rand(batch, 3, 224, 224)
    passes = max(2, 64 // batch)
    with torch.inference_mode():
        model(pixels)
        before = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(passes):
            model(pixels)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return passes * batch / spent


def main() -> None:
    """Compare, in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--once", choices=("plain", "reuse"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(measure(arguments.batch, arguments.once == "reuse"))
        return
    rates: dict[str, list[float]] = {"plain": [], "reuse": []}
    for _ in range(arguments.rounds):
        for way, found in rates.items():
            command = [sys.executable, __file__, "--once", way, "--batch", str(arguments.batch)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(float(done.stdout.split()[-1]))
    ratios = [b / a for a, b in zip(rates["plain"], rates["reuse"], strict=True)]
    for way, found in rates.items():
        print(f"{way:6} {statistics.median(found):6.1f} images per CPU second (median)")
    print(f"ratio  {statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
