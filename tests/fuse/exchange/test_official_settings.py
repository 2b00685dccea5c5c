"""What a checkpoint's tensors tell of its recipe: heads, layers, shortcut, kind of graph, head."""

from __future__ import annotations

import re

import pytest
import torch
from fuse_fakes import paper_branch

from hada.fuse.batch import ModelShape
from hada.fuse.exchange.official import our_names, read_official
from hada.fuse.network.fuser import Branch
from hada.fuse.training.objective import Discriminator

THEIRS = (
    (r"project\.0\.linear\.(\w+)", r"enc.gcn.trans_1.linear.0.\1"),
    (r"project\.1\.linear\.(\w+)", r"enc.gcn.trans_2.linear.0.\1"),
    (r"graph\.attention\.(.+)", r"enc.gcn.gcn.conv.0.\1"),
    (r"graph\.mix\.linear\.(\w+)", r"enc.gcn.gcn.conv_lin.0.linear.0.\1"),
    (r"graph\.layers\.(\d)\.conv\.(.+)", r"enc.gcn.gcn.conv.\1.\2"),
    (r"graph\.layers\.(\d)\.mix\.linear\.(\w+)", r"enc.gcn.gcn.conv_lin.\1.linear.0.\2"),
    (r"graph\.layers\.(\d)\.norm\.(\w+)", r"enc.gcn.gcn.norm.\1.\2"),
    (r"head\.linear\.(\w+)", r"enc.lin.linear.0.\1"),
)


def theirs(name):
    """The authors' name of one of our tensors."""
    for ours, named in THEIRS:
        if re.fullmatch(ours, name):
            return re.sub(ours, named, name)
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"heads": 2}, {"heads": 2, "skip": False}),
        ({"heads": 3, "graph_hidden": (8,), "skip": True}, {"heads": 3, "skip": True}),
        ({"heads": 1, "graph_hidden": (8,), "node_width": 6}, {"heads": 1, "skip": False}),
        ({"convolution": "transformer", "graph_hidden": (8,), "skip": True}, {"skip": True}),
        ({"convolution": "transformer"}, {"skip": False}),
        ({"convolution": "gcn"}, {"skip": False}),
        ({"convolution": "gcn", "graph_hidden": (8, 8), "skip": True}, {"skip": True}),
    ],
)
@pytest.mark.parametrize(
    "weights", [{}, {"weight_albef": 0.3}, {"weight_0": 1.0, "weight_1": 0.5, "weight_2": 0.25}]
)
def test_tensors_tell_the_recipe(tmp_path, changes, told, weights):
    torch.manual_seed(0)
    shapes = tuple(ModelShape(node_width=w, embedding_width=3) for w in (4, 5))
    plain = {"node_width": 8, "head_width": 8, "graph_width": 8, "out_width": 7, "norm": "none"}
    config = paper_branch(models=shapes, **(plain | changes))
    image, caption = Branch(config), Branch(config)
    head = Discriminator(7, "none", 0.0)
    content = {
        "img_encoder": {theirs(k): v for k, v in image.state_dict().items()},
        "cap_encoder": {theirs(k): v for k, v in caption.state_dict().items()},
        "discriminator": {
            f"disc.linear.0.{k.rpartition('.')[2]}": v for k, v in head.state_dict().items()
        },
        "temp_para": torch.tensor(0.04),
        **{k: torch.tensor(v) for k, v in weights.items()},
    }
    torch.save(content, tmp_path / "best.pth.tar")
    found = read_official(tmp_path / "best.pth.tar")
    wanted = {"convolution": config.convolution, "graph_hidden": config.graph_hidden, **plain}
    for key, value in {**wanted, **changes, **told}.items():
        wanted_value = list(value) if isinstance(value, tuple) else value
        assert found.recipe.flat()[key] == wanted_value, key
    for side, branch in (("image", image), ("caption", caption)):
        own, given = branch.state_dict(), found.encoders[side]
        names = our_names(given, dense=config.dense)
        assert {names[name]: value.tolist() for name, value in given.items()} == {
            name: value.tolist() for name, value in own.items()
        }
    assert found.discriminator.keys() == head.state_dict().keys()
    Discriminator(7, "none", 0.0).load_state_dict(found.discriminator)
    assert all(torch.equal(head.state_dict()[k], v) for k, v in found.discriminator.items())
    assert float(found.temperature) == pytest.approx(0.04)
    assert found.recipe.scores.mode == {0: "fused", 1: "first", 3: "all"}[len(weights)]
    assert found.recipe.scores.weights == pytest.approx(tuple(weights.values()))
