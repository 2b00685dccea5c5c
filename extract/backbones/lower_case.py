"""SigLIP was trained on lower-cased captions; not every tokenizer that comes with it does so.

SigLIP 1's own tokenizer does, and open_clip's cleaning of text does. SigLIP 2's checkpoints name
Gemma's tokenizer, which does not, whatever their `do_lower_case` says: there it is put in front,
as transformers' Siglip2Tokenizer has it.
"""

from __future__ import annotations

from typing import Any

from tokenizers import normalizers

from hada.extract.common.errors import CheckpointError

_PROBE = "A DOG"
# What a store's spec says under `lower_case`.
BY_TOKENIZER, ADDED, OFF = "by the tokenizer", "added before the tokenizer", "off, by its config"


def is_siglip(*names: object) -> bool:
    """Whether one of a model's names says that it is a SigLIP.

    >>> is_siglip(None, "timm/ViT-B-16-SigLIP2")
    True
    """
    return any("siglip" in str(name).lower() for name in names)


def ensure(tokenizer: Any) -> str:
    """Make a tokenizer of transformers lower-case its input; how it does, for the store's spec.

    A tokenizer whose own config says `do_lower_case: false` is left as it is.
    """
    if tokenizer.init_kwargs.get("do_lower_case") is False:
        return OFF
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        if tokenizer.tokenize(_PROBE) == tokenizer.tokenize(_PROBE.lower()):
            return BY_TOKENIZER
        raise CheckpointError(
            f"{type(tokenizer).__name__} does not lower-case captions, and SigLIP needs it; save "
            "its fast form (tokenizer.json) beside the weights"
        )
    own = backend.normalizer
    if own is not None and own.normalize_str(_PROBE) == own.normalize_str(_PROBE.lower()):
        return BY_TOKENIZER
    backend.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), *([own] if own is not None else [])]
    )
    return ADDED
