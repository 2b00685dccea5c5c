"""Reads a folder of sentence-transformers, pooled or multi-vector; never runs code from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sentence_transformers
import torch
from transformers import PreTrainedModel

from hada.extract.backbones import weights
from hada.extract.backbones.model_folders import (
    SENTENCE,
    TRANSFORMERS,
    sentence_kind,
    sentence_modules,
)
from hada.extract.common.documents import read_json
from hada.extract.common.errors import CheckpointError, UsageError

NEEDED = "6.0"
# Module classes of PyLate for which sentence-transformers has its own.
_ALIASES = ("pylate.models.Dense.Dense",)
_SUFFIXES = (*weights.WEIGHT_SUFFIXES, *weights.CONFIG_SUFFIXES, ".jinja")


def read_folder(folder: Path) -> Any:
    """The model in float32 on the CPU, a `SentenceTransformer` or a `MultiVectorEncoder`.

    Raises:
        CheckpointError: The folder holds another kind of model, one without an image or a text
            side, one with code of its own, or weights that are incomplete or not finite.
        UsageError: The installed sentence-transformers is too old.
    """
    model = _loaded(_model_class(folder), folder)
    _check_sides(model, folder)
    transformer = model[0]
    if hasattr(transformer, "unpad_inputs"):
        transformer.unpad_inputs = False  # rows of a batch must not depend on each other
    _limit_captions(model)
    return model


def read_cross_encoder(folder: Path) -> Any:
    """A `CrossEncoder` in float32 on the CPU that takes pairs of an image and a caption.

    Raises `CheckpointError` as `read_folder` does, and where the model takes texts alone.
    """
    if not (folder / SENTENCE).is_file() or sentence_kind(folder) != "CrossEncoder":
        raise CheckpointError(
            f"{folder} is no cross-encoder of images and captions that sentence-transformers "
            f"saved: expected a {SENTENCE}, and CrossEncoder in config_sentence_transformers.json"
        )
    _check_own_code(folder)
    model = _loaded(sentence_transformers.CrossEncoder, folder)
    if not model.supports(("image", "text")):
        raise CheckpointError(
            f"{folder} is a cross-encoder of {_kinds(model)}; expected one that reads an image "
            "and a text together"
        )
    return model


def _loaded(model_class: Any, folder: Path) -> Any:
    """The model with all its weights, all of them finite."""
    weights.require_sentencepiece(folder)
    with weights.explained(folder, "sentence"), weights.no_loading_bar(), _loading() as left_out:
        model = model_class(
            str(folder),
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"dtype": torch.float32},
        )
    for info in left_out:
        # What another task's head had is left out on purpose; what is missing is noise.
        weights.check_loading_info({**info, "unexpected_keys": ()}, folder)
    weights.check_finite(model, folder)
    return model


def _limit_captions(model: Any) -> None:
    """Cut captions where the positions of the text side end, if the tokenizer does not.

    The library asks a model's own config alone, and a CLIP's text side has another.
    """
    text = getattr(getattr(model, "config", None), "text_config", None)
    positions = getattr(text, "max_position_embeddings", None)
    limit = model.max_seq_length
    if isinstance(positions, int) and (limit is None or limit > positions):
        model.max_seq_length = positions


def _model_class(folder: Path) -> Any:
    """The library's class for a folder, by its configs alone."""
    multi = getattr(sentence_transformers, "MultiVectorEncoder", None)
    if multi is None:
        raise UsageError(
            f"family 'sentence' needs sentence-transformers {NEEDED} or newer, "
            f"{sentence_transformers.__version__} is installed: pip install -U "
            "sentence-transformers"
        )
    if not (folder / SENTENCE).is_file():
        if _is_retriever(folder):
            return multi
        raise CheckpointError(
            f"{folder} has no {SENTENCE}, so nothing says how its tokens are pooled; expected a "
            "folder that sentence-transformers saved"
        )
    _check_own_code(folder)
    kind = sentence_kind(folder)
    classes = {
        "SentenceTransformer": sentence_transformers.SentenceTransformer,
        "MultiVectorEncoder": multi,
    }
    if kind not in classes:
        raise CheckpointError(
            f"{folder} holds a {kind} of sentence-transformers; expected a SentenceTransformer or "
            "a MultiVectorEncoder"
        )
    return classes[kind]


def _check_own_code(folder: Path) -> None:
    for module in sentence_modules(folder):
        kind = str(module.get("type"))
        if not kind.startswith("sentence_transformers.") and kind not in _ALIASES:
            raise CheckpointError(
                f"{folder} needs code of its own ({kind} in {SENTENCE}), which HADA does not run; "
                "a class of your own can use it (docs/own_backbone.md)"
            )


def _is_retriever(folder: Path) -> bool:
    """Whether a folder without modules is a late-interaction model of transformers."""
    config = folder / TRANSFORMERS
    value = read_json(config, CheckpointError) if config.is_file() else {}
    names = value.get("architectures") if isinstance(value, Mapping) else None
    return isinstance(names, list) and any(str(name).endswith("ForRetrieval") for name in names)


def _check_sides(model: Any, folder: Path) -> None:
    for side, named in (("image", "an image"), ("text", "a text")):
        if not model.supports(side):
            raise CheckpointError(
                f"{folder} is a sentence-transformers model without {named} side (it takes "
                f"{_kinds(model)}); give one that encodes images as well as texts"
            )


def _kinds(model: Any) -> str:
    """What a model takes, in words."""
    kinds = (kind if isinstance(kind, str) else " with ".join(kind) for kind in model.modalities)
    return ", ".join(kinds)


@contextmanager
def _loading() -> Iterator[list[Mapping[str, Any]]]:
    """What loading left out, of every model of transformers that is loaded inside.

    sentence-transformers does not ask for it, and transformers only warns and fills in noise.
    """
    found: list[Mapping[str, Any]] = []
    original = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.pop("output_loading_info", False)
        model, info = original.__func__(cls, *args, output_loading_info=True, **kwargs)
        found.append(info)
        return (model, info) if asked else model

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    try:
        yield found
    finally:
        PreTrainedModel.from_pretrained = original


def digest(folder: Path) -> str:
    """sha256 over the weights, configs and templates of a folder and of its modules' folders."""
    total = hashlib.sha256()
    files = [file for file in folder.rglob("*") if file.suffix in _SUFFIXES and file.is_file()]
    for file in sorted(files, key=lambda file: file.relative_to(folder).as_posix()):
        with file.open("rb") as stream:
            inner = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()}\0{inner}\n".encode())
    return total.hexdigest()
