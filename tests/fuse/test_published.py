"""Every recipe and import that carries a published name computes what the authors' code does.

Through what users type: `hada-fuse train --recipe`, `hada-fuse import` and `hada-fuse embed`, held
to golden vectors of the authors' code and to `official_slow`, its arithmetic written out plainly.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import official_slow
import pytest
import torch
from fuse_golden import load_npz, load_safetensors
from golden_steps import FILES, settings, state
from published_worlds import (
    SIDES,
    as_tensors,
    checkpoint,
    command,
    put_stores,
    random_sides,
    stir,
    their_names,
)

from hada.extract.store import open_store
from hada.fuse.recipes import RECIPES
from hada.fuse.tokens.loader import Loader
from hada.fuse.tokens.split import Split
from hada.fuse.training.trainer import build_objective

pytestmark = pytest.mark.slow

# Published name -> whose arithmetic, and the learned weights' initial values.
KINDS = {
    "hada": ("hada", {}),
    "hada-extend": ("extend", {"weight_albef": 0.5}),
    "hada-lavis": ("lavis", {}),
    "hada-lavis-weighted": ("lavis", {"weight_1": 0.5}),
    "hada-lavis-both": ("lavis", {"weight_0": 1.0, "weight_1": 1.0, "weight_2": 0.5}),
    "hada-2": ("lavis", {"weight_0": 1.0, "weight_1": 1.0, "weight_2": 0.5}),
    "concat": ("concat", {}),
    "concat-extend": ("concat", {"weight_albef": 0.5}),
}
SMALL = {"node_width": 8, "head_width": 6, "graph_width": 6, "out_width": 5}
NO_DROPOUT = dict.fromkeys(("dropout_nodes", "dropout_graph", "dropout_head", "dropout_match"), 0.0)


def as_words(changes):
    return [f"--set={key}={str(value).lower()}" for key, value in changes.items()]


def small(name, **changes):
    """A recipe's network at a small size, its batches and inputs as published."""
    lavis = {"second_from_first": True} if KINDS[name][0] == "lavis" else {}
    return SMALL | lavis | changes


def queues_of(objective):
    """The queues as they begin, in the form of `official_slow.Trainer`."""
    found = {}
    for side, queue in (("image", objective.image_queue), ("caption", objective.caption_queue)):
        names = ["fused", *(f"p{m + 1}" for m in objective.mixed)]
        found[side] = {name: queue.values(k).clone() for k, name in enumerate(names)}
    return found


STEPS = [
    *((name, 3, 2, False) for name in KINDS),
    *((name, 2, 1, True) for name in ("hada", "hada-lavis-weighted", "concat-extend")),
]


@pytest.mark.parametrize(("name", "images", "per", "matching"), STEPS)
def test_iterations_of_a_recipe_are_the_published_ones(
    tmp_path, monkeypatch, name, images, per, matching
):
    """Two pairs leave matching no choice of negatives; more pairs show repeated images.

    In the second epoch the weights have moved, the queues hold what was, and targets are distilled.
    """
    monkeypatch.chdir(tmp_path)
    kind, weights = KINDS[name]
    sides, owner = random_sides(images, per)
    stores = put_stores(tmp_path, "train", sides, owner, bare=kind == "lavis")
    put_stores(tmp_path, "val", *random_sides(4, 1, seed=1), bare=kind == "lavis")
    pairs = len(owner)
    changes = small(name, queue=12, batch_size=pairs, weight_itm=float(matching), **NO_DROPOUT)
    command(
        tmp_path, "train", "--recipe", name, "--model", "one", "--model", "two", "--run", "run",
        "--epochs", "1" if matching else "2", "--seed", "3", "--device", "cpu", *as_words(changes),
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]

    recipe = RECIPES[name].changed(**changes)
    split = Split(stores, first_tokens_only=recipe.features.first_tokens_only)
    objective = build_objective(recipe, split, 3)
    disc = {}
    if matching:
        disc = {
            f"disc.{key.replace('.', '.0.')}": value
            for key, value in objective.discriminator.head.state_dict().items()
        }
    trainer = official_slow.Trainer(
        kind,
        {s: their_names(getattr(objective.fuser, s)) for s in SIDES},
        disc,
        0.07,
        list(weights.values()),
        queues_of(objective),
        torch.full((12,), -100),
        {
            "lr": recipe.training.learning_rate,
            "temperature_low": 0.01 if name in ("hada", "concat") else 0.001,
            "image_share": {"hada": 0.25, "hada-lavis": 0.5, "hada-lavis-weighted": 0.5}.get(
                name, 0.3
            ),
            "weight_itm": matching,
        },
    )
    distilled = 0.4 if name in ("hada", "concat", "concat-extend") else 0.0
    items = as_tensors(sides)
    for epoch, line in enumerate(lines):
        (order,) = Loader(split, "pairs", pairs, 3).epoch(epoch).steps
        want = trainer.step(
            [items["image"][owner[t]] for t in order],
            [items["caption"][t] for t in order],
            torch.from_numpy(owner[order]),
            distilled if epoch else 0.0,
        )
        for key, value in want.items():
            assert line["loss"][key] == pytest.approx(value, abs=1e-5), (epoch, key)
        assert line["temperature"] == pytest.approx(float(trainer.temperature.detach()), abs=1e-6)
    assert len(lines) == (1 if matching else 2)


@pytest.mark.parametrize("name", KINDS)
def test_imported_weights_embed_as_published(tmp_path, monkeypatch, name):
    """23 images: more than one batch of the published evaluation, where that matters."""
    monkeypatch.chdir(tmp_path)
    kind, weights = KINDS[name]
    sides, owner = random_sides(23, 2)
    stores = put_stores(tmp_path, "test", sides, owner, bare=kind == "lavis")
    recipe = RECIPES[name].changed(**small(name))
    split = Split(stores, first_tokens_only=recipe.features.first_tokens_only)
    objective = build_objective(recipe, split, 0)
    stir(objective.fuser.image), stir(objective.fuser.caption)
    # As trained, the last value unclamped.
    learned = {key: value * 1.3 for key, value in weights.items()}
    scalars = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in learned.items()}
    disc = {"disc.linear.0.weight": torch.zeros(1, 20), "disc.linear.0.bias": torch.zeros(1)}
    checkpoint(tmp_path / "best.pth.tar", objective.fuser, disc, **scalars)
    # HADA-2 trains with 24, so it evaluates with 12: its file does not tell.
    batch = 12 if name == "hada-2" else 20
    more = ["--set", "batch_size=24"] if name == "hada-2" else []
    run = command(
        tmp_path,
        "import",
        "best.pth.tar",
        "--model",
        "one",
        "--model",
        "two",
        "--run",
        "run",
        *more,
    )
    store = open_store(command(tmp_path, "embed", run, "--split", "test", "--device", "cpu"))
    items = as_tensors(sides)
    fused = {
        s: official_slow.evaluate(their_names(getattr(objective.fuser, s)), kind, items[s], batch)
        for s in SIDES
    }
    scores = [fused["image"] @ fused["caption"].T]
    for key in ("p1", "p2")[: min(len(learned), 2)]:
        image, caption = (official_slow.own(items[side], key) for side in SIDES)
        scores.append(image @ caption.T)
    want = official_slow.mixed(scores, list(learned.values()))
    got = store.image.embeddings() @ store.caption.embeddings().T
    np.testing.assert_allclose(got, want, atol=1e-5)
    share = (1 - learned["weight_albef"]) if "weight_albef" in learned else None
    if not learned or share:
        first = store.image.embeddings()[:, :5] / (share or 1.0) ** 0.5
        np.testing.assert_allclose(first, fused["image"], atol=1e-5)


def unpacked(rows, lengths):
    return np.split(np.asarray(rows), np.cumsum(np.asarray(lengths))[:-1])


def golden_sides(tensors):
    """A golden batch as items; HADA's were fed past the loader, so not standardised."""
    sides = {}
    for side, short in (("image", "img"), ("caption", "cap")):
        x = {k.split(".", 2)[2]: v for k, v in tensors.items() if k.startswith(f"in.{short}.")}
        if "ft_1" in x:
            parts = {
                "x1": unpacked(x["ft_1"], x["n_node_1"]),
                "x2": x["ft_2"][:, None].numpy(),
                "p1": x["ft_proj_1"].numpy(),
                "p2": x["ft_proj_2"].numpy(),
            }
        else:
            parts = {
                "x1": unpacked(x["node_albef"], x["n_node_albef"]),
                "x2": unpacked(x["node_dot"], x["n_node_dot"]),
                "p1": np.asarray(x["cls_albef"]),
                "p2": np.asarray(x["cls_dot"]),
            }
        rows = zip(*parts.values(), strict=True)
        sides[side] = [dict(zip(parts, row, strict=True)) for row in rows]
    return sides


GOLDEN = dict(
    zip(
        FILES,
        ["hada", "hada-extend", "hada-lavis", *["hada-lavis-weighted"] * 2, "hada-lavis-both"],
        strict=True,
    )
)


@pytest.mark.parametrize("file", GOLDEN)
def test_a_recipe_reproduces_the_authors_own_iteration(tmp_path, file):
    """Features in stores, widths from the file; all else is the recipe's."""
    tensors, name, config = load_safetensors(f"{file}.safetensors"), GOLDEN[file], settings(file)
    sides, lavis = golden_sides(tensors), "lavis" in file
    stores = put_stores(tmp_path, "train", sides, np.arange(8), bare=lavis)
    recipe = RECIPES[name].changed(
        node_width=config["ft_trans"][0],
        head_width=config["ft_gcn"][0],
        graph_width=config["ft_gcn"][0],
        out_width=config["ft_com"][0],
        queue=40,
        second_from_first=lavis,
        inputs=RECIPES[name].network.inputs if lavis else "as-is",
        **NO_DROPOUT,
    )
    split = Split(stores, first_tokens_only=recipe.features.first_tokens_only)
    objective = build_objective(recipe, split, 0)
    objective.load_state_dict(state(tensors, "before", objective))
    batch = split.batch("pairs", np.arange(8))
    batch = replace(batch, ids_B=tensors["in.img_id"][:, 0].long())
    negatives = (tensors["itm.neg_img_for_each_text"], tensors["itm.neg_text_for_each_img"])
    distill = config["alpha"] if config["distill"] else 0.0
    result = objective.train()(batch, distill=distill, negatives=negatives)
    for ours, theirs in (("nce", "loss_nll"), ("itm", "loss_itm"), ("total", "loss_all")):
        want = tensors[f"out.{theirs}"]
        torch.testing.assert_close(result[ours].detach(), want, atol=1e-5, rtol=1e-6)


def official_file(path, tensors, temperature):
    """A checkpoint of a golden file's weights; scalars that were not learned are plain numbers."""
    content = {"epoch": 1, "temp_para": torch.nn.Parameter(temperature), "best_loss": 1.0}
    parts = (("img_encoder", "img_encoder"), ("cap_encoder", "cap_encoder"), ("discriminator",) * 2)
    for key, theirs in parts:
        prefix = f"before.{theirs}."
        content[key] = {
            k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
        }
    for key in ("weight_albef", "weight_0", "weight_1", "weight_2"):
        if f"before.{key}" in tensors:
            content[key] = torch.nn.Parameter(tensors[f"before.{key}"])
    if not any(key.startswith("weight") for key in content) and "lavis" in path.stem:
        content["weight_1"] = 0  # as HADA-LAVIS saves it where it is not learned
    torch.save(content, path)
    return path


@pytest.mark.parametrize("file", [f for f in GOLDEN if "distill" not in f or "off" in f])
def test_the_authors_own_weights_through_import_and_embed(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    tensors = load_safetensors(f"{file}.safetensors")
    put_stores(tmp_path, "test", golden_sides(tensors), np.arange(8), bare="lavis" in file)
    path = official_file(tmp_path / f"{file}.pth.tar", tensors, tensors["before.temp_para"])
    words = ["import", path, "--model", "one", "--model", "two", "--run", "run"]
    run = command(tmp_path, *words, *([] if "lavis" in file else ["--set", "inputs=as-is"]))
    store = open_store(command(tmp_path, "embed", run, "--split", "test", "--device", "cpu"))
    weights = [
        float(tensors[f"before.{n}"])
        for n in ("weight_albef", "weight_0", "weight_1", "weight_2")
        if f"before.{n}" in tensors
    ]
    # Of (1 - w) fused + w first, or of all three over their sum.
    share = weights[0] / sum(weights) if len(weights) > 1 else 1 - sum(weights)
    wide = tensors["out.img_enc"].shape[1]
    for side, short in (("image", "img"), ("caption", "cap")):
        reader = store.image if side == "image" else store.caption
        fused = reader.embeddings()[:, :wide] / share**0.5
        np.testing.assert_allclose(fused, tensors[f"out.{short}_enc"], atol=1e-5)


def test_hada_m_at_its_full_width(tmp_path, monkeypatch):
    """Configuration C5 through the commands."""
    monkeypatch.chdir(tmp_path)
    golden = {s: load_npz(f"hada_m_C5_forward_{s}.npz") for s in ("img", "cap")}
    tensors = {f"in.{s}.{k[3:]}": v for s, z in golden.items() for k, v in z.items()
               if k.startswith("in.")}  # fmt: skip
    put_stores(tmp_path, "test", golden_sides(tensors), np.arange(5))
    encoder = load_safetensors("hada_m_C5_mh_weights_f16.safetensors")
    words = ["--model", "one", "--model", "two", "--run", "run", "--set", "inputs=as-is"]
    both = {f"before.{s}_encoder.{k}": v for s in ("img", "cap") for k, v in encoder.items()}
    path = official_file(tmp_path / "best.pth.tar", both, torch.tensor(0.07))
    run = command(tmp_path, "import", path, *words)
    store = open_store(command(tmp_path, "embed", run, "--split", "test", "--device", "cpu"))
    np.testing.assert_allclose(store.image.embeddings(), golden["img"]["eval.out_l2"], atol=5e-6)
    np.testing.assert_allclose(store.caption.embeddings(), golden["cap"]["eval.out_l2"], atol=5e-6)


@pytest.mark.parametrize(
    ("setting", "graph"),
    [("undirected=true", {"undirected": True}), ("edge_tokens=0.5", {"between_tokens": 0.5})],
)
@pytest.mark.parametrize("name", ["hada", "hada-extend"])
def test_one_layer_of_another_graph_imports(tmp_path, monkeypatch, name, setting, graph):
    """Such a graph is not computed densely, so its tensors have other names with us."""
    monkeypatch.chdir(tmp_path)
    sides, owner = random_sides(4, 1)
    stores = put_stores(tmp_path, "test", sides, owner)
    key, value = setting.split("=")
    recipe = RECIPES[name].changed(**SMALL).with_settings({key: value})
    objective = build_objective(recipe, Split(stores), 0)
    stir(objective.fuser.image), stir(objective.fuser.caption)
    more = {"weight_albef": torch.tensor(0.5)} if name == "hada-extend" else {}
    disc = {"disc.linear.0.weight": torch.zeros(1, 20)}
    checkpoint(tmp_path / "best.pth.tar", objective.fuser, disc, **more)
    run = command(
        tmp_path, "import", "best.pth.tar", "--model", "one", "--model", "two",
        "--run", "run", "--set", setting,
    )  # fmt: skip
    store = open_store(command(tmp_path, "embed", run, "--split", "test", "--device", "cpu"))
    weights = their_names(objective.fuser.image)
    kind = "hada" if name == "hada" else "extend"
    want = official_slow.evaluate(weights, kind, as_tensors(sides)["image"], 20, **graph)
    got = store.image.embeddings()[:, :5] * (2**0.5 if more else 1)
    np.testing.assert_allclose(got, want, atol=1e-5)
