"""Fails system calls below a project's folder, one after another, and checks that each is noticed.

    python benchmarks/faults.py                      # about 1,500 faults; an hour on two cores
    python benchmarks/faults.py --per 1 --stages extract-zarr extract-hdf5
    python benchmarks/faults.py --sample 40          # what the tests run

Needs a C compiler: `faults.c` is loaded in front of the C library. A warmed-up process forks a
child for each fault, which runs one command on a tiny project and is told that a write, fsync,
rename, open, read, close, mkdir or unlink failed (EIO, ENOSPC, EINTR), took a part of its bytes,
or was its last (SIGKILL, Ctrl-C); once, or from then on (a full disk). Then:

- Exit code 0 must mean that everything is there as in an undisturbed run, byte for byte.
- Any other end must be told in one line, by exit code and without a traceback; a store that
  `hada-store verify --deep` calls whole must equal the undisturbed one.
- The same command again must end with 0 and with the undisturbed bytes, and leave nothing over.

What differs between two undisturbed runs (times) is left out of JSON and checkpoints; files that
still differ are named and compared by presence alone.
"""

from __future__ import annotations

import argparse
import atexit
import collections
import contextlib
import ctypes
import errno
import gc
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = ("write", "fsync", "rename", "open", "create", "read", "close", "mkdir", "unlink")
MODES = {"count": 0, "fail": 1, "short": 2, "kill before": 3, "kill after": 4, "ctrl-c": 5}
LIBRARY = "HADA_FAULTS_LIBRARY"
# (calls, mode, error, from then on)
FAULTS = (
    ("write", "fail", "EIO", False),
    ("write", "fail", "ENOSPC", False),
    ("write", "fail", "EINTR", False),
    ("write", "short", "", False),
    ("write create mkdir", "fail", "ENOSPC", True),
    ("write fsync", "fail", "EIO", True),
    ("fsync", "fail", "EIO", False),
    ("rename", "fail", "EIO", False),
    ("create", "fail", "EIO", False),
    ("create", "fail", "ENOSPC", False),
    ("open", "fail", "EIO", False),
    ("open", "fail", "EINTR", False),
    ("read", "fail", "EIO", False),
    ("read", "short", "", False),
    ("read", "fail", "EINTR", False),
    ("close", "fail", "EIO", False),
    ("close", "fail", "EINTR", False),
    ("mkdir", "fail", "EIO", False),
    ("unlink", "fail", "EIO", False),
    ("write fsync rename create mkdir unlink", "kill before", "", False),
    ("write fsync rename create mkdir unlink", "kill after", "", False),
    ("write fsync rename create mkdir unlink", "ctrl-c", "", False),
)


WARM = (
    "h5py",
    "zarr",
    "hada.extract.backbones.fake",
    "hada.extract.importers.hada_npz",
    "hada.extract.importers.write",
    "hada.extract.job",
    "hada.extract.store.hdf5_format",
    "hada.extract.store.maintain",
    "hada.extract.store.zarr_format",
)
# For training and what follows it.
HEAVY = (
    "torch",
    "torch._dynamo",
    "hada.evaluate.pages.report",
    "hada.evaluate.results.eccv",
    "hada.evaluate.search.query",
    "hada.fuse.exchange.hub",
    "hada.fuse.job",
    "hada.fuse.training.lock",
    "hada.fuse.training.trainer",
    "huggingface_hub",
    "rich.table",
)
LIGHT = ("extract", "int8", "zarr", "hdf5", "import")


@dataclass(frozen=True)
class Fault:
    """The `at`-th of these calls meets this fate."""

    calls: str
    mode: str
    error: str
    lasting: bool
    at: int

    def __str__(self) -> str:
        what = self.error if self.mode == "fail" else self.mode
        return f"{self.calls} #{self.at} {what}{' from then on' if self.lasting else ''}"


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


class Nursery:
    """Forks children that run commands in `place`, with or without a fault."""

    def __init__(self, work: Path) -> None:
        self.place, self.said = work / "project", work / "said.txt"
        self.codes = work / "codes.json"
        self.library = ctypes.CDLL(os.environ[LIBRARY])
        lines = Path("/proc/self/maps").read_text().splitlines()
        self.hdf5 = next((w[-1] for line in lines if "/libhdf5-" in (w := line.split())[-1]), "")
        self.library.faults_what.restype = ctypes.c_char_p
        self.library.faults_struck.restype = ctypes.c_long
        self.library.faults_seen.restype = ctypes.c_long

    def fresh(self, base: Path) -> None:
        """The project as its stage begins."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(base, self.place)

    def run(
        self,
        words: tuple[str, ...],
        fault: Fault | None = None,
        first: list[tuple[str, ...]] | None = None,
    ) -> tuple[int, str]:
        """Exit code (negative: the signal) and what was said; `codes` are those of `first`."""
        self.library.faults_disarm()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            self._child(words, fault, first or [])
        end = time.monotonic() + 120
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > end:
                os.kill(child, 9)
                os.waitpid(child, 0)
                self.library.faults_disarm()
                return 99, "it hung"
            time.sleep(0.002)
        self.library.faults_disarm()  # what this process does there is no part of it
        return os.waitstatus_to_exitcode(status), self.said.read_text(errors="replace")

    def _child(
        self, words: tuple[str, ...], fault: Fault | None, first: list[tuple[str, ...]]
    ) -> None:
        code = 71
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(self.place)
            said = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            os.dup2(said, 1)
            os.dup2(said, 2)
            codes = []
            for other in first:
                try:
                    commands()[other[0]].main(list(other[1:]), prog_name=other[0])
                except SystemExit as stop:
                    codes.append(stop.code)
            self.codes.write_text(json.dumps(codes))
            command = commands()[words[0]]
            calls = fault.calls if fault else " ".join(KINDS)
            mask = sum(1 << KINDS.index(kind) for kind in calls.split())
            error = getattr(errno, fault.error) if fault and fault.error else 0
            self.library.faults_arm(
                f"{self.place}/".encode(),
                mask,
                ctypes.c_long(fault.at if fault else 0),
                MODES[fault.mode if fault else "count"],
                error,
                int(bool(fault and fault.lasting)),
            )
            try:
                command.main(list(words[1:]), prog_name=words[0])
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            # As the interpreter would: threads first, then what was registered, then objects.
            threading._shutdown()
            atexit._run_exitfuncs()
            gc.collect()
            sys.stdout.flush()
            # What HDF5 still holds is closed here, as when a process ends.
            if self.hdf5:
                ctypes.CDLL(self.hdf5).H5close()
            sys.stdout.flush()
            os._exit(code)
        except BaseException:
            traceback.print_exc()
        os._exit(70)

    def struck(self) -> bool:
        """Whether the fault was met."""
        return bool(self.library.faults_struck())

    def what(self) -> str:
        """The path, below the project, where it was met."""
        return str(self.library.faults_what().decode(errors="replace"))

    def seen(self) -> dict[str, int]:
        """Calls of each kind in the last run."""
        return {kind: self.library.faults_seen(number) for number, kind in enumerate(KINDS)}


def commands() -> dict[str, object]:
    """The commands by the name of their room."""
    from hada.evaluate.cli import evaluate
    from hada.extract.cli import extract
    from hada.extract.store_cli import store
    from hada.fuse.cli import fuse

    return {"extract": extract, "store": store, "fuse": fuse, "evaluate": evaluate}


def warm_up(heavy: bool) -> None:
    """Import what children would import, and nothing that starts a thread."""
    for name in (*WARM, *(HEAVY if heavy else ())):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    commands()
    # Children look at what they made themselves: the rest would be copied page by page.
    gc.collect()
    gc.freeze()


def prepare(nursery: Nursery, stage: Stage, work: Path) -> None:
    """Make the stage's project, run it undisturbed twice, and count its calls."""
    sys.path.insert(0, str(HERE.parent / "tests" / "support"))
    import makers

    stage.base = work / f"base-{stage.name}"
    empty = work / "empty"
    if not empty.exists():
        makers.make_project(empty, splits={"train": [2] * 6, "val": [2, 1, 2]})
        make_arrays(empty)
    nursery.fresh(empty)
    for words in stage.before:
        code, said = nursery.run(words)
        if code:
            raise SystemExit(f"{stage.name}: {' '.join(words)}: {code}\n{said}")
    shutil.copytree(nursery.place, stage.base)
    trees = []
    for _ in range(2):
        nursery.fresh(stage.base)
        code, stage.output = nursery.run(stage.command)
        stage.seen = nursery.seen()
        if code:
            raise SystemExit(f"{stage.name}: {' '.join(stage.command)}: {code}\n{stage.output}")
        trees.append(snapshot(nursery.place))
    one, two = trees
    if one.keys() != two.keys():
        raise SystemExit(f"{stage.name}: undisturbed runs leave {set(one) ^ set(two)} or not")
    stage.reference = two
    stage.volatile = {name for name in one if one[name] != two[name]}


def make_arrays(project: Path) -> None:
    """Arrays of another project, to be imported."""
    import numpy as np

    draw = np.random.default_rng(0)
    for folder in ("img", "txt"):
        (project / folder).mkdir()
    for row, captions in enumerate([2, 1, 2]):
        feat = draw.standard_normal((3, 6), dtype=np.float32)
        proj = draw.standard_normal(4, dtype=np.float32)
        np.savez(project / "img" / f"val_{row:03d}.npz", feat=feat, proj_embed=proj)
        feats = draw.standard_normal((captions, 4, 6), dtype=np.float32)
        proj_embed = draw.standard_normal((captions, 4), dtype=np.float32)
        atts = np.ones((captions, 4), np.int64)
        if captions == 1:  # the official code drops the axis
            feats, proj_embed, atts = feats[0], proj_embed[0], atts[0]
        path = project / "txt" / f"val_{row:03d}.npz"
        np.savez(path, feat=feats, att=atts, proj_embed=proj_embed)


def snapshot(place: Path) -> dict[str, bytes]:
    """Every finished file below `place`, without times."""
    return {
        str(path.relative_to(place)): content(path)
        for path in sorted(place.rglob("*"))
        if path.is_file()
        and not {".tmp-", "tensorboard"} & set(re.findall(r"\.tmp-|tensorboard", str(path)))
        and path.name != "lock"
        and path.suffix != ".lock"
    }


def content(path: Path) -> bytes:
    """A file's bytes, or what of them does not depend on the clock."""
    data = path.read_bytes()
    try:
        if path.suffix in (".json", ".jsonl"):
            return repr([timeless(json.loads(line)) for line in documents(path, data)]).encode()
        if path.suffix == ".pt":
            return checkpoint(path)
    except Exception:
        return data
    return data


def documents(path: Path, data: bytes) -> list[bytes]:
    """The JSON documents of a file."""
    return data.splitlines() if path.suffix == ".jsonl" else [data]


def timeless(value: object) -> object:
    """A JSON value without what the clock decided."""
    if isinstance(value, dict):
        dropped = ("second", "time", "per_s", "environment", "date")
        return {
            key: timeless(entry)
            for key, entry in sorted(value.items())
            if not any(word in key for word in dropped)
        }
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def checkpoint(path: Path) -> bytes:
    """Everything in a training's last state but its times, `metrics_bytes` among them."""
    import torch

    def plain(value: object) -> object:
        if isinstance(value, torch.Tensor):
            data = hashlib.sha256(value.contiguous().view(-1).numpy().tobytes()).hexdigest()
            return str(value.dtype), tuple(value.shape), data
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in ("seconds", "metrics_bytes")}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return repr(plain(torch.load(path, weights_only=True))).encode()


def differences(stage: Stage, tree: dict[str, bytes]) -> list[str]:
    """Files that are not as in the undisturbed run."""
    names = sorted(stage.reference.keys() | tree.keys())
    return [
        name
        for name in names
        if (name in tree) != (name in stage.reference)
        or (name not in stage.volatile and tree.get(name) != stage.reference.get(name))
    ]


def stores_in(place: Path) -> list[str]:
    """The stores of a project."""
    return sorted(
        str(path.parent.relative_to(place))
        for path in place.rglob("features.*")
        if path.is_dir() and ".tmp-" not in str(path)
    )


def attack(nursery: Nursery, stage: Stage, fault: Fault) -> tuple[str, str]:
    """How one fault ended (unmet, absorbed, told, killed, SILENT, ...), and what was wrong."""
    nursery.fresh(stage.base)
    code, said = nursery.run(stage.command, fault)
    if not nursery.struck():
        return "unmet", ""
    where = nursery.what()
    end = "killed" if code == -9 and "kill" in fault.mode else "told" if code else "absorbed"
    if end == "absorbed":
        wrong = differences(stage, snapshot(nursery.place))
        if stage.says and said.splitlines()[-3:] != stage.output.splitlines()[-3:]:
            wrong.append("what it said")
        if wrong:
            return "SILENT", f"{where}: exit code 0, but {wrong[:3]}; said {said[-200:]!r}"
    elif end == "told":
        plain = code in (1, 2, 130) and ("error:" in said or "could not be" in said)
        if not plain or "Traceback" in said or "unexpected" in said or "Exception ignored" in said:
            return "ILL TOLD", f"{where}: exit code {code}, said {said[-600:]!r}"
    tree, stores = snapshot(nursery.place), stores_in(nursery.place)
    wrong = differences(stage, tree)
    doubtful = [name for name in stores if any(file.startswith(f"{name}/") for file in wrong)]
    checks = [("store", "verify", "--deep", name) for name in doubtful]
    code, said = nursery.run(stage.command, first=checks)
    for name, verdict in zip(doubtful, json.loads(nursery.codes.read_text()), strict=True):
        if not verdict:
            return "SILENT", f"{where}: {name} is called whole, and is not: {wrong[:3]}"
    wrong = differences(stage, snapshot(nursery.place))
    if code or wrong:
        return "NOT RECOVERED", f"{where}: exit code {code}, {wrong[:3]}, said {said[-400:]!r}"
    left = [str(p) for p in nursery.place.rglob("*") if ".tmp-" in p.name]
    if left and fault.mode != "ctrl-c" and fault.calls != "unlink" and not fault.lasting:
        return "LEFT OVER", f"{where}: {left[:3]}"
    return end, where


def choose(stage: Stage, per: int) -> list[Fault]:
    """For each kind of fault, `per` places spread over the calls of the undisturbed run."""
    found = []
    for calls, mode, error, lasting in FAULTS:
        total = sum(stage.seen[kind] for kind in calls.split())
        # From the first to the last: the places in between are spread evenly.
        some = min(per, total)
        places = {1 + round(k * (total - 1) / max(1, some - 1)) for k in range(some)}
        found += [Fault(calls, mode, error, lasting, at) for at in sorted(places)]
    return found


def compile_library(folder: Path) -> Path | None:
    """The shim, or None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    target = folder / "faults.so"
    words = [compiler, "-O1", "-fPIC", "-shared", "-o", str(target), str(HERE / "faults.c"), "-ldl"]
    subprocess.run(words, check=True)
    return target


def main() -> None:
    """See the module's text."""
    names = [stage.name for stage in stages()]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--per", type=int, default=6, help="Places of each kind of fault.")
    parser.add_argument("--stages", nargs="+", choices=names, default=names)
    parser.add_argument("--sample", type=int, help="So many of all, drawn with --seed.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="Write the table there too.")
    options = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # fsync is quick there
    work = Path(tempfile.mkdtemp(prefix="faults-", dir=memory)).resolve()
    try:
        if LIBRARY not in os.environ:
            library = compile_library(work)
            if library is None:
                raise SystemExit("a C compiler is needed (cc, gcc or clang), there is none")
            more = {LIBRARY: str(library), "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
            more |= {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(work / "cache")}
            words = [sys.executable, __file__, *sys.argv[1:]]
            sys.exit(subprocess.run(words, env=os.environ | more, check=False).returncode)
        sys.exit(run(options, work))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run(options: argparse.Namespace, work: Path) -> int:
    """Attack, print the table, and return 1 where something went wrong."""
    warm_up(heavy=not all(name.startswith(LIGHT) for name in options.stages))
    nursery = Nursery(work)
    chosen: list[tuple[Stage, Fault]] = []
    for stage in stages():
        if stage.name in options.stages:
            prepare(nursery, stage, work)
            chosen += [(stage, fault) for fault in choose(stage, options.per)]
            if stage.volatile:
                print(f"{stage.name}: other in every run: {', '.join(sorted(stage.volatile))}")
    if options.sample:
        chosen = random.Random(options.seed).sample(chosen, min(options.sample, len(chosen)))
    table: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    bad = 0
    for stage, fault in chosen:
        end, detail = attack(nursery, stage, fault)
        table[stage.name, fault.calls if len(fault.calls.split()) == 1 else fault.mode][end] += 1
        if end.isupper():
            bad += 1
            print(f"{end}: {stage.name}, {fault}: {detail}", flush=True)
    ends = collections.Counter[str]()
    for (name, calls), counts in sorted(table.items()):
        ends.update(counts)
        print(f"{name:14} {calls:12} {dict(counts)}")
    met = ends.total() - ends["unmet"]
    print(f"{met} faults: {dict(ends)}", flush=True)
    if options.json:
        rows = [[*key, dict(counts)] for key, counts in sorted(table.items())]
        options.json.write_text(json.dumps(rows))
    return int(bad > 0)


if __name__ == "__main__":
    main()
