"""Pictures and captions of every kind through the command: handled, or reported one by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import tiny_dual
import torch
from click.testing import CliRunner
from PIL import Image

from hada.extract.cli import extract
from hada.extract.store import open_store

MANIFEST = """\
schema: 1
defaults: {dataset: odd, models: [m]}
stores: stores
datasets:
  odd:
    reader: karpathy
    root: data
    annotations: odd.json
    images: images
    splits: {test: {}}
models: {m: {family: fake, weights: a}}
"""


def noise(width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def save(image: Image.Image, name: str, **options: Any) -> Callable[[Path], None]:
    return lambda folder: image.save(folder / name, **options)


def rotated(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(folder / "rotated.jpg", exif=exif)


def cut(folder: Path) -> None:
    noise().save(folder / "truncated.jpg")
    data = (folder / "truncated.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])


def damaged(folder: Path) -> None:
    noise().save(folder / "corrupt.png")
    data = bytearray((folder / "corrupt.png").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20] = b"\xff" * 20
    (folder / "corrupt.png").write_bytes(bytes(data))


GRAY_16 = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0))
FRAMES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
GOOD: dict[str, Callable[[Path], None]] = {
    "plain.jpg": save(noise(), "plain.jpg"),
    "cmyk.jpg": save(noise().convert("CMYK"), "cmyk.jpg"),
    "sixteen.png": save(GRAY_16, "sixteen.png"),
    "palette.png": save(noise().quantize(16), "palette.png", transparency=0),
    "animated.gif": save(FRAMES[0], "animated.gif", save_all=True, append_images=FRAMES[1:]),
    "rotated.jpg": rotated,
    "pixel.png": save(Image.new("RGB", (1, 1), "red"), "pixel.png"),
    "wide.png": save(Image.new("L", (30000, 40), 99), "wide.png"),
}
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated.jpg": (cut, "cannot be decoded"),
    "corrupt.png": (damaged, "cannot be decoded"),
    "empty.jpg": (lambda folder: (folder / "empty.jpg").write_bytes(b"") and None, "not a picture"),
    "page.jpg": (
        lambda folder: (folder / "page.jpg").write_text("<html>") and None,
        "not a picture",
    ),
    "pipe.jpg": (lambda folder: os.mkfifo(folder / "pipe.jpg"), "not a regular file"),
    "thread.png": (save(Image.new("L", (30000, 3)), "thread.png"), "too elongated (30000 x 3"),
}
CAPTIONS = [
    "",
    "   \n\t ",
    "dog " * 1000,
    "狗在公园里跑",
    "собака бежит по парку",
    "كلب يجري في الحديقة",
    "🐕🐕🐕 a dog",
    "half an emoji: \ud83d",
    "a\u0000b",
    "e\u0301\u0301\u0301" * 50,
]


def make_project(folder: Path) -> list[str]:
    """All pictures, the good ones between the bad; the captions spread over them."""
    pictures = folder / "data" / "images"
    pictures.mkdir(parents=True)
    makers = {**GOOD, **{name: make for name, (make, _) in BAD.items()}}
    names = sorted(makers)
    for name in names:
        makers[name](pictures)
    images = [
        {
            "filename": name,
            "split": "test",
            "sentences": [
                {"raw": text, "sentid": f"{name}-{n}"}
                for n, text in enumerate(CAPTIONS if row == 0 else ["a dog"])
            ],
        }
        for row, name in enumerate(names)
    ]
    (folder / "data" / "odd.json").write_text(json.dumps({"images": images}))
    (folder / "data_manifest.yaml").write_text(MANIFEST)
    return names


def command(*arguments: str) -> Any:
    return CliRunner().invoke(
        extract, ["--split", "test", "--batch-size", "3", "--shard-size", "4", *arguments]
    )


def model(family: str, golden: Path) -> str:
    if family == "clip":
        config = {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": 64,
                "heads": 2,
                "layers": 1,
            },
        }
        Path("clip").mkdir()
        Path("clip/open_clip_config.json").write_text(
            json.dumps({"model_cfg": config, "preprocess_cfg": {}})
        )
        made = open_clip.create_model("local-dir:clip", load_weights=False)
        torch.save(made.state_dict(), "clip/open_clip_pytorch_model.bin")
        return "x=clip:clip"
    if family == "dual":
        return f"x=dual:{tiny_dual.make_clip(Path('dual'))}"
    weights = {
        "fake": "a",
        "albef": golden / "albef" / "flickr30k.pth",
        "blip": golden / "blip_base" / "model_base_retrieval_flickr.pth",
    }
    return f"x={family}:{weights[family]}"


@pytest.mark.parametrize(
    ("family", "workers"),
    [("fake", 0), ("fake", 2), ("albef", 0), ("blip", 0), ("clip", 0), ("dual", 0)],
)
def test_every_item_is_handled_or_reported(
    golden_root: Path, tmp_path: Path, family: str, workers: int
) -> None:
    names = make_project(tmp_path)
    described = model(family, golden_root / "backbones")
    result = command("--model", described, "--workers", str(workers))
    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.output
    store = open_store("stores/odd/test/x")
    assert {name for name, bad in zip(names, store.image.failed, strict=True) if bad} == set(BAD)
    good = np.flatnonzero(~store.image.failed)
    assert np.isfinite(store.image.tokens(good)).all()
    assert np.isfinite(store.caption.tokens(slice(None))).all()
    lines = Path("stores/odd/test/x/errors.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["id"] for record in records] == sorted(BAD)
    for record in records:
        assert names[record["row"]] == record["id"]
        assert BAD[record["id"]][1] in record["reason"]
        assert f"could not decode {record['id']}" in result.stderr


def test_beyond_max_errors(tmp_path: Path) -> None:
    make_project(tmp_path)
    result = command("--max-errors", str(len(BAD) - 1))
    assert result.exit_code == 1
    assert f"{len(BAD)} pictures could not be decoded, more than --max-errors" in result.stderr
    assert command("--max-errors", str(len(BAD))).exit_code == 0


def test_fail_at_the_first(tmp_path: Path) -> None:
    make_project(tmp_path)
    for _ in range(2):  # the same where the run continues
        result = command("--on-error", "fail")
        assert result.exit_code == 1
        assert "--on-error fail: picture " in result.stderr
    assert not Path("stores/odd/test/m/errors.jsonl").exists()
    assert command("--on-error", "skip").exit_code == 0
    # The store is complete, but not without failures.
    assert command("--on-error", "fail").exit_code == 1


def test_mended_pictures_leave_no_report(tmp_path: Path) -> None:
    make_project(tmp_path)
    assert command().exit_code == 0
    assert command("--fresh").exit_code == 0  # the report is part of the store
    for name in BAD:
        (tmp_path / "data" / "images" / name).unlink()
        noise().save(tmp_path / "data" / "images" / name)
    assert command("--fresh", "--on-error", "fail").exit_code == 0
    assert not Path("stores/odd/test/m/errors.jsonl").exists()


@pytest.mark.slow
def test_it_ends(tmp_path: Path) -> None:
    """In a process of its own, with a limit: a pipe among the pictures must not block."""
    make_project(tmp_path)
    code = "from hada.extract.cli import extract; extract()"
    result = subprocess.run(
        [sys.executable, "-c", code, "--split", "test"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_last_line_says_what_bound_the_run(tmp_path: Path) -> None:
    make_project(tmp_path)
    assert "to speed up: " in command().output
    assert "complete already" in command().output
