"""`hada-evaluate zeroshot`: stored crops to retrieval or classification figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hada.evaluate.crops import weighting
from hada.evaluate.crops.classification import (
    classification,
    encode_classes,
    read_classes,
    read_labels,
)
from hada.evaluate.crops.open import Crops, open_crops
from hada.evaluate.crops.weighting import Normalize, Rules
from hada.evaluate.methods.build import open_gallery
from hada.evaluate.methods.combinations import single_models
from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery
from hada.evaluate.results.measure import measure
from hada.evaluate.results.text import render
from hada.extract.common import atomic
from hada.extract.common.arrays import unit_rows
from hada.extract.common.console import say, tell
from hada.extract.common.device import choose_device
from hada.extract.common.errors import StoreError, UsageError
from hada.extract.manifest import Manifest


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
    """Measure crops' zero-shot figures, print them and write them to a file.

    Args:
        manifest: Where data sets, stores and results are.
        model: Whose crops.
        dataset: Its name; None for the manifest's default.
        split: Its name.
        classes: The file of class names; with it, and `labels`, classification is measured, else
            retrieval.
        labels: The file of each image's class.
        prompt: The sentence around a class's name, with `{}` in its place.
        whole: The share of the whole image beside its crops; None for 0 with classes, 0.5 without.
        keep: The share of crops that is kept.
        normalize: How the weights of crops are brought to a sum of one.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        device: Where scores are computed.
        output: The JSON file; None for RUNS/DATASET/zeroshot-MODEL-SPLIT.json.

    Raises:
        StoreError: No crops were extracted.
        UsageError: The class files are missing, broken or do not fit the split.
    """
    entry = manifest.dataset(dataset)
    entry.split(split)
    if (classes is None) != (labels is None):
        raise UsageError("--classes and --labels belong together: give both or neither")
    gallery = open_gallery(manifest, entry.name, split, [model])
    stored = _stored_crops(manifest, entry.name, split, model, gallery)
    share = whole if whole is not None else 0.0 if classes else 0.5
    rules = {
        _method(crops.name, rounds): (
            crops,
            Rules(rounds=rounds, keep=keep, whole=share, normalize=normalize),
        )
        for crops in stored
        for rounds in range(crops.crops_IRNE.shape[1])
    }
    target = output or Path(manifest.runs) / entry.name / f"zeroshot-{model}-{split}.json"
    if classes is None or labels is None:
        result = retrieval(gallery, rules, resamples=resamples, seed=seed, device=device)
        tell(render(result), lines=True)
    else:
        truth = read_labels(labels, gallery)
        text = encode_classes(manifest, gallery.stores[0], read_classes(classes), prompt, device)
        result = classification(gallery, rules, text, truth, resamples=resamples, seed=seed)
        _tell_top1(result["methods"])
    atomic.write_json(target, result)
    say(f"written to {target}")


def _stored_crops(
    manifest: Manifest, dataset: str, split: str, model: str, gallery: Gallery
) -> list[Crops]:
    """The crops of a model on a split, of every plan that was extracted."""
    stored = [
        open_crops(path, gallery)
        for name in ("wca", "lgca")
        for path in [f"{manifest.store_path(dataset, split, model)}@crops-{name}"]
        if Path(path).exists()
    ]
    if not stored:
        raise StoreError(
            f"no crops of {model!r} on {dataset}/{split}. Make them first: "
            f"hada-extract --dataset {dataset} --model {model} --split {split} --crops lgca"
        )
    return stored


def _tell_top1(methods: Sequence[dict[str, Any]]) -> None:
    """Print a line for each method."""
    for line in methods:
        spread, gain = line["interval"], line["gain_interval"]
        gain_text = f"{line['gain']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]"
        tell(
            f"{line['name']:34} top-1 {line['top1']:5.1f} %  "
            f"[{spread['low']:.1f}, {spread['high']:.1f}]  "
            f"{gain_text if gain['low'] != gain['high'] else ''}".rstrip()
        )
    tell("[95 % interval], then the gain over CLIP: paired bootstrap by image")


def _method(crops: str, rounds: int) -> str:
    """What to call it: crops without expansion are WCA's way, of whichever store they are."""
    if not rounds:
        return f"WCA ({crops} crops)"
    return f"LGCA ({crops} crops, {rounds} expansion{'s' if rounds > 1 else ''})"


def retrieval(
    gallery: Gallery,
    rules: dict[str, tuple[Crops, Rules]],
    *,
    resamples: int,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Measure recall of the model alone and of each method, with captions as they are.

    Images get length 1: a factor of an image changes no classification, but does change a ranking.

    Args:
        gallery: The images and captions.
        rules: Method name -> its crops, and how they become one vector.
        resamples: Resamples of the bootstrap over images.
        seed: Of the bootstrap.
        device: Where the products are computed.

    Returns:
        A result as `hada.evaluate.results.measure.measure` gives it.

    Raises:
        UsageError: The model has no joint space.
    """
    alone = single_models(gallery)
    if not alone:
        raise UsageError("this model has no joint space, so nothing can be ranked")
    caption = alone[0].pair[1]
    methods = [
        EmbeddingMethod(
            name,
            "crops",
            (
                unit_rows(weighting.look(c.image_IE, c.crops_IRNE, r)).astype(np.float32),
                caption,
            ),
            f"whole image {r.whole:.2f}, {c.crops_IRNE.shape[2]} crops, {r.normalize}",
        )
        for name, (c, r) in rules.items()
    ]
    return measure(
        gallery, [*alone, *methods], resamples=resamples, seed=seed, device=choose_device(device)
    )
