"""Run one extraction again and again in forked children and kill every one of them.

A program of its own, because a fork wants a process without threads: it imports everything once,
and each child then dies within milliseconds of its birth, which allows many kills in few seconds.

    python tests/programs/kill_extraction.py STORE FORMAT KILLS SEED

Half of the kills come at random moments from outside; the others strike at a random call that
writes, syncs or renames, before or after it. Writes one JSON line: what was injected.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import h5py  # noqa: F401  (imported before the forks, so that children live shortly)
import zarr  # noqa: F401

from hada.extract.backbones import load_backbone
from hada.extract.backbones.base import BackboneRequest
from hada.extract.common import progress
from hada.extract.datasets.read import read_dataset
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.runner import run
from hada.extract.engine.store_plan import store_index, store_spec
from hada.extract.engine.token_ids import tokenize
from hada.extract.manifest import load_manifest
from hada.extract.spec import SideName
from hada.extract.store import StoreWriter

ROWS: dict[SideName, int] = {"image": 1, "caption": 1}
STEPS = ("writev", "fsync", "replace", "unlink", "mkdir")


def die_at(call: int, after: bool) -> None:
    """SIGKILL this process at its `call`-th step that touches the disk."""
    count = itertools.count(1)

    def wrap(step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            # Several threads may be at it: each keeps its own number.
            mine = next(count)
            if mine == call and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return step(*args, **kwargs)
            finally:
                if mine == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    for name in STEPS:
        setattr(os, name, wrap(getattr(os, name)))


def tell_first(pipe: int) -> None:
    """Write a byte to `pipe` when the first shard begins to be written."""
    step = os.replace

    def wrapped(*args: Any, **kwargs: Any) -> None:
        os.write(pipe, b"!")
        step(*args, **kwargs)

    os.replace = wrapped  # type: ignore[assignment]


def slow(encode: Callable[..., Any]) -> Callable[..., Any]:
    """A model that takes time, so that no machine finishes before it can be killed often."""

    def wrapped(*args: Any) -> Any:
        time.sleep(0.002)
        return encode(*args)

    return wrapped


def main() -> None:
    store, form, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    progress.LOG_EVERY_S = 1e9
    chance = random.Random(seed)
    backbone = load_backbone(
        BackboneRequest(name="one", family="fake", weights="a", options={"width": 64})
    )
    backbone.encode_images = slow(backbone.encode_images)  # type: ignore[method-assign]
    backbone.encode_captions = slow(backbone.encode_captions)  # type: ignore[method-assign]
    data = read_dataset(load_manifest().dataset(), "train")
    spec = store_spec(backbone, data, ExtractOptions(rows_per_shard=ROWS))
    index = store_index(backbone, data, tokenize(backbone, data.captions))
    counts = {"at a step": 0, "at a moment": 0, "finished first": 0}
    while counts["at a step"] + counts["at a moment"] < kills and counts["finished first"] < 5:
        at_step = chance.random() < 0.5
        killed = counts["at a step"] + counts["at a moment"]
        # Making the empty store takes zarr a hundred steps: some deaths there, then no more.
        making = killed < kills // 8
        call, after = chance.randint(1, 100 if making else 40), chance.random() < 0.5
        from_birth = chance.random() < 0.3
        wait = chance.uniform(0.0, 0.1 if from_birth else 0.015)
        begun, pipe = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if not making:
                StoreWriter.open(store, spec, index, format=form)
            if at_step:
                die_at(call, after)
            else:
                tell_first(pipe)
            run(
                backbone,
                data,
                store,
                ExtractOptions(rows_per_shard=ROWS, batch_size=1, format=form),
            )
            os._exit(0)
        os.close(pipe)
        if not at_step:
            if not from_birth:
                os.read(begun, 1)
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(begun)
        died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        counts[("at a step" if at_step else "at a moment") if died else "finished first"] += 1
        assert died or os.WEXITSTATUS(status) == 0, status
    sys.stdout.write(json.dumps(counts) + "\n")


if __name__ == "__main__":
    main()
