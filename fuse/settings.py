"""The records of a recipe, one per concern; each checks itself when it is made.

A setting has two names: its place (`loss.queue`, `network.edges.own`) and a flat one (`queue`,
`edge_own`), which is the field's own unless `flat` names another. `hada.fuse.recipes` finds
both. This module imports nothing heavy: the command line reads it for its help.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from hada.extract.common.errors import UsageError, nearest

T = TypeVar("T")
Norm = Literal["batch", "none", "layer"]
Inputs = Literal["as-is", "l2", "unit", "published"]
Convolution = Literal["gatv2", "gcn", "transformer", "none"]
Activation = Literal["gelu", "relu", "swish", "tanh", "elu", "id"]
ScoreMode = Literal["fused", "first", "all"]
Precision = Literal["fp32", "bf16"]
NO_EDGE = -1.0  # a weight of -1 draws no edges of that kind, as in the paper's configurations


def setting(
    default: T, low: float | None = None, high: float | None = None, flat: str | None = None
) -> T:
    """A record's field: its default, the range of its numbers and its flat name.

    Args:
        default: The field's.
        low: The least number that it may be; None for any.
        high: The largest.
        flat: Its name where records are not nested; None for the field's own.
    """
    made: Any = dataclasses.field(
        default=default, metadata={"low": low, "high": high, "flat": flat}
    )
    return made  # type: ignore[no-any-return]


def flat_name(field: dataclasses.Field[Any]) -> str:
    """What people type for a field without naming its record."""
    return str(field.metadata.get("flat") or field.name)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A record whose values are checked against their types' choices and their ranges."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint, name = getattr(self, field.name), hints[field.name], flat_name(field)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise UsageError(f"{name} {value!r}: {nearest(str(value), get_args(hint))}")
            low, high = field.metadata.get("low"), field.metadata.get("high")
            numbers = value if isinstance(value, tuple) else (value,)
            for number in numbers if low is not None else ():
                # Written so that NaN fails too.
                if not (low <= number and (high is None or number <= high)):
                    upper = "" if high is None else f" and at most {high}"
                    raise UsageError(f"{name}: expected at least {low}{upper}, got {value}")


@dataclass(frozen=True, kw_only=True)
class EdgeWeights:
    """The one number each kind of edge carries; the paper's values by default.

    `tokens` joins every token to the tokens of the other models; `loop_token` and `loop_global`
    are the self loops that GCN and Transformer layers see. -1 draws no edges of that kind.
    `undirected` lets tokens hear the global nodes.
    """

    own: float = setting(0.9, flat="edge_own")
    other: float = setting(0.7, flat="edge_other")
    between: float = setting(1.1, flat="edge_between")
    tokens: float = setting(NO_EDGE, flat="edge_tokens")
    loop_token: float = setting(0.9, flat="edge_loop_token")
    loop_global: float = setting(1.1, flat="edge_loop_global")
    undirected: bool = False

    @property
    def global_only(self) -> bool:
        """Whether only global nodes hear others, over all the paper's kinds of edges."""
        drawn = NO_EDGE not in (self.own, self.other, self.between)
        return drawn and self.tokens == NO_EDGE and not self.undirected


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """What both branches of the network compute, whatever the models' shapes are.

    Widths: `node_width` of projected tokens, `heads` x `head_width` of the graph attention,
    `graph_width` behind it, `out_width` of the fused embedding; `node_hidden`, `graph_hidden` and
    `head_hidden` are the widths of layers before the last one of each part. `inputs` is explained
    in `hada.fuse.network.fuser`, `norm` in `hada.fuse.network.config`.

    `use_embeddings` takes the models' own embeddings past the graph to the head, `use_globals`
    the features of their global tokens. `skip` adds a graph layer's input to its output where
    there are several. `convolution` "none" leaves the graph out: the head sees the embeddings
    alone. `edges` are what `hada.fuse.network.graph` draws.

    `second_from_first` repeats a published mistake, HADA-LAVIS's, which feeds the first model's
    tokens to the second's node; see `hada.fuse.network.fuser.Branch`.
    """

    node_width: int = setting(256, 1)
    heads: int = setting(4, 1)
    head_width: int = setting(64, 1)
    graph_width: int = setting(256, 1)
    out_width: int = setting(256, 1)
    norm: Norm = "none"
    inputs: Inputs = "unit"
    use_embeddings: bool = True
    use_globals: bool = False
    convolution: Convolution = "gatv2"
    node_hidden: tuple[int, ...] = setting((), 1)
    graph_hidden: tuple[int, ...] = setting((), 1)
    head_hidden: tuple[int, ...] = setting((), 1)
    skip: bool = False
    activation: Activation = "gelu"
    dropout_nodes: float = setting(0.0, 0, 0.99)
    dropout_graph: float = setting(0.0, 0, 0.99)
    dropout_head: float = setting(0.0, 0, 0.99)
    edges: EdgeWeights = EdgeWeights()
    second_from_first: bool = False


@dataclass(frozen=True, kw_only=True)
class NodeSettings(Settings):
    """Matching node by node, beside the fused embedding; see `hada.fuse.network.nodes`.

    `width` is that of the space in which nodes are matched, 0 for no node matching; `hidden` that
    of the layer before it. `mirror` is the share of the sum over image nodes in the score.
    `graph` "none" leaves out the messages between nodes, the ablation; `graph_width` and
    `graph_heads` are those of the attention that carries them. `dropout` acts in front of every
    layer and on the attention.

    `most` keeps the nodes of an item that weigh most, 0 keeps all; `drop_tokens` is the share of
    nodes that training leaves out at random. `captions` of each image take part in a step's loss,
    drawn at random; `weight` is that loss's.
    """

    width: int = setting(0, 0, flat="match_width")
    hidden: int = setting(512, 1, flat="match_hidden")
    mirror: float = setting(0.5, 0, 1, flat="match_mirror")
    graph: Literal["none", "attention"] = setting("none", flat="match_graph")
    graph_width: int = setting(128, 1, flat="match_graph_width")
    graph_heads: int = setting(4, 1, flat="match_graph_heads")
    dropout: float = setting(0.1, 0, 0.99, flat="match_dropout")
    most: int = setting(0, 0, flat="match_most")
    drop_tokens: float = setting(0.0, 0, 0.99, flat="match_drop_tokens")
    captions: int = setting(2, 1, flat="match_captions")
    weight: float = setting(1.0, 0, flat="weight_match")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.graph_width % self.graph_heads:
            raise UsageError(
                f"match_graph_width {self.graph_width}: expected a multiple of match_graph_heads, "
                f"{self.graph_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(Settings):
    """What of the stores the network sees.

    With `raw_embeddings` stores whose embeddings were brought to unit length are refused, as
    HADA-LAVIS needs. With `first_tokens_only` every model but the first is one node, its
    embedding, as CLIP is in HADA-LAVIS.
    """

    raw_embeddings: bool = False
    first_tokens_only: bool = False


@dataclass(frozen=True, kw_only=True)
class LossSettings(Settings):
    """Which losses, how much of each, and against what.

    `weight_nce` is the contrastive loss's (of which `image_share` is image -> caption),
    `weight_itm` the matching head's; `weight_NAME` is that of each loss of
    `hada.fuse.training.losses.PAIR_LOSSES`. With `hinge_repeats` an image's other captions in the
    batch count as negatives of the hinge, as published.

    `momentum` 0 trains against the batch itself, else against slow encoders; `queue` is how many
    of their embeddings are kept (with `queue_noise` it starts full of noise, as published).
    `distill` is the slow encoders' share in the targets.

    `dropout_match` is the matching head's. With norms its published place is behind the linear
    layer, on the logit itself, which makes a third of all answers exactly one half: there it acts
    only if `drop_logit` asks for the published behaviour.
    """

    weight_nce: float = setting(1.0, 0)
    weight_itm: float = setting(0.0, 0)
    weight_hinge: float = setting(0.0, 0)
    hinge_repeats: bool = False
    image_share: float = setting(0.5, 0, 1)
    margin: float = setting(0.3, 0)
    temperature: float = setting(0.07, 1e-4, 100)
    temperature_low: float = setting(0.01, 1e-4, 100)
    temperature_high: float = setting(0.5, 1e-4, 100)
    dropout_match: float = setting(0.0, 0, 0.99)
    drop_logit: bool = False
    momentum: float = setting(0.0, 0, 0.99999)
    momentum_dropout: bool = False
    queue: int = setting(0, 0)
    queue_noise: bool = False
    distill: float = setting(0.0, 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature_low > self.temperature_high:
            raise UsageError(
                f"temperature_low {self.temperature_low} is above "
                f"temperature_high {self.temperature_high}; set temperature_low to less"
            )
        if self.distill and not self.momentum:
            raise UsageError("distill: needs slow encoders to learn from; set momentum=0.995")
        if not any(self.weights().values()):
            raise UsageError(
                "all loss weights are 0: there is nothing to train on; set weight_nce=1"
            )

    def weights(self) -> dict[str, float]:
        """The weight of each loss, by the loss's name.

        >>> LossSettings(weight_hinge=0.5).weights()
        {'nce': 1.0, 'itm': 0.0, 'hinge': 0.5}
        """
        start = "weight_"
        return {k.removeprefix(start): v for k, v in vars(self).items() if k.startswith(start)}


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(Settings):
    """Which cosines are a run's score, and how their weights come about.

    `mode` "fused" is the network's alone, "first" (1 - w) fused + w model 1, "all" all models'
    own cosines with `weights` (fused first; equal where none are given). `learn` trains those
    weights, `tune` fits them on the validation split after every epoch; without `in_loss` the
    loss sees the fused score only.

    What is fitted when training is done: with `finish` the shares once more, and a score stays only
    if it helps on images that did not fit its share; `cca` adds the closed-form head on the models'
    embeddings to the scores, `kernel_cca` the one on their pooled tokens;
    `correct` "auto" lets items pay for their popularity (nearest-neighbour normalisation) where
    that helps on the validation split. Popularity is measured against `bank` images of the
    training split with all their captions; node matching is against `node_bank` of them.

    `late` adds late interaction over the stored tokens of one model as a second stage
    (`hada.fuse.scores.stored_tokens`): "auto" that of the best of the models that were trained for
    it, "all" of the best of all that have tokens, or of the model that it names; "none" none.
    """

    mode: ScoreMode = setting("fused", flat="scores")  # noqa: RUF009 - it is a field
    weights: tuple[float, ...] = setting((), 0, flat="score_weights")
    learn: bool = setting(False, flat="learn_scores")
    tune: bool = setting(False, flat="tune_scores")
    in_loss: bool = setting(True, flat="train_on_scores")
    finish: bool = setting(False, flat="finish_scores")
    cca: bool = False
    kernel_cca: bool = False
    correct: Literal["auto", "none"] = "none"
    late: str = "none"
    bank: int = setting(5000, 1)
    node_bank: int = setting(300, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn and (self.mode == "fused" or not self.in_loss):
            raise UsageError(
                "learn_scores: the loss must see the scores; set scores=all train_on_scores=true"
            )
        if self.tune and (self.mode != "all" or self.learn):
            raise UsageError("tune_scores: needs scores=all and learn_scores=false")
        if self.finish and self.mode != "all":
            raise UsageError("finish_scores: needs scores=all")
        fitted = self.cca or self.kernel_cca or self.correct == "auto" or self.late != "none"
        if fitted and not self.finish:
            raise UsageError(
                "cca, kernel_cca, correct=auto and late: need finish_scores=true, which fits them"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """How long, in which batches and at which rates.

    `order` is "images" (each with all its captions) or "pairs"; `epochs` at most (with 0 nothing is
    trained, and `scores.finish` fits what there is in closed form), stopping after
    `patience` epochs without a gain on the validation split. A gain is, for `choose` "rsum", an
    RSum higher by `min_gain` or more; for "likelihood", right matches that are more likely, which
    moves smoothly where a few hundred images' RSum is mostly luck. Gradients of `accumulate`
    batches are averaged before a step. `precision` "bf16" computes the encoders' products in
    bfloat16 (autocast); weights, losses, queues and the matching of nodes stay float32.
    """

    order: Literal["images", "pairs"] = "images"
    batch_size: int = setting(64, 1)
    accumulate: int = setting(1, 1)
    precision: Precision = "fp32"
    epochs: int = setting(20, 0)
    learning_rate: float = setting(1e-3, 0, 10)
    learning_rate_low: float = setting(1e-5, 0, 10)
    schedule: Literal["cosine", "restarts"] = "cosine"
    warmup_epochs: float = setting(1.0, 0)
    restart_epochs: int = setting(50, 1)
    weight_decay: float = setting(0.02, 0)
    decay_all: bool = False
    clip_norm: float = setting(0.0, 0)
    patience: int = setting(5, 1)
    choose: Literal["rsum", "likelihood"] = "rsum"
    min_gain: float = setting(0.1, 0)
    save_minutes: float = setting(5.0, 0)
