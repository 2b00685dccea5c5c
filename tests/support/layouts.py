"""The same images and captions written in every layout that people have, by plain code."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue", "orange", "white", "black")
RGB = ((255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 160, 0), (255, 255, 255), (0, 0, 0))


@dataclass(frozen=True)
class Sample:
    """Images by name with their captions and split, and the folder that they lie in."""

    folder: Path
    names: list[str]
    captions: list[list[str]]
    splits: list[str] = field(default_factory=list)

    def pairs(self) -> list[tuple[str, str]]:
        """(name, caption), image after image."""
        return [
            (name, text)
            for name, texts in zip(self.names, self.captions, strict=True)
            for text in texts
        ]

    def only(self, split: str) -> Sample:
        """The images of a split."""
        rows = [row for row, name in enumerate(self.splits) if name == split]
        return Sample(
            self.folder,
            [self.names[row] for row in rows],
            [self.captions[row] for row in rows],
            [split] * len(rows),
        )


def make_sample(folder: Path, *, images: int = 12, captions: int = 2, seed: int = 0) -> Sample:
    """Draw images of two coloured halves, with captions that have commas and quotes in them."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names, texts = [], []
    for number in range(images):
        left, right = random.choice(len(COLOURS), 2, replace=False)
        pixels = np.zeros((40, 48, 3), np.uint8)
        pixels[:, :24], pixels[:, 24:] = RGB[left], RGB[right]
        name = f"picture {number:03d}.jpg" if number == 1 else f"picture_{number:03d}.jpg"
        Image.fromarray(pixels).save(folder / name, quality=90)
        said = [
            f"a {COLOURS[left]} half, and a {COLOURS[right]} one",
            f'{COLOURS[left]} beside "{COLOURS[right]}"; naïve',
            f"two colours: {COLOURS[left]}",
        ]
        names.append(name)
        texts.append(said[:captions])
    splits = ["train"] * (images // 2) + ["val"] * (images // 4)
    return Sample(folder, names, texts, splits + ["test"] * (images - len(splits)))


def _text(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def _table(rows: Sequence[Sequence[Any]], delimiter: str = ",", end: str = "\n") -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator=end).writerows(rows)
    return stream.getvalue()


def karpathy(sample: Sample, root: Path) -> list[str]:
    """dataset.json beside the images."""
    _copy(sample, root)
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]}
        for name, texts, split in zip(sample.names, sample.captions, sample.splits, strict=True)
    ]
    _text(root / "dataset_sample.json", json.dumps({"images": images}))
    return ["--data", str(root)]


def _copy(sample: Sample, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in sample.names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sample.folder / name, folder / name)


def _captions_file(name: str, write: Callable[[Sample], str], encoding: str = "utf-8") -> Any:
    def layout(sample: Sample, root: Path) -> list[str]:
        _copy(sample, root / "photos")
        text = write(sample).encode(encoding)
        path = root / name
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return ["--data", str(root / "photos"), "--captions", str(path)]

    return layout


def _csv(sample: Sample, delimiter: str = ",", end: str = "\n") -> str:
    rows = [("image", "caption"), *sample.pairs()]
    return _table(rows, delimiter, end)


def _wide_csv(sample: Sample) -> str:
    rows = [[name, *texts] for name, texts in zip(sample.names, sample.captions, strict=True)]
    count = len(sample.captions[0])
    return _table([["filename", *(f"caption_{k}" for k in range(count))], *rows])


def _list_csv(sample: Sample) -> str:
    rows = [
        [name, json.dumps(texts)] for name, texts in zip(sample.names, sample.captions, strict=True)
    ]
    return _table([["filename", "raw"], *rows])


def _raw_tsv(sample: Sample) -> str:
    """Without any quotes, as many people print it."""
    return "".join(f"{name}\t{text}\n" for name, text in [("image", "caption"), *sample.pairs()])


def _json_lines(sample: Sample) -> str:
    return "".join(json.dumps({"image": n, "caption": t}) + "\n" for n, t in sample.pairs())


def _json_lines_wide(sample: Sample) -> str:
    records = zip(sample.names, sample.captions, strict=True)
    return "".join(
        json.dumps({"file_name": n, "captions": t}, ensure_ascii=False) + "\n" for n, t in records
    )


def _mapping(sample: Sample) -> str:
    return json.dumps(dict(zip(sample.names, sample.captions, strict=True)))


def flickr30k(sample: Sample, root: Path) -> list[str]:
    """results_20130124.token beside flickr30k-images/."""
    _copy(sample, root / "flickr30k-images")
    lines = [
        f"{name}#{k}\t{text}"
        for name, texts in zip(sample.names, sample.captions, strict=True)
        for k, text in enumerate(texts)
    ]
    _text(root / "results_20130124.token", "\n".join(lines) + "\n")
    return ["--data", str(root)]


def flickr30k_kaggle(sample: Sample, root: Path) -> list[str]:
    """results.csv beside flickr30k_images/, with one row that lost a bar as the published one."""
    _copy(sample, root / "flickr30k_images")
    lines = ["image_name| comment_number| comment"]
    for name, texts in zip(sample.names, sample.captions, strict=True):
        for k, text in enumerate(texts):
            bar = "  " if name == sample.names[2] and k == 1 else "|"
            lines.append(f"{name}| {k}{bar} {text}")
    _text(root / "results.csv", "\n".join(lines) + "\n")
    return ["--data", str(root)]


def flickr8k(sample: Sample, root: Path) -> list[str]:
    """Flickr8k.token.txt, lists of splits, and a line of an image that no list has."""
    _copy(sample, root / "Flicker8k_Dataset")
    lines = [
        f"{name}#{k}\t{text}"
        for name, texts in zip(sample.names, sample.captions, strict=True)
        for k, text in enumerate(texts)
    ]
    lines.insert(3, "2258277193_586949ec62.jpg.1#0\tan image that is not in the folder")
    _text(root / "Flickr8k.token.txt", "\n".join(lines) + "\n")
    for split, file in (("train", "train"), ("val", "dev"), ("test", "test")):
        names = sample.only(split).names
        _text(root / f"Flickr_8k.{file}Images.txt", "\n".join(names) + "\n")
    return ["--data", str(root)]


def coco(sample: Sample, root: Path) -> list[str]:
    """annotations/captions_SPLIT2017.json beside train2017/, val2017/ and test2017/."""
    for split in ("train", "val", "test"):
        part = sample.only(split)
        _copy(part, root / f"{split}2017")
        images = [{"id": 100 + k, "file_name": name} for k, name in enumerate(part.names)]
        annotations = [
            {"id": 1000 * len(split) + 10 * k + j, "image_id": 100 + k, "caption": text}
            for k, texts in enumerate(part.captions)
            for j, text in enumerate(texts)
        ]
        document = {"info": {}, "images": images, "annotations": annotations}
        _text(root / "annotations" / f"captions_{split}2017.json", json.dumps(document))
        instances = {"images": images, "annotations": [{"image_id": 100, "bbox": [0, 0, 1, 1]}]}
        _text(root / "annotations" / f"instances_{split}2017.json", json.dumps(instances))
    return ["--data", str(root)]


def lavis(sample: Sample, root: Path) -> list[str]:
    """One caption a record in train, lists of captions in the others."""
    for split in ("train", "val", "test"):
        part = sample.only(split)
        _copy(part, root / "images")
        if split == "train":
            records: list[dict[str, Any]] = [
                {"image": f"images/{name}", "caption": text, "image_id": name}
                for name, text in part.pairs()
            ]
        else:
            records = [
                {"image": f"images/{name}", "caption": texts}
                for name, texts in zip(part.names, part.captions, strict=True)
            ]
        _text(root / f"flickr30k_{split}.json", json.dumps(records))
    return ["--data", str(root)]


def add_to_tar(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """One member."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def img2dataset(sample: Sample, root: Path) -> list[str]:
    """Two tars of jpg, txt and json with one caption each, parquet and statistics beside."""
    root.mkdir(parents=True)
    half = len(sample.names) // 2
    for shard, rows in enumerate((range(half), range(half, len(sample.names)))):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for row in rows:
                key = f"{row:09d}"
                text = sample.captions[row][0]
                record = {"key": key, "caption": text, "status": "success"}
                add_to_tar(tar, f"{key}.jpg", (sample.folder / sample.names[row]).read_bytes())
                add_to_tar(tar, f"{key}.txt", text.encode())
                add_to_tar(tar, f"{key}.json", json.dumps(record).encode())
        (root / f"{shard:05d}.parquet").write_bytes(b"PAR1 is not read")
        (root / f"{shard:05d}_stats.json").write_text("{}")
    return ["--data", str(root)]


def img2dataset_files(sample: Sample, root: Path) -> list[str]:
    """The same as files: 00000/000000000.jpg and .txt."""
    half = len(sample.names) // 2
    for row, name in enumerate(sample.names):
        folder = root / f"{row // half:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sample.folder / name, folder / f"{row:09d}.jpg")
        (folder / f"{row:09d}.txt").write_text(sample.captions[row][0])
    return ["--data", str(root)]


def clip_benchmark(sample: Sample, root: Path) -> list[str]:
    """train/0.tar, val/0.tar, test/0.tar: keys begin anew, captions are the lines of .txt."""
    for split in ("train", "val", "test"):
        part = sample.only(split)
        (root / split).mkdir(parents=True)
        (root / split / "nshards.txt").write_text("1")
        with tarfile.open(root / split / "0.tar", "w") as tar:
            for row, (name, texts) in enumerate(zip(part.names, part.captions, strict=True)):
                add_to_tar(tar, f"s{row:07d}.txt", "\n".join(texts).encode())
                add_to_tar(tar, f"s{row:07d}.jpg", (part.folder / name).read_bytes())
    (root / "dataset_type.txt").write_text("retrieval")
    return ["--data", str(root)]


def imagefolder(sample: Sample, root: Path, form: str = "csv") -> list[str]:
    """Hugging Face's imagefolder: SPLIT/metadata.csv beside the images of the split."""
    for split in ("train", "val", "test"):
        part = sample.only(split)
        folder = root / {"val": "validation"}.get(split, split)
        _copy(part, folder)
        if form == "csv":
            rows = [("file_name", "text"), *part.pairs()]
            _text(folder / "metadata.csv", _table(rows))
        elif form == "jsonl":
            lines = [json.dumps({"file_name": n, "text": t}) + "\n" for n, t in part.pairs()]
            _text(folder / "metadata.jsonl", "".join(lines))
        else:
            _write_parquet(
                folder / "metadata.parquet",
                {"file_name": [n for n, _ in part.pairs()], "text": [t for _, t in part.pairs()]},
            )
    return ["--data", str(root)]


def _write_parquet(path: Path, columns: dict[str, list[Any]], rows_per_group: int = 4) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, row_group_size=rows_per_group)


def parquet_bytes(sample: Sample, root: Path) -> list[str]:
    """data/SPLIT-00000-of-00001.parquet with image {bytes, path} and a list of captions."""
    for split in ("train", "val", "test"):
        part = sample.only(split)
        images = [{"bytes": (part.folder / n).read_bytes(), "path": n} for n in part.names]
        _write_parquet(
            root / "data" / f"{split}-00000-of-00001.parquet",
            {"image": images, "caption": part.captions},
        )
    return ["--data", str(root)]


def parquet_paths(sample: Sample, root: Path) -> list[str]:
    """One parquet file with paths, a row a caption."""
    _copy(sample, root / "photos")
    pairs = sample.pairs()
    _write_parquet(
        root / "captions.parquet",
        {"path": [n for n, _ in pairs], "sentence": [t for _, t in pairs]},
    )
    return ["--data", str(root)]


# Every layout of the table in docs/datasets.md, by the name that it has there.
LAYOUTS: dict[str, Callable[[Sample, Path], list[str]]] = {
    "karpathy": karpathy,
    "csv": _captions_file("captions.csv", _csv),
    "csv, several columns": _captions_file("captions.csv", _wide_csv),
    "csv, lists in a column": _captions_file("captions.csv", _list_csv),
    "csv, CRLF and a mark": _captions_file(
        "captions.csv", lambda s: _csv(s, end="\r\n"), "utf-8-sig"
    ),
    "csv.gz": _captions_file("captions.csv.gz", _csv),
    "csv, UTF-16": _captions_file("captions.csv", _csv, "utf-16"),
    "csv, semicolons": _captions_file("captions.csv", lambda s: _csv(s, ";")),
    "csv, no header": _captions_file("captions.csv", lambda s: _table(s.pairs())),
    "tsv": _captions_file("captions.tsv", lambda s: _csv(s, "\t")),
    "tsv, no quotes": _captions_file("captions.tsv", _raw_tsv),
    "json lines": _captions_file("captions.jsonl", _json_lines),
    "json lines, lists": _captions_file("captions.jsonl", _json_lines_wide),
    "json lines.gz": _captions_file("captions.jsonl.gz", _json_lines),
    "json mapping": _captions_file("captions.json", _mapping),
    "flickr30k": flickr30k,
    "flickr30k, kaggle": flickr30k_kaggle,
    "flickr8k": flickr8k,
    "coco": coco,
    "lavis": lavis,
    "img2dataset": img2dataset,
    "img2dataset, files": img2dataset_files,
    "clip_benchmark": clip_benchmark,
    "imagefolder, csv": imagefolder,
    "imagefolder, jsonl": lambda s, root: imagefolder(s, root, "jsonl"),
    "imagefolder, parquet": lambda s, root: imagefolder(s, root, "parquet"),
    "parquet, bytes": parquet_bytes,
    "parquet, paths": parquet_paths,
}
# These hold one caption an image.
SINGLE = ("img2dataset", "img2dataset, files")
# These say which image is of which split.
SPLIT = (
    *("karpathy", "flickr8k", "coco", "lavis", "clip_benchmark", "parquet, bytes"),
    *("imagefolder, csv", "imagefolder, jsonl", "imagefolder, parquet"),
)
