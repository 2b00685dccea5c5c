"""Code that backbones with a BERT share: caption cleaning, BERT files, heads and folders.

Numbers of attention heads cannot be read off tensors. They come from an option, from the configs
beside a checkpoint, or from the published sizes; they are never guessed, because a wrong number
loads without error and changes every feature.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta
from transformers import AutoTokenizer, BertTokenizer

from hada.extract.backbones import hub, weights
from hada.extract.common.documents import read_json
from hada.extract.common.errors import CheckpointError
from hada.extract.common.shapes import conform

# Width -> heads of the published models: BERT-base; ViT-B/16 and ViT-L/16.
TEXT_HEADS = {768: 12}
VISION_HEADS = {768: 12, 1024: 16}


def clean_caption(caption: str, max_words: int) -> tuple[str, bool]:
    """A caption as BLIP's retrieval code prepares it, and whether words were cut off.

    >>> clean_caption('Two "dogs" -- one BLACK; they run!', 30)
    ('two dogs -- one black they run', False)
    """
    return _first_words(re.sub(r"[.!\"()*#:;~]", " ", caption.lower()), max_words)


def clean_albef(caption: str, max_words: int) -> tuple[str, bool]:
    """A caption as ALBEF's own retrieval code prepares it, and whether words were cut off.

    Unlike BLIP's rule it deletes punctuation (also within words) and splits at dashes.

    >>> clean_albef("Two dogs -- don't run at 5:30!", 30)
    ('two dogs dont run at 530', False)
    """
    text = re.sub(r"([,.'!?\"()*#:;~])", "", caption.lower())
    text = text.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return _first_words(text, max_words)


def _first_words(text: str, max_words: int) -> tuple[str, bool]:
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    words = text.split(" ")
    return " ".join(words[:max_words]), len(words) > max_words


def choose_heads(
    which: str,
    width: int,
    option: int | None,
    configured: int | None,
    published: Mapping[int, int],
    path: Path,
    *,
    family: str = "BLIP",
    files: Iterable[str] = (),
) -> int:
    """The number of heads; an option wins, a config must agree with what is published.

    Args:
        which: "text" or "vision".
        width: Of that side.
        option: What the model's options say.
        configured: What the config says.
        published: Width -> heads of the published models.
        path: The weights, for messages.
        family: For messages.
        files: The names of configs that could tell, for messages.

    Raises:
        CheckpointError: Nothing tells, or the config contradicts the published model of this width.
    """
    name = "heads" if which == "text" else "vision_heads"
    right = published.get(width)
    chosen = option or configured or right
    if chosen is None:
        raise CheckpointError(
            f"{path}: the number of {which} attention heads is unknown (width {width}); put "
            f"{' or '.join(files)} beside the file or set the option `{name}`"
        )
    if option is None and right is not None and chosen != right:
        raise CheckpointError(
            f"{path}: its config says {chosen} {which} attention heads, {family} of width {width} "
            f"has {right}; correct the config or set the option `{name}: {right}`"
        )
    if width % chosen:
        raise CheckpointError(f"{path}: {chosen} {which} heads do not divide the width {width}")
    return chosen


_Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class _Settings(TypedDict):
    """The settings of a config that are used here; any of them may be absent."""

    hidden_size: NotRequired[_Count | None]
    num_attention_heads: NotRequired[_Count | None]
    num_heads: NotRequired[_Count | None]
    layer_norm_eps: NotRequired[Annotated[float, Meta(gt=0, lt=1)]]
    med: NotRequired[_Settings | None]
    bert: NotRequired[_Settings | None]
    vit: NotRequired[_Settings | None]


def configs_beside(path: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The "text" and "vision" settings of the config files `names` beside a checkpoint.

    A file is the settings of the text side themselves, or holds them under `med` or `bert`, and
    those of the vision side under `vit`. Earlier names win.
    """
    found: dict[str, dict[str, Any]] = {"text": {}, "vision": {}}
    parts = {"med": "text", "bert": "text", "vit": "vision"}
    for name in reversed(list(names)):
        file = path.with_name(name)
        if not file.is_file():
            continue
        value: dict[str, Any] = conform(
            read_json(file, CheckpointError), dict[str, Any], str(file), CheckpointError
        )
        conform(value, _Settings, str(file), CheckpointError)
        for part, side in parts.items():
            found[side].update(value.get(part) or {})
        if "num_attention_heads" in value:
            found["text"].update(value)
    return found


def files_of(path: Path, names: Sequence[str]) -> list[Path]:
    """A checkpoint and those of its companions that lie beside it."""
    beside = [path.with_name(name) for name in (*names, "vocab.txt")]
    return [path, *(file for file in beside if file.is_file() and file != path)]


def check_width(path: Path, text: Mapping[str, Any], width: int) -> None:
    """Raise `CheckpointError` where the config beside a checkpoint is another model's."""
    if text.get("hidden_size", width) != width:
        raise CheckpointError(
            f"{path} has text width {width}, the config beside it says {text['hidden_size']}"
        )


def count_blocks(state: Iterable[str], prefix: str) -> int:
    """How many numbered blocks there are under `prefix`."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def bert_tokenizer(
    option: str | None, folder: Path, family: str, published: str = "google-bert/bert-base-uncased"
) -> Any:
    """A BERT tokenizer: the one asked for, the one beside the weights, or the published one.

    Args:
        option: A folder, a vocab.txt or a name on the hub; None looks beside the weights.
        folder: Of the weights.
        family: For messages.
        published: The name on the hub of what the family was trained with.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    cased = {} if published.endswith("-uncased") else {"do_lower_case": False}
    place = Path(option).expanduser() if option else folder
    vocabulary = place if place.is_file() else place / "vocab.txt"
    if not (place / "tokenizer.json").is_file() and vocabulary.is_file():
        return BertTokenizer(str(vocabulary), **cased)
    if option:
        place = place if place.is_dir() else hub.fetch(option, hub.TOKENIZER)
    elif not (place / "tokenizer.json").is_file():
        try:  # what every published checkpoint of the family was trained with
            place = hub.fetch(published, hub.TOKENIZER)
        except CheckpointError as error:
            raise CheckpointError(
                f"no tokenizer beside the weights in {folder}: put BERT's vocab.txt there or set "
                f"the option `tokenizer` to a folder ({error})"
            ) from error
    with weights.explained(place, family):
        return AutoTokenizer.from_pretrained(place)


def bert_rows(
    tokenizer: Any, cleaned: Sequence[tuple[str, bool]], max_tokens: int
) -> tuple[list[list[int]], int]:
    """[CLS] words [SEP] of each caption, and how many captions were cut.

    `cleaned` are texts and whether words were cut off already; a caption that is too long keeps
    its [SEP].
    """
    if not cleaned:
        return [], 0
    # Words first, special tokens by hand: the tokenizer's own truncation is state that it shares
    # between threads.
    rows = tokenizer([text for text, _ in cleaned], add_special_tokens=False)["input_ids"]
    limit = max_tokens - 2
    cut = sum(cut or len(row) > limit for row, (_, cut) in zip(rows, cleaned, strict=True))
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    return [[first, *row[:limit], last] for row in rows], cut


def load_folder(
    folder: Path,
    model_class: Any,
    options: Mapping[str, Any],
    *,
    family: str,
    text_config: str = "text_config",
    vision_heads: Mapping[int, int] = VISION_HEADS,
    vision_eps: float | None = None,
) -> Any:
    """The model of a `save_pretrained` folder, its heads checked against the published ones.

    Args:
        folder: What `save_pretrained` wrote.
        model_class: Of transformers.
        options: The model's, of which `heads` and `vision_heads` are read.
        family: For messages.
        text_config: The part of the config that describes the text side.
        vision_heads: Width -> heads of the published image encoders.
        vision_eps: Replaces the image encoder's epsilon; None leaves the config's.

    Raises:
        CheckpointError: The folder holds another model, or its weights do not fit.
    """
    wanted = model_class.config_class
    with weights.explained(folder, family):
        config = wanted.from_pretrained(folder)
        if config.model_type != wanted.model_type:
            raise CheckpointError(
                f"{folder} holds a {config.model_type!r} model, expected {wanted.model_type!r}"
            )
        sides = (
            ("text", getattr(config, text_config), options["heads"], TEXT_HEADS),
            ("vision", config.vision_config, options["vision_heads"], vision_heads),
        )
        for which, part, option, published in sides:
            part.num_attention_heads = choose_heads(
                which,
                part.hidden_size,
                option,
                part.num_attention_heads,
                published,
                folder,
                family=wanted.model_type.upper(),
            )
        if vision_eps is not None:
            config.vision_config.layer_norm_eps = vision_eps
        model, info = weights.from_pretrained(model_class, folder, config)
    weights.check_loading_info(info, folder)
    weights.check_finite(model, folder)
    return model


def check_vocabulary(name: str, tokenizer: Any, size: int) -> None:
    """Raise `CheckpointError` where the tokenizer knows more words than the checkpoint of `name`.

    Its ids would otherwise point past the embedding table.
    """
    if len(tokenizer) > size:
        raise CheckpointError(
            f"model {name!r}: the tokenizer has {len(tokenizer)} words, "
            f"the checkpoint {size}; set the option `tokenizer`"
        )
