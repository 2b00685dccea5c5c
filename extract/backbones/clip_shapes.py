"""The architecture of an open_clip checkpoint, by the shapes of its tensors."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import open_clip

from hada.extract.backbones.model_folders import Found

Shapes = Mapping[str, tuple[int, ...]]
# What open_clip takes where a config leaves something out.
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "layers": 12}
_QUICK = "-quickgelu"


def named(text: str) -> tuple[str, str] | None:
    """Architecture and tag or file of `ARCH/TAG` or `ARCH/FILE`; None for another text."""
    for slash in (place for place, letter in enumerate(text) if letter == "/"):
        if text[:slash] in open_clip.list_models() and text[slash + 1 :]:
            return text[:slash], text[slash + 1 :]
    return None


def of_shapes(shapes: Shapes, place: str) -> Found:
    """What a checkpoint with an open_clip model's names is.

    It is never loaded by its shapes alone: QuickGELU has no tensors, and the wrong activation
    loads without an error and changes every feature.
    """
    fitting = architectures(shapes)
    one = next((name for name in fitting if not name.endswith(_QUICK)), "ARCH")
    quick = ""
    if any(name.endswith(_QUICK) for name in fitting):
        quick = f" (with {_QUICK} for OpenAI's, DFN's and MetaCLIP's weights)"
    which = f"its shapes fit {', '.join(fitting)}" if fitting else "none has its shapes"
    return Found(
        what="an open_clip checkpoint that does not say its architecture",
        advice=f"{which}: name one of open_clip.list_models(), clip:{one}/{place}{quick}",
    )


def architectures(shapes: Shapes) -> list[str]:
    """The architectures of open_clip whose two transformers have these shapes."""
    try:
        seen = _sizes(shapes)
    except (KeyError, ValueError, IndexError):  # other names, or other dimensions
        return []
    return [name for name in open_clip.list_models() if _configured(name) == seen]


def _sizes(shapes: Shapes) -> dict[str, int]:
    """The sizes of a ViT and a text transformer; raises for other towers."""
    text = "text." if "text.token_embedding.weight" in shapes else ""
    width, _, patch, _ = shapes["visual.conv1.weight"]
    words, text_width = shapes[f"{text}token_embedding.weight"]
    patches = shapes["visual.positional_embedding"][0] - 1
    return {
        "embed_dim": shapes["visual.proj"][1],
        "width": width,
        "patch": patch,
        "image": round(patches**0.5) * patch,
        "layers": _blocks(shapes, "visual.transformer.resblocks."),
        "vocab_size": words,
        "text_width": text_width,
        "context_length": shapes[f"{text}positional_embedding"][0],
        "text_layers": _blocks(shapes, f"{text}transformer.resblocks."),
    }


def _blocks(shapes: Shapes, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})


@functools.cache
def _configured(name: str) -> dict[str, int] | None:
    """The same sizes as an architecture's config has them; None for other towers."""
    config: dict[str, Any] = open_clip.get_model_config(name) or {}
    vision, text = config.get("vision_cfg", {}), {**_TEXT, **config.get("text_cfg", {})}
    if "patch_size" not in vision or "hf_model_name" in text or "multimodal_cfg" in config:
        return None
    return {
        "embed_dim": config["embed_dim"],
        "width": vision.get("width", 768),
        "patch": vision["patch_size"],
        "image": vision.get("image_size", 224),
        "layers": vision.get("layers", 12),
        "vocab_size": text["vocab_size"],
        "text_width": text["width"],
        "context_length": text["context_length"],
        "text_layers": text["layers"],
    }
