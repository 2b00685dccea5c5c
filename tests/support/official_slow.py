"""The authors' arithmetic written out plainly, node by node: what imports and recipes must equal.

Written from the description of m2man/HADA and m2man/HADA-LAVIS, not from this project's network,
and under the authors' names of tensors. Everything has one layer, as published.

Shape letters: B items of a batch, N nodes of a graph, K keys (batch first, then queue), E widths.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

OWN, OTHER, BETWEEN = 0.9, 0.7, 1.1
MEAN, STD = -0.0006847491604276001, 0.036077868193387985
HEADS = 4


def prepared(kind, x):
    """A row of features as the authors' loaders hand it on."""
    if kind == "lavis":
        return x
    unit = F.normalize(x, dim=-1)
    return unit if kind == "concat" else (unit - MEAN) / STD


def graph_edges(n1, n2, undirected=False, between_tokens=None):
    """(from, to) -> weight, with the self loops as GATv2Conv makes them; c1 is node 0, c2 n1."""
    c1, c2 = 0, n1
    f1, f2 = range(1, n1), range(n1 + 1, n1 + n2)
    edges = {(c1, c2): BETWEEN, (c2, c1): BETWEEN}
    for tokens, own, other in ((f1, c1, c2), (f2, c2, c1)):
        for f in tokens:
            edges |= {(f, own): OWN, (f, other): OTHER}
            if undirected:
                edges |= {(own, f): OWN, (other, f): OTHER}
    if between_tokens is not None:
        for a, b in itertools.product(f1, f2):
            edges |= {(a, b): between_tokens, (b, a): between_tokens}
    for node in range(n1 + n2):
        incoming = [w for (_, to), w in edges.items() if to == node]
        edges[node, node] = sum(incoming) / len(incoming) if incoming else 0.0
    return edges


def linear(weights, stem, x):
    """One SeqLinear of one layer, no dropout; with a BatchNorm behind it where there is one."""
    y = x @ weights[f"{stem}linear.0.weight"].T + weights[f"{stem}linear.0.bias"]
    return batch_norm(weights, f"{stem}norm.0.", y)


def batch_norm(weights, stem, y):
    """In training, by the rows' own mean and variance; evaluating, by the running ones."""
    if f"{stem}running_mean" not in weights:
        return y  # a LayerNorm behind a last layer, which never acts
    scale, shift = weights[f"{stem}weight"], weights[f"{stem}bias"]
    mean, variance = weights[f"{stem}running_mean"], weights[f"{stem}running_var"]
    if weights["training"]:
        mean, variance = y.mean(0), y.var(0, unbiased=False)
    return (y - mean) / torch.sqrt(variance + 1e-5) * scale + shift


def attend(weights, x_NE, edges):
    """GATv2 of one graph: (N, H C)."""
    stem = "enc.gcn.gcn.conv.0."
    att = weights[f"{stem}att"][0]
    width = att.shape[1]
    left = x_NE @ weights[f"{stem}lin_l.weight"].T + weights[f"{stem}lin_l.bias"]
    right = x_NE @ weights[f"{stem}lin_r.weight"].T + weights[f"{stem}lin_r.bias"]
    along = weights[f"{stem}lin_edge.weight"][:, 0]
    rows = []
    for node in range(len(x_NE)):
        sources = [a for (a, b) in edges if b == node]
        parts = []
        for head in range(HEADS):
            cut = slice(head * width, (head + 1) * width)
            scores = torch.stack([
                att[head]
                @ F.leaky_relu(left[a, cut] + right[node, cut] + edges[a, node] * along[cut], 0.2)
                for a in sources
            ])  # fmt: skip
            alpha = torch.softmax(scores, 0)
            parts.append(sum(share * left[a, cut] for share, a in zip(alpha, sources, strict=True)))
        rows.append(torch.cat(parts))
    return torch.stack(rows) + weights[f"{stem}bias"]


def encode(weights, kind, items, **graph):
    """(B, E) unit embeddings of one batch of items {"x1", "x2", "p1", "p2"}.

    `kind` is "hada", "extend", "lavis" or "concat". HADA-LAVIS hands the first model's tokens on
    where the second's belong, so that item i gets row i of all tokens of the batch.
    """
    p1 = torch.stack([prepared(kind, item["p1"]) for item in items])
    p2 = torch.stack([prepared(kind, item["p2"]) for item in items])
    if kind == "concat":
        return F.normalize(linear(weights, "enc.", torch.cat([p1, p2], 1)), dim=1)
    first = [prepared(kind, item["x1"]) for item in items]
    second = [prepared(kind, item["x2"]) for item in items]
    if kind == "lavis":
        flat = torch.cat(first)
        second = [flat[i : i + 1] for i in range(len(items))]
    h1 = linear(weights, "enc.gcn.trans_1.", torch.cat(first)).split([len(x) for x in first])
    h2 = linear(weights, "enc.gcn.trans_2.", torch.cat(second)).split([len(x) for x in second])
    states, starts = [], [0]
    for a, b in zip(h1, h2, strict=True):
        states.append(attend(weights, torch.cat([a, b]), graph_edges(len(a), len(b), **graph)))
        starts.append(starts[-1] + len(a) + len(b))
    mixed = linear(weights, "enc.gcn.gcn.conv_lin.0.", torch.cat(states))
    g = batch_norm(weights, "enc.gcn.gcn.norm.0.", mixed)
    c1 = torch.tensor(starts[:-1])
    c2 = c1 + torch.tensor([len(a) for a in h1])
    out = linear(weights, "enc.lin.", torch.cat([g[c1], p1, p2, g[c2]], 1))
    return F.normalize(out, dim=1)


def evaluate(weights, kind, items, batch, **graph):
    """(n, E) embeddings of all items, in order, `batch` at a time."""
    weights = {**weights, "training": False}
    parts = [items[i : i + batch] for i in range(0, len(items), batch)]
    with torch.no_grad():
        return torch.cat([encode(weights, kind, part, **graph) for part in parts])


def own(items, key):
    """A model's own embeddings at unit length."""
    return F.normalize(torch.stack([item[key] for item in items]), dim=1)


def mixed(scores, weights):
    """The score of retrieval: `scores` are fused, model 1, model 2; `weights` are learned."""
    if not len(weights):
        return scores[0]
    if len(weights) == 1:
        return (1 - weights[0]) * scores[0] + weights[0] * scores[1]
    return sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)


class Trainer:
    """The published iteration: momentum encoders, queues, distillation, matching, AdamW.

    Queues are dicts of (queue, E) rows: "fused", "p1", "p2"; `ids` are their images.
    """

    def __init__(self, kind, sides, disc, temperature, weights, queues, ids, settings):
        self.kind, self.settings, self.disc = kind, settings, {**disc, "training": True}
        learned = [n for n in sides["image"] if "running" not in n and "num_batches" not in n]
        self.sides = {
            side: {
                n: v.clone().requires_grad_(n in learned and v.is_floating_point())
                for n, v in tensors.items()
            }
            for side, tensors in sides.items()
        }
        self.slow = {s: {n: v.clone() for n, v in t.items()} for s, t in sides.items()}
        self.learned = learned
        self.temperature = torch.tensor(temperature, requires_grad=True)
        self.weights = [torch.tensor(w, requires_grad=True) for w in weights]
        self.queues, self.ids, self.start = queues, ids, 0
        for value in self.disc.values():
            if torch.is_tensor(value) and value.is_floating_point():
                value.requires_grad_()
        free = [self.sides[s][n] for s in self.sides for n in learned]
        free += [v for n, v in self.disc.items() if torch.is_tensor(v) and v.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [*free, self.temperature, *self.weights], lr=settings["lr"], weight_decay=0.02
        )

    def _encode(self, weights, items):
        return encode({**weights, "training": True}, self.kind, items)

    def step(self, images, captions, ids, alpha):
        """The losses of one batch of pairs; moves everything that the published code moves."""
        low, share = self.settings["temperature_low"], self.settings["image_share"]
        with torch.no_grad():
            self.temperature.clamp_(low, 0.5)
            for k, weight in enumerate(self.weights):
                if len(self.weights) == 1:
                    weight.clamp_(0.1, 0.9)
                else:
                    weight.clamp_(min=0.1 if k < 2 else 0.01)
        sides = {"image": images, "caption": captions}
        fast = {s: self._encode(self.sides[s], items) for s, items in sides.items()}
        with torch.no_grad():
            for s, n in itertools.product(sides, self.learned):
                self.slow[s][n] = self.slow[s][n] * 0.995 + self.sides[s][n] * 0.005
            slow = {s: self._encode(self.slow[s], items) for s, items in sides.items()}
        same = (ids[:, None] == torch.cat([ids, self.ids])[None]).float()
        target = same / same.sum(1, keepdim=True)
        losses, sims = {}, {}
        for way, query, key in (("i2t", "image", "caption"), ("t2i", "caption", "image")):
            keys = torch.cat([slow[key], self.queues[key]["fused"]])
            sims[way] = fast[query] @ keys.T / self.temperature
            aim = target
            if alpha:
                with torch.no_grad():
                    teacher = torch.softmax(slow[query] @ keys.T / self.temperature, 1)
                aim = alpha * teacher + (1 - alpha) * target
            all_scores = [sims[way]]
            for p in ("p1", "p2")[: 0 if not self.weights else 1 if len(self.weights) == 1 else 2]:
                theirs = torch.cat([own(sides[key], p), self.queues[key][p]])
                all_scores.append(own(sides[query], p) @ theirs.T / self.temperature)
            score = mixed(all_scores, self.weights)
            losses[way] = -(F.log_softmax(score, 1) * aim).sum(1).mean()
        losses["nce"] = share * losses["i2t"] + (1 - share) * losses["t2i"]
        total = losses["nce"]
        if self.settings["weight_itm"]:
            losses["itm"] = self._match(fast["image"], fast["caption"])
            total = total + losses["itm"]
        losses["total"] = total
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self._enqueue(slow, sides, ids)
        return {name: float(value.detach()) for name, value in losses.items()}

    def _match(self, image, caption):
        """Of two pairs of different images: the one negative of each is the other."""
        assert len(image) == 2
        i, c = (
            torch.cat([image, image.flip(0), image]),
            torch.cat([caption, caption, caption.flip(0)]),
        )
        x = torch.cat([i, c, (i - c).abs(), i * c], 1)
        logit = linear(self.disc, "disc.", x)[:, 0]
        truth = torch.tensor([1.0] * 2 + [0.0] * 4)
        return F.binary_cross_entropy(torch.sigmoid(logit), truth)

    def _enqueue(self, slow, sides, ids):
        rows = (self.start + torch.arange(len(ids))) % len(self.ids)
        for s, items in sides.items():
            self.queues[s]["fused"][rows] = slow[s]
            for p in ("p1", "p2"):
                if p in self.queues[s]:
                    self.queues[s][p][rows] = own(items, p)
        self.ids[rows] = ids
        self.start = int((self.start + len(ids)) % len(self.ids))
