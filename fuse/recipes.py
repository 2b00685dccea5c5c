"""Named recipes: whole configurations of a training, checked when they are made.

A recipe holds one record per concern (`hada.fuse.settings`). `--set` reaches every setting by its
place, `loss.queue=100`, or by its flat name, `queue=100`; a run's `config.json` holds them nested,
and those of before there were records, which are flat, are read as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar, get_args, get_origin, get_type_hints

from hada.extract.common.errors import UsageError, nearest, unknown
from hada.fuse.published import PUBLISHED
from hada.fuse.settings import (
    FeatureSettings,
    LossSettings,
    NetworkSettings,
    NodeSettings,
    ScoreSettings,
    TrainingSettings,
    flat_name,
)

Path = tuple[str, ...]
Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a fusion is built and trained: a record for each concern, described at the record.

    >>> RECIPES["hada"].loss.queue, RECIPES["hada"].training.order
    (64000, 'pairs')
    """

    name: str = "custom"
    network: NetworkSettings = dataclasses.field(default_factory=NetworkSettings)
    nodes: NodeSettings = dataclasses.field(default_factory=NodeSettings)
    features: FeatureSettings = dataclasses.field(default_factory=FeatureSettings)
    loss: LossSettings = dataclasses.field(default_factory=LossSettings)
    scores: ScoreSettings = dataclasses.field(default_factory=ScoreSettings)
    training: TrainingSettings = dataclasses.field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        if self.scores.late not in ("none", "auto") and self.nodes.width:
            raise UsageError(
                f"late={self.scores.late}: a run has one second stage, and match_width="
                f"{self.nodes.width} trains another; set match_width=0"
            )
        if self.training.epochs == 0 and not self.scores.finish:
            raise UsageError("epochs=0 trains nothing: set finish_scores=true, or epochs=1 or more")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, record by record."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Back from `to_json`, or from the flat form of before there were records.

        Raises `UsageError` for a setting that there is not, or a value out of its range.
        """
        return _replaced(cls(), _by_path(values))

    def flat(self) -> dict[str, Any]:
        """Every setting by its flat name, as plain JSON values."""
        values = {}
        for flat, path in FLAT.items():
            value: Any = self
            for name in path:
                value = getattr(value, name)
            values[flat] = list(value) if isinstance(value, tuple) else value
        return values

    def changed(self, **settings: Any) -> Self:
        """The recipe with some settings replaced, by their flat names.

        >>> RECIPES["fast"].changed(queue=128, epochs=3).loss.queue
        128
        """
        return _replaced(self, _by_path(settings))

    def with_settings(self, settings: Mapping[str, str]) -> Self:
        """The recipe with some settings replaced, given as text by either name.

        >>> RECIPES["fast"].with_settings({"epochs": "3", "loss.queue": "128"}).training.epochs
        3
        """
        paths: dict[Path, Any] = {}
        for key, text in settings.items():
            path = _path(key)
            if path in paths:
                raise UsageError(f"{key}: is given twice, by both of its names; give it once")
            paths[path] = _parsed(key, HINTS[path], text)
        return _replaced(self, paths)


def _leaves(kind: Any, start: Path = ()) -> Iterator[tuple[Path, str, Any]]:
    """Path, flat name and type of every setting of a record, those of its records among them."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        path, hint = (*start, field.name), hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _leaves(hint, path)
        else:
            yield path, flat_name(field), hint


# Path -> type; flat name -> path; dotted name -> path.
HINTS: dict[Path, Any] = {path: hint for path, _, hint in _leaves(Recipe)}
FLAT: dict[str, Path] = {flat: path for path, flat, _ in _leaves(Recipe)}
_DOTTED: dict[str, Path] = {".".join(path): path for path in HINTS}


def _path(key: str) -> Path:
    """Where the setting of a flat or dotted name lies; raises `UsageError`."""
    path = FLAT.get(key) or _DOTTED.get(key)
    if path is None:
        names = _DOTTED if "." in key else FLAT
        raise UsageError(f"unknown recipe setting {key!r}. {nearest(key, names)}")
    return path


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain values record by record, also where they are flat; unchecked otherwise.

    >>> nested({"name": "old", "queue": 5, "training": {"epochs": 2}})
    {'name': 'old', 'loss': {'queue': 5}, 'training': {'epochs': 2}}
    """
    tree: dict[str, Any] = {}
    for path, value in _by_path(values).items():
        record = tree
        for name in path[:-1]:
            record = record.setdefault(name, {})
        record[path[-1]] = value
    return tree


def _by_path(values: Mapping[str, Any], start: str = "") -> dict[Path, Any]:
    """Plain values, nested or flat, by their path; raises `UsageError` for unknown ones."""
    paths: dict[Path, Any] = {}
    for key, value in values.items():
        name = f"{start}{key}"
        if isinstance(value, Mapping):
            paths |= _by_path(value, f"{name}.")
        else:
            paths[_path(name)] = value
    return paths


def _replaced(record: Record, paths: Mapping[Path, Any]) -> Record:
    """A record with the values at some paths below it replaced, all at once."""
    changes: dict[str, Any] = {}
    below: dict[str, dict[Path, Any]] = {}
    for (name, *rest), value in paths.items():
        if rest:
            below.setdefault(name, {})[tuple(rest)] = value
        else:
            changes[name] = tuple(value) if isinstance(value, list) else value
    for name, parts in below.items():
        changes[name] = _replaced(getattr(record, name), parts)
    changed: Record = dataclasses.replace(record, **changes)  # type: ignore[type-var]
    return changed


def _plain(value: Any) -> Any:
    """Tuples as lists, so that it is what its JSON gives back."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _parsed(key: str, hint: Any, text: str) -> Any:
    """Text from the command line as the setting's type."""
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


# A small network on the global tokens, and everything that is fitted when it
# is trained: all of it is one inner product.
_DENSE: dict[str, Any] = {
    "convolution": "none",
    "use_embeddings": False,
    "use_globals": True,
    "head_hidden": (1024,),
    "dropout_head": 0.3,
    "scores": "all",
    "train_on_scores": False,
    "tune_scores": True,
    "finish_scores": True,
    "cca": True,
    "kernel_cca": True,
    "correct": "auto",
    "batch_size": 64,
    "learning_rate": 2e-3,
    "clip_norm": 1.0,
    "weight_decay": 0.05,
    "epochs": 10,
    "choose": "likelihood",
}
RECIPES: dict[str, Recipe] = {
    "fast": Recipe(name="fast").changed(
        **_DENSE | {"match_width": 64, "learning_rate": 3e-3, "epochs": 8}
    ),
    "dense": Recipe(name="dense").changed(**_DENSE | {"batch_size": 128}),
    "closed-form": Recipe(name="closed-form").changed(**_DENSE | {"epochs": 0, "late": "auto"}),
    "pooled": Recipe(name="pooled").changed(
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
    **{name: Recipe(name=name).changed(**changes) for name, changes in PUBLISHED.items()},
}
DEFAULT_RECIPE = "fast"


def recipe(name: str) -> Recipe:
    """The recipe called `name`; raises `UnknownNameError`."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
