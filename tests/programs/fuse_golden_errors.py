"""How far the fusion is from the authors' code: the largest error of each golden file.

    python tests/programs/fuse_golden_errors.py

prints the table of docs/golden.md. Errors of outputs are absolute, those of a gradient relative to
its norm. Where the true gradient is 0 (whatever only shifts the input of a BatchNorm) both sides
hold what float32 rounded, below `NOTHING`: those count as "gradients of 0", absolute.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from fuse_golden import load_npz, load_safetensors, our_keys
from golden_graphs import (
    CASES,
    LOOPS,
    WEIGHTS,
    as_map,
    golden_branch,
    golden_input,
    golden_two_layers,
)
from golden_steps import FILES, gradients, state, up_to_the_step

from hada.fuse.network.graph import edge_list
from hada.fuse.network.inputs import prepare
from hada.fuse.ranking.ranks import rank_matrix, recalls
from hada.fuse.recipes import RECIPES
from hada.fuse.settings import NO_EDGE, EdgeWeights
from hada.fuse.training.trainer import learning_rate

NOTHING = 1e-4
SCALE = np.array([100, 100, 100, 1, 1])  # theirs are shares, ours percent
Errors = dict[str, float]


def gap(a: Any, b: Any) -> float:
    """Largest absolute difference."""
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0.0))


def gradient_errors(ours: Any, wanted: Any, norms: Any) -> Errors:
    """Relative errors of gradients, absolute ones where there is none."""
    found = {"gradients": 0.0, "gradients of 0": 0.0}
    for key, parameter in ours:
        if key in wanted:
            norm, error = (
                float(norms[key]),
                gap(parameter.grad, wanted[key].reshape(parameter.shape)),
            )
            kind = "gradients" if norm > NOTHING else "gradients of 0"
            found[kind] = max(found[kind], error / norm if norm > NOTHING else error)
    return found


def forward(side: str) -> Errors:
    """One branch, evaluating and training, and its gradients."""
    branch, (golden, batch) = golden_branch().eval(), golden_input(side)
    like = load_safetensors(WEIGHTS)
    with torch.no_grad():
        errors = {"eval": gap(F.normalize(branch(batch), dim=1), golden["eval.out_l2"])}
    unit = F.normalize(branch.train()(batch), dim=1)
    errors["train"] = gap(unit.detach(), golden["train.out_l2"])
    (unit * torch.linspace(-1, 1, unit.numel()).view_as(unit)).sum().backward()
    after = our_keys(golden, "train.after.", like)
    errors["buffers"] = max(gap(v, after[k]) for k, v in branch.named_buffers())
    want = our_keys(golden, "train.grad.", like)
    norms = our_keys(golden, "train.gradnorm.", like)
    return errors | gradient_errors(branch.named_parameters(), want, norms)


def attention(side: str) -> Errors:
    """Every edge's attention weights, in eval mode."""
    branch, (_, batch) = golden_branch().eval(), golden_input(side)
    golden = load_npz(f"hada_m_C5_attention_{side}.npz")
    lengths_BM = np.stack([layout.lengths_B.numpy() for layout in batch.layouts], 1)
    with torch.no_grad():
        alpha, _, keys = branch.graph.attention.attend(branch.nodes(batch), batch.layouts)
    widths = [2, *(key.shape[1] for key in keys)]
    globals_, *parts = torch.split(alpha, widths, dim=-1)
    starts_BM = (lengths_BM.cumsum() - lengths_BM.ravel()).reshape(lengths_BM.shape)
    graph_of = np.repeat(np.arange(len(lengths_BM)), lengths_BM.sum(1))
    worst = 0.0
    for (tail, head), want in zip(golden["edge_index_eff"].T, golden["alpha"], strict=True):
        graph = graph_of[head]
        readers, place = starts_BM[graph].tolist(), int(tail)
        if head not in readers:  # a token hears only itself
            got = np.ones(4)
        else:
            reader = readers.index(head)
            if place in readers:
                got = globals_[graph, reader, :, readers.index(place)]
            else:
                model = int(place > readers[1])
                got = parts[model][graph, reader, :, place - readers[model]]
        worst = max(worst, gap(got, want))
    return {"eval": worst}


def iteration(name: str) -> Errors:
    """One whole training iteration: losses, gradients, and everything after the AdamW step."""
    tensors = load_safetensors(f"{name}.safetensors")
    objective, optimizer, result = up_to_the_step(name, tensors)
    parameters = objective.trainable()
    pairs = (("nce", "loss_nll"), ("itm", "loss_itm"), ("total", "loss_all"))
    losses = max(gap(result[a].detach(), tensors[f"out.{b}"]) for a, b in pairs)
    wanted = gradients(tensors)
    norms = {k: v.norm() for k, v in wanted.items()}
    grads = gradient_errors(parameters.items(), wanted, norms)
    optimizer.step()
    after, worst = state(tensors, "after", objective), 0.0
    for key, value in objective.state_dict().items():
        error = (value - after[key]).abs()
        if key in parameters and key in wanted:
            # The first step is lr * sign(gradient); where the gradient is 0 its sign is chance.
            error = error[wanted[key].view_as(value).abs() >= 1e-5]
        worst = max(worst, float(error.max()) if error.numel() else 0.0)
    return {"losses": losses, **grads, "after the step": worst}


def layers() -> Errors:
    """Two GATv2 layers."""
    found = dict.fromkeys(("eval", "train"), 0.0)
    for kind in ("hada_m", "lavis"):
        for skip in (0, 1):
            for mode, (got, want) in golden_two_layers(kind, skip).items():
                found[mode] = max(found[mode], gap(got, want))
    return found


def edges() -> Errors:
    """Edge lists as drawn and as GATv2 sees them; a missing or extra edge counts as infinite."""
    golden = load_npz("edges.npz")
    worst = {"given": 0.0, "effective": 0.0}
    for case in CASES:
        loops = LOOPS[max((k for k in LOOPS if case.startswith(k)), key=len)]
        weights = EdgeWeights(
            undirected="undirected" in case,
            tokens=0.5 if "wffx0.5" in case else NO_EDGE,
            loop_token=loops[0],
            loop_global=loops[1],
        )
        for side in ("img", "cap"):
            key = f"{case}.{side}"
            for kind, field, drawn in (
                ("given", "edge", "given"),
                ("effective", "effective_edge", "mean"),
            ):
                want = as_map(golden[f"{key}.{field}_index"], golden[f"{key}.{field}_attr"])
                got = as_map(*edge_list(golden[f"{key}.n"][None], weights, loops=drawn))
                error = max(abs(got[e] - want[e]) for e in want)
                worst[kind] = max(worst[kind], error if got.keys() == want.keys() else np.inf)
    return worst


def schedules() -> Errors:
    """Learning rates of whole trainings, relative."""
    golden = load_npz("lr_schedules.npz")
    recipes = {"hada_m_C5": "hada", "hada_m_extend_C5": "hada-extend", "lavis_C1": "hada-lavis"}
    worst = 0.0
    for key, want in golden.items():
        name, iterations, _ = key.split(".")
        recipe, steps = RECIPES[recipes[name]], int(iterations.removeprefix("n_iters"))
        got = np.array([learning_rate(recipe, step, steps) for step in range(len(want))])
        worst = max(worst, gap(got / want, 1.0))
    return {"rates": worst}


def recall() -> Errors:
    """Ranks (bounds, where scores tie) and recalls."""
    golden = load_npz("recall.npz")
    worst = {"ranks": 0.0, "recalls": 0.0}
    for case in sorted({key.split(".")[0] for key in golden}):
        sims = golden[f"{case}.sims"]
        ranks = rank_matrix(sims, np.repeat(np.arange(len(sims)), 5))
        for way in ("i2t", "t2i"):
            # Theirs count an image's other captions among its ties, ours do not.
            low = golden[f"{case}.{way}_rank_lo"] - getattr(ranks, f"{way}_lo")
            high = getattr(ranks, f"{way}_hi") - golden[f"{case}.{way}_rank_hi"]
            worst["ranks"] = max(worst["ranks"], low.max(), high.max())
        if case not in ("ties100", "const20"):  # the authors' ties fall as their sort leaves them
            table = recalls(ranks)
            keys = (*(f"R@{k}" for k in (1, 5, 10)), "medr", "meanr")
            for way in ("i2t", "t2i"):
                got = [table[f"{way}_{key}"] for key in keys]
                worst["recalls"] = max(worst["recalls"], gap(got, golden[f"{case}.{way}"] * SCALE))
    return worst


def standardised() -> Errors:
    """Raw features of one pair as the authors' data set standardises them."""
    golden = load_npz("hada_m_sample_standardized.npz")
    worst = 0.0
    for side in ("img", "cap"):
        for model, short in (("albef", "albef"), ("dot", "dot")):
            raw = golden[f"raw.{side}.{short}_feat"]
            mask = golden.get(f"raw.{side}.{short}_att")
            raw = raw if mask is None else raw[: int(mask.sum())]
            got = prepare(torch.from_numpy(raw), "published")
            worst = max(worst, gap(got, golden[f"out.{side}.node_{model}"]))
            one = torch.from_numpy(golden[f"raw.{side}.{short}_proj"])[None]
            worst = max(worst, gap(prepare(one, "published"), golden[f"out.{side}.cls_{model}"]))
    return {"features": worst}


TABLE: dict[str, Callable[[], Errors]] = {
    "edges.npz": edges,
    "hada_m_sample_standardized.npz": standardised,
    **{f"hada_m_C5_forward_{s}.npz": lambda s=s: forward(s) for s in ("img", "cap")},
    **{f"hada_m_C5_attention_{s}.npz": lambda s=s: attention(s) for s in ("img", "cap")},
    "multilayer_2xGATv2.safetensors": layers,
    **{f"{name}.safetensors": lambda name=name: iteration(name) for name in FILES},
    "lr_schedules.npz": schedules,
    "recall.npz": recall,
}


def main() -> None:
    """Print the table."""
    sys.stdout.write("| file | largest errors |\n| --- | --- |\n")
    for name, errors in TABLE.items():
        try:
            cells = ", ".join(f"{what} {error:.1e}" for what, error in errors().items())
        except pytest.skip.Exception as reason:
            cells = str(reason)
        sys.stdout.write(f"| {name} | {cells} |\n")


if __name__ == "__main__":
    main()
