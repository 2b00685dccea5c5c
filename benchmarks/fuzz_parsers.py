"""The parsers that `fuzz.py` feeds: each with real examples, through what a command calls."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from fuzz_layouts import annotations, datasets

One = Callable[[bytes], None]
Made = tuple[One, list[bytes]]


@dataclass(frozen=True)
class Parser:
    """make: in a folder of its own, the function that takes one input, and real inputs.

    text: Whether inputs are JSON, or YAML that may be JSON, to be mutated as trees.
    """

    make: Callable[[Path], Made]
    text: bool = False


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
    from hada.evaluate.results.export import FORMATS, as_table
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
        for form in FORMATS:
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


def _npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


_DTYPES = ("<f4", "<f2", "<f8", "<i8", "|u1", "|b1", "<U3", "|S2", "<c8", "|V4", "<M8[s]", ">f4")


def _odd_arrays(data: bytes, keys: list[str]) -> dict[str, Any]:
    """Arrays whose dtypes and shapes come from the input."""
    import atheris

    dice = atheris.FuzzedDataProvider(data)
    arrays = {}
    for key in keys:
        if dice.ConsumeIntInRange(0, 9) == 0:
            continue
        dtype = np.dtype(_DTYPES[max(0, dice.ConsumeIntInRange(-20, len(_DTYPES) - 1))])
        shape = [dice.ConsumeIntInRange(0, 4) for _ in range(dice.ConsumeIntInRange(0, 3))]
        size = int(np.prod(shape)) * dtype.itemsize
        raw = dice.ConsumeBytes(size).ljust(size, b"\0")
        arrays[key] = np.frombuffer(raw, dtype).reshape(shape) if size else np.zeros(shape, dtype)
    return arrays


def regions(folder: Path) -> Made:
    """Region features: npz by bytes and by odd arrays, msgpack, and TSV."""
    import base64

    import msgpack

    from hada.extract.common.errors import HadaError
    from hada.extract.datasets import region_sources
    from hada.extract.datasets.regions import LAYOUTS, RegionRules, how_many, read_npz, select

    rules = RegionRules(place="x")
    keys = list(dict.fromkeys(key for layout in LAYOUTS for key in layout))
    tsv = folder / "r.tsv"

    def one(data: bytes) -> None:
        kind, data = data[:1], data[1:]
        if kind == b"t":
            tsv.write_bytes(data)
            source = region_sources.TsvRegions(tsv, rules, "d", ["1.jpg"])
            source.count("1.jpg")
            source.read("1.jpg")
            return
        if kind == b"m":
            arrays = region_sources._unpack(data, "record")
        elif kind == b"o":
            arrays = read_npz(_npz(**_odd_arrays(data, keys)), "odd.npz", keys)
        else:
            arrays = read_npz(data, "bytes.npz", keys)
        with contextlib.suppress(HadaError):
            how_many(arrays, rules, "x")
        select(arrays, rules, "x")

    two = np.ones((2, 4), np.float32)
    boxes = np.full((2, 6), 0.5, np.float32)
    whole = {"norm_bb": boxes, "features": two, "conf": np.ones(2, np.float32)}
    packed = {
        key.encode(): {
            b"nd": True,
            b"type": array.dtype.str.encode(),
            b"kind": b"",
            b"shape": array.shape,
            b"data": array.tobytes(),
        }
        for key, array in whole.items()
    }
    text = base64.b64encode(two.tobytes())
    line = b"\t".join([b"1", b"10", b"10", b"2", text, text])
    odd = bytes(range(200))
    return one, [
        b"n" + _npz(**whole),
        b"m" + msgpack.packb(packed),
        b"t" + line + b"\n",
        b"o" + odd,
    ]


def imports(folder: Path) -> Made:
    """HADA's folders of npz, plain arrays, safetensors and parquet, as `hada-store import`."""
    import makers
    import safetensors.numpy
    import torch  # here, so that importing it is not the time of an input
    from pyarrow import Table, parquet

    del torch
    from hada.extract.common.array_files import map_npy
    from hada.extract.datasets.read import read_dataset
    from hada.extract.importers.clip_retrieval import read_pairs
    from hada.extract.importers.open import open_source
    from hada.extract.importers.source import ImportRequest
    from hada.extract.importers.write import _checked
    from hada.extract.manifest import load_manifest
    from hada.extract.spec import SIDES

    makers.make_dataset(folder / "data", splits={"val": [2, 1]})
    (folder / "m.yaml").write_text(makers.MANIFEST.replace("train: {}", "train: {from: val}"))
    entry = load_manifest(folder / "m.yaml").dataset("tiny")
    dataset = read_dataset(type(entry)(**{**vars(entry), "root": folder / "data"}), "val")
    stems = [Path(id_).stem for id_ in dataset.image_ids]
    (folder / "img").mkdir()
    (folder / "txt").mkdir()
    image = _npz(feat=np.ones((3, 4), np.float32), proj_embed=np.ones(2, np.float32))
    for stem in stems:
        (folder / "img" / f"{stem}.npz").write_bytes(image)
    caption = _npz(
        feat=np.ones((2, 5, 4), np.float32), att=np.ones((2, 5)), proj_embed=np.ones((2, 2))
    )
    (folder / "txt" / f"{stems[1]}.npz").write_bytes(
        _npz(feat=np.ones((5, 4)), att=np.ones(5), proj_embed=np.ones(2))
    )
    for name, rows in (("i", 2), ("c", 3)):
        np.save(folder / f"{name}.npy", np.ones((rows, 2), np.float32))
    ids = {
        "image_ids": json.dumps(dataset.image_ids),
        "caption_ids": json.dumps(dataset.caption_ids),
    }
    tensors = safetensors.numpy.save(
        {
            "image_embeddings": np.ones((2, 2), np.float32),
            "caption_embeddings": np.ones((3, 2), np.float32),
        },
        metadata=ids,
    )
    table = io.BytesIO()
    parquet.write_table(Table.from_pydict({"image_path": ["a"], "caption": ["b"]}), table)
    keys = {"a": ["feat", "proj_embed"], "b": ["feat", "att", "proj_embed"]}

    def hada(first: bytes, second: bytes) -> None:
        (folder / "img" / f"{stems[0]}.npz").write_bytes(first)
        (folder / "txt" / f"{stems[0]}.npz").write_bytes(second)
        request = ImportRequest(
            format="hada", images=folder / "img", captions=folder / "txt", allow_pickle=False
        )
        source = open_source(request, dataset)
        for side in SIDES:
            for row in range(len(source.lengths[side])):
                _checked(source.read(side, row), source, side, row, 2)

    def one(data: bytes) -> None:
        kind, data = data[:1], data[1:]
        if kind == b"i":
            hada(data, caption)
        elif kind == b"c":
            hada(image, data)
        elif kind == b"a":
            hada(_npz(**_odd_arrays(data, keys["a"])), caption)
        elif kind == b"b":
            hada(image, _npz(**_odd_arrays(data, keys["b"])))
        elif kind == b"s":
            (folder / "f.safetensors").write_bytes(data)
            request = ImportRequest(format="safetensors", images=folder / "f.safetensors")
            source = open_source(request, dataset)
            _checked(source.read("image", 0), source, "image", 0, 2)
        elif kind == b"p":
            (folder / "f.parquet").write_bytes(data)
            list(read_pairs(folder / "f.parquet"))
        else:
            (folder / "x.npy").write_bytes(data)
            map_npy(folder / "x.npy")

    odd = bytes(range(200))
    npy = (folder / "i.npy").read_bytes()
    return one, [
        b"i" + image,
        b"c" + caption,
        b"a" + odd,
        b"b" + odd,
        b"s" + tensors,
        b"p" + table.getvalue(),
        b"n" + npy,
    ]


def weights(folder: Path) -> Made:
    """Checkpoints: PyTorch's two formats, safetensors, and the authors' own."""
    import torch

    from hada.extract.backbones.weights import read_state_dict
    from hada.fuse.exchange.official import read_official

    def saved(value: Any, **how: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream, **how)
        return stream.getvalue()

    encoder = {"enc.linear.0.weight": torch.ones(2, 3), "enc.linear.0.bias": torch.ones(2)}
    official = {
        "img_encoder": encoder,
        "cap_encoder": encoder,
        "discriminator": {"disc.linear.0.weight": torch.ones(1, 2)},
        "temp_para": torch.tensor(0.1),
        "weight_1": torch.tensor(0.5),
    }
    import safetensors.torch

    pt, st = folder / "x.pt", folder / "x.safetensors"

    def one(data: bytes) -> None:
        kind, data = data[:1], data[1:]
        path = st if kind == b"s" else pt
        path.write_bytes(data)
        if kind == b"o":
            read_official(path)
        else:
            read_state_dict(path)

    return one, [
        b"p" + saved({"model": encoder}),
        b"l" + saved({"model": encoder}, _use_new_zipfile_serialization=False),
        b"o" + saved(official),
        b"s" + safetensors.torch.save(encoder),
    ]


def checkpoint(folder: Path) -> Made:
    """The authors' checkpoints with odd tensors and values in place of the right ones."""
    import atheris
    import torch

    from hada.fuse.exchange.official import read_official

    odd: list[Callable[[], Any]] = [
        lambda: torch.ones(2, 3),
        lambda: torch.zeros(1).expand(10**9),
        lambda: torch.eye(2).to_sparse(),
        lambda: torch.zeros(3, device="meta"),
        lambda: torch.zeros(2, dtype=torch.complex64),
        lambda: torch.zeros(2, 2, dtype=torch.int64),
        lambda: torch.zeros(2).to(torch.float8_e4m3fn),
        lambda: torch.tensor(float("nan")),
        lambda: torch.tensor(1.0),
        lambda: torch.zeros(0),
        lambda: torch.ones(2, 3, 4, 5),
        lambda: None,
        lambda: "x",
        lambda: [1, [2]],
        dict,
        lambda: 10**30,
        lambda: {1: torch.ones(2)},
        lambda: {"enc.linear.0.weight": torch.ones(())},
    ]
    graph = "enc.gcn.gcn."
    names = [
        *(
            "enc.linear.0.weight",
            "enc.linear.1.bias",
            "enc.lin.linear.0.weight",
            "enc.norm.0.weight",
        ),
        *(f"{graph}conv.0.att", f"{graph}conv.0.lin.weight", f"{graph}norm.0.running_mean"),
        *(f"{graph}conv_lin.0.linear.0.weight", "enc.gcn.trans_1.linear.0.weight", ""),
        *("enc.gcn.trans_x.linear.0.weight", f"enc.gcn.trans_{'9' * 20}.norm.3.weight"),
        *("enc.linear.x.weight", "linear.0.weight"),
    ]
    keys = ["img_encoder", "cap_encoder", "discriminator", "temp_para", "weight_albef", "weight_0",
            "weight_1", "weight_2"]  # fmt: skip
    path = folder / "best.pth.tar"

    def one(data: bytes) -> None:
        dice = atheris.FuzzedDataProvider(data)
        whole: dict[str, Any] = {}
        for key in keys:
            if dice.ConsumeIntInRange(0, 5) == 0:
                continue
            if dice.ConsumeBool():
                whole[key] = {
                    dice.PickValueInList(names): dice.PickValueInList(odd)()
                    for _ in range(dice.ConsumeIntInRange(0, 6))
                }
            else:
                whole[key] = dice.PickValueInList(odd)()
        torch.save(whole, path)
        read_official(path)

    return one, [bytes(range(256)), bytes(400)]


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


def store(folder: Path) -> Made:
    """A store's record, markers, arrays' metadata, plans and indexes of shards."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "programs"))
    import fuzz_store

    fuzz_store.prepare(folder)
    return fuzz_store.one_input, fuzz_store.examples()


PARSERS = {
    "manifest": Parser(manifest, text=True),
    "study": Parser(study, text=True),
    "captions": Parser(captions, text=True),
    "annotations": Parser(annotations),
    "datasets": Parser(datasets),
    "result": Parser(result, text=True),
    "labels": Parser(labels, text=True),
    "regions": Parser(regions),
    "imports": Parser(imports),
    "weights": Parser(weights),
    "checkpoint": Parser(checkpoint),
    "runs": Parser(runs, text=True),
    "index": Parser(index),
    "state": Parser(state, text=True),
    "store": Parser(store),
}
