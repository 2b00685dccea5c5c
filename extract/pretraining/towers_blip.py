"""The small BLIP: `transformers.BlipForImageTextRetrieval`, built and saved."""

from __future__ import annotations

from pathlib import Path

import torch

from hada.extract.backbones.preprocessing import MEAN, STD
from hada.extract.pretraining.recipes import Recipe
from hada.extract.pretraining.towers import MatchingTowers
from hada.extract.scenes.words import vocabulary


class BlipTowers(MatchingTowers):
    """`transformers.BlipForImageTextRetrieval` with a WordPiece vocabulary of whole words."""

    def __init__(self, recipe: Recipe) -> None:
        from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

        self.recipe = recipe
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", *vocabulary()]
        words += [".", ","]
        self.tokenizer = BertTokenizer(
            vocab={word: number for number, word in enumerate(words)},
            model_max_length=recipe.context,
            additional_special_tokens=["[DEC]", "[ENC]"],
        )
        shared = {
            "hidden_size": recipe.width,
            "intermediate_size": recipe.feedforward,
            "num_attention_heads": recipe.heads,
            "projection_dim": recipe.joint,
        }
        config = BlipConfig(
            vision_config={
                **shared,
                "num_hidden_layers": recipe.image_layers,
                "image_size": recipe.pixels,
                "patch_size": recipe.patch,
            },
            text_config={
                **shared,
                "encoder_hidden_size": recipe.width,
                "num_hidden_layers": recipe.text_layers,
                "vocab_size": len(words),
                "max_position_embeddings": recipe.context,
                "pad_token_id": 0,
                "bos_token_id": words.index("[DEC]"),
                "sep_token_id": words.index("[SEP]"),
                "eos_token_id": words.index("[SEP]"),
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            projection_dim=recipe.joint,
            image_text_hidden_size=recipe.joint,
        )
        self.model = BlipForImageTextRetrieval(config)
        _scale_to_width(self.model)

    def see(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.model.vision_model(pixel_values=images).last_hidden_state
        return tokens, self.model.vision_proj(tokens[:, 0])

    def _read(self, captions: list[str]) -> torch.Tensor:
        hidden = self.model.text_encoder(**self._tokens(captions)).last_hidden_state
        return torch.as_tensor(self.model.text_proj(hidden[:, 0]))

    def matches(self, captions: list[str], image_tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.model.text_encoder(
            **self._tokens(captions),
            encoder_hidden_states=image_tokens,
            encoder_attention_mask=torch.ones(image_tokens.shape[:2], device=self.device),
        ).last_hidden_state
        return torch.as_tensor(self.model.itm_head(hidden[:, 0]))

    def _tokens(self, captions: list[str]) -> dict[str, torch.Tensor]:
        batch = self.tokenizer(
            captions,
            padding=True,
            truncation=True,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        return {name: values.to(self.device) for name, values in batch.items()}

    def save(self, folder: Path) -> None:
        from transformers import BlipImageProcessor, BlipProcessor
        from transformers.utils import logging

        logging.disable_progress_bar()  # one for a file of 3 MB would break into ours
        side = self.recipe.pixels
        images = BlipImageProcessor(
            size={"height": side, "width": side}, image_mean=list(MEAN), image_std=list(STD)
        )
        half = {name: value.half() for name, value in self.model.state_dict().items()}
        self.model.config.dtype = torch.float16
        self.model.save_pretrained(folder, state_dict=half)
        BlipProcessor(images, self.tokenizer).save_pretrained(folder)


def _scale_to_width(model: torch.nn.Module) -> None:
    """Draw the matrices anew with deviation 1/sqrt(inputs).

    The library's 0.02 suits a width of 768; at 128 signals fade, and the first thousand steps are
    lost.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
