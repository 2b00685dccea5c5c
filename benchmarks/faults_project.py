"""The project that `faults.py` attacks: what it imports, and its files as they can be compared."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path


def make_arrays(project: Path) -> None:
    """Arrays of another project, to be imported."""
    import numpy as np

    draw = np.random.default_rng(0)
    for folder in ("img", "txt"):
        (project / folder).mkdir()
    for row, captions in enumerate([2, 1, 2]):
        feat = draw.standard_normal((3, 6), dtype=np.float32)
        proj = draw.standard_normal(4, dtype=np.float32)
        np.savez(project / "img" / f"val_{row:03d}.npz", feat=feat, proj_embed=proj)
        feats = draw.standard_normal((captions, 4, 6), dtype=np.float32)
        proj_embed = draw.standard_normal((captions, 4), dtype=np.float32)
        atts = np.ones((captions, 4), np.int64)
        if captions == 1:  # the official code drops the axis
            feats, proj_embed, atts = feats[0], proj_embed[0], atts[0]
        path = project / "txt" / f"val_{row:03d}.npz"
        np.savez(path, feat=feats, att=atts, proj_embed=proj_embed)


def snapshot(place: Path) -> dict[str, bytes]:
    """Every finished file below `place`, without times."""
    return {
        str(path.relative_to(place)): content(path)
        for path in sorted(place.rglob("*"))
        if path.is_file()
        and not {".tmp-", "tensorboard"} & set(re.findall(r"\.tmp-|tensorboard", str(path)))
        and path.name != "lock"
        and path.suffix != ".lock"
    }


def content(path: Path) -> bytes:
    """A file's bytes, or what of them does not depend on the clock."""
    data = path.read_bytes()
    try:
        if path.suffix in (".json", ".jsonl"):
            return repr([timeless(json.loads(line)) for line in documents(path, data)]).encode()
        if path.suffix == ".pt":
            return checkpoint(path)
    except Exception:
        return data
    return data


def documents(path: Path, data: bytes) -> list[bytes]:
    """The JSON documents of a file."""
    return data.splitlines() if path.suffix == ".jsonl" else [data]


def timeless(value: object) -> object:
    """A JSON value without what the clock decided."""
    if isinstance(value, dict):
        dropped = ("second", "time", "per_s", "environment", "date")
        return {
            key: timeless(entry)
            for key, entry in sorted(value.items())
            if not any(word in key for word in dropped)
        }
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def checkpoint(path: Path) -> bytes:
    """Everything in a training's last state but its times, `metrics_bytes` among them."""
    import torch

    def plain(value: object) -> object:
        if isinstance(value, torch.Tensor):
            data = hashlib.sha256(value.contiguous().view(-1).numpy().tobytes()).hexdigest()
            return str(value.dtype), tuple(value.shape), data
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in ("seconds", "metrics_bytes")}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return repr(plain(torch.load(path, weights_only=True))).encode()


def stores_in(place: Path) -> list[str]:
    """The stores of a project."""
    return sorted(
        str(path.parent.relative_to(place))
        for path in place.rglob("features.*")
        if path.is_dir() and ".tmp-" not in str(path)
    )
