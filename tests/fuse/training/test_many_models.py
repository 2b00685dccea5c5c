"""One to eight models, of different widths, with tokens or without: the same code for all."""

from __future__ import annotations

import pytest
import torch
from fuse_fakes import make_store, paper_branch
from small_trainings import HADA, SETTINGS, call, job

from hada.extract.store import open_store
from hada.fuse.batch import Batch, Features, Layout, ModelShape
from hada.fuse.embedding import embed_split
from hada.fuse.network.fuser import Fuser
from hada.fuse.ranking.ranks import rank_positives, recalls
from hada.fuse.recipes import RECIPES
from hada.fuse.run_folder import RunFolder
from hada.fuse.settings import LossSettings, ScoreSettings
from hada.fuse.tokens.split import Split
from hada.fuse.training.objective import Objective
from hada.fuse.training.trainer import train

pytestmark = pytest.mark.slow

# Every third keeps no tokens, the fifth no embedding, and no two have the same width.
ZOO = [
    ModelShape(
        node_width=5 + m,
        embedding_width=None if m == 4 else 3 + m % 3,
        has_tokens=m % 3 != 2,
        global_last=m % 2 == 1,
    )
    for m in range(8)
]


def side(items, models):
    lengths = [
        torch.randint(1, 4, (items,)).tolist() if shape.has_tokens else [1] * items
        for shape in models
    ]
    return Features(
        tuple(torch.randn(sum(n), s.node_width) for n, s in zip(lengths, models, strict=True)),
        tuple(
            Layout.build(n, global_last=s.global_last) for n, s in zip(lengths, models, strict=True)
        ),
        tuple(
            None if s.embedding_width is None else torch.randn(items, s.embedding_width)
            for s in models
        ),
    )


@pytest.mark.parametrize("count", range(1, 9))
def test_one_to_eight_models_learn(count):
    """The loss of a fixed batch falls, with all losses, queues and every model's own score on."""
    torch.manual_seed(0)
    models = tuple(ZOO[:count])
    config = paper_branch(
        models=models, node_width=8, heads=2, head_width=4, graph_width=8, out_width=8, norm="none"
    )
    objective = Objective(
        Fuser(config, config),
        LossSettings(momentum=0.9, queue=16, distill=0.2, weight_itm=1, weight_hinge=0.1),
        ScoreSettings(mode="all", learn=True),
    ).train()
    owner = torch.arange(6).repeat_interleave(2)
    batch = Batch(side(6, models), side(12, models), torch.arange(6), owner)
    optimizer = torch.optim.AdamW(objective.trainable().values(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = objective(batch, distill=0.2)["nce"]
        optimizer.zero_grad()
        loss.backward()
        objective.remember()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert len(objective.mixed) == sum(m.embedding_width is not None for m in models)


@pytest.mark.parametrize("models", [("left",), ("left", "right"), ("left", "right", "flat")])
@pytest.mark.parametrize("name", ["hada", "hada-lavis-both", "concat"])
def test_published_recipes_train_on_one_two_and_three_models(tmp_path, name, models):
    small = {
        k: getattr(HADA.network, k) for k in ("node_width", "heads", "head_width", "graph_width")
    }
    recipe = RECIPES[name].changed(
        **small, out_width=16, queue=32, batch_size=10, epochs=1, score_weights=()
    )
    parts = [
        Split([make_store(tmp_path, m, s, images=n) for m in models])
        for s, n in (("train", 20), ("val", 10))
    ]
    assert train(job(parts, tmp_path / "run", recipe)).best_rsum > 0


@pytest.mark.parametrize(
    "graph",
    [
        {"convolution": "gcn", "undirected": "true"},
        {"convolution": "transformer", "edge_tokens": "0.5"},
        {"graph_hidden": "24", "skip": "true", "node_hidden": "8", "activation": "swish"},
        {"norm": "batch", "edge_between": "-1", "head_hidden": "12,8"},
    ],
)
def test_every_graph_trains_and_comes_back_from_its_run(world, graph):
    settings = [f"--set={key}={value}" for key, value in graph.items()]
    words = ["train", "--manifest", "toy.yaml", "--epochs", "1", *SETTINGS, *settings]
    assert call(*words, "--run", "run")[0] == 0
    run = RunFolder(world / "run")
    stores = [open_store(world / "stores" / "toy" / "val" / m) for m in ("left", "right")]
    found = embed_split(run, stores, device="cpu")
    table = recalls(rank_positives(found.image_IE, found.caption_TE, found.caption_to_image))
    assert table["rsum"] == pytest.approx(run.metrics()[0]["val"]["rsum"], abs=1e-9)
