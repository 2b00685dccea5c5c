"""Do the tests notice when the product is wrong? Small semantic mutations, one at a time.

    python benchmarks/mutate.py                      # all of mutations.yaml
    python benchmarks/mutate.py --area losses --area store --jobs 2 --json found.json
    python benchmarks/mutate.py --check              # only whether each mutation still applies
    python benchmarks/mutate.py --quick --sample 40  # what `make quick` notices of 40 drawn ones

`mutations.yaml` is the list: what a mutation breaks, the text that it replaces, and the tests that
belong to the file. The checkout is copied, one mutation is applied to the copy, and pytest runs
until the first failure: a mutation is killed (a test failed, or ran past the limit) or survives.
One that no longer applies is an error: the list must follow the code.

General tools (mutmut, cosmic-ray) change operators and constants and take no list. What survived
here is of another kind: the wrong split, the wrong direction, a setting that is ignored.
A warm parent that forks makes a killed mutation cost a few seconds.

After code has moved: `python benchmarks/mutate_follow.py`.
"""

from __future__ import annotations

import argparse
import contextlib
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
import time
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("mutations.yaml")
# Import name below `hada` -> folder; the copy is imported from a folder of such links.
PACKAGES = {name: name for name in ("extract", "fuse", "evaluate", "pipelines")}
# What takes long to import; nothing of hada, which each child imports from its own copy.
WARM = (
    *("pytest", "numpy", "torch", "torchvision.transforms", "torch_geometric.nn", "transformers"),
    *("open_clip", "zarr", "h5py", "PIL.Image", "click.testing", "rich.console"),
    *("safetensors.torch", "huggingface_hub", "google_crc32c", "yaml"),
)


NO_TESTS = 5  # pytest's exit code


@dataclass
class Mutation:
    """One replacement in one file, and what became of it."""

    area: str
    breaks: str
    file: str
    old: str
    new: str
    tests: list[str]
    left_out: list[str] = field(default_factory=list, repr=False)
    state: str = ""
    by: str = ""
    seconds: float = 0.0


def read_list(path: Path = LIST) -> list[Mutation]:
    """All mutations, with paths in place of short names."""
    raw = yaml.safe_load(path.read_text())
    return [
        Mutation(
            area=group["area"],
            breaks=one["breaks"],
            file=raw["code"][group["code"]],
            old=one["old"],
            new=one["new"],
            tests=[raw["tests"][name] for name in group["tests"]],
            left_out=raw["left_out"],
        )
        for group in raw["groups"]
        for one in group["mutations"]
    ]


def misfits(mutations: list[Mutation], root: Path = ROOT) -> list[str]:
    """Why mutations do not apply to the code as it is; none where all do."""
    found = []
    texts: dict[str, str] = {}
    for one in mutations:
        where = f"{one.file}: {one.breaks}"
        if one.file not in texts:
            path = root / one.file
            texts[one.file] = path.read_text() if path.is_file() else ""
        times = texts[one.file].count(one.old)
        if times != 1:
            found.append(f"{where}: its text is there {times} times, expected once: {one.old!r}")
            continue
        try:
            compile(texts[one.file].replace(one.old, one.new), one.file, "exec")
        except SyntaxError as error:
            found.append(f"{where}: the mutated file does not compile ({error})")
        found += [f"{where}: no test {t}" for t in one.tests if not (root / t).is_file()]
    return found


def copy_checkout(target: Path) -> None:
    """All files that git knows or would add, and a folder `site` to import them from."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    link(target)


def link(target: Path) -> None:
    """`site/hada/...` of a copy, without what is installed."""
    (target / "site" / "hada").mkdir(parents=True, exist_ok=True)
    for name, folder in PACKAGES.items():
        (target / "site" / "hada" / name).symlink_to(target / folder)


def drawn(mutations: list[Mutation], number: int, seed: int) -> list[Mutation]:
    """So many mutations at random, as evenly over the rooms as there are some."""
    order = random.Random(seed).sample(mutations, len(mutations))
    seen: Counter[str] = Counter()
    places = []
    for one in order:
        room = one.file.partition("/")[0]
        places.append(seen[room])
        seen[room] += 1
    first = sorted(range(len(order)), key=places.__getitem__)[:number]
    return [order[k] for k in first]


class _First:
    """A plugin of pytest that keeps the name of the first test that failed."""

    def __init__(self, report: Path) -> None:
        self.report = report

    def _keep(self, report: Any) -> None:
        if report.failed and not self.report.exists():
            self.report.write_text(str(report.nodeid))

    pytest_runtest_logreport = pytest_collectreport = _keep


def words_of(left_out: list[str], *, quick: bool) -> list[str]:
    """What pytest is told of the tests to leave out."""
    words = ["-k", " and ".join(f"not {name}" for name in left_out)]
    return [*words, *(["-m", "not slow"] if quick else [])]


def child(copy: Path, tests: list[str], words: list[str], *, write_bytecode: bool) -> None:
    """Run tests of a copy in this process, which ends with pytest's exit code."""
    os.setsid()
    with (copy / "log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    site = str(copy / "site")
    sys.dont_write_bytecode = not write_bytecode
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # half of the time of a killed mutation
    os.environ["PYTHONDONTWRITEBYTECODE"] = "" if write_bytecode else "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [site, os.environ.get("PYTHONPATH", "")])
    )
    sys.path.insert(0, site)
    os.chdir(copy)
    import pytest

    words = [*words, "-x", "-q", "-p", "no:cacheprovider", f"--basetemp={copy / 'basetemp'}"]
    # Packages with a plugin of their own are warm already.
    words += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = pytest.main([*words, f"--rootdir={copy}", *tests], plugins=[_First(copy / "first")])
    os._exit(int(code))


@dataclass
class Slot:
    """A copy of the checkout in which one child runs at a time, with `words` for pytest."""

    copy: Path
    words: list[str]
    mutation: Mutation | None = None
    pid: int = 0
    began: float = 0.0
    kept: str = field(default="", repr=False)

    def start(self, mutation: Mutation) -> None:
        """Apply a mutation and fork."""
        self.mutation = mutation
        path = self.copy / mutation.file
        self.kept = path.read_text()
        path.write_text(self.kept.replace(mutation.old, mutation.new))
        for old in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            old.unlink()
        self.fork(mutation.tests)

    def fork(self, tests: list[str], *, write_bytecode: bool = False) -> None:
        """Run tests of this copy in a child."""
        (self.copy / "first").unlink(missing_ok=True)
        sys.stdout.flush()
        self.began = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            try:
                child(self.copy, tests, self.words, write_bytecode=write_bytecode)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(99)

    def poll(self, limit: float) -> int | None:
        """The child's exit code, -1 where it ran past the limit, None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        late = time.monotonic() - self.began > limit
        if not pid and not late:
            return None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # also what a test left behind
        if not pid:
            os.waitpid(self.pid, 0)
            return -1
        return os.waitstatus_to_exitcode(status)

    def end(self, code: int) -> Mutation:
        """Put the file back and say what became of its mutation."""
        assert self.mutation is not None
        found, self.mutation = self.mutation, None
        (self.copy / found.file).write_text(self.kept)
        found.seconds = round(time.monotonic() - self.began, 1)
        first = self.copy / "first"
        found.by = first.read_text() if first.exists() else f"exit code {code}"
        found.state = {0: "survived", NO_TESTS: "no tests"}.get(code, "killed")
        if code == -1:
            found.by = "the time limit"
        return found


def baseline(copy: Path, files: list[str], words: list[str], limit: float) -> dict[str, float]:
    """Seconds of each file of tests without any mutation; ends the program where one fails."""
    seconds = {}
    for name in files:
        slot = Slot(copy, words)
        slot.fork([name], write_bytecode=True)
        while (code := slot.poll(limit)) is None:
            time.sleep(0.02)
        seconds[name] = round(time.monotonic() - slot.began, 1)
        if code not in (0, NO_TESTS):
            log = (copy / "log").read_text(errors="replace")
            raise SystemExit(f"{log[-3000:]}\n{name} fails without a mutation (exit code {code})")
        print(f"{seconds[name]:6.1f} s  {name}", flush=True)
    return seconds


def run(mutations: list[Mutation], scratch: Path, options: argparse.Namespace) -> None:
    """Try all mutations; each gets its state."""
    jobs, limit = options.jobs, options.limit
    os.environ.setdefault("HADA_SHARED", str(ROOT.parent / "shared"))
    os.environ["OMP_NUM_THREADS"] = "1"
    with warnings.catch_warnings(action="ignore"):
        for name in WARM:
            importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    first = scratch / "0"
    copy_checkout(first)
    files = list(dict.fromkeys(t for one in mutations for t in one.tests))
    words = words_of(mutations[0].left_out, quick=options.quick)
    if not options.trust:
        baseline(first, files, words, 4 * limit)
    slots = [Slot(first, words)]
    for number in range(1, jobs):
        shutil.copytree(first, scratch / str(number), ignore=shutil.ignore_patterns("site"))
        link(scratch / str(number))
        slots.append(Slot(scratch / str(number), words))
    waiting, done = list(reversed(mutations)), 0
    while waiting or any(slot.mutation for slot in slots):
        for slot in slots:
            if slot.mutation is None and waiting:
                slot.start(waiting.pop())
            elif slot.mutation is not None and (code := slot.poll(limit)) is not None:
                one, done = slot.end(code), done + 1
                told = f"{done:3}/{len(mutations)} {one.state:8} {one.seconds:5.1f} s"
                print(f"{told}  {one.area}: {one.breaks}  [{one.by}]", flush=True)
        time.sleep(0.01)


def table(mutations: list[Mutation]) -> str:
    """Area by area, as the documents have it."""
    lines = ["| area | mutations | killed | survived |", "| --- | ---: | ---: | ---: |"]
    counts = Counter((one.area, one.state == "killed") for one in mutations)
    for area in dict.fromkeys(one.area for one in mutations):
        killed, survived = counts[area, True], counts[area, False]
        lines.append(f"| {area} | {killed + survived} | {killed} | {survived} |")
    killed = sum(one.state == "killed" for one in mutations)
    share = 100 * killed / max(1, len(mutations))
    total = f"| all | {len(mutations)} | {killed} ({share:.1f} %) | {len(mutations) - killed} |"
    return "\n".join([*lines, total])


def main() -> int:
    """See the first lines of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--area", action="append", help="only this area; may be repeated")
    parser.add_argument("--only", help="only mutations whose description this pattern finds")
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time")
    parser.add_argument("--limit", type=float, default=120, help="seconds a mutation may take")
    parser.add_argument("--json", type=Path, help="where to write what became of each")
    parser.add_argument("--check", action="store_true", help="run nothing")
    parser.add_argument("--quick", action="store_true", help="without the tests marked `slow`")
    parser.add_argument("--sample", type=int, metavar="N", help="N at random, of all rooms")
    parser.add_argument("--seed", type=int, default=0, help="of --sample")
    parser.add_argument("--trust", action="store_true", help="the tests pass: do not look first")
    options = parser.parse_args()
    everything = read_list()
    wrong = misfits(everything)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        print(f"{len(wrong)} do not apply: the list must follow the code", file=sys.stderr)
        return 2
    chosen = [
        one
        for one in everything
        if (not options.area or one.area in options.area)
        and (not options.only or re.search(options.only, one.breaks))
    ]
    if options.sample is not None:
        chosen = drawn(chosen, options.sample, options.seed)
    if options.check or not chosen:
        print(f"{len(everything)} mutations apply, {len(chosen)} chosen")
        return 0 if chosen else 2
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # stores sync what they write
    with tempfile.TemporaryDirectory(prefix="mutate-", dir=memory) as scratch:
        run(chosen, Path(scratch), options)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in chosen], indent=1))
    print(table(chosen))
    return 0 if all(one.state == "killed" for one in chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
