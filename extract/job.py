"""Models of the manifest over splits: what `hada-extract` and the pipelines both do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from hada.extract.backbones import REGION_FAMILIES
from hada.extract.backbones.recognise import described_model
from hada.extract.common.console import say
from hada.extract.common.errors import UsageError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.named import settled
from hada.extract.datasets.read import split_names, split_of
from hada.extract.datasets.table import read_table
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.report import Report
from hada.extract.manifest import DatasetEntry, Manifest, ModelEntry, load_manifest
from hada.extract.one_model import extract_model, plan_model
from hada.extract.remembered import remember_dataset, remember_model
from hada.extract.store.duplicates import near_duplicates
from hada.extract.store.reader import open_store
from hada.extract.store.size_plan import SizePlan
from hada.extract.variants.crops import CropPlan

# Pairs of images that are compared for near duplicates without being asked: some ten seconds.
_MOST_COMPARED = 10**9


def extract(
    models: str | Sequence[str] = (),
    splits: str | Sequence[str] = (),
    *,
    dataset: DatasetEntry | str | None = None,
    manifest: Manifest | Path | str | None = None,
    device: str = "auto",
    precision: str | None = None,
    options: ExtractOptions | None = None,
    workers: int | None = None,
    views: int = 0,
    view_seed: int = 0,
    crops: CropPlan | str | None = None,
    compile: bool = False,  # noqa: A002
    fresh: bool = False,
    on_report: Callable[[str, Report], None] | None = None,
) -> list[Report]:
    """Run frozen models over splits of a dataset and store their features.

    This is the command `hada-extract` without its output: progress and notices go to stderr.
    Shards that are there already are skipped, so the same call continues after an interruption.
    A picture that cannot be decoded is recorded in the store and does not stop the run.

    Args:
        models: Models of the manifest by name; for others a path or an id, of which the family is
            recognised, or NAME=PATH-OR-ID, or NAME=FAMILY:WEIGHTS. One text is one model; none
            takes the manifest's defaults.
        splits: Splits of the dataset; one text is one split. None takes all splits of a dataset
            that is not the manifest's.
        dataset: A dataset of the manifest by name, or one made by `dataset_at`; None takes the
            manifest's default. What is not in the manifest is remembered beside the stores.
        manifest: The manifest, or its file; None reads `./data_manifest.yaml`, or else the
            manifest that HADA ships.
        device: Where models compute: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: What models compute in: `fp32`, `bf16` or `fp16`; None takes the model's own,
            else the manifest's.
        options: How stores are filled; None takes the manifest's dtype and the defaults of
            `ExtractOptions`.
        workers: Processes that decode images; None takes what suits the device.
        views: Also store this many augmented renderings of every image, each in a store
            `MODEL@viewN` beside the model's.
        view_seed: Seed of the augmented views.
        crops: Also store embeddings of random crops: `wca`, `lgca`, or a `CropPlan`.
        compile: Whether to run the models through `torch.compile`.
        fresh: Whether to delete the stores first and start again.
        on_report: Called with a model's name and the report of each of its stores, when the model
            has done all splits.

    Returns:
        A report on every store: model after model, and for each split the store, then its views
        and crops. `report.store` is the store's folder, `report.failures` names the images that
        could not be decoded.

    Raises:
        UsageError: There is no split, or a name or value is wrong.
        ManifestError: The manifest is missing or wrong.
        DatasetError: Annotations or images are missing.
        BackboneError: Weights cannot be loaded.
        StoreError: A store is damaged or holds something else, or the disk has not the room.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hada.extract import extract, load_manifest, open_store
        >>> from hada.extract.scenes import write_scenes
        >>> folder = tempfile.mkdtemp()
        >>> _ = write_scenes(Path(folder) / "scenes", train=1, val=1, test=3)
        >>> manifest = load_manifest(roots={"scenes": f"{folder}/scenes", "stores": folder})
        >>> (report,) = extract("toy=fake:a", "test", dataset="scenes", manifest=manifest)
        >>> report.images, report.captions
        (3, 15)
        >>> store = open_store(report.store)
        >>> len(store.image), store.caption_to_image[:6].tolist()
        (3, [0, 0, 0, 0, 0, 1])
    """
    resolved = _resolve(manifest, models, splits, dataset)
    manifest, entries, data, _ = resolved
    crop_plan = CropPlan.parse(crops) if isinstance(crops, str) else crops
    texts = (models,) if isinstance(models, str) else models
    # Before, so that an interrupted run is known; what differs only after it, because stores may
    # refuse it.
    resolved.remember(texts, anew=False)
    reports = []
    for model in entries:
        ended = extract_model(
            manifest,
            model,
            data,
            options or ExtractOptions(dtype=manifest.defaults.store_dtype),
            device=device,
            precision=precision or model.precision or manifest.defaults.precision,
            workers=workers,
            compile=compile,
            views=views,
            view_seed=view_seed,
            crops=crop_plan,
            fresh=fresh,
        )
        if on_report is not None:
            for report in ended:
                on_report(model.name, report)
        reports += ended
    resolved.remember(texts, anew=True)
    if resolved.named is not None:
        _tell_duplicates(manifest, entries, data)
    return reports


def plan_extraction(
    models: str | Sequence[str] = (),
    splits: str | Sequence[str] = (),
    *,
    dataset: DatasetEntry | str | None = None,
    manifest: Manifest | Path | str | None = None,
    device: str = "auto",
    precision: str | None = None,
    options: ExtractOptions | None = None,
) -> list[SizePlan]:
    """What `extract` with the same arguments would write; nothing is written.

    Args:
        models: As for `extract`.
        splits: As for `extract`.
        dataset: As for `extract`.
        manifest: As for `extract`.
        device: Where the models are loaded, to ask them for their shapes.
        precision: As for `extract`.
        options: As for `extract`.

    Returns:
        One plan for each model and split.
    """
    manifest, entries, data, _ = _resolve(manifest, models, splits, dataset)
    return [
        plan
        for model in entries
        for plan in plan_model(
            manifest,
            model,
            data,
            options or ExtractOptions(dtype=manifest.defaults.store_dtype),
            device=device,
            precision=precision or model.precision or manifest.defaults.precision,
        )
    ]


def _resolve(
    manifest: Manifest | Path | str | None,
    models: str | Sequence[str],
    splits: str | Sequence[str],
    dataset: DatasetEntry | str | None,
) -> _Resolved:
    """Names as what they stand for; annotations are read, no model is loaded."""
    models = (models,) if isinstance(models, str) else models
    splits = (splits,) if isinstance(splits, str) else splits
    if not isinstance(manifest, Manifest):
        manifest = load_manifest(manifest)
    named = isinstance(dataset, DatasetEntry)
    entry = dataset if isinstance(dataset, DatasetEntry) else manifest.dataset(dataset)
    if named and entry.name in manifest.datasets:
        raise UsageError(
            f"--data: the manifest has a dataset {entry.name!r}: give it another name, --data "
            f"NAME={entry.root}, or take the manifest's: --dataset {entry.name} --root "
            f"{entry.name}={entry.root}"
        )
    if not splits and entry.name in manifest.datasets:
        raise UsageError("no split was named: give one of the dataset's splits, e.g. 'test'")
    entries = [model_entry(manifest, text, entry.name) for text in manifest.chosen_models(models)]
    _refuse_one_name_for_two(entries)
    pictures = any(model.family not in REGION_FAMILIES for model in entries)
    for split in splits:
        entry.split(split)
    table = read_table(entry)
    names = tuple(dict.fromkeys(splits)) or split_names(table)
    data = [split_of(table, split, pictures=pictures) for split in names]
    for what, count in table.left_out.items():
        say(f"{entry.name}: {count:,} {what}: left out")
    for note in table.notes:
        say(f"{entry.name}: {note}")
    return _Resolved(manifest, entries, data, settled(table) if named else None)


def _tell_duplicates(
    manifest: Manifest, models: Sequence[ModelEntry], data: Sequence[CaptionDataset]
) -> None:
    """How many images of a split are nearly images of another that was extracted with it."""
    for number, split in enumerate(data):
        for other in data[:number]:
            if len(split.image_ids) * len(other.image_ids) > _MOST_COMPARED:
                say(
                    f"{split.name}: {other.split} and {split.split} were not searched for near "
                    f"duplicates, they are large: hada-store duplicates STORES/{split.name}/"
                    f"{split.split} STORES/{split.name}/{other.split}"
                )
                continue
            paths = [
                [manifest.store_path(part.name, part.split, model.name) for model in models]
                for part in (split, other)
            ]
            pairs = near_duplicates(*([open_store(path) for path in row] for row in paths))
            if pairs:
                say(
                    f"{split.name}: {len(pairs):,} images of {split.split} are nearly images of "
                    f"{other.split}, such as {pairs[0].image} and {pairs[0].other}: figures of one "
                    "after training on the other are flattered. hada-store duplicates lists them"
                )


class _Resolved(NamedTuple):
    """What `extract` works on; `named` is the dataset's entry where a command line named it."""

    manifest: Manifest
    models: list[ModelEntry]
    data: list[CaptionDataset]
    named: DatasetEntry | None

    def remember(self, texts: Sequence[str], *, anew: bool) -> None:
        """Keep what only the command line said, for later commands."""
        stores, dataset = self.manifest.stores, self.data[0].name
        if self.named is not None:
            remember_dataset(stores, self.named, anew=anew)
        for model, text in zip(self.models, texts, strict=False):
            if text not in self.manifest.models:
                remember_model(stores, dataset, model, anew=anew)


def _refuse_one_name_for_two(entries: Sequence[ModelEntry]) -> None:
    """Raise `UsageError` where two models would write into one store."""
    seen: dict[str, ModelEntry] = {}
    for entry in entries:
        other = seen.setdefault(entry.name, entry)
        if (other.family, other.weights) != (entry.family, entry.weights):
            raise UsageError(
                f"two models are called {entry.name!r} ({other.weights.get('default')} and "
                f"{entry.weights.get('default')}): name one of them, --model NAME=PATH-OR-ID"
            )


def model_entry(manifest: Manifest, text: str, dataset: str | None = None) -> ModelEntry:
    """A model of the manifest by name, or one described as PATH-OR-ID or NAME=FAMILY:WEIGHTS.

    A name that was described before, for the same dataset, means the same again.
    """
    return described_model(manifest, text, dataset)
