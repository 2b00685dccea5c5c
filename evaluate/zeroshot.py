"""What `hada-evaluate zeroshot` does: stored crops to retrieval or classification figures.

Shape letters: I images, C classes, D descriptions, E embedding width, R rounds, N crops.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from hada.evaluate import salient
from hada.evaluate.ladder import open_gallery, ranking_device
from hada.evaluate.recall import evaluate
from hada.evaluate.rungs import Gallery, Rung, single_models
from hada.evaluate.salient import CLIP, Normalize, Rules
from hada.evaluate.significance import interval
from hada.evaluate.table import render
from hada.extract import atomic
from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.console import say
from hada.extract.errors import StoreError, StoreMismatchError, UsageError
from hada.extract.manifest import Manifest
from hada.extract.store import StoreReader, open_store

# Descriptions that pass a text tower at once.
BATCH = 64


@dataclass(frozen=True)
class Crops:
    """The stored crops of the images of a gallery: (I, E) whole pictures, (I, R, N, E) ladders."""

    name: str
    image_IE: NDArray[np.float32]
    ladder_IRNE: NDArray[np.float32]


def zeroshot(
    manifest: Manifest,
    *,
    model: str,
    dataset: str | None,
    split: str,
    classes: Path | None,
    labels: Path | None,
    prompt: str,
    whole: float | None,
    keep: float,
    normalize: Normalize,
    resamples: int,
    seed: int,
    device: str,
    output: Path | None,
) -> None:
    """Measure and print; the options are the command's.

    Raises:
        StoreError: No crops were extracted.
        UsageError: The class files are missing, broken or do not fit the split.
    """
    entry = manifest.dataset(dataset)
    entry.split(split)
    if (classes is None) != (labels is None):
        raise UsageError("--classes and --labels belong together: give both or neither")
    gallery = open_gallery(manifest, entry.name, split, [model])
    found = [
        open_crops(place, gallery)
        for name in ("wca", "lgca")
        for place in [f"{manifest.store_path(entry.name, split, model)}@crops-{name}"]
        if Path(place).exists()
    ]
    if not found:
        raise StoreError(
            f"no crops of {model!r} on {entry.name}/{split}. Make them first: "
            f"hada-extract --dataset {entry.name} --model {model} --split {split} --crops lgca"
        )
    share = whole if whole is not None else 0.0 if classes else 0.5
    rules = {
        f"{_method(rounds)} ({crops.name} crops, {rounds} rounds)": (
            crops,
            Rules(rounds=rounds, keep=keep, whole=share, normalize=normalize),
        )
        for crops in found
        for rounds in range(crops.ladder_IRNE.shape[1])
    }
    target = output or Path(manifest.runs) / entry.name / f"zeroshot-{model}-{split}.json"
    if classes is None or labels is None:
        result = retrieval(gallery, rules, resamples=resamples, seed=seed, device=device)
        click.echo(render(result))
    else:
        truth = read_labels(labels, gallery)
        text = encode_classes(manifest, gallery.stores[0], read_classes(classes), prompt, device)
        result = classification(gallery, rules, text, truth, resamples=resamples, seed=seed)
        for line in result["methods"]:
            spread = line["interval"]
            click.echo(
                f"{line['name']:34} top-1 {line['top1']:5.1f} %  "
                f"[{spread['low']:.1f}, {spread['high']:.1f}]  {line['gain']:+.1f}"
            )
    atomic.write_json(target, result)
    say(f"written to {target}")


def _method(rounds: int) -> str:
    return "LGCA" if rounds else "WCA"


def open_crops(place: str, gallery: Gallery) -> Crops:
    """The crops of a gallery's images.

    Raises:
        StoreMismatchError: They are of other pictures or another model.
    """
    store = open_store(place)
    own, spec = gallery.stores[0], store.spec.model
    settings = spec.preprocessing.get("crops")
    if not isinstance(settings, dict):
        raise StoreMismatchError(f"{place}: no store of crops; extract it with --crops")
    if spec.weights_digest != own.spec.model.weights_digest or list(store.image.ids) != list(
        own.image.ids
    ):
        raise StoreMismatchError(
            f"{place}: crops of another model or of other pictures than {own.path}; extract again"
        )
    rows = gallery.image_rows
    failed = int(store.image.failed[rows].sum())
    if failed:
        raise StoreMismatchError(f"{place}: {failed} pictures failed there that {own.path} has")
    rounds, count = settings["rounds"] + 1, settings["count"]
    tokens = store.image.tokens(rows).reshape(len(rows), 1 + rounds * count, -1)
    values = salient.unit(tokens.astype(np.float32)).astype(np.float32)
    return Crops(
        settings["name"], values[:, 0], values[:, 1:].reshape(len(rows), rounds, count, -1)
    )


def retrieval(
    gallery: Gallery,
    rules: dict[str, tuple[Crops, Rules]],
    *,
    resamples: int,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Recall of the model alone and of each method, captions as they are.

    Images get length 1: a factor of an image changes no classification, but does change a ranking.
    """
    alone = single_models(gallery)
    if not alone:
        raise UsageError("this model has no joint space, so nothing can be ranked")
    caption = alone[0].pair[1]
    rungs = [
        Rung(
            name,
            "crops",
            (salient.unit(salient.look(c.image_IE, c.ladder_IRNE, r)).astype(np.float32), caption),
            f"whole picture {r.whole:.2f}, {c.ladder_IRNE.shape[2]} crops, {r.normalize}",
        )
        for name, (c, r) in rules.items()
    ]
    return evaluate(
        gallery, [*alone, *rungs], resamples=resamples, seed=seed, device=ranking_device(device)
    )


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
    truth: list[str],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Top-1 of CLIP, CuPL and each method, in percent, with 95 % intervals by image.

    Of classes with equal scores the first is predicted.
    """
    places = {name: number for number, name in reversed(list(enumerate(text.names)))}
    unknown = sorted(set(truth) - set(places))
    if unknown:
        raise UsageError(f"--labels: class {unknown[0]!r} is not among the {len(places)} classes")
    right_I = np.array([places[name] for name in truth])
    crops = next(iter(rules.values()))[0]
    plain = text.label_CE[:, None], np.ones((len(text.names), 1), bool)
    scores = {
        "CLIP (prompt)": salient.look(crops.image_IE, None, CLIP)
        @ salient.describe(text.label_CE, *plain, CLIP).T,
        "CuPL (mean of descriptions)": salient.look(crops.image_IE, None, CLIP)
        @ salient.describe(text.label_CE, text.description_CDE, text.mask_CD, CLIP).T,
    }
    for name, (c, r) in rules.items():
        texts = salient.describe(text.label_CE, text.description_CDE, text.mask_CD, r)
        scores[name] = salient.look(c.image_IE, c.ladder_IRNE, r) @ texts.T
    hits = {name: s.argmax(axis=1) == right_I for name, s in scores.items()}
    drawn = np.random.default_rng(seed).integers(0, len(right_I), (resamples, len(right_I)))
    base = 100 * hits["CLIP (prompt)"].mean()
    methods = []
    for name, hit in hits.items():
        spread = interval(100 * hit[drawn].mean(axis=1))
        top1 = 100 * float(hit.mean())
        methods.append(
            {
                "name": name,
                "top1": top1,
                "gain": top1 - float(base),
                "interval": {"low": spread.low, "high": spread.high},
            }
        )
    spec = gallery.stores[0].spec
    return {
        "task": "zeroshot_classification",
        "protocol": {
            "dataset": spec.dataset,
            "split": spec.split,
            "images": len(right_I),
            "classes": len(text.names),
        },
        "methods": methods,
    }


def read_classes(path: Path) -> dict[str, list[str]]:
    """Class name -> descriptions; raises `UsageError` for anything else."""
    value = _json(path, "--classes")
    if not isinstance(value, dict) or not value:
        raise UsageError(f"{path}: expected a mapping of class name to a list of descriptions")
    for name, lines in value.items():
        if not (isinstance(lines, list) and lines and all(isinstance(x, str) for x in lines)):
            raise UsageError(f"{path}: class {name!r}: expected a list of one text or more")
    return value


def read_labels(path: Path, gallery: Gallery) -> list[str]:
    """The class name of every image of the gallery; raises `UsageError` where one is missing."""
    value = _json(path, "--labels")
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected a mapping of image id to class name")
    store = gallery.stores[0]
    ids = [store.image.ids[row] for row in gallery.image_rows]
    missing = [id_ for id_ in ids if id_ not in value]
    if missing:
        raise UsageError(
            f"{path}: {len(missing)} images have no label, the first is {missing[0]!r}"
        )
    return [str(value[id_]) for id_ in ids]


def encode_classes(
    manifest: Manifest, store: StoreReader, classes: dict[str, list[str]], prompt: str, device: str
) -> ClassTexts:
    """All prompts and descriptions through the model's text tower."""
    if "{}" not in prompt:
        raise UsageError(f"--prompt {prompt!r}: expected {{}} where the class name goes")
    name = store.spec.model.name
    entry = manifest.model(name)
    backbone: Any = load_backbone(
        BackboneRequest(
            name=name,
            family=entry.family,
            weights=entry.weights_for(store.spec.dataset),
            device=ranking_device(device),
            options=dict(entry.options),
        )
    )
    prompts = [prompt.replace("{}", label.replace("_", " ")) for label in classes]
    lines = [line for texts in classes.values() for line in texts]
    everything = backbone.tokenize([*prompts, *lines])
    parts = [
        backbone.encode_captions(everything[start : start + BATCH]).embeddings
        for start in range(0, len(everything), BATCH)
    ]
    found = salient.unit(np.concatenate(parts)).astype(np.float32)
    counts = [len(texts) for texts in classes.values()]
    mask = np.arange(max(counts)) < np.array(counts)[:, None]
    descriptions = np.zeros((*mask.shape, found.shape[1]), np.float32)
    descriptions[mask] = found[len(prompts) :]
    return ClassTexts(list(classes), found[: len(prompts)], descriptions, mask)


def _json(path: Path, option: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{option} {path}: no such file") from None
    except ValueError as error:
        raise UsageError(f"{option} {path}: broken JSON ({error})") from error
