"""What `--precision bf16` changes, and by how much: every tolerance with its reason.

bfloat16 keeps 8 significant bits, so a number is rounded by `ROUNDING` = 2^-8 of itself at most. A
product of matrices rounds its inputs, its weights and its result, and adds up in float32, so that
its length does not count. The three roundings rarely point one way: together they stay below one
`ROUNDING` for each product that lies between the features and the result.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fuse_fakes import paper_branch
from small_batches import random_features, shapes
from small_trainings import FAST, HADA, job, two_splits

from hada.fuse.closed_form import correction
from hada.fuse.embedding import embed
from hada.fuse.network import attention
from hada.fuse.network.fuser import Fuser
from hada.fuse.recipes import RECIPES
from hada.fuse.training import losses
from hada.fuse.training.checkpoint import best_of
from hada.fuse.training.closing import fit_heads
from hada.fuse.training.trainer import train

ROUNDING = 2.0**-8
# What it means that two figures are equal in float32.
EXACT = 1e-6
# A network, and the products in a row: project, keys, values, mix, then the head's.
NETWORKS = {
    "concat": ({"norm": "layer", "convolution": "none"}, 1),
    "globals": (
        {"norm": "none", "convolution": "none", "use_globals": True, "head_hidden": (64,)},
        2,
    ),
    "gcn": ({"norm": "none", "convolution": "gcn"}, 3),
    "dense": ({"norm": "none"}, 5),
    "batch": ({"norm": "batch"}, 5),
    "layers": ({"norm": "layer", "head_hidden": (64, 64)}, 7),
    "packed": ({"norm": "none", "graph_hidden": (32,)}, 8),
}
NODES = RECIPES["fast"].changed(
    epochs=2, batch_size=16, match_width=8, match_hidden=8, bank=20, node_bank=10
)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return two_splits(tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("network", NETWORKS)
def test_an_embedding_moves_by_the_rounding_of_its_products(network):
    changes, products = NETWORKS[network]
    torch.manual_seed(0)
    sizes = {"node_width": 64, "heads": 4, "head_width": 32, "graph_width": 64, "out_width": 64}
    branch = paper_branch(models=shapes(), **{**sizes, **changes})
    fuser = Fuser(branch, branch).eval()
    # Sets of one token, of many, and of both beside each other.
    features = random_features(branch, ([3, 9, 20, 1] * 8, [2, 5, 1, 30] * 8))
    with torch.no_grad():
        exact = fuser.encode("image", features)
        rounded = fuser.encode("image", features, bf16=True)
    assert rounded.dtype == torch.float32
    assert (rounded.norm(dim=1) - 1).abs().max() < EXACT  # brought to unit length in float32
    moved = (exact - rounded).norm(dim=1)
    assert ROUNDING / 16 < moved.max() < products * ROUNDING


def test_gradients_of_the_attention_do_not_lose_what_is_added_late(monkeypatch):
    """The attention's vector hears of 512 chunks; added up in bfloat16 it would stand still."""
    monkeypatch.setitem(attention.CHUNK_NUMBERS, "cpu", 1)
    graphs, tokens, heads, width = 512, 6, 2, 4
    torch.manual_seed(0)
    drawn = [
        torch.rand(graphs, tokens, heads * width),
        torch.rand(graphs, 2, heads * width),
        torch.rand(heads, width),
    ]
    upstream = torch.rand(graphs, 2, heads, tokens)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.to(dtype).clone().requires_grad_() for x in drawn]
        attention._Scores.apply(*inputs, 0.2).backward(upstream.to(dtype))
        assert all(x.grad.dtype == dtype for x in inputs)
        found.append([x.grad.float() for x in inputs])
    for exact, rounded in zip(*found, strict=True):
        assert (exact - rounded).norm() < ROUNDING * exact.norm()


def objectives(splits, tmp_path, recipe):
    """The same weights in both precisions, a batch, and the negatives of its matching head."""
    made = [
        job(splits, tmp_path / kind, recipe.changed(precision=kind)) for kind in ("fp32", "bf16")
    ]
    loader = made[0].loader
    batch = next(loader.batches(loader.epoch(0)))
    captions = len(batch.caption_to_image_T)
    negatives = (batch.caption_to_image_T.roll(1), torch.arange(captions).roll(1))
    # Eval mode: no dropout, so that nothing but the precision differs.
    return [one.objective.eval() for one in made], batch, negatives


@pytest.mark.parametrize("recipe", [FAST, HADA], ids=["fast", "hada"])
def test_losses_are_those_of_float32_for_the_embeddings_they_are_given(
    splits, tmp_path, recipe, monkeypatch
):
    """To the bit: what is behind the encoders knows of no precision."""
    (exact, rounded), batch, negatives = objectives(splits, tmp_path, recipe)
    seen = []
    compare = losses.soft_cross_entropy

    def watched(logits, targets):
        seen.append((logits.dtype, targets.dtype, torch.is_autocast_enabled("cpu")))
        return compare(logits, targets)

    monkeypatch.setattr(losses, "soft_cross_entropy", watched)
    plain = exact(batch, distill=0.4 if recipe is HADA else 0.0, negatives=negatives)
    theirs = rounded(batch, distill=0.4 if recipe is HADA else 0.0, negatives=negatives)
    for fuser in filter(None, (exact.fuser, exact.slow)):
        inner = fuser.encode
        monkeypatch.setattr(
            fuser,
            "encode",
            lambda side, features, *, bf16, inner=inner: inner(side, features, bf16=True),
        )
    given = exact(batch, distill=0.4 if recipe is HADA else 0.0, negatives=negatives)
    assert set(seen) == {(torch.float32, torch.float32, False)}
    assert all(value.dtype == torch.float32 for value in theirs.values())
    # The queue of `exact` holds the first batch by then, which only its contrastive loss sees.
    same = set(theirs) - ({"i2t", "t2i", "nce", "total"} if recipe is HADA else set())
    assert same
    assert all(torch.equal(given[name], theirs[name]) for name in same)
    assert not torch.equal(plain["total"], theirs["total"])
    for value in [*rounded.state_dict().values()]:
        assert value.dtype in (torch.float32, torch.int64)


@pytest.mark.parametrize("recipe", [FAST, HADA], ids=["fast", "hada"])
def test_the_step_points_where_that_of_float32_does(splits, tmp_path, recipe):
    """All gradients together: the five products of `dense`, and the five of their way back."""
    (exact, rounded), batch, negatives = objectives(splits, tmp_path, recipe)
    steps = []
    for one in (exact, rounded):
        one(batch, negatives=negatives)["total"].backward()
        gradients = [p.grad for p in one.trainable().values() if p.grad is not None]
        assert all(g.dtype == torch.float32 for g in gradients)
        steps.append(torch.cat([g.flatten() for g in gradients]).double())
    moved = (steps[0] - steps[1]).norm() / steps[0].norm()
    assert ROUNDING / 16 < moved < 10 * ROUNDING


def test_nodes_are_matched_in_float32(splits, tmp_path):
    """To the bit, vectors, weights, scores and their loss: the maxima would see every rounding."""
    (exact, rounded), batch, negatives = objectives(splits, tmp_path, NODES)
    found = []
    for one in (exact, rounded):
        torch.manual_seed(0)  # of the captions that take part
        values = one(batch, negatives=negatives)
        values["nodes"].backward()
        found.append([values["nodes"], *(p.grad for p in one.fuser.nodes.parameters())])
    assert all(map(torch.equal, *found))
    assert any(bool(g.any()) for g in found[0][1:])


@pytest.mark.slow
def test_what_is_fitted_behind_the_network_is_fitted_in_float32(splits, tmp_path, monkeypatch):
    """Shares, CCA head and correction of a bf16 run are, to the bit, those of its weights."""
    wide, inside = correction.popularities, []

    def watched(gallery, bank, ks):
        inside.append((gallery.dtype, bank.dtype))
        return wide(gallery, bank, ks)

    for module in ("closed_form.correction", "training.closing"):
        monkeypatch.setattr(f"hada.fuse.{module}.popularities", watched)
    made = job(splits, tmp_path, NODES.changed(precision="bf16"))
    train(made)
    assert inside
    assert {dtype for pair in inside for dtype in pair} == {np.dtype(np.float32)}
    tensors = made.run.load_tensors()
    plain = job(splits, tmp_path / "plain", NODES)
    own = {k: v for k, v in tensors.items() if not k.startswith("heads.")}
    fuser, mix = best_of(plain.objective, own)
    names = [store.spec.model.name for store in splits[0].stores]
    again = fit_heads(
        fuser, mix, *splits, NODES.scores, names=names, device=made.device, report=lambda _: None
    ).tensors()
    kept = {k: v for k, v in tensors.items() if k.startswith("heads.")}
    assert set(again) == set(kept)
    assert all(torch.equal(again[name], kept[name]) for name in kept)
    assert all(p.dtype == torch.float32 for p in fuser.parameters())
    found = embed(fuser, mix, splits[1], made.device)
    assert found.fused_image.dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [FAST, HADA], ids=["fast", "hada"])
def test_a_trained_figure_is_within_the_noise_of_seeds(splits, tmp_path, recipe):
    """Likelihood of the right matches of val: the mean moves less than one seed's deviation."""
    found = {}
    for kind in ("fp32", "bf16"):
        found[kind] = []
        for seed in range(3):
            made = job(splits, tmp_path / f"{kind}{seed}", recipe.changed(precision=kind), seed)
            train(made)
            found[kind].append(made.run.metrics()[-1]["val"]["loss"])
    means = {kind: np.mean(values) for kind, values in found.items()}
    assert found["bf16"] != found["fp32"]
    assert abs(means["bf16"] - means["fp32"]) < np.std(found["fp32"], ddof=1)
