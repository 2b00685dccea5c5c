"""Coverage-guided fuzzing of everything that parses, with atheris.

    nice python benchmarks/fuzz.py                      every parser, 30 minutes together
    nice python benchmarks/fuzz.py result yaml --minutes 4
    python benchmarks/fuzz.py --replay result FILE      one input again, with its traceback

Bounds: an input ends well if nothing is raised, or one of HADA's errors on one line; it may take
5 seconds and 1 GiB. What does not end well lies under --output as PARSER/finding-*, with the error
beside it; the exit code is then 1. Each parser runs in a process of its own, in slices of a minute,
and its corpus is kept from slice to slice. JSON and YAML are mutated as trees as well as as bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

SECONDS, MEBIBYTES, SLICE_S = 5, 1024, 60
One = Callable[[bytes], None]


def main() -> int:
    """Run the parsers that are named, or all, slice by slice; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "hada-fuzz")
    parser.add_argument("--replay", nargs=2, metavar=("PARSER", "FILE"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.replay:
        return replay(*asked.replay)
    if asked.child:
        return child(asked.child[0], int(asked.child[1]), asked.output)
    from fuzz_parsers import PARSERS

    names = asked.names or list(PARSERS)
    end = time.monotonic() + 60 * asked.minutes
    slices = max(1, round(60 * asked.minutes / SLICE_S / len(names)))
    each = 60 * asked.minutes / len(names) / slices
    ended: dict[str, int] = dict.fromkeys(names, 0)
    for _ in range(slices):
        for name in names:
            if time.monotonic() < end:
                ended[name] += run_slice(name, max(2, int(each)), asked.output)
    return report(names, ended, asked.output)


def run_slice(name: str, seconds: int, output: Path) -> int:
    """One slice of one parser in a process of its own; how many inputs it ran."""
    words = [sys.executable, __file__, "--output", str(output), "--child", name, str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    found = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    if done.returncode:
        folder = output / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"finding-process-{int(time.time())}.txt").write_text(done.stderr[-8000:])
    return int(found[1]) if found else 0


def report(names: list[str], ended: dict[str, int], output: Path) -> int:
    """Say what was run and found."""
    total = 0
    for name in names:
        found = sorted((output / name).glob("finding-*.txt"))
        total += len(found)
        print(f"{name:12} {ended[name]:>9,} inputs, {len(found)} findings")
        for file in found:
            print(f"    {file}: {file.read_text().strip().splitlines()[-1][:150]}")
    return 1 if total else 0


def child(name: str, seconds: int, output: Path) -> int:
    """Fuzz one parser in this process. Does not return: libFuzzer ends the process."""
    import atheris

    folder = output / name
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["hada"]):
        import fuzz_parsers

        one, seeds = prepared(fuzz_parsers.PARSERS[name])
    for number, seed in enumerate(seeds):
        (corpus / f"real{number}").write_bytes(seed)
    seen: set[str] = set()

    def guarded(data: bytes) -> None:
        try:
            told(one, data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f for f in frames if "/benchmarks/" not in f.filename]
            place = ours[-1] if ours else frames[-1]
            key = hashlib.sha256(
                f"{type(error).__name__}{place.filename}{place.lineno}".encode()
            ).hexdigest()[:10]
            if key not in seen:
                seen.add(key)
                (folder / f"finding-{key}").write_bytes(data)
                (folder / f"finding-{key}.txt").write_text(traceback.format_exc())

    words = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={seconds}",
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={MEBIBYTES + int(resident())}",
        f"-artifact_prefix={folder}/finding-process-",
        "-max_len=20000",
        "-print_final_stats=1",
    ]
    text = fuzz_parsers.PARSERS[name].text
    atheris.Setup(words, guarded, custom_mutator=tree_mutator(atheris) if text else None)
    atheris.Fuzz()
    return 0


def told(one: One, data: bytes) -> None:
    """Run one input; HADA's errors on one line are what is wanted."""
    from hada.extract.common.errors import HadaError

    try:
        one(data)
    except HadaError as error:
        message = str(error)
        if "\n" in message or len(message) > 4000:
            raise AssertionError(f"no one line: {message[:500]!r}") from error


def prepared(parser: Any) -> tuple[One, list[bytes]]:
    """A parser's function and its seeds, made in a folder of its own in memory where there is."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="hada-fuzz-", dir=base))
    os.chdir(folder)
    made: tuple[One, list[bytes]] = parser.make(folder)
    return made


def replay(name: str, file: str) -> int:
    """One input again, with its traceback."""
    import fuzz_parsers

    data = Path(file).read_bytes()
    one, _ = prepared(fuzz_parsers.PARSERS[name])
    start = time.monotonic()
    try:
        one(data)
        print("read without an error")
    except Exception:
        traceback.print_exc()
    print(f"{time.monotonic() - start:.2f} s, {resident():.0f} MiB")
    return 0


def resident() -> float:
    """MiB that this process holds, at its most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


ODD: list[Any] = [
    None, True, "", [], {}, 0, -1, 1, 2**31, 2**63, -(2**64), 1e308, 0.5, "NaN", "nan", "inf",
    "x" * 300,
    "a\u0000b", "\ud83d", "../../etc/passwd", "/etc/passwd", "${HOME}", "\x1b[2J", [[[[[]]]]],
    {"": ""}, [None], ["x"], [1, "x"], {"a": {"b": {}}}, "1e999", "9" * 400, "\u202e", "0", "-0.0",
]  # fmt: skip


def tree_mutator(atheris: Any) -> Callable[[bytes, int, int], bytes]:
    """Half of the time changes one node of a JSON tree, else bytes as libFuzzer does."""

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if dice.random() < 0.6:
            try:
                tree = json.loads(data)
            except (ValueError, RecursionError):
                tree = None
            if isinstance(tree, dict | list):
                for _ in range(dice.choice((1, 1, 1, 2, 4))):
                    _change(tree, dice)
                return json.dumps(tree).encode()[:most]
        changed: bytes = atheris.Mutate(data, most)
        return changed

    return mutate


def _change(tree: Any, dice: random.Random) -> None:
    """Replace, remove, double or move one value somewhere in a tree."""
    places = []
    waiting = [tree]
    while waiting and len(places) < 3000:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        places += [(node, key) for key in keys]
        waiting += [node[key] for key in keys if isinstance(node[key], dict | list)]
    if not places:
        return
    node, key = dice.choice(places)
    how = dice.randrange(6)
    if how == 0:
        del node[key]
    elif how == 1 and isinstance(node, dict):
        node[dice.choice(("", "x", f"{key}s", str(key)[:-1]))] = node[key]
    elif how == 2:
        other, place = dice.choice(places)
        node[key] = json.loads(json.dumps(other[place])) if place in _keys(other) else None
    elif how == 3 and isinstance(node[key], int | float):
        node[key] = dice.choice((-node[key], node[key] * 10**6, node[key] + 1, str(node[key])))
    else:
        node[key] = json.loads(json.dumps(dice.choice(ODD)))


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


if __name__ == "__main__":
    sys.exit(main())
