"""How long captions take to be understood, and images in tars to be read.

python benchmarks/layouts.py captions --rows 1000000     # every text layout, described
python benchmarks/layouts.py tar --images 10000          # a tar beside a folder of the same images

`captions` writes files of captions without images (five captions an image) in a temporary folder
and runs `hada-extract --describe` on each in a process of its own: wall seconds and peak memory.
`tar` decodes and preprocesses all images as an extraction does, in turns, and prints the median of
the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from hada.extract.datasets.named import dataset_at
from hada.extract.datasets.read import read_splits
from hada.extract.engine.model_input import PictureReader

PER_IMAGE = 5
TURN = 100
_DESCRIBE = """\
import resource, sys, time
from hada.extract.cli import extract
began = time.monotonic()
extract(["--describe", *sys.argv[1:]], standalone_mode=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"SECONDS {time.monotonic() - began:.1f} GIB {peak:.2f}")
"""


def pairs(rows: int) -> Iterator[tuple[str, int, str]]:
    """(name, number of the caption, caption), five captions an image."""
    for row in range(rows):
        image, number = divmod(row, PER_IMAGE)
        text = f"a photograph of {image} things on a table, seen for the {number}. time by someone"
        yield f"{image % 100:02d}/picture_{image:08d}.jpg", number, text


def _lines(write: Callable[[str, int, str], str], head: str = "") -> Callable[[Path, int], None]:
    def layout(path: Path, rows: int) -> None:
        with path.open("w") as stream:
            stream.write(head)
            stream.writelines(write(*pair) + "\n" for pair in pairs(rows))

    return layout


def _json(path: Path, rows: int, record: str) -> None:
    images: dict[str, list[str]] = {}
    for name, _, text in pairs(rows):
        images.setdefault(name, []).append(text)
    if record == "karpathy":
        value: object = {
            "images": [
                {"filename": n, "split": "train", "sentences": [{"raw": t} for t in texts]}
                for n, texts in images.items()
            ]
        }
    elif record == "coco":
        value = {
            "images": [{"id": k, "file_name": n} for k, n in enumerate(images)],
            "annotations": [
                {"id": PER_IMAGE * k + j, "image_id": k, "caption": text}
                for k, texts in enumerate(images.values())
                for j, text in enumerate(texts)
            ],
        }
    else:
        value = [{"image": n, "caption": text} for n, texts in images.items() for text in texts]
    path.write_text(json.dumps(value))


LAYOUTS: dict[str, Callable[[Path, int], None]] = {
    "captions.csv": _lines(lambda n, _, t: f'{n},"{t}"', "image,caption\n"),
    "captions.tsv": _lines(lambda n, _, t: f"{n}\t{t}", "image\tcaption\n"),
    "captions.jsonl": _lines(lambda n, _, t: json.dumps({"image": n, "caption": t})),
    "results.token": _lines(lambda n, k, t: f"{n}#{k}\t{t}"),
    "results.csv": _lines(
        lambda n, k, t: f"{n}| {k}| {t}", "image_name| comment_number| comment\n"
    ),
    "karpathy.json": lambda path, rows: _json(path, rows, "karpathy"),
    "coco.json": lambda path, rows: _json(path, rows, "coco"),
    "lavis.json": lambda path, rows: _json(path, rows, "list"),
}


def captions(rows: int) -> None:
    """Describe every text layout."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for name, write in LAYOUTS.items():
            file = Path(folder) / name
            write(file, rows)
            done = subprocess.run(
                [sys.executable, "-c", _DESCRIBE, "--data", str(images), "--captions", str(file)],
                capture_output=True,
                text=True,
                check=False,
            )
            last = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-300:]]
            print(f"{name:15} {file.stat().st_size / 2**20:6.0f} MiB  {last[0]}", flush=True)
            file.unlink()


def _small(image: PIL.Image.Image) -> np.ndarray:
    return np.asarray(image.resize((224, 224)), np.float32).transpose(2, 0, 1) / 255


def tar(count: int, repeat: int) -> None:
    """Read the same images from a folder and from a tar."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "folder"
        folder.mkdir()
        coarse = random.integers(0, 256, (64, 24, 32, 3), np.uint8)
        for number in range(count):
            image = PIL.Image.fromarray(coarse[number % 64]).resize((500, 375))
            image.save(folder / f"{number:06d}.jpg", quality=90)
        (Path(name) / "tars").mkdir()
        with tarfile.open(Path(name) / "tars" / "00000.tar", "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.add(file, file.name)
        began = time.monotonic()
        (packed,) = read_splits(dataset_at(Path(name) / "tars"))
        index_s = time.monotonic() - began
        (plain,) = read_splits(dataset_at(folder))
        reader = PictureReader(_small)
        ratios = []
        # Short turns: whatever else the machine does then slows both alike.
        for turn in range(repeat * count // TURN):
            start = turn * TURN % count
            seconds = {}
            for data in (plain, packed) if turn % 2 else (packed, plain):
                began = time.process_time(), time.monotonic()
                for row in range(start, min(start + TURN, count)):
                    reader.read(data.image_paths[row], data.image_ids[row])
                seconds[data.name] = time.process_time() - began[0], time.monotonic() - began[1]
            ratios.append([a / b for a, b in zip(seconds["folder"], seconds["tars"], strict=True)])
        processor, wall = (statistics.median(ratio) for ratio in zip(*ratios, strict=True))
        print(
            f"{count:,} images: index of the tar {index_s:.2f} s; speed of the tar over the "
            f"folder's: {processor:.3f} by processor time, {wall:.3f} by the clock"
        )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["captions", "tar"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "captions":
        captions(arguments.rows)
    else:
        tar(arguments.images, arguments.repeat)


if __name__ == "__main__":
    main()
