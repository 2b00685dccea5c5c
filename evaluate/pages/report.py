"""The report on one run: figures, charts, gains and losses with images, as one HTML file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hada.evaluate.frozen_model import load_frozen_model
from hada.evaluate.methods.build import build
from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery, Method
from hada.evaluate.methods.late import NodeMethod
from hada.evaluate.methods.request import Request
from hada.evaluate.pages.cases import Case, Material, make_cases
from hada.evaluate.pages.choose import choose
from hada.evaluate.pages.report_page import assemble
from hada.evaluate.pages.thumbnails import Pictures
from hada.evaluate.pages.views import Parts
from hada.evaluate.results.measure import SIMPLE, measure
from hada.evaluate.results.packing import unpack_ranks
from hada.extract.common import atomic
from hada.extract.common.console import say
from hada.extract.common.device import choose_device
from hada.extract.common.errors import HadaError, RunError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import Manifest
from hada.extract.store import StoreReader
from hada.fuse.run_folder import RunFolder

# Of the queries that a page draws.
SAMPLE_SEED = 0


def report(
    manifest: Manifest,
    run: Path | str,
    *,
    dataset: str | None = None,
    split: str = "test",
    device: str = "auto",
    quick: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
    p_values_anyway: bool = False,
    output: Path | None = None,
) -> Path:
    """Evaluate a trained run and write one HTML page about it.

    This is the command `hada-evaluate report`. The page shows the comparison of all methods with
    paired differences, queries that were won, lost and drawn at random, rank changes, recall and
    training curves, hubs, and a map of the fused space. Where the data set's images or captions are
    not on this machine, the page says so and has everything else.

    Args:
        manifest: Where data sets, stores and runs are (`hada.extract.manifest.load_manifest`).
        run: The folder of a trained run; its configuration names the data set and the models.
        dataset: The data set to evaluate on; None takes the run's.
        split: The split to evaluate.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        quick: Leave out the methods that sort, or that need the stores of train and val.
        resamples: Resamples of the bootstrap over images.
        seed: Seed of the bootstrap.
        p_values_anyway: Give p-values also where a method's parameters saw images of the split.
        output: The file to write. None writes `report-SPLIT.html` into the run's folder, on
            another data set `report-DATASET-SPLIT.html`.

    Returns:
        The path of the page.

    Raises:
        UsageError: The manifest has no such data set or split.
        RunError: There is no trained run, or it does not fit the stores.
        StoreError: A store is missing or damaged.

    An example that runs is in docs/evaluation.md, "In Python".
    """
    folder = RunFolder(run)
    own = folder.config()["dataset"]
    entry = manifest.dataset(dataset or own)
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
    target = output or folder.path / file_name(folder, dataset, split)
    words = ["hada-evaluate", "report", str(run), "--split", split, "--seed", str(seed)]
    words += ["--dataset", entry.name] if entry.name != own else []
    words += ["--resamples", str(resamples), *(["--quick"] if quick else [])]
    words += ["--p-values-anyway"] if p_values_anyway else []
    return write_page(target, manifest, folder, gallery, methods, result, command=shlex.join(words))


def file_name(folder: RunFolder, dataset: str | None, split: str) -> str:
    """Of a run's page on a split; of another data set than the run's it has its name."""
    other = dataset is not None and dataset != folder.config()["dataset"]
    return f"report-{dataset}-{split}.html" if other else f"report-{split}.html"


def write_page(
    target: Path,
    manifest: Manifest,
    folder: RunFolder,
    gallery: Gallery,
    methods: Sequence[Method],
    result: dict[str, Any],
    *,
    command: str,
) -> Path:
    """The page of a run whose methods are measured already.

    Args:
        target: The file to write.
        manifest: Where the data set and the models are.
        folder: The run; the last method of kind `hada` is its.
        gallery: What was scored.
        methods: What was compared.
        result: What `hada.evaluate.results.measure.measure` gave of both.
        command: What was typed, for the page to say.

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
    others = _best_simple(methods, result)
    pictures = Pictures()
    material: Material | None = None
    cases: list[Case] = []
    missing = "" if models else "No model of this run has a score of its own to compare with."
    try:
        material = Material(
            gallery=gallery,
            data=_data(manifest, gallery),
            folder=folder,
            run=fused,
            models=models,
            others=others,
            ranks=ranks,
            tokenizers=_tokenizers(manifest, gallery.stores),
            pictures=pictures,
        )
        if models:
            chosen = choose(
                ranks[fused.name], [ranks[model.name] for model in models], seed=SAMPLE_SEED
            )
            cases = make_cases(material, chosen)
    except HadaError as error:
        missing = f"No images: {error}"
        material, cases = None, []
        say(missing)
    parts = Parts(
        result=result,
        gallery=gallery,
        folder=folder,
        methods=methods,
        ranks=ranks,
        run=fused,
        models=models,
        others=others,
        cases=cases,
        missing=missing,
        material=material,
        pictures=pictures,
        command=command,
        sample_seed=SAMPLE_SEED,
    )
    atomic.write_bytes(target, assemble(parts).encode())
    return target


def _best_simple(methods: Sequence[Method], result: dict[str, Any]) -> list[EmbeddingMethod]:
    """The best simple combination that is a pair of embeddings, if there is one."""
    rsums = {line["name"]: float(line["metrics"]["rsum"]) for line in result["methods"]}
    simple = [
        method
        for method in methods
        if isinstance(method, EmbeddingMethod) and method.kind in SIMPLE
    ]
    return [max(simple, key=lambda method: rsums[method.name])] if simple else []


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


def _tokenizers(manifest: Manifest, stores: Sequence[StoreReader]) -> dict[str, Any]:
    """The models that can say which tokens a word has; one that cannot be loaded is left out."""
    tokenizers = {}
    for store in stores:
        name = store.spec.model.name
        if store.spec.model.embedding_width is None:
            continue
        try:
            tokenizers[name] = load_frozen_model(manifest, store)
        except (HadaError, OSError) as error:
            say(f"{name}: no attention on words, its tokenizer cannot be loaded ({error})")
    return tokenizers
