"""Parsers of arrays that `fuzz.py` feeds: region features, imports, weights, checkpoints."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from fuzz_layouts import Made


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


def _write_imports(folder: Path) -> tuple[Any, bytes, bytes, bytes, bytes]:
    """A split's features as files; the split, and an image's npz, a caption's, tensors, a table."""
    import makers
    import safetensors.numpy
    from pyarrow import Table, parquet

    from hada.extract.datasets.read import read_dataset
    from hada.extract.manifest import load_manifest

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
    return dataset, image, caption, tensors, table.getvalue()


def imports(folder: Path) -> Made:
    """HADA's folders of npz, plain arrays, safetensors and parquet, as `hada-store import`."""
    import torch  # here, so that importing it is not the time of an input

    del torch
    from hada.extract.common.array_files import map_npy
    from hada.extract.importers.clip_retrieval import read_pairs
    from hada.extract.importers.open import open_source
    from hada.extract.importers.source import ImportRequest
    from hada.extract.importers.write import _checked
    from hada.extract.spec import SIDES

    dataset, image, caption, tensors, table = _write_imports(folder)
    stems = [Path(id_).stem for id_ in dataset.image_ids]
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
        b"p" + table,
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


_GRAPH = "enc.gcn.gcn."
_NAMES = [
    *(
        "enc.linear.0.weight",
        "enc.linear.1.bias",
        "enc.lin.linear.0.weight",
        "enc.norm.0.weight",
    ),
    *(f"{_GRAPH}conv.0.att", f"{_GRAPH}conv.0.lin.weight", f"{_GRAPH}norm.0.running_mean"),
    *(f"{_GRAPH}conv_lin.0.linear.0.weight", "enc.gcn.trans_1.linear.0.weight", ""),
    *("enc.gcn.trans_x.linear.0.weight", f"enc.gcn.trans_{'9' * 20}.norm.3.weight"),
    *("enc.linear.x.weight", "linear.0.weight"),
]
_KEYS = ["img_encoder", "cap_encoder", "discriminator", "temp_para", "weight_albef", "weight_0",
        "weight_1", "weight_2"]  # fmt: skip


def _odd_tensors() -> list[Callable[[], Any]]:
    """What no checkpoint holds where these are put, each made anew."""
    import torch

    return [
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


def checkpoint(folder: Path) -> Made:
    """The authors' checkpoints with odd tensors and values in place of the right ones."""
    import atheris
    import torch

    from hada.fuse.exchange.official import read_official

    odd, path = _odd_tensors(), folder / "best.pth.tar"

    def one(data: bytes) -> None:
        dice = atheris.FuzzedDataProvider(data)
        whole: dict[str, Any] = {}
        for key in _KEYS:
            if dice.ConsumeIntInRange(0, 5) == 0:
                continue
            if dice.ConsumeBool():
                whole[key] = {
                    dice.PickValueInList(_NAMES): dice.PickValueInList(odd)()
                    for _ in range(dice.ConsumeIntInRange(0, 6))
                }
            else:
                whole[key] = dice.PickValueInList(odd)()
        torch.save(whole, path)
        read_official(path)

    return one, [bytes(range(256)), bytes(400)]
