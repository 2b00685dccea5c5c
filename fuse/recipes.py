"""Named recipes: whole configurations of a training, checked when they are made.

A recipe is one flat record, so that `--set key=value` reaches everything and a run's
`config.json` holds everything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from hada.extract.common.errors import UsageError, nearest, unknown
from hada.fuse.published import PUBLISHED


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a fusion is built and trained.

    Widths: `node_width` of projected tokens, `heads` x `head_width` of the graph attention,
    `graph_width` behind it, `out_width` of the fused embedding; `node_hidden`, `graph_hidden` and
    `head_hidden` put layers of these widths before them. `inputs` is explained in
    `hada.fuse.network.fuser`, `norm` in `hada.fuse.network.config`. With `raw_embeddings` stores
    whose embeddings were brought to unit length are refused, as HADA-LAVIS needs. `use_embeddings`
    takes the models' own embeddings past the graph to the head, `use_globals` the features of their
    global tokens.

    Graph: `convolution` "gatv2", "gcn", "transformer" or "none" (embeddings alone). The `edge_`
    settings are what `hada.fuse.network.graph` calls own, other, between, tokens and loops; -1
    draws no such edges. `undirected` lets tokens hear the global nodes. With `first_tokens_only`
    every model but the first is one node, its embedding, as CLIP is in HADA-LAVIS.

    Losses: `weight_nce` contrastive (of which `image_share` image -> caption), `weight_itm`
    matching, `weight_hinge`; with `hinge_repeats` an image's other captions in the batch are
    negatives of the hinge, as published. `momentum` 0 trains against the batch itself, else
    against slow encoders; `queue` is how many of their embeddings are kept (with `queue_noise` it
    starts full of noise, as published). `distill` is the slow encoders' share in the targets.

    Scores: `fused` alone, `first` (1 - w) fused + w model 1, or `all` models' own cosines with
    `score_weights` (fused first; equal where none are given). `learn_scores` trains those
    weights, `tune_scores` fits them on the validation split after every epoch; with
    `train_on_scores` off the loss sees the fused score only.

    Training: `order` "images" (each with all its captions) or "pairs"; `epochs` at most,
    stopping after `patience` epochs without a gain on the validation split. A gain is, for
    `choose` "rsum", an RSum higher by `min_gain` or more; for "likelihood", right matches that
    are more likely, which moves smoothly where a few hundred images' RSum is mostly luck.
    Gradients of `accumulate` batches are averaged before a step. `precision` "bf16" computes the
    encoders' products in bfloat16 (autocast); weights, losses and queues stay float32.

    Two published mistakes, off unless asked for: `second_from_first` (HADA-LAVIS feeds the first
    model's tokens to the second's node) and `drop_logit` (HADA_m and Baseline_m drop out the
    matching logit).
    """

    name: str = "custom"
    node_width: int = 256
    heads: int = 4
    head_width: int = 64
    graph_width: int = 256
    out_width: int = 256
    norm: Literal["batch", "none", "layer"] = "none"
    inputs: Literal["as-is", "l2", "unit", "published"] = "unit"
    raw_embeddings: bool = False
    use_embeddings: bool = True
    use_globals: bool = False
    convolution: Literal["gatv2", "gcn", "transformer", "none"] = "gatv2"
    node_hidden: tuple[int, ...] = ()
    graph_hidden: tuple[int, ...] = ()
    head_hidden: tuple[int, ...] = ()
    skip: bool = False
    activation: Literal["gelu", "relu", "swish", "tanh", "elu", "id"] = "gelu"
    dropout_nodes: float = 0.0
    dropout_graph: float = 0.0
    dropout_head: float = 0.0
    edge_own: float = 0.9
    edge_other: float = 0.7
    edge_between: float = 1.1
    edge_tokens: float = -1.0
    edge_loop_token: float = 0.9
    edge_loop_global: float = 1.1
    undirected: bool = False
    first_tokens_only: bool = False
    second_from_first: bool = False

    weight_nce: float = 1.0
    weight_itm: float = 0.0
    weight_hinge: float = 0.0
    hinge_repeats: bool = False
    image_share: float = 0.5
    margin: float = 0.3
    temperature: float = 0.07
    temperature_low: float = 0.01
    temperature_high: float = 0.5
    dropout_match: float = 0.0
    drop_logit: bool = False
    momentum: float = 0.0
    momentum_dropout: bool = False
    queue: int = 0
    queue_noise: bool = False
    distill: float = 0.0
    scores: Literal["fused", "first", "all"] = "fused"
    score_weights: tuple[float, ...] = ()
    learn_scores: bool = False
    tune_scores: bool = False
    train_on_scores: bool = True

    order: Literal["images", "pairs"] = "images"
    batch_size: int = 64
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    epochs: int = 20
    learning_rate: float = 1e-3
    learning_rate_low: float = 1e-5
    schedule: Literal["cosine", "restarts"] = "cosine"
    warmup_epochs: float = 1.0
    restart_epochs: int = 50
    weight_decay: float = 0.02
    decay_all: bool = False
    clip_norm: float = 0.0
    patience: int = 5
    choose: Literal["rsum", "likelihood"] = "rsum"
    min_gain: float = 0.1
    save_minutes: float = 5.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check(field.name)
        if self.temperature_low > self.temperature_high:
            raise UsageError(
                f"temperature_low {self.temperature_low} is above "
                f"temperature_high {self.temperature_high}"
            )
        if self.distill and not self.momentum:
            raise UsageError("distill: needs slow encoders to learn from; set momentum=0.995")
        if self.learn_scores and (self.scores == "fused" or not self.train_on_scores):
            raise UsageError(
                "learn_scores: the loss must see the scores; set scores=all train_on_scores=true"
            )
        if self.tune_scores and (self.scores != "all" or self.learn_scores):
            raise UsageError("tune_scores: needs scores=all and learn_scores=false")
        if self.weight_nce + self.weight_itm + self.weight_hinge == 0:
            raise UsageError("all loss weights are 0: there is nothing to train on")

    def _check(self, key: str) -> None:
        value, hint = getattr(self, key), _HINTS[key]
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise UsageError(f"{key} {value!r}: {nearest(str(value), get_args(hint))}")
        low, high = _RANGES.get(key, (None, None))
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers if low is not None else ():
            # Written so that NaN fails too.
            if not (low <= number and (high is None or number <= high)):
                upper = "" if high is None else f" and at most {high}"
                raise UsageError(f"{key}: expected at least {low}{upper}, got {value}")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Back from `to_json`; unknown keys are errors."""
        return cls(**{key: _typed(key, value) for key, value in values.items()})

    def with_settings(self, settings: Mapping[str, str]) -> Self:
        """The recipe with some fields replaced, given as text.

        >>> RECIPES["fast"].with_settings({"epochs": "3"}).epochs
        3
        """
        return dataclasses.replace(self, **{k: _parsed(k, v) for k, v in settings.items()})


_HINTS = get_type_hints(Recipe)
_RANGES: dict[str, tuple[float, float | None]] = {
    **dict.fromkeys(("node_width", "heads", "head_width", "graph_width", "out_width"), (1, None)),
    **dict.fromkeys(("node_hidden", "graph_hidden", "head_hidden"), (1, None)),
    **dict.fromkeys(("batch_size", "accumulate", "epochs", "restart_epochs"), (1, None)),
    "patience": (1, None),
    **dict.fromkeys(("dropout_nodes", "dropout_graph", "dropout_head"), (0, 0.99)),
    "dropout_match": (0, 0.99),
    **dict.fromkeys(("image_share", "distill"), (0, 1)),
    "momentum": (0, 0.99999),
    **dict.fromkeys(("weight_nce", "weight_itm", "weight_hinge", "margin"), (0, None)),
    **dict.fromkeys(("temperature", "temperature_low", "temperature_high"), (1e-4, 100)),
    **dict.fromkeys(("queue", "warmup_epochs", "weight_decay", "clip_norm"), (0, None)),
    **dict.fromkeys(("learning_rate", "learning_rate_low"), (0, 10)),
    **dict.fromkeys(("score_weights", "min_gain", "save_minutes"), (0, None)),
}

RECIPES: dict[str, Recipe] = {
    "fast": Recipe(
        name="fast",
        use_embeddings=False,
        use_globals=True,
        head_hidden=(1024,),
        dropout_graph=0.2,
        dropout_head=0.3,
        scores="all",
        train_on_scores=False,
        tune_scores=True,
        batch_size=128,
        learning_rate=2e-3,
        clip_norm=1.0,
        weight_decay=0.05,
        epochs=10,
        choose="likelihood",
    ),
    **{name: Recipe(name=name, **changes) for name, changes in PUBLISHED.items()},
}
DEFAULT_RECIPE = "fast"


def recipe(name: str) -> Recipe:
    """The recipe called `name`; raises `UnknownNameError`."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]


def _hint(key: str) -> Any:
    if key not in _HINTS:
        raise UsageError(f"unknown recipe setting {key!r}. {nearest(key, _HINTS)}")
    return _HINTS[key]


def _parsed(key: str, text: str) -> Any:
    """Text from the command line as the field's type."""
    hint = _hint(key)
    try:
        if hint is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                text.strip().lower()
            ]
        if hint in (int, float):
            return hint(text)
        if get_origin(hint) is tuple:
            return tuple(get_args(hint)[0](part) for part in text.split(",") if part.strip())
        return text
    except (ValueError, KeyError):
        whole = get_args(hint)[:1] == (int,)
        numbers = "whole numbers like 512,256" if whole else "numbers like 1,0.5,0.5"
        kind = "true or false" if hint is bool else numbers if get_origin(hint) else hint.__name__
        raise UsageError(f"{key}: expected {kind}, got {text!r}") from None


def _typed(key: str, value: Any) -> Any:
    """A JSON value as the field's type."""
    if get_origin(_hint(key)) is tuple:
        return tuple(value)
    return value
