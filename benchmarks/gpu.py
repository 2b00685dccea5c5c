"""Everything worth measuring on a GPU that is lent for half an hour, by one command.

    python benchmarks/gpu.py --minutes 25 --out gpu-day
    python benchmarks/gpu.py --minutes 25 --out gpu-day --wheels wheels   # installs what is missing
    python benchmarks/gpu.py --tiny --device cpu --minutes 2 --out try    # the same path, anywhere

It needs this source tree, Python, torch and the packages that it lists when they are missing; it
reaches for no network. Models are random, pictures and features are generated. The steps are
ordered by value. Each runs in a process of its own within the time that is left, and writes a line
to OUT/steps.jsonl (seconds, figures, peak GPU memory, the error if it failed) as soon as it ends;
OUT/summary.md is renewed after each. The same command again goes on with the steps that are missing
or failed, so that a machine that allows ten minutes a command can be used with `--minutes 9`.

Exit code 0: all steps worked. 1: one failed or the time was up. 2: bad usage or missing packages.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_needs import STEPS, Step, install, stop

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("extract", "fuse", "evaluate", "pipelines")
GIB = 2.0**30
# Of the time, so much is kept for ending a step that ran out of it and for the summary.
RESERVE = 5.0


@dataclass
class Outcome:
    """What a step left: its line in steps.jsonl."""

    step: str
    device: str
    tiny: bool
    seconds: float
    error: str | None = None
    peak_gpu_bytes: int | None = None
    peak_host_bytes: int | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def environment(work: Path) -> dict[str, str]:
    """For the steps: this tree as `hada`, no network, temporary files where they are removed."""
    (work / "names" / "hada").mkdir(parents=True)
    for room in ROOMS:
        # typings has such links too, but archives of a tree may leave links out.
        (work / "names" / "hada" / room).symlink_to(ROOT / room)
    (work / "tmp").mkdir()
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    paths = [str(work / "names"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(work / "tmp")}
    own |= {"XDG_CACHE_HOME": str(work / "cache"), "OMP_WAIT_POLICY": "passive"}
    return {**os.environ, **offline, **own}


def run(step: Step, arguments: argparse.Namespace, seconds: float) -> Outcome:
    """One step in a process of its own, ended with all it started when its time is up."""
    outcome = Outcome(step.name, arguments.device, arguments.tiny, 0.0)
    command = [sys.executable, str(Path(__file__).with_name("gpu_steps.py")), step.name]
    command += ["--device", arguments.device, *(["--tiny"] if arguments.tiny else [])]
    log = arguments.out / f"{step.name}.log"
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hada-gpu-", ignore_cleanup_errors=True) as work:
        found = Path(work) / "figures.jsonl"
        command += ["--figures", str(found)]
        with log.open("wb") as said:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment(Path(work)),
                cwd=work,
                start_new_session=True,
            )
            try:
                if child.wait(timeout=seconds):
                    outcome.error = last_line(log) or f"exit code {child.returncode}"
            except subprocess.TimeoutExpired:
                outcome.error = f"ended after {seconds:.0f} s, its share of the time"
            finally:
                end_group(child)
        take_figures(found, outcome)
    outcome.seconds = round(time.monotonic() - began, 2)
    return outcome


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End a step and whatever it started and left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def last_line(log: Path) -> str:
    """What a program said last: the error at the end of a traceback."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")


def take_figures(path: Path, outcome: Outcome) -> None:
    """The figures that a step wrote, those of a step that was ended too."""
    if not path.exists():
        return
    for line in path.read_text().split("\n")[:-1]:
        figures = json.loads(line)
        for peak in ("peak_gpu_bytes", "peak_host_bytes"):
            setattr(outcome, peak, figures.pop(peak, getattr(outcome, peak)))
        outcome.figures |= figures


def earlier(path: Path, arguments: argparse.Namespace) -> list[Outcome]:
    """The last outcome of each step in steps.jsonl that has the same device and size."""
    found: dict[str, Outcome] = {}
    for line in path.read_text().split("\n")[:-1] if path.exists() else []:
        try:
            outcome = Outcome(**json.loads(line))
        except (ValueError, TypeError):
            raise SystemExit(
                stop(f"{path}: not written by this program; give another --out")
            ) from None
        if (outcome.device, outcome.tiny) == (arguments.device, arguments.tiny):
            found[outcome.step] = outcome
    return list(found.values())


def append(path: Path, outcome: Outcome) -> None:
    """One line, on the disk before the next step begins."""
    with path.open("a") as file:
        file.write(json.dumps(vars(outcome)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def summarise(path: Path, outcomes: list[Outcome], left_out: list[str]) -> None:
    """Write summary.md anew: a table of the steps, then the figures of each."""
    lines = ["# A GPU day", "", "| step | seconds | peak GPU GiB | peak host GiB | outcome |"]
    lines.append("| --- | ---: | ---: | ---: | --- |")
    for one in outcomes:
        peaks = (one.peak_gpu_bytes, one.peak_host_bytes)
        gpu, host = ("" if peak is None else f"{peak / GIB:.2f}" for peak in peaks)
        error = (one.error or "done").replace("|", "\\|")
        lines.append(f"| {one.step} | {one.seconds:.1f} | {gpu} | {host} | {error} |")
    if left_out:
        lines += ["", "Not begun, too little time was left: " + ", ".join(left_out) + "."]
    for one in outcomes:
        lines += ["", f"## {one.step}", ""]
        lines += [f"- {key}: {value}" for key, value in one.figures.items()]
    draft = path.with_suffix(".tmp")
    draft.write_text("\n".join(lines) + "\n")
    draft.replace(path)


def chosen(arguments: argparse.Namespace) -> list[Step]:
    """The steps that the command line asks for; the machine is always told."""
    only = {*(arguments.only or [step.name for step in STEPS]), "machine"}
    return [step for step in STEPS if step.name in only]


def day(arguments: argparse.Namespace, began: float) -> int:
    """Run the steps; the exit code."""
    lines, summary = arguments.out / "steps.jsonl", arguments.out / "summary.md"
    outcomes = earlier(lines, arguments)
    worked = {one.step for one in outcomes if one.error is None} - {"machine"}
    left_out = []
    for step in chosen(arguments):
        if step.name in worked:
            print(f"{step.name}: done before", flush=True)
            continue
        left = 60 * arguments.minutes - RESERVE - (time.monotonic() - began)
        if left < (1 if arguments.tiny else step.least):
            left_out.append(step.name)
            continue
        outcome = run(step, arguments, min(left, step.most))
        outcomes = [one for one in outcomes if one.step != step.name] + [outcome]
        append(lines, outcome)
        summarise(summary, outcomes, left_out)
        print(f"{step.name}: {outcome.seconds:.1f} s, {outcome.error or 'done'}", flush=True)
        if step.name == "machine" and outcome.error:
            break
    summarise(summary, outcomes, left_out)
    print(f"{summary}: {len(outcomes)} steps, {len(left_out)} not begun")
    names = {step.name for step in chosen(arguments)}
    return int(bool(left_out) or any(one.error for one in outcomes if one.step in names))


def main() -> None:
    """Read the command line."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=25, help="for all of it [25]")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu [cuda]")
    parser.add_argument("--tiny", action="store_true", help="the same path at sizes of seconds")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what is missing")
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=", ".join(names))
    arguments = parser.parse_args()
    if not arguments.minutes > 0:
        parser.error(f"--minutes {arguments.minutes}: expected more than 0")
    if arguments.wheels is not None and not arguments.wheels.is_dir():
        parser.error(f"--wheels {arguments.wheels}: expected a folder of wheels")
    arguments.out = arguments.out.resolve()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(
            f"--out {arguments.out}: expected a folder that can be made ({error.strerror})"
        )
    # A batch system's warning ends the step that runs, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    install(chosen(arguments), arguments.wheels)
    try:
        raise SystemExit(day(arguments, began))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
