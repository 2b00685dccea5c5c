"""The authors' checkpoints, `best.pth.tar` of HADA_m, HADA_m_extend, Baseline_m and HADA-LAVIS.

Their files are pickles of `img_encoder`, `cap_encoder`, `discriminator`, `temp_para` and, where
retrieval is weighted, `weight_albef`, `weight_1` or `weight_0 .. weight_2`. They are read without
running anything they contain; names and widths of the tensors say which of the models it is.

A branch's tensors, theirs and ours (i counts a stack's layers, the last one has no number here):

    enc.gcn.trans_M.linear.i      project.M-1.before.i.linear     project.M-1.linear
    enc.gcn.gcn.conv.i            graph.layers.i.conv             graph.attention if there is one
    enc.gcn.gcn.conv_lin.i        graph.layers.i.mix              graph.mix
    enc.gcn.gcn.norm.i            graph.layers.i.norm             graph.norm
    enc.lin.linear.i              head.before.i.linear            head.linear
    enc.linear.i (Baseline_m)     head.before.i.linear            head.linear
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hada.extract.common.errors import CheckpointError
from hada.extract.common.shapes import listed, shown
from hada.extract.common.tensor_files import read_torch
from hada.fuse.network.build import build_fuser
from hada.fuse.network.config import BranchConfig
from hada.fuse.network.fuser import Fuser
from hada.fuse.recipes import RECIPES, Recipe

SIDES = {"image": "img_encoder", "caption": "cap_encoder"}
HEADS = 4  # of all published models; Transformer layers do not tell


@dataclass(frozen=True)
class Official:
    """What an official checkpoint holds, under our names.

    encoders: side -> the tensors of that branch, under their names. weights: the learned score
    weights, () where retrieval is by the fused cosine alone. lavis: Whether it is HADA-LAVIS's,
    whose second model is one node.
    """

    encoders: dict[str, dict[str, Tensor]]
    discriminator: dict[str, Tensor]
    temperature: Tensor
    weights: tuple[float, ...]
    recipe: Recipe
    lavis: bool


def read_official(path: Path) -> Official:
    """Read a `best.pth.tar`; raises `CheckpointError` for anything else, or unsafe."""
    loaded = _load(path)
    missing = [k for k in (*SIDES.values(), "temp_para") if k not in loaded]
    if missing:
        raise CheckpointError(
            f"{path} is no checkpoint of HADA: {', '.join(missing)} not among its keys "
            f"({listed(loaded)})"
        )
    raw = {side: _tensors(loaded[key], f"{path}: {key}") for side, key in SIDES.items()}
    prefix = "disc."
    disc = _tensors(loaded.get("discriminator", {}), f"{path}: discriminator")
    norm = _norm_of(raw["image"])
    weights: dict[str, float] = {
        name: float(_number(loaded[name], f"{path}: {name}"))
        for name in ("weight_albef", "weight_0", "weight_1", "weight_2")
        if name in loaded
    }
    name = _kind_of(norm, weights)
    return Official(
        encoders=raw,
        discriminator={
            "head." + re.sub(r"\.0\.", ".", k.removeprefix(prefix)): v
            for k, v in disc.items()
            if norm == "batch" or ".norm." not in k
        },
        temperature=_number(loaded["temp_para"], f"{path}: temp_para"),
        weights=tuple(weights.values()),
        recipe=_recipe_of(raw["image"], name, tuple(weights.values())),
        lavis=name.startswith("hada-lavis"),
    )


def build(official: Official, shapes: Mapping[str, Sequence[Any]], recipe: Recipe) -> Fuser:
    """Build the fusion that a checkpoint's weights are of.

    Args:
        official: The checkpoint that was read.
        shapes: Side -> the shape of each model, in order.
        recipe: What the network is built by.

    Returns:
        The network, with the checkpoint's weights.

    Raises:
        CheckpointError: The weights do not fit; the message names the first tensor that does not.
    """
    fuser = build_fuser(recipe, shapes)
    for side, branch in (("image", fuser.image), ("caption", fuser.caption)):
        theirs = official.encoders[side]
        names = our_names(theirs, dense=branch.config.dense)
        tensors = {ours: theirs[name] for name, ours in names.items()}
        _fit(branch.config, tensors, branch.state_dict(), side)
        branch.load_state_dict(tensors)
    return fuser


def our_names(encoder: Mapping[str, Any], *, dense: bool | None = None) -> dict[str, str]:
    """Their name -> ours for the tensors of one whole encoder.

    A LayerNorm behind the last layer of a stack, which they make and never use, has none. `dense`
    says whether the graph is computed densely; None for what one directed GATv2 layer would be.
    """
    named = [k.removeprefix("enc.") for k in encoder]
    if dense is None:
        deep = any(k.startswith("gcn.gcn.conv.1.") for k in named)
        dense = not deep and "gcn.gcn.conv.0.att" in named
    batch = _norm_of(encoder) == "batch"
    pairs = ((k, _renamed(k.removeprefix("enc."), named, dense, batch)) for k in encoder)
    return {theirs: ours for theirs, ours in pairs if ours is not None}


def _renamed(key: str, named: Sequence[str], dense: bool, batch: bool) -> str | None:
    """One tensor's name with us; None for a LayerNorm behind a last layer, which never acts."""
    found = re.fullmatch(r"gcn\.gcn\.(conv|conv_lin|norm)\.(\d{1,4})\.(.+)", key)
    if found:
        part, layer, rest = found.groups()
        where = "graph." if dense else f"graph.layers.{layer}."
        if part == "conv":
            return where + ("attention." if dense else "conv.") + rest
        if part == "norm":
            return where + "norm." + rest
        return where + "mix." + re.sub(r"\.0\.", ".", rest, count=1)
    found = re.fullmatch(r"(gcn\.trans_(\d{1,4})\.|lin\.|)(linear|norm)\.(\d{1,4})\.(.+)", key)
    if found is None:
        return key  # refused later as unexpected, by its own name
    stack, model, part, number, rest = found.groups()
    layer = re.compile(rf"{re.escape(stack)}linear\.(\d{{1,4}})\.[^.]+")
    last = max((int(match[1]) for k in named if (match := layer.fullmatch(k))), default=0)
    where = "head." if model is None else f"project.{int(model) - 1}."
    if int(number) < last:
        return f"{where}before.{number}.{part}.{rest}"
    return None if part == "norm" and not batch else f"{where}{part}.{rest}"


def _norm_of(encoder: Mapping[str, Tensor]) -> str:
    """Which of the published orders an encoder has; see `hada.fuse.network.config`."""
    if any(k.endswith("norm.0.running_mean") for k in encoder):
        return "batch"
    return "none" if any(k.startswith("enc.gcn.") for k in encoder) else "layer"


def _kind_of(norm: str, weights: Mapping[str, float]) -> str:
    """The recipe a checkpoint belongs to.

    HADA_m_extend and Baseline_m_extend always hold `weight_albef`, and nobody else does.
    """
    if norm != "none":
        base = {"batch": "hada", "layer": "concat"}[norm]
        return "concat-extend" if base == "concat" and weights else base
    if "weight_albef" in weights:
        return "hada-extend"
    if "weight_0" in weights:
        return "hada-lavis-both"
    return "hada-lavis-weighted" if weights else "hada-lavis"


def _recipe_of(encoder: Mapping[str, Tensor], name: str, weights: tuple[float, ...]) -> Recipe:
    """The recipe that made a checkpoint, as far as its tensors tell."""
    width = {k: int(v.shape[0]) for k, v in encoder.items() if k.endswith("weight") and v.ndim}
    graph_free = name.startswith("concat")
    heads = _stack(width, "enc.linear." if graph_free else "enc.lin.linear.")
    if not heads:
        raise CheckpointError("the encoder is none of HADA's: it has no last linear layer")
    changes: dict[str, Any] = {"out_width": heads[-1], "head_hidden": heads[:-1]}
    if not graph_free:
        nodes = _stack(width, "enc.gcn.trans_1.linear.")
        graph = _stack(width, "enc.gcn.gcn.conv_lin.", ".linear.0.weight") or _stack(
            width, "enc.gcn.gcn.conv.", ".lin.weight"
        )
        att = encoder.get("enc.gcn.gcn.conv.0.att")
        if not (nodes and graph) or (att is not None and att.ndim != 3):
            raise CheckpointError("the encoder is no HADA graph: its layers are not recognised")
        kind = "gatv2" if att is not None else "transformer"
        if "enc.gcn.gcn.conv.0.lin.weight" in encoder:
            kind = "gcn"
        changes |= {
            "node_width": nodes[-1],
            "node_hidden": nodes[:-1],
            "graph_width": graph[-1],
            "graph_hidden": graph[:-1],
            "head_width": graph[-1],
            "heads": HEADS if att is None else int(att.shape[1]),
            "convolution": kind,
            "skip": len(set(graph)) == 1 < len(graph) and graph[0] == nodes[-1],
        }
    changes["scores"] = {0: "fused", 1: "first"}.get(len(weights), "all")
    changes |= {"score_weights": weights, "learn_scores": bool(weights)}
    return RECIPES[name].changed(**changes)


def _stack(width: Mapping[str, int], start: str, end: str = ".weight") -> tuple[int, ...]:
    """Output widths of the layers start0end, start1end, ..."""
    found: list[int] = []
    while (key := f"{start}{len(found)}{end}") in width:
        found.append(width[key])
    return tuple(found)


def _fit(
    config: BranchConfig, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], side: str
) -> None:
    """Raise `CheckpointError` unless both hold the same tensors in the same shapes."""
    for key in sorted(wanted.keys() | given.keys()):
        a = tuple(given[key].shape) if key in given else None
        b = tuple(wanted[key].shape) if key in wanted else None
        if a != b:
            models = ", ".join(
                f"{m.node_width} wide with embeddings of {m.embedding_width}" for m in config.models
            )
            raise CheckpointError(
                f"the checkpoint does not fit these models' stores ({models}): {side} {key} is "
                f"{a or 'missing'} there, {b or 'nothing'} here; give the models it was trained "
                "on, in its order. A second model that was one node, as CLIP is in HADA-LAVIS, "
                "takes --set first_tokens_only=true; an undirected graph --set undirected=true, "
                "one whose tokens are joined --set edge_tokens=0.5 (its own weight)"
            )


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    import numpy as np

    scalar: Any = np.float64(0).__reduce__()[0]  # best_loss is one, and no torch type
    safe: list[Any] = [scalar, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType]
    safe.append((scalar, "numpy.core.multiarray.scalar"))  # its name before NumPy 2
    loaded = read_torch(path, safe=safe)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, expected a checkpoint")
    return loaded


def _number(value: Any, what: str) -> Tensor:
    """A learned number, as a tensor without dimensions."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not (plain or (isinstance(value, Tensor) and value.numel() == 1)):
        raise CheckpointError(f"{what}: expected one number, got {shown(value)}")
    tensor = torch.as_tensor(value).detach().float().reshape(())
    if not tensor.isfinite():
        raise CheckpointError(f"{what}: expected a finite number, got {shown(value)}")
    return tensor


def _tensors(values: Any, what: str) -> dict[str, Tensor]:
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{what}: expected named tensors, got {type(values).__name__}")
    bad = [k for k, v in values.items() if not isinstance(v, Tensor) or not v.isfinite().all()]
    if bad:
        raise CheckpointError(f"{what}: {bad[0]} is not a tensor of finite numbers")
    return {str(k): v.float() if v.is_floating_point() else v for k, v in values.items()}
