"""Reads a dual encoder's folder, its tokenizer and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from hada.extract.backbones import weights
from hada.extract.common.errors import CheckpointError

_INTERFACE = ("get_image_features", "get_text_features", "vision_model", "text_model")

# The model_type of SigLIP 2 with images of varying shape; those of one size are a "siglip".
NAFLEX = "siglip2"
# What RoBERTa's kin have: their positions start behind the padding index.
_AFTER_PADDING = "create_position_ids_from_input_ids"


def read_folder(folder: Path) -> tuple[Any, Any, Any]:
    """The model in float32, its tokenizer and its image processor, all checked."""
    with weights.explained(folder, "dual"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _check_config(config, folder)
        model, info = weights.from_pretrained(AutoModel, folder, config)
        for name in _INTERFACE:
            if not hasattr(model, name):
                raise CheckpointError(
                    f"{folder} holds a {type(model).__name__}, which has no `{name}`; expected a "
                    "dual encoder such as CLIPModel or VisionTextDualEncoderModel"
                )
        weights.require_sentencepiece(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # The PIL form, not the tensor one: it resizes as the models were trained and evaluated.
        processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False
        )
    weights.check_loading_info(info, folder)
    weights.check_finite(model, folder)
    return model, tokenizer, processor


def _check_config(config: Any, folder: Path) -> None:
    kind = config.model_type
    if kind in ("blip", "blip-2"):
        raise CheckpointError(f"{folder} holds a {kind!r} model; set `family: blip`")
    if not hasattr(config, "text_config"):
        raise CheckpointError(f"{folder} holds a {kind!r} model, expected a dual encoder")


def pad_id(tokenizer: Any, config: Any) -> int:
    """The id captions are padded with, 0 where neither side names one."""
    for value in (tokenizer.pad_token_id, getattr(config, "pad_token_id", None)):
        if value is not None:
            return int(value)
    return 0


def max_tokens(tokenizer: Any, model: Any, pad_id: int) -> int:
    """The longest caption in tokens that the tokenizer and the position table both allow."""
    positions = int(getattr(model.config.text_config, "max_position_embeddings", 512))
    if any(hasattr(part, _AFTER_PADDING) for part in model.text_model.modules()):
        positions -= pad_id + 1
    return min(int(tokenizer.model_max_length), positions)


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a caption."""
    bare = tokenizer("a dog", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a dog")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise CheckpointError(
        f"{type(tokenizer).__name__} changes words when it adds special tokens; not supported"
    )


def settings(processor: Any) -> dict[str, Any]:
    """What decides the pixels: switches, sizes, resampling, mean and standard deviation."""
    words = ("do_", "size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std",
             "patch_size", "max_num_patches")  # fmt: skip
    values = processor.to_dict()
    return {key: values[key] for key in sorted(values) if key.startswith(words)}
