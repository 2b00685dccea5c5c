"""One whole published iteration, and the batches the published code trips over."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fuse_golden import features, folder, load_safetensors, our_keys

from hada.extract.common.errors import UsageError
from hada.fuse.batch import Batch, Features, Layout, ModelShape
from hada.fuse.network.config import BranchConfig
from hada.fuse.network.fuser import Fuser
from hada.fuse.training.objective import Objective, ObjectiveConfig

FILES = {
    "loss_hada_m_distill_on": ("fused", 0.25),
    "loss_hada_m_extend_distill_off": ("first", 0.3),
    "loss_lavis_C1_plain": ("fused", 0.5),
    "loss_lavis_C1cont_weighted": ("first", 0.5),
    "loss_lavis_C1cont_weighted_distill": ("first", 0.5),
    "loss_lavis_both_weighted": ("all", 0.3),
}
# The published names of the score weights, and of the queues beside the fused one.
WEIGHTS = {"first": ["weight_albef", "weight_1"], "all": ["weight_0", "weight_1", "weight_2"]}
QUEUES = {"first": [["a", "ori_1"]], "all": [["ori_1"], ["ori_2"]], "fused": []}


def settings(name):
    from safetensors import safe_open

    with safe_open(folder() / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"])


def lavis_features(x):
    """LAVIS's batch: the second model is one node an item, its pooled features."""
    batch = len(x["n_node_1"])
    layouts = (
        Layout.build(x["n_node_1"].numpy(), global_last=False),
        Layout.build([1] * batch, global_last=False),
    )
    return Features((x["ft_1"], x["ft_2"]), layouts, (x["ft_proj_1"], x["ft_proj_2"]))


def golden_batch(tensors):
    sides = []
    for side in ("img", "cap"):
        x = {k.split(".", 2)[2]: v for k, v in tensors.items() if k.startswith(f"in.{side}.")}
        sides.append(features(x) if "node_albef" in x else lavis_features(x))
    return Batch(*sides, tensors["in.img_id"][:, 0].long(), torch.arange(8))


def build(name, tensors):
    scores, image_share = FILES[name]
    config, batch = settings(name), golden_batch(tensors)
    norm = "batch" if name.startswith("loss_hada_m_distill") else "none"
    shapes = [
        tuple(
            ModelShape(
                node_width=x.shape[1],
                embedding_width=p.shape[1],
                has_tokens=len(x) > len(p),
            )
            for x, p in zip(side.nodes, side.embeddings, strict=True)
        )
        for side in (batch.image, batch.caption)
    ]
    branch = BranchConfig(
        models=shapes[0],
        node_width=config["ft_trans"][0],
        head_width=config["ft_gcn"][0],
        graph_width=config["ft_gcn"][0],
        out_width=config["ft_com"][0],
        norm=norm,
        second_from_first="lavis" in name,
    )
    objective = Objective(
        Fuser(branch, replace(branch, models=shapes[1])),
        ObjectiveConfig(
            image_share=image_share, momentum=0.995, momentum_dropout=True, queue=40,
            queue_noise=True, scores=scores, learn_scores=scores != "fused",
            temperature_low=0.01 if norm == "batch" else 0.001,
        ),
    )  # fmt: skip
    objective.load_state_dict(state(tensors, "before", objective))
    return objective.train(), batch, config


def state(tensors, when, objective):
    """Our state dict from the published one; buffers that only we have keep their value."""
    found = dict(objective.state_dict())
    for ours, theirs in (("fuser", ""), ("slow", "_m")):
        for side, short in (("image", "img"), ("caption", "cap")):
            own = our_keys(tensors, f"{when}.{short}_encoder{theirs}.")
            found |= {f"{ours}.{side}.{k}": v for k, v in own.items()}
    for key in ("linear", "norm"):
        prefix = f"{when}.discriminator.disc.{key}.0."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        found |= {f"discriminator.head.{key}.{k}": v for k, v in own.items()}
    found["temperature"] = tensors[f"{when}.temp_para"]
    mode = objective.config.scores
    names = [n for n in WEIGHTS.get(mode, []) if f"{when}.{n}" in tensors]
    found |= {f"mix.values.{k}": tensors[f"{when}.{n}"] for k, n in enumerate(names)}
    for ours, theirs in (("image_queue", "image"), ("caption_queue", "text")):
        parts = [f"{theirs}_queue", *(
            next(f"{theirs}_queue_{n}" for n in options if f"{when}.{theirs}_queue_{n}" in tensors)
            for options in QUEUES[mode]
        )]  # fmt: skip
        found |= {f"{ours}.values_{k}": tensors[f"{when}.{p}"].T for k, p in enumerate(parts)}
        found[f"{ours}.ids"] = tensors[f"{when}.idx_queue"][0].long()
        found[f"{ours}.start"] = tensors[f"{when}.queue_ptr"][0]
    return found


def gradients(tensors):
    found = {}
    for side, short in (("image", "img"), ("caption", "cap")):
        whole = f"before.{short}_encoder."
        like = [k.removeprefix(whole) for k in tensors if k.startswith(whole)]
        own = our_keys(tensors, f"grad.{short}_encoder.", like)
        found |= {f"fuser.{side}.{k}": v for k, v in own.items()}
    for key in ("linear", "norm"):
        prefix = f"grad.discriminator.disc.{key}.0."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        found |= {f"discriminator.head.{key}.{k}": v for k, v in own.items()}
    found["temperature"] = tensors["grad.temp_para"]
    names = ["weight_albef", "weight_0", "weight_1", "weight_2"]
    kept = [n for n in names if f"grad.{n}" in tensors]
    return found | {f"mix.values.{k}": tensors[f"grad.{n}"] for k, n in enumerate(kept)}


@pytest.mark.parametrize("name", FILES)
def test_golden_iteration(name):
    """Losses, gradients, slow encoders, queues, and the weights after one AdamW step."""
    tensors = load_safetensors(f"{name}.safetensors")
    objective, batch, config = build(name, tensors)
    parameters = objective.trainable()
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config["learning_rate"], weight_decay=config["weight_decay"]
    )
    negatives = (tensors["itm.neg_img_for_each_text"], tensors["itm.neg_text_for_each_img"])
    distill = config["alpha"] if config["distill"] else 0.0
    result = objective(batch, distill=distill, negatives=negatives)
    result["total"].backward()
    objective.remember()
    for ours, theirs in (("nce", "loss_nll"), ("itm", "loss_itm"), ("total", "loss_all")):
        want = tensors[f"out.{theirs}"]
        torch.testing.assert_close(result[ours].detach(), want, atol=1e-5, rtol=1e-5)
    wanted = gradients(tensors)
    for key, parameter in parameters.items():
        if key not in wanted:
            assert key.startswith("mix."), key
            continue
        want = wanted[key].view_as(parameter)
        # Biases in front of a BatchNorm have gradient 0: rounding of the larger ones remains.
        scale = max(float(want.norm()), 1e-2)
        assert float((parameter.grad - want).abs().max()) <= 3e-4 * scale, key
    optimizer.step()
    after = state(tensors, "after", objective)
    for key, value in objective.state_dict().items():
        # AdamW's first step is lr * sign(gradient): where the gradient is 0 (a shift in front of
        # a BatchNorm) both sides hold rounding, and its sign is chance.
        error = (value - after[key]).abs()
        if key in parameters and key in wanted:
            error[wanted[key].view_as(value).abs() < 1e-5] -= 2.1 * config["learning_rate"]
        assert float(error.max()) <= 2e-5, key


def test_golden_sampling_weights_and_hinge():
    from hada.fuse.training import losses

    tensors = load_safetensors("loss_hada_m_distill_on.safetensors")
    ids = tensors["in.img_id"][:, 0]
    same = ids[:, None] == ids
    for way in ("t2i", "i2t"):
        want = tensors[f"itm.weights_{way}"]
        logits = tensors[f"out.sim_{way}"][:, :8].masked_fill(same, -1e30)
        torch.testing.assert_close(
            torch.softmax(logits, 1), want / want.sum(1, keepdim=True), atol=1e-5, rtol=1e-4
        )
    scores = tensors["out.img_enc"] @ tensors["out.cap_enc"].T / tensors["before.temp_para"]
    got = losses.hardest_hinge(scores, torch.arange(8), None, 0.3)
    torch.testing.assert_close(got, tensors["out.loss_emb"], atol=1e-5, rtol=1e-5)


def tiny(**changes):
    shape = (
        ModelShape(node_width=4, embedding_width=3),
        ModelShape(node_width=5, embedding_width=3),
    )
    branch = BranchConfig(
        models=shape, node_width=6, heads=2, head_width=3, graph_width=4, out_width=5, norm="none"
    )
    torch.manual_seed(0)
    return Objective(Fuser(branch, branch), ObjectiveConfig(**changes))


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


@pytest.mark.parametrize("scores", ["fused", "first", "all"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_image_major_batches_keep_one_copy_per_image(scores, momentum):
    objective = tiny(momentum=momentum, queue=7, scores=scores, weight_hinge=0.5, learn_scores=True)
    for _ in range(3):
        result = objective.train()(tiny_batch(), distill=0.4)
        result["total"].backward()
    objective.remember()
    assert all(torch.isfinite(v) for v in result.values())
    # Nine images went through a ring of seven: 1, 2 of the second round and all of the third.
    assert objective.image_queue.known_ids().tolist() == [1, 2, 2, 0, 1, 2, 0]
    assert int(objective.image_queue.start) == 2
    assert int(objective.caption_queue.start) == 4


@pytest.mark.parametrize("ids", [[4], [4, 4]])
def test_a_batch_of_one_image_does_not_crash(ids):
    objective = tiny(weight_hinge=1.0)
    result = objective.train()(tiny_batch(len(ids), 1, ids))
    result["total"].backward()
    assert torch.isfinite(result["total"])


def test_shares():
    assert tiny().mix.shares().tolist() == [1, 0, 0]
    assert tiny(scores="first").mix.shares().tolist() == [0.5, 0.5, 0]
    torch.testing.assert_close(tiny(scores="all").mix.shares(), torch.ones(3) / 3)
    torch.testing.assert_close(
        tiny(scores="all", score_weights=(1, 1, 2)).mix.shares(), torch.tensor([0.25, 0.25, 0.5])
    )
    with pytest.raises(UsageError, match="takes 3 numbers"):
        tiny(scores="all", score_weights=(1.0,))


def test_temperature_is_clamped_before_use():
    objective = tiny(temperature=3.0)
    objective.train()(tiny_batch())
    assert float(objective.temperature.detach()) == 0.5
