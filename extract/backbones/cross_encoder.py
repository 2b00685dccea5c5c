"""A cross-encoder of sentence-transformers: one score for an image and a caption read together.

It is no backbone, for it has no features of either alone; `hada-evaluate recall` re-ranks with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from hada.extract.backbones import hub
from hada.extract.common.device import choose_device
from hada.extract.common.errors import CheckpointError, UsageError


class CrossEncoder:
    """Scores of (caption, image) pairs.

    name: The last part of the path or id.
    digest: sha256 of everything that decides a score.
    """

    def __init__(self, place: str, device: str = "auto") -> None:
        """Load a model.

        Args:
            place: A folder, ORG/NAME or ORG/NAME@REVISION.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.

        Raises:
            CheckpointError: The folder holds another kind of model, one that takes no images, or
                one whose answer is no single score.
            UsageError: sentence-transformers is not installed, or the device is not there.
        """
        try:
            from hada.extract.backbones import sentence_load
        except ModuleNotFoundError as error:
            if error.name != "sentence_transformers":
                raise
            raise UsageError(
                "a cross-encoder needs the package 'sentence_transformers', which is not "
                "installed: pip install sentence-transformers"
            ) from error
        folder = hub.resolve_folder(place, None, hub.SENTENCE_WEIGHTS)
        self.name = place.rstrip("/").rpartition("/")[2].partition("@")[0]
        self._model: Any = sentence_load.read_cross_encoder(folder)
        labels = int(self._model.num_labels)
        if labels != 1:
            raise CheckpointError(
                f"{folder} gives a pair {labels} numbers, expected one score of how well image "
                "and caption match"
            )
        self.digest = sentence_load.digest(folder)
        self._model.float().eval().requires_grad_(False).to(torch.device(choose_device(device)))

    def scores(
        self, captions: Sequence[str], images: Sequence[PIL.Image.Image]
    ) -> NDArray[np.float32]:
        """(P,) of P captions and the image of each; the higher, the better they match.

        They are logits: what the library's `predict` gives without an activation.

        Args:
            captions: The text of each pair.
            images: The upright RGB picture of each pair, as many as captions.
        """
        pairs = list(zip(captions, images, strict=True))
        found = self._model.predict(
            pairs,
            batch_size=max(1, len(pairs)),
            activation_fn=torch.nn.Identity(),
            show_progress_bar=False,
        )
        return np.asarray(found, np.float32).reshape(len(pairs))
