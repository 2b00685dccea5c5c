"""Golden captions that are known as ids only, as captions that a command can read.

The golden ids were drawn at random; a vocabulary in which id 7 is the word "word7" turns them into
text, and the model's own tokenizer turns that into the same ids again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

BERT = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}


def bert_vocabulary(path: Path, size: int) -> Path:
    """BERT's vocab.txt of so many words."""
    path.write_text("".join(f"{BERT.get(id_, f'word{id_}')}\n" for id_ in range(size)))
    return path


def clip_tokenizer(folder: Path, size: int) -> None:
    """A tokenizer for open_clip whose start and end tokens are the last two ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end = size - 2, size - 1
    words = {
        "<pad>": 0,
        **{f"word{id_}": id_ for id_ in range(1, start)},
        "<s>": start,
        "</s>": end,
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<pad>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)


def captions(ids: Any, mask: Any) -> list[str]:
    """The words of (B, L) ids between the first and the last that the mask (B, L) counts."""
    rows = zip(ids, mask > 0, strict=True)
    return [" ".join(f"word{id_}" for id_ in row[real][1:-1]) for row, real in rows]
