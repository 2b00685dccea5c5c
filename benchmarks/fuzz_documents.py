"""Parsers of JSON and YAML that `fuzz.py` feeds, and of a saved search index."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from fuzz_layouts import Made


def _json_of(path: Path) -> bytes:
    """A YAML file as JSON, which YAML reads as well."""
    import yaml

    return json.dumps(yaml.safe_load(path.read_text())).encode()


def manifest(folder: Path) -> Made:
    """A data manifest, its places and its models' options."""
    import makers

    from hada.extract.backbones import BackboneRequest, load_backbone
    from hada.extract.common.errors import HadaError
    from hada.extract.manifest import load_manifest

    file = makers.make_project(folder)
    seeds = [file.read_bytes(), _json_of(file)]

    def one(data: bytes) -> None:
        file.write_bytes(data)
        found = load_manifest(file)
        for name, model in found.models.items():
            options = dict(model.options)
            if model.family == "fake" and all(
                not isinstance(value, int) or value < 100 for value in options.values()
            ):
                try:
                    weights = model.weights_for("tiny")
                except HadaError:
                    continue
                load_backbone(
                    BackboneRequest(name=name, family="fake", weights=weights, options=options)
                )

    return one, seeds


def study(folder: Path) -> Made:
    """A pipeline's YAML, to its jobs."""
    import makers

    from hada.extract.manifest import load_manifest
    from hada.pipelines.study.config import load_pipeline
    from hada.pipelines.study.resolve import build_jobs

    data = load_manifest(makers.make_project(folder))
    file = folder / "study.yaml"
    text = (
        "schema: 1\nname: study\ndevice: cpu\nextract:\n  - {dataset: tiny, models: [one, two], "
        "splits: [train, val], shard_size: 3, batch_size: 2}\nfuse:\n  - dataset: tiny\n"
        "    models: [one, two]\n    seeds: [0, 1]\n    set: {epochs: 1, node_width: 16}\n"
        "evaluate:\n  - {dataset: tiny, split: val, quick: true}\n"
        "cluster: {cores: 2, walltime: '01:00:00'}\n"
    )
    file.write_text(text)

    def one(data_: bytes) -> None:
        file.write_bytes(data_)
        build_jobs(load_pipeline(file, data), data)

    return one, [text.encode(), _json_of(file)]


def captions(folder: Path) -> Made:
    """Karpathy's annotations."""
    import makers

    from hada.extract.datasets.read import read_dataset
    from hada.extract.manifest import load_manifest

    entry = load_manifest(makers.make_project(folder)).dataset("tiny")
    file = folder / "data" / "dataset_tiny.json"
    entry = type(entry)(**{**vars(entry), "root": folder / "data"})

    def one(data: bytes) -> None:
        file.write_bytes(data)
        read_dataset(entry, "val").digest()

    document = json.loads(file.read_text())
    document["images"] = document["images"][-3:]
    return one, [json.dumps(document).encode()]


def result(folder: Path) -> Made:
    """A result, for compare and table in every format."""
    from hada.evaluate.results.compare import choose_method, compare, sentences
    from hada.evaluate.results.export import as_table
    from hada.evaluate.results.packing import pack, pack_ranks
    from hada.evaluate.results.read import read_result
    from hada.fuse.ranking.ranks import rank_positives, recalls

    owner = np.array([0, 0, 1, 1, 2, 3])
    rng = np.random.default_rng(0)
    methods = []
    for name, kind in (("clip", "model"), ("HADA x", "hada")):
        ranks = rank_positives(rng.standard_normal((4, 3)), rng.standard_normal((6, 3)), owner)
        methods.append(
            {
                "name": name,
                "kind": kind,
                "note": "",
                "metrics": recalls(ranks),
                "ranks": pack_ranks(ranks),
                "rsum_interval": {"low": 1.0, "high": 2.0, "half_width": 0.5},
                "saw_split": [{"how": "tuned on", "dataset": "d", "split": "val", "images": 2}],
                "fitted_on": [{"how": "x", "dataset": "d", "split": None, "dataset_digest": None}],
            }
        )
    protocol = {"dataset": "d", "split": "val", "images": 4, "captions": 6, "folds": 1}
    whole = {"schema": 3, "protocol": protocol, "methods": methods}
    whole["items"] = {"digest": "0", "caption_to_image": pack(owner)}
    file, other = folder / "a.json", folder / "b.json"
    other.write_text(json.dumps(whole))
    fixed = read_result(other)

    def one(data: bytes) -> None:
        file.write_bytes(data)
        found = read_result(file)
        method = choose_method(found, None, file)
        for form in ("md", "csv", "latex"):
            as_table([found], form)
        sides = (found, method), (fixed, choose_method(fixed, None, other))
        compared = compare(*sides, resamples=100)
        sentences(compared)
        json.dumps(compared)

    return one, [json.dumps(whole).encode()]


def labels(folder: Path) -> Made:
    """Files of classes and labels, of ids, of regions' counts, and configs beside weights."""
    from types import SimpleNamespace

    from hada.evaluate.crops.classification import read_classes, read_labels
    from hada.extract.backbones.salesforce import configs_beside
    from hada.extract.common.errors import HadaError
    from hada.extract.importers.row_ids import read_ids

    file = folder / "x.json"
    ids = ["a.jpg", "b.jpg"]
    gallery: Any = SimpleNamespace(
        stores=[SimpleNamespace(image=SimpleNamespace(ids=ids))], image_rows=np.arange(2)
    )

    def one(data: bytes) -> None:
        file.write_bytes(data)
        for read in (
            lambda: read_classes(file),
            lambda: read_labels(file, gallery),
            lambda: read_ids(file),
            lambda: configs_beside(folder / "weights.pth", ["x.json"]),
        ):
            try:
                read()
            except HadaError as error:
                if "\n" in str(error):
                    raise AssertionError(f"no one line: {error}") from error

    config = {"med": {"hidden_size": 8, "num_attention_heads": 2}, "vit": {"num_heads": 1}}
    values: list[Any] = [{"red": ["a red one"]}, {"a.jpg": "red", "b.jpg": ["red"]}, ids, config]
    return one, [json.dumps(value).encode() for value in values]


def runs(folder: Path) -> Made:
    """A run's config and metrics."""
    from hada.fuse.run_files.config import branch_from_json
    from hada.fuse.run_folder import METRICS, RunFolder

    run = RunFolder(folder / "run")
    run.path.mkdir()
    branch = {
        "models": [{"node_width": 4, "embedding_width": 2}],
        "node_width": 4,
        "edges": {},
    }
    seed = {"format": 1, "branches": {"image": branch, "caption": branch}, "window_shards": 0}

    def one(data: bytes) -> None:
        (run.path / "config.json").write_bytes(data)
        (run.path / METRICS).write_bytes(data)
        run.metrics()
        config = run.config()
        run.window_shards()
        if "branches" in config:
            branch_from_json(config["branches"]["image"])

    return one, [json.dumps(seed).encode()]


def index(folder: Path) -> Made:
    """A saved search index: whatever it is, it is read or made again."""
    from hada.evaluate.search.index import Index

    file = folder / "index.npz"
    Index(np.eye(3, dtype=np.float32), ["a", "b", "c"], "key").save(file)
    seed = file.read_bytes()

    def one(data: bytes) -> None:
        file.write_bytes(data)
        Index.load(file, "key")

    return one, [seed]


def state(folder: Path) -> Made:
    """What a pipeline keeps: tasks, lock, and the jobs of workers."""
    from hada.pipelines import state as kept
    from hada.pipelines.execution import slurm

    place = kept.Folder(folder / "runs", "p")
    place.path.mkdir(parents=True)

    def one(data: bytes) -> None:
        for name in ("tasks.jsonl", slurm.SUBMITTED):
            (place.path / name).write_bytes(data)
        list(place.records())
        place.failures()
        place.rates()
        slurm.submitted(place)

    task = {"key": "extract/d/s/m", "side": "image", "shard": 1, "status": "failed", "seconds": 2}
    done = {**task, "status": "done"}
    lines = "\n".join(map(json.dumps, (task, done)))
    return one, [
        lines.encode(),
        json.dumps(task).encode(),
        b'{"jobs": {"train/x": "12"}}',
        b'{"pid": 1, "host": "h", "started": "3"}',
    ]
