"""The layouts of captions that `fuzz.py` feeds: every reader, recognised or named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

Made = tuple[Callable[[bytes], None], list[bytes]]


def annotations(folder: Path) -> Made:
    """Any file of captions: recognised, then read by every reader of files."""
    import layouts

    from hada.extract.common.errors import HadaError
    from hada.extract.datasets.annotations import ReadOptions
    from hada.extract.datasets.layouts import OF_FOLDERS, reader, recognised
    from hada.extract.manifest_entries import READERS

    sample = layouts.make_sample(folder / "drawn", images=3)
    seeds = []
    for number, (name, write) in enumerate(layouts.LAYOUTS.items()):
        if "parquet" in name or name in ("img2dataset, files", "clip_benchmark"):
            continue
        root = folder / str(number)
        arguments = write(sample, root)
        file = Path(arguments[3]) if len(arguments) > 2 else None
        found = [file] if file else [p for p in root.rglob("*") if p.suffix != ".jpg"]
        seeds += [path.read_bytes() for path in found if path.is_file()][:2]
    file = folder / "captions.csv"

    def one(data: bytes) -> None:
        file.write_bytes(data)
        recognised(file)
        for name in READERS:
            if name in OF_FOLDERS:
                continue
            try:
                for _ in reader(name, "fuzzed").read(file, ReadOptions()):
                    pass
            except HadaError:
                continue

    return one, seeds


def datasets(folder: Path) -> Made:
    """A whole dataset by the file of its captions: ids, files and splits."""
    import layouts

    from hada.extract.datasets.named import dataset_at
    from hada.extract.datasets.read import read_splits

    sample = layouts.make_sample(folder / "photos", images=3)
    file = folder / "captions.csv"

    def one(data: bytes) -> None:
        file.write_bytes(data)
        for part in read_splits(dataset_at(folder / "photos", captions=file), pictures=False):
            part.digest()

    rows = "".join(f'{name},"a, b"\n' for name in sample.names)
    lines = "".join(f'{{"image": "{name}", "captions": ["a"]}}\n' for name in sample.names)
    tokens = "".join(f"{name}#0\ta dog\n" for name in sample.names)
    return one, [f"image,caption\n{rows}".encode(), lines.encode(), tokens.encode()]
