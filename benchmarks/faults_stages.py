"""The commands that `faults.py` attacks, and what each leaves in an undisturbed run."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from faults_fork import ForkServer
from faults_project import make_arrays, snapshot


@dataclass
class Stage:
    """One command in a project that other commands have prepared."""

    name: str
    command: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    says: bool = False  # its output counts as its result
    base: Path = field(default_factory=Path)
    reference: dict[str, bytes] = field(default_factory=dict)
    output: str = ""
    volatile: set[str] = field(default_factory=set)
    seen: dict[str, int] = field(default_factory=dict)


def stages() -> list[Stage]:
    """What is attacked."""
    few = ("--shard-size", "2", "--device", "cpu", "--batch-size", "2")
    val = ("extract", "--split", "val", "--model", "one", *few)
    both = tuple(("extract", "--split", split, *few) for split in ("train", "val"))
    train = ("fuse", "train", "--epochs", "2", "--run", "runs/tiny/mine", "--device", "cpu")
    ready = (*both, train)
    store, out = "stores/tiny/val/one", "out/tiny/val/one"
    h5 = (("convert"), store, "h5/one", "--format", "hdf5")
    run = ("--run", "runs/tiny/mine", "--device", "cpu")
    imported = ("import", "hada", "--model", "x", "--split", "val", "--images", "img")
    found = []
    for form in ("zarr", "hdf5"):
        found += [
            Stage(f"extract-{form}", (*val, "--format", form)),
            Stage(f"int8-{form}", ("store", "convert", store, out, "--dtype", "int8",
                                   "--format", form), (val,)),
        ]  # fmt: skip
    return [
        *found,
        Stage("zarr-to-hdf5", ("store", "convert", store, out, "--format", "hdf5"), (val,)),
        Stage("hdf5-to-zarr", ("store", "convert", "h5/one", out, "--format", "zarr"),
              (val, ("store", *h5))),
        Stage("import", ("store", *imported, "--captions", "txt")),
        Stage("train", train, both),
        Stage("embed", ("fuse", "embed", "runs/tiny/mine", "--split", "val", "--device", "cpu"),
              ready),
        Stage("search", ("evaluate", "search", "red above blue", "--split", "val", "--jsonl",
                         "--top", "3", *run), ready, says=True),
        Stage("recall", ("evaluate", "recall", "--split", "val", "--quick", "--resamples", "100",
                         *run), ready),
        Stage("report", ("evaluate", "report", "runs/tiny/mine", "--split", "val", "--resamples",
                         "100", "--device", "cpu"), ready),
        Stage("export", ("fuse", "export", "runs/tiny/mine", "exported"), ready),
    ]  # fmt: skip


def prepare(fork_server: ForkServer, stage: Stage, work: Path) -> None:
    """Make the stage's project, run it undisturbed twice, and count its calls."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
    import makers

    stage.base = work / f"base-{stage.name}"
    empty = work / "empty"
    if not empty.exists():
        makers.make_project(empty, splits={"train": [2] * 6, "val": [2, 1, 2]})
        make_arrays(empty)
    fork_server.fresh(empty)
    for words in stage.before:
        code, said = fork_server.run(words)
        if code:
            raise SystemExit(f"{stage.name}: {' '.join(words)}: {code}\n{said}")
    shutil.copytree(fork_server.place, stage.base)
    trees = []
    for _ in range(2):
        fork_server.fresh(stage.base)
        code, stage.output = fork_server.run(stage.command)
        stage.seen = fork_server.seen()
        if code:
            raise SystemExit(f"{stage.name}: {' '.join(stage.command)}: {code}\n{stage.output}")
        trees.append(snapshot(fork_server.place))
    one, two = trees
    if one.keys() != two.keys():
        raise SystemExit(f"{stage.name}: undisturbed runs leave {set(one) ^ set(two)} or not")
    stage.reference = two
    stage.volatile = {name for name in one if one[name] != two[name]}


def differences(stage: Stage, tree: dict[str, bytes]) -> list[str]:
    """Files that are not as in the undisturbed run."""
    names = sorted(stage.reference.keys() | tree.keys())
    return [
        name
        for name in names
        if (name in tree) != (name in stage.reference)
        or (name not in stage.volatile and tree.get(name) != stage.reference.get(name))
    ]
