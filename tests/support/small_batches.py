"""Small networks and batches, drawn at random."""

from __future__ import annotations

import torch
from fuse_fakes import paper_branch

from hada.fuse.batch import Batch, Features, Layout, ModelShape
from hada.fuse.network.fuser import Fuser
from hada.fuse.recipes import Recipe
from hada.fuse.training.objective import Objective


def shapes(models=2, tokens=True):
    return tuple(
        ModelShape(
            node_width=5 + m if tokens or m else 4,
            embedding_width=None if m == 1 else 4,
            has_tokens=tokens,
            global_last=m == 1,
        )
        for m in range(models)
    )


def random_features(config, lengths):
    nodes, layouts = [], []
    for shape, counts in zip(config.models, lengths, strict=True):
        nodes.append(torch.randn(sum(counts), shape.node_width))
        layouts.append(Layout.build(counts, global_last=shape.global_last))
    some = [
        None if s.embedding_width is None else torch.randn(len(lengths[0]), s.embedding_width)
        for s in config.models
    ]
    return Features(tuple(nodes), tuple(layouts), tuple(some))


def tiny(**changes):
    shape = (
        ModelShape(node_width=4, embedding_width=3),
        ModelShape(node_width=5, embedding_width=3),
    )
    branch = paper_branch(
        models=shape, node_width=6, heads=2, head_width=3, graph_width=4, out_width=5, norm="none"
    )
    torch.manual_seed(0)
    recipe = Recipe().changed(**{"weight_itm": 1.0, **changes})
    return Objective(Fuser(branch, branch), recipe.loss, recipe.scores)


def tiny_batch(images=3, per=2, ids=None):
    torch.manual_seed(1)

    def side(n):
        return Features(
            (torch.randn(2 * n, 4), torch.randn(n, 5)),
            (Layout.build([2] * n, global_last=False), Layout.build([1] * n, global_last=False)),
            (torch.randn(n, 3), torch.randn(n, 3)),
        )

    owner = torch.arange(images).repeat_interleave(per)
    ids = torch.arange(images) if ids is None else torch.tensor(ids)
    return Batch(side(images), side(images * per), ids, owner)
