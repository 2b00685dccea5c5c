"""Small trainings, by the trainer and by the command."""

from __future__ import annotations

import torch
from click.testing import CliRunner
from fuse_fakes import make_store

from hada.fuse.cli import fuse
from hada.fuse.recipes import RECIPES
from hada.fuse.run_folder import RunFolder
from hada.fuse.tokens.loader import Loader
from hada.fuse.tokens.split import Split
from hada.fuse.training.trainer import Job, build_objective, build_optimizer

SMALL = {
    "node_width": 24, "heads": 2, "head_width": 12, "graph_width": 24, "out_width": 24,
    "batch_size": 16, "epochs": 3, "warmup_epochs": 0.5,
}  # fmt: skip
FAST = RECIPES["pooled"].changed(**SMALL)
HADA = RECIPES["hada"].changed(**{**SMALL, "queue": 64, "scores": "all", "learn_scores": True})


def two_splits(root):
    """train with 40 images and val with 16, of two models."""
    return [
        Split([make_store(root, model, split, images=images) for model in ("left", "right")])
        for split, images in (("train", 40), ("val", 16))
    ]


def job(splits, path, recipe, seed=0):
    objective = build_objective(recipe, splits[0], seed)
    return Job(
        objective=objective,
        optimizer=build_optimizer(recipe, objective),
        loader=Loader(splits[0], recipe.training.order, recipe.training.batch_size, seed),
        val=splits[1],
        recipe=recipe,
        run=RunFolder(path),
        device=torch.device("cpu"),
        report=lambda _text: None,
    )


def reading_job(splits_of, path, recipe, way, *, shards=0, device="cpu", seed=0):
    """A training of the stores of train and val that reads in one of the ways of `--reading`."""
    device = torch.device(device)
    pinned = device.type == "cuda"
    parts = [Split(some, in_memory=way == "memory", pinned=pinned) for some in splits_of]
    if way == "device":
        for part in parts:
            part.reside(device)
    made = job(parts, path, recipe, seed)
    training = recipe.training
    made.loader = Loader(
        parts[0], training.order, training.batch_size, seed,
        shards=shards, windows=way == "window",
    )  # fmt: skip
    made.objective.to(device)
    made.optimizer = build_optimizer(recipe, made.objective)
    made.device = device
    return made


def without_time(lines):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


SETTINGS = [f"--set={k}={v}" for k, v in SMALL.items() if k != "epochs"]
# Without what is fitted behind the network, which takes most of a small training's time.
UNFINISHED = [
    f"--set={k}" for k in ("finish_scores=false", "cca=false", "kernel_cca=false", "correct=none")
]


def call(*words):
    """A command in this process; `(exit code, stdout, stderr)`."""
    result = CliRunner().invoke(fuse, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
