"""Tiny open_clip models, in folders as open_clip writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch

VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
# 49,408 words: CLIP's own tokenizer, which comes with open_clip.
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}


def save_tokenizer(folder: Path, *, start: bool) -> None:
    """A word tokenizer whose pad is its end token, as SigLIP's; with a start token if asked."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "<s>", "a", "dog", "two", "people", "in", "red", "shirts", "man"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if start else "$A </s>", special_tokens=[("<s>", 2), ("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="</s>",
        bos_token="<s>" if start else None,
        model_max_length=12,
    )
    fast.save_pretrained(folder)


def make_folder(folder: Path, vision: dict[str, Any], text: dict[str, Any], **extra: Any) -> Path:
    """A `local-dir:` model folder with random weights; every tensor is random, norms included."""
    config = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text, **extra}
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    if "hf_tokenizer_name" in text:
        save_tokenizer(folder, start="hf_model_name" in text)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or "running_var" in name:
            continue
        if tensor.ndim > 1:  # drawn anew: open_clip leaves CoCa's last one as the memory was
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        else:
            scale = 0.5 if "norm" in name or "ln_" in name else 0.05
            tensor.add_(torch.randn_like(tensor) * scale)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder
