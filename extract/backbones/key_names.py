"""What the names of a checkpoint's tensors tell: wrappings, prefixes, and whose weights they are.

Names alone are looked at, so nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Where training code puts the weights; the earlier wins where a file holds several of them.
WRAPPERS = ("model", "state_dict", "model_dict", "model_state_dict", "ema", "model_ema",
            "ema_state_dict", "state_dict_ema", "module")  # fmt: skip
# What DistributedDataParallel, Lightning and torch.compile put before every name.
PREFIXES = ("module.", "model.", "_orig_mod.")
# The counter of PyTorch's AveragedModel, the one name that it does not prefix.
_COUNTERS = frozenset({"n_averaged"})
_DEPTH = 4

BLIP_FILE = "use one that was fine-tuned for retrieval, such as model_base_retrieval_coco.pth"
BLIP_FOLDER = "use Salesforce/blip-itm-base-coco or another BlipForImageTextRetrieval"


def unwrapped(loaded: Any) -> Any:
    """What lies under `state_dict`, `model`, `ema` or another of `WRAPPERS`; else `loaded` itself.

    >>> import numpy as np
    >>> weight = np.zeros(3)
    >>> list(unwrapped({"epoch": 3, "model": {"state_dict": {"a": weight}}}))
    ['a']
    """
    for _ in range(_DEPTH):
        if not isinstance(loaded, Mapping):
            break
        inner = [loaded[name] for name in WRAPPERS if _holds_weights(loaded.get(name))]
        if not inner:
            break
        loaded = inner[0]
    return loaded


def _holds_weights(value: Any) -> bool:
    """Whether a wrapper's value is tensors or another wrapper, not a configuration."""
    return isinstance(value, Mapping) and any(
        hasattr(inner, "shape") or (name in WRAPPERS and isinstance(inner, Mapping))
        for name, inner in value.items()
    )


def bare_names(names: Iterable[str]) -> dict[str, str]:
    """Each name without the prefixes that all of them share, and without torch.compile's.

    Names that would become one and the same stay as they are.

    >>> bare_names(["module.a._orig_mod.b", "module.c", "n_averaged"])
    {'module.a._orig_mod.b': 'a.b', 'module.c': 'c'}
    """
    originals = list(names)
    bare = {name: name for name in originals if name not in _COUNTERS} or {n: n for n in originals}
    while (prefix := _shared(bare.values())) is not None:
        bare = {name: now.removeprefix(prefix) for name, now in bare.items()}
    short = {name: now.replace("._orig_mod.", ".") for name, now in bare.items()}
    if len(set(short.values())) == len(short):
        return short
    return {name: name for name in originals}


def _shared(names: Iterable[str]) -> str | None:
    every = list(names)
    found = (p for p in PREFIXES if every and all(n.startswith(p) and n != p for n in every))
    return next(found, None)


def family_of(keys: Iterable[str]) -> str | None:
    """The family whose official naming the tensor names follow, None where none is recognised.

    >>> family_of(["uniter.embeddings.LayerNorm.weight"])
    'uniter'
    """
    names = list(keys)
    starts = _starts(names)
    if starts("uniter."):
        return "uniter"
    if starts("img_model.", "bert.img_model."):
        return "lightningdot"
    if starts("qformer.", "Qformer."):
        return "blip2"
    if starts("visual_encoder."):
        # BLIP has cross-attention in every text layer, ALBEF only from the fusion layer (6) up.
        in_first_layer = any(".layer.0.crossattention." in name for name in names)
        return "blip" if in_first_layer and not starts("text_encoder.bert.") else "albef"
    if starts("vision_model."):
        if starts("text_encoder.", "text_decoder."):
            return "blip"
        return "dual" if starts("text_model.") else None
    return "clip" if starts("visual.") else None


def why_not(keys: Iterable[str]) -> tuple[str, str] | None:
    """What a checkpoint is that no family can use, and what to do; None where one may.

    >>> why_not(["visual_encoder.cls_token", "text_decoder.cls.predictions.bias"])[0]
    'a BLIP captioning checkpoint, which has no projection'
    """
    names = list(keys)
    starts = _starts(names)
    if family_of(names) in ("uniter", "lightningdot"):
        return None
    if starts("visual_encoder.", "vision_model.") and not starts("qformer.", "Qformer."):
        official = starts("visual_encoder.")
        advice = BLIP_FILE if official else BLIP_FOLDER
        # Retrieval has both projections; what was fine-tuned for other tasks has none.
        if not starts("vision_proj", "text_model.", "visual_projection") and starts("text_"):
            return _other_task(starts, advice)
    if starts("Qformer."):
        return (
            "a BLIP-2 checkpoint in LAVIS's layout",
            "use its Hugging Face form, e.g. blip2:Salesforce/blip2-itm-vit-g",
        )
    if starts("visual.") and not starts("text.", "transformer.", "token_embedding."):
        return "the image half of a CLIP", "give the whole model"
    if starts("blocks.", "patch_embed.", "trunk.", "stem."):
        return "an image encoder alone", "give a model that has a text side, too"
    if starts("bert.", "roberta.", "encoder.layer.", "embeddings.word_embeddings."):
        return "a text encoder alone", "give a model that has an image side, too"
    if starts("base_model.model."):
        return "an adapter (PEFT), not a model", "merge it into its model and save that"
    return None


def _other_task(starts: Callable[..., bool], advice: str) -> tuple[str, str]:
    if starts("text_decoder.") and not starts("text_encoder."):
        return "a BLIP captioning checkpoint, which has no projection", advice
    if starts("text_decoder."):
        return "a checkpoint for visual question answering, which has no projection", advice
    return "a BLIP or ALBEF checkpoint without its projections", advice


def _starts(names: list[str]) -> Callable[..., bool]:
    return lambda *prefixes: any(name.startswith(prefixes) for name in names)
