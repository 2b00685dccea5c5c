"""Zero-shot classification of stored crops: class files, their texts, and top-1.

Shape letters: I images, C classes, D descriptions, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from hada.evaluate.crops import weighting
from hada.evaluate.crops.open import Crops
from hada.evaluate.crops.weighting import CLIP, Rules
from hada.evaluate.frozen_model import load_frozen_model
from hada.evaluate.methods.gallery import Gallery
from hada.evaluate.results.significance import interval
from hada.extract.common.arrays import unit_rows
from hada.extract.common.documents import read_json
from hada.extract.common.errors import UsageError
from hada.extract.common.shapes import conform
from hada.extract.manifest import Manifest
from hada.extract.store import StoreReader

# Descriptions that pass a text tower at once.
BATCH = 64
# The method that the others' gains are measured against.
PLAIN = "CLIP (prompt)"


@dataclass(frozen=True)
class ClassTexts:
    """(C, E) prompts, (C, D, E) descriptions and (C, D) which of them are there."""

    names: list[str]
    label_CE: NDArray[np.float32]
    description_CDE: NDArray[np.float32]
    mask_CD: NDArray[np.bool_]


def classification(
    gallery: Gallery,
    rules: dict[str, tuple[Crops, Rules]],
    text: ClassTexts,
    truth: Sequence[Sequence[str]],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Top-1 of CLIP, CuPL and each method, in percent, with 95 % intervals by image.

    Args:
        gallery: The images.
        rules: Method name -> its crops, and how they become one vector.
        text: The classes, encoded.
        truth: The classes of each image; predicting any of them is right.
        resamples: Resamples of the bootstrap over images.
        seed: Seed of the bootstrap.

    Returns:
        Plain values, ready for JSON: `protocol`, and `methods` with `top1` and its intervals. Of
        classes with equal scores one is predicted at random and the expectation is reported, so a
        constant score gets chance.

    Raises:
        UsageError: A label is not among the classes.
    """
    right_IC = _right_classes(truth, text.names)
    hits = {n: expected_hits(s, right_IC) for n, s in _class_scores(rules, text).items()}
    drawn = np.random.default_rng(seed).integers(0, len(truth), (resamples, len(truth)))
    spec = gallery.stores[0].spec
    return {
        "task": "zeroshot_classification",
        "protocol": {
            "dataset": spec.dataset,
            "split": spec.split,
            "images": len(truth),
            "labels": "any of an image's",
            "classes": len(text.names),
        },
        "methods": _figures(hits, drawn),
    }


def _right_classes(truth: Sequence[Sequence[str]], names: Sequence[str]) -> NDArray[np.bool_]:
    """(I, C) whether a class is among an image's; raises `UsageError` for a label that is none."""
    column_of = {name: number for number, name in reversed(list(enumerate(names)))}
    unknown = sorted({name for labels in truth for name in labels} - set(column_of))
    if unknown:
        raise UsageError(
            f"--labels: class {unknown[0]!r} is not among the {len(column_of)} classes"
        )
    right_IC = np.zeros((len(truth), len(names)), bool)
    for row, labels in enumerate(truth):
        right_IC[row, [column_of[name] for name in labels]] = True
    return right_IC


def _class_scores(
    rules: dict[str, tuple[Crops, Rules]], text: ClassTexts
) -> dict[str, NDArray[Any]]:
    """(I, C) scores by method, the two without crops first."""
    crops = next(iter(rules.values()))[0]
    plain = text.label_CE[:, None], np.ones((len(text.names), 1), bool)
    scores = {
        PLAIN: weighting.look(crops.image_IE, None, CLIP)
        @ weighting.describe(text.label_CE, *plain, CLIP).T,
        "CuPL (mean of descriptions)": weighting.look(crops.image_IE, None, CLIP)
        @ weighting.describe(text.label_CE, text.description_CDE, text.mask_CD, CLIP).T,
    }
    for name, (stored, rule) in rules.items():
        texts = weighting.describe(text.label_CE, text.description_CDE, text.mask_CD, rule)
        scores[name] = weighting.look(stored.image_IE, stored.crops_IRNE, rule) @ texts.T
    return scores


def _figures(
    hits: dict[str, NDArray[np.float64]], drawn: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Top-1 of each method and its gain over `PLAIN`, with the intervals of resamples `drawn`."""
    resampled = {name: 100 * hit[drawn].mean(axis=1) for name, hit in hits.items()}
    base = 100 * hits[PLAIN].mean()
    methods = []
    for name, hit in hits.items():
        spread = interval(resampled[name])
        gain = interval(resampled[name] - resampled[PLAIN])
        top1 = 100 * float(hit.mean())
        methods.append(
            {
                "name": name,
                "top1": top1,
                "gain": top1 - float(base),
                "interval": {"low": spread.low, "high": spread.high},
                "gain_interval": {"low": gain.low, "high": gain.high},
            }
        )
    return methods


def expected_hits(scores_IC: NDArray[Any], right_IC: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(I,) share of right classes among those with the best score.

    >>> expected_hits(np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[True, False], [True, False]]))
    array([0.5, 0. ])
    """
    best_IC = scores_IC == scores_IC.max(axis=1, keepdims=True)
    return np.asarray((best_IC & right_IC).sum(axis=1) / best_IC.sum(axis=1))


def read_classes(path: Path) -> dict[str, list[str]]:
    """Class name -> descriptions; raises `UsageError` for anything else."""
    value = read_json(path, absent="--classes takes a JSON file: class name -> descriptions")
    what = f"--classes {path}"
    kind = Annotated[dict[str, Annotated[list[str], Meta(min_length=1)]], Meta(min_length=1)]
    remedy = "A mapping of class name to a list of one description or more"
    classes: dict[str, list[str]] = conform(value, kind, what, remedy=remedy)
    return classes


def read_labels(path: Path, gallery: Gallery) -> list[list[str]]:
    """The class names of every image of the gallery; raises `UsageError` where one has none."""
    value = read_json(path, absent="--labels takes a JSON file: image id -> class name")
    labels_of: dict[str, Any] = conform(
        value,
        dict[str, str | int | list[str | int] | None],
        f"--labels {path}",
        remedy="A mapping of image id to the name of a class, or to a list of them",
    )
    store = gallery.stores[0]
    ids = [store.image.ids[row] for row in gallery.image_rows]
    missing = [id_ for id_ in ids if not labels_of.get(id_)]
    if missing:
        raise UsageError(
            f"{path}: {len(missing)} images have no label, the first is {missing[0]!r}"
        )
    labels = [
        labels_of[id_] if isinstance(labels_of[id_], list) else [labels_of[id_]] for id_ in ids
    ]
    return [[str(name) for name in names] for names in labels]


def encode_classes(
    manifest: Manifest, store: StoreReader, classes: dict[str, list[str]], prompt: str, device: str
) -> ClassTexts:
    """Encode all prompts and descriptions by the model's text tower.

    Args:
        manifest: Says how the model is loaded.
        store: A store of the model.
        classes: Class -> its descriptions, C classes.
        prompt: With {} where the class name goes.
        device: Where the text tower computes.

    Raises:
        UsageError: The prompt has no {}.
    """
    if "{}" not in prompt:
        raise UsageError(f"--prompt {prompt!r}: expected {{}} where the class name goes")
    backbone = load_frozen_model(manifest, store, device)
    prompts = [prompt.replace("{}", label.replace("_", " ")) for label in classes]
    lines = [line for texts in classes.values() for line in texts]
    everything = backbone.tokenize([*prompts, *lines])
    parts = [
        backbone.encode_captions(everything[start : start + BATCH]).embeddings
        for start in range(0, len(everything), BATCH)
    ]
    features = unit_rows(np.concatenate(parts)).astype(np.float32)
    counts = [len(texts) for texts in classes.values()]
    mask = np.arange(max(counts)) < np.array(counts)[:, None]
    descriptions = np.zeros((*mask.shape, features.shape[1]), np.float32)
    descriptions[mask] = features[len(prompts) :]
    return ClassTexts(list(classes), features[: len(prompts)], descriptions, mask)
