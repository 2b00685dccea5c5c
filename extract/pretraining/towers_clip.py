"""The small CLIP: `open_clip`'s own class and layout, with a tokenizer that lies beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from hada.extract.backbones.preprocessing import MEAN, STD
from hada.extract.common import atomic
from hada.extract.pretraining.recipes import Recipe
from hada.extract.pretraining.towers import Towers
from hada.extract.scenes.words import vocabulary


class ClipTowers(Towers):
    """`open_clip`'s CLIP with a vocabulary of whole words instead of 49,408 byte pairs."""

    def __init__(self, recipe: Recipe) -> None:
        import open_clip

        self.recipe = recipe
        self.tokenizer = _clip_tokenizer(recipe.context)
        self.config = _clip_config(recipe, len(self.tokenizer))
        self.model = open_clip.CLIP(
            self.config["embed_dim"],
            open_clip.CLIPVisionCfg(**self.config["vision_cfg"]),
            open_clip.CLIPTextCfg(**self.config["text_cfg"]),
        )

    def see(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        visual = self.model.visual
        visual.output_tokens = True
        try:
            embedding, patches = visual(images)
        finally:
            visual.output_tokens = False
        return patches, embedding

    def _read(self, captions: list[str]) -> torch.Tensor:
        ids = self.tokenizer(
            captions, padding=True, truncation=True, return_tensors="pt"
        ).input_ids.to(self.device)
        # encode_text always pads to the full context; the same sums over the batch's longest
        # caption cost half as much, and causal attention makes the result the same.
        length = ids.shape[1]
        model = self.model
        x = model.token_embedding(ids) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        last = x[torch.arange(len(x), device=x.device), ids.argmax(dim=-1)]
        return torch.as_tensor(last @ model.text_projection)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        half = {
            name: value.detach().half().contiguous().cpu()
            for name, value in self.model.state_dict().items()
        }
        data = save(half, metadata={"format": "pt"})
        atomic.write_new(folder / "open_clip_model.safetensors", data)
        preprocess = {
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        }
        config = {"model_cfg": self.config, "preprocess_cfg": preprocess}
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        atomic.write_new(folder / "open_clip_config.json", text.encode())
        self.tokenizer.save_pretrained(folder)


def _clip_tokenizer(context: int) -> Any:
    """Words to numbers; the end token has the highest, where CLIP's argmax pooling looks."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end, pad, unknown = "<|startoftext|>", "<|endoftext|>", "<pad>", "<unk>"
    words = [pad, unknown, ".", ",", *vocabulary(), start, end]
    numbers = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(numbers, unk_token=unknown))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, numbers[start]), (end, numbers[end])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=context,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        unk_token=unknown,
    )


def _clip_config(recipe: Recipe, vocabulary_size: int) -> dict[str, Any]:
    return {
        "embed_dim": recipe.joint,
        "vision_cfg": {
            "image_size": recipe.pixels,
            "patch_size": recipe.patch,
            "width": recipe.width,
            "head_width": recipe.width // recipe.heads,
            "layers": recipe.image_layers,
            "mlp_ratio": recipe.feedforward / recipe.width,
        },
        "text_cfg": {
            # Any name makes open_clip read the tokenizer that lies beside this file.
            "hf_tokenizer_name": "scenes",
            "context_length": recipe.context,
            "vocab_size": vocabulary_size,
            "width": recipe.width,
            "heads": recipe.heads,
            "layers": recipe.text_layers,
            "mlp_ratio": recipe.feedforward / recipe.width,
        },
    }
