"""One frozen model over some splits: its store on each, then views and crops."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace

from hada.extract.backbones import load_backbone
from hada.extract.backbones.base import Backbone, BackboneRequest, RegionBackbone
from hada.extract.common import atomic, remote
from hada.extract.common.console import say
from hada.extract.common.device import choose_device
from hada.extract.common.errors import UsageError
from hada.extract.common.host import cores
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.engine.extraction import ERRORS
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.report import Report
from hada.extract.engine.runner import run
from hada.extract.engine.store_plan import plan
from hada.extract.manifest import Manifest, ModelEntry
from hada.extract.store import formats
from hada.extract.store.commit import COMMIT
from hada.extract.store.size_plan import SizePlan
from hada.extract.variants.crops import CropBackbone, CropPlan
from hada.extract.variants.views import View, pictures_only, viewed

MOST_NAMED = 10


# A GPU computes faster than one thread decodes; more processes than this only cost memory.
MOST_WORKERS = 16


def extract_model(
    manifest: Manifest,
    model: ModelEntry,
    data: Sequence[CaptionDataset],
    options: ExtractOptions,
    *,
    device: str,
    precision: str,
    workers: int | None = None,
    views: int = 0,
    view_seed: int = 0,
    crops: CropPlan | None = None,
    compile: bool = False,  # noqa: A002
    fresh: bool = False,
) -> list[Report]:
    """One model over several splits: loaded once, then shard after shard.

    Images that failed and captions that were cut are told on stderr.

    Args:
        manifest: Where stores lie, and the format of new ones where `options` name none.
        model: The frozen model.
        data: The splits.
        options: How stores are filled; `workers` here stands before theirs.
        device: Where the model computes: "auto" or a name that PyTorch knows.
        precision: What it computes in: "fp32", "bf16" or "fp16".
        workers: Processes that decode images; None takes what suits the device.
        views: So many augmented views follow view 0, each in a store of its own.
        view_seed: Their seed.
        crops: Whose embeddings to store too; None for none.
        compile: Whether to run the model through `torch.compile`.
        fresh: Whether to delete stores that are there.

    Returns:
        A report on every store, in the order of `data`.

    Raises:
        UsageError: The model or this machine has nothing to compile with.
    """
    backbone = load_model(model, data[0].name, device, precision)
    workers = default_workers(choose_device(device)) if workers is None else workers
    provenance = dict(options.provenance)
    if compile:
        backbone.compile()
        provenance["compiled"] = True
    options = replace(options, workers=workers, provenance=provenance)
    reports = []
    for dataset in data:
        path = manifest.store_path(dataset.name, dataset.split, model.name)
        if fresh:
            _remove_store(path)
        new = not remote.place(path).exists()
        form = options.format or (manifest.defaults.store_format if new else None)
        here = replace(options, format=form)
        cut_before = backbone.truncated
        report = run(backbone, dataset, path, here)
        _tell(model.name, dataset, report, backbone.truncated - cut_before)
        reports.append(report)
        for number in range(1, views + 1):
            view = View(number, view_seed)
            reports.append(_extract_view(backbone, dataset, path, view, here, fresh=fresh))
        if crops is not None:
            reports.append(_extract_crops(backbone, dataset, path, crops, here, fresh=fresh))
    return reports


def _extract_crops(
    backbone: Backbone | RegionBackbone,
    dataset: CaptionDataset,
    path: str,
    plan: CropPlan,
    options: ExtractOptions,
    *,
    fresh: bool,
) -> Report:
    """The crops of a split's images, in a store beside the one at `path`."""
    backbone = _of_one_size(backbone, "--crops")
    beside = f"{path}@crops-{plan.name}"
    if fresh:
        _remove_store(beside)
    # An image is a whole batch by itself, and the rows are embeddings, not tokens to be reduced.
    own = replace(options, batch_size=1, workers=0, tokens="all")
    report = run(CropBackbone(backbone, plan), pictures_only(dataset), beside, own)
    _tell(f"{backbone.spec.name}@crops-{plan.name}", dataset, report, 0)
    return report


def _extract_view(
    backbone: Backbone | RegionBackbone,
    dataset: CaptionDataset,
    path: str,
    view: View,
    options: ExtractOptions,
    *,
    fresh: bool,
) -> Report:
    """One augmented view of a split, in a store beside the one at `path`."""
    backbone = _of_one_size(backbone, "--views")
    beside = f"{path}@view{view.number}"
    if fresh:
        _remove_store(beside)
    report = run(viewed(backbone, view), pictures_only(dataset), beside, options, view=view)
    _tell(f"{backbone.spec.name}@view{view.number}", dataset, report, 0)
    return report


def _of_one_size(backbone: Backbone | RegionBackbone, option: str) -> Backbone:
    """The backbone, if it takes images, all as arrays of one shape; raises `UsageError`."""
    name = backbone.spec.name
    if isinstance(backbone, RegionBackbone):
        raise UsageError(f"model {name!r} sees regions, not pictures: no {option}")
    if backbone.varying_input or backbone.image_rows is not None:
        raise UsageError(f"model {name!r} takes pictures of varying size: no {option}")
    return backbone


def plan_model(
    manifest: Manifest,
    model: ModelEntry,
    data: Sequence[CaptionDataset],
    options: ExtractOptions,
    *,
    device: str,
    precision: str,
) -> list[SizePlan]:
    """What `extract_model` with the same arguments would write; nothing is written.

    Args:
        manifest: Says where stores lie.
        model: The model; it is loaded once.
        data: Splits of one dataset.
        options: As for `extract_model`.
        device: Where the model is loaded.
        precision: As for `extract_model`.

    Returns:
        One plan for each split.
    """
    backbone = load_model(model, data[0].name, device, precision)
    return [
        plan(
            backbone,
            dataset,
            manifest.store_path(dataset.name, dataset.split, model.name),
            options,
        )
        for dataset in data
    ]


def load_model(
    model: ModelEntry, dataset: str, device: str, precision: str
) -> Backbone | RegionBackbone:
    """A model of the manifest with its weights for a dataset, on a device.

    Args:
        model: Its entry.
        dataset: The name of the dataset, which may have weights of its own.
        device: Such as "cpu", "cuda" or "auto".
        precision: "fp32", "bf16" or "fp16".

    Raises:
        HadaError: The family is unknown, or the weights are missing or damaged.
    """
    return load_backbone(BackboneRequest.of(model, dataset, device=device, precision=precision))


def _remove_store(path: str) -> None:
    folder = remote.place(path)
    if not folder.exists():
        return
    names = {item.name for item in folder.iterdir() if not atomic.is_temporary(item.name)}
    strangers = names - {COMMIT, ERRORS, *formats.folders()}
    if strangers:
        raise UsageError(
            f"--fresh: {folder} holds more than a store ({min(strangers)}); not deleted"
        )
    if remote.is_remote(folder):
        remote.remove_folder(folder)
    else:
        # Renamed first: half of a store would be no store, and in the way of a new one.
        gone = atomic.temporary_name(folder.with_name(f".{folder.name}"))
        os.replace(folder, gone)
        shutil.rmtree(gone)


def _tell(name: str, dataset: CaptionDataset, report: Report, truncated: int) -> None:
    where = f"{name} on {dataset.name}/{dataset.split}"
    for id_, reason in list(report.failures.items())[:MOST_NAMED]:
        say(f"{where}: could not decode {id_}: {reason}")
    if len(report.failures) > MOST_NAMED:
        more = len(report.failures) - MOST_NAMED
        say(f"{where}: and {more} more, all named in {report.store / ERRORS}")
    if truncated:
        say(f"{where}: {truncated} captions were longer than the model takes and were cut")


def default_workers(device: str) -> int:
    """Worker processes where nothing is asked: none beside a model that computes on the cores."""
    return min(MOST_WORKERS, cores() - 1) if device.startswith("cuda") else 0
