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
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from faults_fork import LIBRARY, LIGHT, Fault, ForkServer, warm_up
from faults_project import snapshot, stores_in
from faults_stages import Stage, differences, prepare, stages

HERE = Path(__file__).resolve().parent
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


def attack(fork_server: ForkServer, stage: Stage, fault: Fault) -> tuple[str, str]:
    """How one fault ended (unmet, absorbed, told, killed, SILENT, ...), and what was wrong."""
    fork_server.fresh(stage.base)
    code, said = fork_server.run(stage.command, fault)
    if not fork_server.struck():
        return "unmet", ""
    where = fork_server.what()
    end = "killed" if code == -9 and "kill" in fault.mode else "told" if code else "absorbed"
    if end == "absorbed":
        # A command may go without a copy that it could not keep, and says so.
        kept = differences(stage, snapshot(fork_server.place))
        wrong = [name for name in kept if f"{name}: the index is not kept" not in said]
        if stage.says and said.splitlines()[-3:] != stage.output.splitlines()[-3:]:
            wrong.append("what it said")
        if wrong:
            return "SILENT", f"{where}: exit code 0, but {wrong[:3]}; said {said[-200:]!r}"
    elif end == "told":
        plain = code in (1, 2, 130) and ("error:" in said or "could not be" in said)
        if not plain or "Traceback" in said or "unexpected" in said or "Exception ignored" in said:
            return "ILL TOLD", f"{where}: exit code {code}, said {said[-600:]!r}"
    tree, stores = snapshot(fork_server.place), stores_in(fork_server.place)
    wrong = differences(stage, tree)
    doubtful = [name for name in stores if any(file.startswith(f"{name}/") for file in wrong)]
    checks = [("store", "verify", "--deep", name) for name in doubtful]
    code, said = fork_server.run(stage.command, first=checks)
    for name, verdict in zip(doubtful, json.loads(fork_server.codes.read_text()), strict=True):
        if not verdict:
            return "SILENT", f"{where}: {name} is called whole, and is not: {wrong[:3]}"
    wrong = differences(stage, snapshot(fork_server.place))
    if code or wrong:
        return "NOT RECOVERED", f"{where}: exit code {code}, {wrong[:3]}, said {said[-400:]!r}"
    left = [str(p) for p in fork_server.place.rglob("*") if ".tmp-" in p.name]
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
    fork_server = ForkServer(work)
    chosen: list[tuple[Stage, Fault]] = []
    for stage in stages():
        if stage.name in options.stages:
            prepare(fork_server, stage, work)
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
        end, detail = attack(fork_server, stage, fault)
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
