"""The two models behind one face for pretraining: build, encode, save in their native layout.

Both are the real classes of their libraries, only small. What is written is what
`BlipForImageTextRetrieval.from_pretrained(folder)` and
`open_clip.create_model_and_transforms("local-dir:" + folder)` read.
Letters: B pictures, T captions, N tokens, D token width, E embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hada.extract.backbones.preprocessing import MEAN, STD
from hada.extract.pretraining.corpus import to_input
from hada.extract.pretraining.recipes import Recipe

# Mean and deviation of RGB that both libraries use for CLIP and BLIP.
_LENGTH_GROUPS = 3


class Towers(ABC):
    """A model in training: its parameters, and how pictures and captions go through it."""

    recipe: Recipe
    model: Any  # a torch module; its library's classes carry no types
    tokenizer: Any

    @abstractmethod
    def see(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) -> patch tokens with what stands before them (B, N, D), embedding (B, E)."""

    def read(self, captions: list[str]) -> torch.Tensor:
        """T captions -> embeddings (T, E), not normalised.

        Captions are read in groups of like length: a batch padded to its longest caption would
        be half padding, and reading is the larger part of a training step.
        """
        order = sorted(range(len(captions)), key=lambda row: len(captions[row]))
        share = -(-len(order) // _LENGTH_GROUPS)
        parts = [order[at : at + share] for at in range(0, len(order), share)]
        out = torch.cat([self._read([captions[row] for row in part]) for part in parts])
        return out[torch.argsort(torch.tensor(order, device=out.device))]

    @abstractmethod
    def _read(self, captions: list[str]) -> torch.Tensor:
        """T captions of about one length -> embeddings (T, E)."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights (float16), configuration and tokenizer in the library's own layout."""

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def images(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """(B, S, S) palette numbers -> the model's input."""
        return to_input(pixels, self.recipe.pixels, MEAN, STD, self.device)


class MatchingTowers(Towers):
    """Towers whose model also has an image-text matching head."""

    @abstractmethod
    def matches(self, captions: list[str], image_tokens: torch.Tensor) -> torch.Tensor:
        """Match logits (T, 2) of each caption with its row of (T, N, D)."""
