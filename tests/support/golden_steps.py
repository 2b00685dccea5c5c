"""The authors' training iterations, in the terms of this project."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from fuse_fakes import paper_branch
from fuse_golden import features, folder, our_keys

from hada.fuse.batch import Batch, Features, Layout, ModelShape
from hada.fuse.network.fuser import Fuser
from hada.fuse.recipes import Recipe
from hada.fuse.training.objective import Objective

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
    branch = paper_branch(
        models=shapes[0],
        node_width=config["ft_trans"][0],
        head_width=config["ft_gcn"][0],
        graph_width=config["ft_gcn"][0],
        out_width=config["ft_com"][0],
        norm=norm,
        second_from_first="lavis" in name,
    )
    recipe = Recipe().changed(
        image_share=image_share, momentum=0.995, momentum_dropout=True, queue=40, weight_itm=1.0,
        queue_noise=True, scores=scores, learn_scores=scores != "fused",
        temperature_low=0.01 if norm == "batch" else 0.001,
    )  # fmt: skip
    objective = Objective(
        Fuser(branch, replace(branch, models=shapes[1])),
        recipe.loss,
        recipe.scores,
    )
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
    mode = objective.scores.mode
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


def up_to_the_step(name, tensors):
    """One iteration up to the optimiser's step: the objective, the optimiser and the losses."""
    objective, batch, config = build(name, tensors)
    optimizer = torch.optim.AdamW(
        objective.trainable().values(),
        lr=config["learning_rate"],
        weight_decay=config["weight_decay"],
    )
    negatives = (tensors["itm.neg_img_for_each_text"], tensors["itm.neg_text_for_each_img"])
    distill = config["alpha"] if config["distill"] else 0.0
    result = objective(batch, distill=distill, negatives=negatives)
    result["total"].backward()
    objective.remember()
    return objective, optimizer, result
