"""What `benchmarks/extract.py` measures with: pictures, a dataset of them, a model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import torch

from hada.extract import scenes
from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.common.host import reuse_freed_memory
from hada.extract.datasets.caption_dataset import CaptionDataset

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


def find_pictures(source: Path, folder: Path, count: int) -> list[Path]:
    """The first pictures of a folder, linked into one that holds nothing else."""
    folder.mkdir(parents=True)
    paths = []
    for path in sorted(source.iterdir())[:count]:
        paths.append(folder / path.name)
        paths[-1].symlink_to(path.resolve())
    return paths


def make_dataset(paths: list[Path]) -> CaptionDataset:
    """The pictures, and one short caption: it is the pictures that are timed."""
    return CaptionDataset(
        name="bench",
        split="test",
        image_ids=tuple(path.name for path in paths),
        image_paths=tuple(paths),
        caption_ids=("0",),
        captions=("a photograph",),
        caption_to_image=np.zeros(1, np.int64),
    )


def make_model(folder: Path, name: str) -> tuple[str, str]:
    """Family and weights: built-in ones, or random ones saved into a folder."""
    if name.startswith("builtin:"):
        place = Path(scenes.__file__).parent / "weights" / name.rpartition("/")[2]
        return place.name, str(place)
    if name == "blip-base-384":
        from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

        config = BlipConfig(
            text_config={"num_attention_heads": 12}, vision_config={"image_size": 384}
        )
        BlipForImageTextRetrieval(config).save_pretrained(folder)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photograph"]
        (folder / "vocab.txt").write_text("\n".join(words))
        BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
        return "blip", str(folder)
    config = TINY if name == "tiny" else open_clip.get_model_config(name)
    folder.mkdir()
    document = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return "clip", str(folder)


def load(arguments: argparse.Namespace, work: Path) -> Any:
    """The backbone that the command line asks for, as `hada-extract` has it."""
    reuse_freed_memory()
    family, weights = make_model(work / "model", arguments.model)
    return load_backbone(
        BackboneRequest(
            name="bench",
            family=family,
            weights=weights,
            device=arguments.device,
            precision=arguments.precision,
            options={},
        )
    )


def forward_pass(backbone: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The bare model: (B, 3, H, W) -> (B, E)."""
    model = backbone.model
    if backbone.spec.family == "clip":
        forward: Callable[[torch.Tensor], torch.Tensor] = model.encode_image
        return forward
    return lambda pixels: model.vision_proj(model.vision_model(pixels).last_hidden_state[:, 0])
