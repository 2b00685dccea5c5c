"""The options of family `sentence`, checked against a model: width, tasks and prompts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from hada.extract.backbones.dual_load import settings
from hada.extract.backbones.torch_base import plain
from hada.extract.common.errors import CheckpointError, UsageError, unknown
from hada.extract.spec import SIDES, SideName

OPTIONS: dict[str, type] = {
    "revision": str,
    "truncate_dim": int,
    "caption_task": str,
    "image_task": str,
    "caption_prompt": str,
    "image_prompt": str,
    "mean_embedding": bool,
}
# Which prompts the library looks for, by the task; the first that the model has is used.
TASKS = {"query": ("query",), "document": ("document", "passage", "corpus")}
_DEFAULT_TASK: dict[SideName, str] = {"image": "document", "caption": "query"}
# Which row of an item's tokens stands for the whole.
Global = Literal["first", "last", "mean"]


def width_asked(name: str, model: Any, asked: int | None, multi_vector: bool) -> int | None:
    """The width that embeddings are cut to; None keeps them whole, and the model then cuts nothing.

    Args:
        name: Of the model, for messages.
        model: Of sentence-transformers; its own `truncate_dim` is set to what is decided.
        asked: The option; None for the model's own.
        multi_vector: Whether it has a vector for each token, which is never cut.

    Raises:
        UsageError: The option is wider than the model, or the model is not pooled.
    """
    if multi_vector:
        if asked is not None:
            raise UsageError(
                f"model {name!r}, option 'truncate_dim': only pooled models have it; the vectors "
                "of a multi-vector model are stored whole"
            )
        return None
    asked = model.truncate_dim if asked is None else asked
    model.truncate_dim = None
    whole = model.get_embedding_dimension()
    if asked is not None and whole is not None and asked > whole:
        raise UsageError(
            f"model {name!r}, option 'truncate_dim': the model's embeddings are {whole} wide, "
            f"expected 1 to {whole}, got {asked}"
        )
    model.truncate_dim = None if asked == whole else asked
    return None if asked is None or asked == whole else int(asked)


def tasks_and_prompts(
    model: Any, options: dict[str, Any]
) -> tuple[dict[SideName, str], dict[SideName, str | None]]:
    """The task and the prompt's text of each side, as the library chooses them by default."""
    tasks: dict[SideName, str] = {}
    prompts: dict[SideName, str | None] = {}
    for side in SIDES:
        task = options[f"{side}_task"] or _DEFAULT_TASK[side]
        if task not in TASKS:
            raise unknown(f"value of option {side}_task", task, TASKS)
        name = options[f"{side}_prompt"]
        if name is not None and name not in model.prompts:
            raise unknown(f"prompt of the model (option {side}_prompt)", name, model.prompts)
        if name is None:
            name = next((n for n in TASKS[task] if n in model.prompts), model.default_prompt_name)
        tasks[side], prompts[side] = task, None if name is None else model.prompts[name]
    return tasks, prompts


def global_row(model: Any) -> Global:
    """The token that a pooled model takes for the whole; "mean" where it takes several."""
    modes = {m.pooling_mode for m in _of_kind(model, "Pooling")}
    known: dict[Any, Global] = {"cls": "first", "lasttoken": "last"}
    return known.get(modes.pop(), "mean") if len(modes) == 1 else "mean"


def check_countable(name: str, model: Any) -> None:
    """Raise where the number of a model's vectors is known only after its forward pass."""
    for module in model.modules():
        if any(kind.__name__ == "BaseTokenPooling" for kind in type(module).__mro__):
            raise CheckpointError(
                f"model {name!r} pools its vectors ({type(module).__name__}), so their number is "
                "not known before they are computed; leave that module out of modules.json, and "
                "pool what is stored: --tokens pool:N"
            )


def _of_kind(model: Any, name: str) -> Iterable[Any]:
    return (module for module in model.modules() if type(module).__name__ == name)


def settings_of(model: Any) -> dict[str, Any]:
    """What decides the library's input and is the model's own, for the spec."""
    processor = getattr(model, "processor", None)
    images = getattr(processor, "image_processor", None)
    return {
        "class": type(model).__name__,
        "modules": [type(module).__name__ for module in model.children()],
        "processor": type(processor).__name__,
        "settings": plain(settings(images)) if images is not None else {},
        "max_tokens": model.max_seq_length,
    }
