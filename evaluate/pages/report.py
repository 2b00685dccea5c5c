"""The report on one run: figures, curves, gains and losses with images, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.frozen_model import load_frozen_model
from hada.evaluate.methods.build import build
from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery, Method
from hada.evaluate.methods.late import NodeMethod
from hada.evaluate.methods.request import Request
from hada.evaluate.pages import charts
from hada.evaluate.pages.cases import Case, Material, choose, make_cases
from hada.evaluate.pages.report_page import Sections, assemble
from hada.evaluate.results.measure import measure
from hada.evaluate.results.packing import unpack_ranks
from hada.extract.common import atomic
from hada.extract.common.console import say
from hada.extract.common.device import choose_device
from hada.extract.common.errors import HadaError, RunError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import Manifest
from hada.extract.store import StoreReader
from hada.fuse.ranking.ranks import Ranks
from hada.fuse.run_folder import RunFolder

MOST_K = 50


def report(
    manifest: Manifest,
    run: Path | str,
    *,
    split: str = "test",
    device: str = "auto",
    quick: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
    p_values_anyway: bool = False,
    output: Path | None = None,
) -> Path:
    """Evaluate a trained run and write one HTML page about it.

    This is the command `hada-evaluate report`. The page shows the comparison of all methods, recall
    curves, training curves, rank changes against each model, and the captions that gained and lost
    most. Where the data set's images or captions are not on this machine, the page says so and has
    everything else.

    Args:
        manifest: Where data sets, stores and runs are (`hada.extract.manifest.load_manifest`).
        run: The folder of a trained run; its configuration names the data set and the models.
        split: The split to evaluate.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        quick: Leave out the methods that sort, or that need the stores of train and val.
        resamples: Resamples of the bootstrap over images.
        seed: Seed of the bootstrap.
        p_values_anyway: Give p-values also where a method's parameters saw images of the split.
        output: The file to write. None writes `report-SPLIT.html` into the run's folder.

    Returns:
        The path of the page.

    Raises:
        UsageError: The manifest has no such data set or split.
        RunError: There is no trained run, or it does not fit the stores.
        StoreError: A store is missing or damaged.

    An example that runs is in docs/evaluation.md, "In Python".
    """
    folder = RunFolder(run)
    dataset = folder.config()["dataset"]
    entry = manifest.dataset(dataset)
    entry.split(split)
    request = Request(
        dataset=entry.name, split=split, runs=(folder.path,), quick=quick, device=device
    )
    gallery, methods = build(manifest, request)
    result = measure(
        gallery,
        methods,
        resamples=resamples,
        seed=seed,
        device=choose_device(device),
        p_values_anyway=p_values_anyway,
    )
    target = output or folder.path / f"report-{split}.html"
    return write_page(target, manifest, folder, gallery, methods, result)


def write_page(
    target: Path,
    manifest: Manifest,
    folder: RunFolder,
    gallery: Gallery,
    methods: Sequence[Method],
    result: dict[str, Any],
) -> Path:
    """The page of a run whose methods are measured already.

    Args:
        target: The file to write.
        manifest: Where the data set and the models are.
        folder: The run; the last method of kind `hada` is its.
        gallery: What was scored.
        methods: What was compared.
        result: What `hada.evaluate.results.measure.measure` gave of both.

    Returns:
        The path of the page.
    """
    ranks = {line["name"]: unpack_ranks(line["ranks"]) for line in result["methods"]}
    fused = [
        method
        for method in methods
        if isinstance(method, EmbeddingMethod | NodeMethod) and method.kind == "hada"
    ][-1]
    models = [
        method
        for method in methods
        if isinstance(method, EmbeddingMethod) and method.kind == "model"
    ]
    wins: list[Case] = []
    losses: list[Case] = []
    missing = "" if models else "No model of this run has a score of its own to compare with."
    if models:
        try:
            data = _data(manifest, gallery)
            material = Material(
                gallery=gallery,
                data=data,
                folder=folder,
                run=fused,
                models=models,
                ranks={method.name: ranks[method.name] for method in (fused, *models)},
                tokenizers=_tokenizers(manifest, gallery.stores, [m.name for m in models]),
            )
            best = max(models, key=lambda model: _rsum(result, model.name))
            won, lost = choose(ranks[fused.name], ranks[best.name])
            wins, losses = make_cases(material, won), make_cases(material, lost)
        except HadaError as error:
            missing = f"No images: {error}"
            say(missing)
    page = assemble(
        result,
        Sections(
            recall_curves=_recall_curves(methods, ranks),
            training_curves=_training_curves(folder),
            changes=[
                (model.name, rank_changes(ranks[fused.name], ranks[model.name])) for model in models
            ],
            wins=wins,
            losses=losses,
            missing=missing,
            fusion=fused.name,
        ),
    )
    atomic.write_bytes(target, page.encode())
    return target


def rank_changes(run: Ranks, other: Ranks) -> dict[str, dict[str, int]]:
    """Per direction, how many queries rank better, the same and worse than under another score.

    `into_first` and `out_of_first` count those that entered or left the first rank.
    """
    return {
        way: {
            "better": int((now < before).sum()),
            "same": int((now == before).sum()),
            "worse": int((now > before).sum()),
            "into_first": int(((now < 1) & (before >= 1)).sum()),
            "out_of_first": int(((now >= 1) & (before < 1)).sum()),
        }
        for way, now, before in (("i2t", run.i2t, other.i2t), ("t2i", run.t2i, other.t2i))
    }


def recall_curve(ranks: Ranks, way: str, ks: Sequence[int]) -> NDArray[np.float64]:
    """Recall in percent at each K."""
    hits = ranks.i2t_hits if way == "i2t" else ranks.t2i_hits
    return np.array([100 * float(hits(k).mean()) for k in ks])


def _recall_curves(methods: Sequence[Method], ranks: dict[str, Ranks]) -> list[str]:
    shown = [method for method in methods if method.kind in ("model", "mean", "hada")]
    titles = {"i2t": "Image query, captions ranked", "t2i": "Caption query, images ranked"}
    curves = []
    for way, title in titles.items():
        first = ranks[shown[0].name]
        gallery = len(first.t2i_lo) if way == "i2t" else len(first.i2t_lo)
        ks = list(range(1, min(MOST_K, gallery) + 1))
        lines = [
            charts.Line(
                method.name,
                ks,
                recall_curve(ranks[method.name], way, ks).tolist(),
                "hada" if method.kind == "hada" else f"c{number % 6}",
            )
            for number, method in enumerate(shown)
        ]
        curves.append(
            charts.line_chart(
                lines,
                title=title,
                x_label="K, places looked at (log scale)",
                y_label="recall@K, %",
                log_x=True,
            )
        )
    return curves


def _training_curves(folder: RunFolder) -> list[str]:
    """The loss and the validation's RSum, epoch by epoch; none where nothing was logged."""
    logged = folder.metrics()
    epochs = [line["epoch"] for line in logged]
    if not epochs:
        return []
    losses = [
        charts.Line(name, epochs, [line["loss"][name] for line in logged], style)
        for name, style in (("total", "hada"), ("i2t", "c0"), ("t2i", "c1"))
        if all(name in line["loss"] for line in logged)
    ]
    sums = [charts.Line("whole score", epochs, [line["val"]["rsum"] for line in logged], "hada")]
    if all("fused_rsum" in line["val"] for line in logged):
        alone = [line["val"]["fused_rsum"] for line in logged]
        sums.append(charts.Line("fused embedding alone", epochs, alone, "c0"))
    return [
        charts.line_chart(losses, title="Training loss", x_label="epoch", y_label="loss, nats"),
        charts.line_chart(sums, title="Validation", x_label="epoch", y_label="RSum, % points"),
    ]


def _data(manifest: Manifest, gallery: Gallery) -> CaptionDataset:
    """The split's images and captions; raises `RunError` where they are not the stores'."""
    store = gallery.stores[0]
    data = read_dataset(manifest.dataset(store.spec.dataset), store.spec.split)
    data = data.as_stored(store.spec.dataset_digest)
    if store.spec.dataset_digest != data.digest() or len(data.captions) != len(store.caption.ids):
        raise RunError(
            f"the data set on this machine is not the one that {store.path} was made from"
        )
    return data


def _tokenizers(
    manifest: Manifest, stores: Sequence[StoreReader], models: Sequence[str]
) -> dict[str, Any]:
    """The models that can say which tokens a word has; one that cannot be loaded is left out."""
    tokenizers = {}
    for store in stores:
        name = store.spec.model.name
        if name not in models:
            continue
        try:
            tokenizers[name] = load_frozen_model(manifest, store)
        except (HadaError, OSError) as error:
            say(f"{name}: no attention on words, its tokenizer cannot be loaded ({error})")
    return tokenizers


def _rsum(result: dict[str, Any], name: str) -> float:
    return next(
        float(method["metrics"]["rsum"]) for method in result["methods"] if method["name"] == name
    )
