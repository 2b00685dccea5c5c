"""Time and memory of one training step, beside the published arithmetic written plainly.

    python benchmarks/train_step.py              # both orders of norm and dropout, pairs and images
    python benchmarks/train_step.py --case none  # one of them

The plain step is what the authors' code does, with PyTorch Geometric: every node of every graph
goes through GATv2 and all that follows, queues are concatenated and copied, negatives are drawn
row by row. Both steps get the same weights and the same batch at the paper's sizes: 577 + 37 image
tokens, 15 + 15 caption tokens, 768 wide, queues of 64,000, batches of 20 pairs. `tests` hold their
losses equal without dropout. Loading and building edge lists are outside the measurement on both
sides. Each measurement runs in a process of its own, on one thread.

Our trainer keeps freed memory for the next step (`extract/common/host.py`), which the authors'
code does not; "plain, kept" is the plain step with that too, so that both effects can be told
apart.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hada.extract.common.host import reuse_freed_memory
from hada.fuse.batch import Batch, Features, Layout, ModelShape
from hada.fuse.network.build import branch_config
from hada.fuse.network.fuser import Branch, Fuser
from hada.fuse.network.graph import edge_list
from hada.fuse.network.inputs import prepare
from hada.fuse.network.pyg import layer
from hada.fuse.recipes import RECIPES, Recipe
from hada.fuse.training.objective import Objective
from hada.fuse.training.trainer import build_optimizer

CASES = {"batch": "hada", "none": "hada-extend"}
WIDTHS = ((768, 256), (768, 768))
TOKENS = {"image": (577, 37), "caption": (15, 15)}


class PlainBranch(nn.Module):
    """One side's encoder over all nodes, with the weights of a `Branch`."""

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        config, graph = branch.config, branch.graph
        self.config = config
        self.project, self.head = copy.deepcopy(branch.project), copy.deepcopy(branch.head)
        self.mix, self.norm = copy.deepcopy(graph.mix), copy.deepcopy(graph.norm)
        self.conv = layer("GATv2Conv")(
            config.node_width,
            config.head_width,
            heads=config.heads,
            edge_dim=1,
            dropout=config.dropout_graph,
        )
        self.conv.load_state_dict(graph.attention.state_dict())

    def forward(self, features: Features, edges: tuple[Tensor, Tensor]) -> Tensor:
        """(B, E), of unit length."""
        inputs = self.config.inputs
        nodes = [p(prepare(x, inputs)) for p, x in zip(self.project, features.nodes, strict=True)]
        counts = [layout.lengths_B.tolist() for layout in features.layouts]
        parts = [torch.split(x, n) for x, n in zip(nodes, counts, strict=True)]
        h = torch.cat([torch.cat(graph) for graph in zip(*parts, strict=True)])
        h = self.mix(self.conv(h, *edges))
        if self.norm is not None:
            h = self.norm(h)
        a, b = (torch.tensor(n) for n in counts)
        first = (a + b).cumsum(0) - a - b
        p1, p2 = (prepare(p, inputs) for p in features.embeddings)
        return F.normalize(self.head(torch.cat([h[first], p1, p2, h[first + a]], 1)), dim=1)


class PlainStep(nn.Module):
    """The published training step: encoders, momentum encoders, queues and losses."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.config, self.scores = objective.loss, objective.scores
        self.fast = nn.ModuleList(PlainBranch(b) for b in sides(objective.fuser))
        self.slow = nn.ModuleList(PlainBranch(b) for b in sides(objective.slow))
        self.slow.requires_grad_(False)
        self.temperature = nn.Parameter(objective.temperature.detach().clone())
        self.discriminator = copy.deepcopy(objective.discriminator)
        self.weight = None
        if self.scores.mode == "first":
            self.weight = nn.Parameter(objective.mix.values[0].detach().clone())
        self.queues = [
            [getattr(queue, f"values_{k}").T.contiguous() for k in range(queue.count)]
            for queue in (objective.image_queue, objective.caption_queue)
        ]
        self.ids = objective.image_queue.ids.clone()[None]
        self.pointer = 0

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters an optimiser updates, by name."""
        return {n: p for n, p in self.named_parameters() if p.requires_grad}

    def forward(
        self, batch: Batch, edges: Any, distill: float, negatives: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """The total loss."""
        config, features = self.config, (batch.image, batch.caption)
        with torch.no_grad():
            self.temperature.clamp_(config.temperature_low, config.temperature_high)
            if self.weight is not None:
                self.weight.clamp_(0.1, 0.9)
        ids = batch.ids_B[:, None]
        same = torch.eq(ids, torch.cat([ids.T, self.ids.clone()], 1)).float()
        target = same / same.sum(1, keepdim=True)
        image, caption = (f(x, e) for f, x, e in zip(self.fast, features, edges, strict=True))
        with torch.no_grad():
            for a, b in zip(self.slow.parameters(), self.fast.parameters(), strict=True):
                a.data = a.data * config.momentum + b.data * (1 - config.momentum)
            slow = [f(x, e) for f, x, e in zip(self.slow, features, edges, strict=True)]
            keys = [
                torch.cat([x.t(), queue[0].clone()], 1)
                for x, queue in zip(slow, self.queues, strict=True)
            ]
            targets = [target, target]
            if distill:
                teacher = [slow[0] @ keys[1], slow[1] @ keys[0]]
                targets = [
                    distill * F.softmax(t / self.temperature, 1) + (1 - distill) * target
                    for t in teacher
                ]
        scores = [image @ keys[1] / self.temperature, caption @ keys[0] / self.temperature]
        mixed = scores
        own: list[Tensor] = []
        if self.weight is not None:
            own = [F.normalize(side.embeddings[0], dim=1) for side in features]
            wide = [
                torch.cat([x.t(), q[1].clone()], 1) for x, q in zip(own, self.queues, strict=True)
            ]
            first = [own[0] @ wide[1] / self.temperature, own[1] @ wide[0] / self.temperature]
            mixed = [
                (1 - self.weight) * s + self.weight * f for s, f in zip(scores, first, strict=True)
            ]
        both = [
            -torch.sum(F.log_softmax(s, 1) * t, 1).mean()
            for s, t in zip(mixed, targets, strict=True)
        ]
        loss = config.image_share * both[0] + (1 - config.image_share) * both[1]
        self._enqueue([[slow[0], *own[:1]], [slow[1], *own[1:]]], ids)
        return loss + self._match(image, caption, scores, ids, negatives)

    def _enqueue(self, parts: list[list[Tensor]], ids: Tensor) -> None:
        place = slice(self.pointer, self.pointer + len(ids))
        for queue, some in zip(self.queues, parts, strict=True):
            for values, x in zip(queue, some, strict=True):
                values[:, place] = x.T
        self.ids[:, place] = ids.T
        self.pointer = (self.pointer + len(ids)) % self.ids.shape[1]

    def _match(
        self, image: Tensor, caption: Tensor, scores: list[Tensor], ids: Tensor, negatives: Any
    ) -> Tensor:
        if negatives is None:
            found = []
            for score in reversed(scores):
                weights = F.softmax(score[:, : len(ids)].detach() + 1e-4, 1)
                weights.masked_fill_(torch.eq(ids, ids.T), 0)
                found.append(torch.tensor([torch.multinomial(w, 1).item() for w in weights]))
            negatives = tuple(found)
        left = torch.cat([image, image[negatives[0]], image])
        right = torch.cat([caption, caption, caption[negatives[1]]])
        truth = torch.cat([torch.ones(len(ids)), torch.zeros(2 * len(ids))])
        return F.binary_cross_entropy(torch.sigmoid(self.discriminator(left, right)), truth)


def sides(fuser: Any) -> tuple[Branch, Branch]:
    """Image and caption branch."""
    return fuser.image, fuser.caption


def features(side: str, items: int, scale: float = 1.0) -> Features:
    """Random stored features of the paper's sizes."""
    counts = [max(2, round(n * scale)) for n in TOKENS[side]]
    return Features(
        tuple(torch.randn(items * n, w[0]) for n, w in zip(counts, WIDTHS, strict=True)),
        tuple(Layout.build([n] * items, global_last=False) for n in counts),
        tuple(torch.randn(items, w[1]) for w in WIDTHS),
    )


def setup(recipe: Recipe, images: int, per: int, scale: float = 1.0) -> tuple[Objective, Batch]:
    """A fresh objective and one batch of `images` with `per` captions each."""
    torch.manual_seed(0)
    shapes = tuple(ModelShape(node_width=a, embedding_width=b) for a, b in WIDTHS)
    config = branch_config(recipe, shapes)
    objective = Objective(Fuser(config, config), recipe.loss, recipe.scores)
    ids = torch.arange(images)
    batch = Batch(
        features("image", images, scale),
        features("caption", images * per, scale),
        ids,
        ids.repeat_interleave(per),
    )
    return objective.train(), batch


def edges_of(batch: Batch, recipe: Recipe) -> list[tuple[Tensor, Tensor]]:
    """Edge lists as the authors' loader builds them."""
    weights = recipe.network.edges
    found = []
    for side in (batch.image, batch.caption):
        lengths = torch.stack([layout.lengths_B for layout in side.layouts], 1)
        index, values = edge_list(lengths, weights, loops="none")
        found.append((torch.from_numpy(index), torch.from_numpy(values).float()[:, None]))
    return found


def memory(field: str) -> int:
    """A number of bytes from this process's status."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(field)[1].split()[1]) * 1024


def measure(kind: str, case: str, images: int, per: int, steps: int) -> dict[str, Any]:
    """CPU seconds of each step and the memory it takes above what was there before."""
    if kind != "plain":
        reuse_freed_memory()
    torch.set_num_threads(1)
    recipe = RECIPES[CASES[case]]
    objective, batch = setup(recipe, images, per)
    model: Any = objective
    if kind != "ours":
        model, edges = PlainStep(objective).train(), edges_of(batch, recipe)
        del objective
    optimizer = build_optimizer(recipe, model)
    before, seconds = memory("VmRSS"), []
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for _ in range(steps + 1):
        started = time.process_time()
        if kind != "ours":
            loss = model(batch, edges, recipe.loss.distill, None)
        else:
            loss = model(batch, recipe.loss.distill)["total"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if kind == "ours":
            model.remember()
        optimizer.step()
        seconds.append(time.process_time() - started)
    # The optimiser's state is made in the first step: it is no part of a step's time.
    return {"seconds": statistics.median(seconds[1:]), "bytes": memory("VmHWM") - before}


def compare(case: str, steps: int) -> list[list[str]]:
    """Rows of the table for one order of norm and dropout."""
    plain, kept = (run(kind, case, 20, 1, 1) for kind in ("plain", "plain-kept"))
    rows = []
    for name, images, per in (("20 pairs", 20, 1), ("20 images x 5", 20, 5)):
        found = run("ours", case, images, per, steps)
        more = images * per / 20
        rows.append(
            [
                f"norm={case}, {name}",
                f"{plain['seconds']:.2f}",
                f"{kept['seconds']:.2f}",
                f"{found['seconds']:.2f}",
                f"{more * plain['seconds'] / found['seconds']:.1f}",
                f"{more * kept['seconds'] / found['seconds']:.1f}",
                f"{plain['bytes'] / 1e6:.0f}",
                f"{found['bytes'] / 1e6:.0f}",
                f"{more * plain['bytes'] / found['bytes']:.1f}",
            ]
        )
    return rows


def run(kind: str, case: str, images: int, per: int, steps: int) -> dict[str, float]:
    """One measurement in its own process."""
    words = [kind, case, str(images), str(per), str(steps)]
    done = subprocess.run(
        [sys.executable, __file__, "--measure", *words], capture_output=True, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def equal_losses(norm: str, steps: int = 3) -> tuple[list[float], list[float]]:
    """Total losses of both steps over some steps, small, without dropout, negatives given."""
    off = dict.fromkeys(("dropout_nodes", "dropout_graph", "dropout_head", "dropout_match"), 0.0)
    recipe = RECIPES[CASES[norm]].changed(
        node_width=32,
        head_width=16,
        graph_width=32,
        out_width=24,
        queue=64,
        **off,
    )
    objective, batch = setup(recipe, 8, 1, scale=0.02)
    plain, edges = PlainStep(objective).train(), edges_of(batch, recipe)
    optimizers = [build_optimizer(recipe, model) for model in (objective, plain)]
    turned = torch.arange(8).roll(1)
    losses: tuple[list[float], list[float]] = ([], [])
    for _ in range(steps):
        both = [
            objective(batch, recipe.loss.distill, (turned, turned))["total"],
            plain(batch, edges, recipe.loss.distill, (turned, turned)),
        ]
        for loss, optimizer, kept in zip(both, optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            kept.append(float(loss.detach()))
        objective.remember()
    return losses


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.measure:
        kind, case, *numbers = words.measure
        print(json.dumps(measure(kind, case, *map(int, numbers))))
        return
    names = ("step", "plain CPU s", "plain, kept", "ours", "faster per pair", "than kept")
    print("| " + " | ".join((*names, "plain MB", "ours MB", "smaller per pair")) + " |")
    print("| --- " * 9 + "|")
    for case in words.case or CASES:
        for row in compare(case, words.steps):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
