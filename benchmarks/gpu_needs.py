"""The steps of `benchmarks/gpu.py`, the packages that each needs, and what to do without them.

Nothing but the standard library is imported here: the packages may be missing.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

ARRAYS = ("torch", "numpy")
TRAINING = (*ARRAYS, "click", "google-crc32c", "xxhash")
STORES = (*TRAINING, "pyyaml", "zarr")
MODELS = ("open_clip_torch", "pillow", "safetensors", "timm", "torchvision", "transformers")
EXTRACTION = (*STORES, "msgspec", *MODELS)


@dataclass(frozen=True)
class Step:
    """A measurement: `most` seconds it may take, and `least` without which it is not begun."""

    name: str
    most: int
    least: int
    needs: tuple[str, ...]


STEPS = (
    Step("machine", 120, 5, ARRAYS),
    Step("tests", 240, 30, (*EXTRACTION, "pytest")),
    Step("extract-clip-embeddings", 240, 60, EXTRACTION),
    Step("extract-clip-tokens", 240, 60, EXTRACTION),
    Step("train-device", 240, 60, TRAINING),
    Step("recall-5k", 90, 15, ARRAYS),
    Step("recall-100k", 180, 40, ARRAYS),
    Step("extract-blip-embeddings", 180, 60, EXTRACTION),
    Step("extract-blip-tokens", 180, 60, EXTRACTION),
    Step("train-memory", 240, 90, TRAINING),
    Step("train-files", 240, 60, STORES),
    Step("extract-clip-compiled", 240, 90, EXTRACTION),
)


def requirements() -> dict[str, str]:
    """Packages by name, as pyproject.toml asks for them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (*project["dependencies"], *project["optional-dependencies"]["dev"])
    plain = (line.partition(";")[0] for line in lines)
    return {line.partition(">")[0].partition("[")[0].strip().lower(): line for line in plain}


def missing(steps: list[Step]) -> list[str]:
    """The requirements of these steps that are not installed, or too old."""
    asked = requirements()
    names = dict.fromkeys(name for step in steps for name in step.needs)
    return [asked[name] for name in names if not satisfied(name, asked[name])]


def satisfied(name: str, line: str) -> bool:
    """Whether a package is there, at least as new as its requirement says."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return False
    least = line.partition(">=")[2].partition(",")[0]
    return numbers(found) >= numbers(least)


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.11.0+cu130" -> (2, 11, 0)."""
    parts = text.partition("+")[0].split(".")
    found: list[int] = []
    for part in parts:
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def install(steps: list[Step], wheels: Path | None) -> None:
    """Install from `wheels` what the steps need and miss; exit with 2 where that cannot be."""
    lines = missing(steps)
    if not lines:
        return
    print("missing packages: " + ", ".join(lines), flush=True)
    if wheels is None:
        raise SystemExit(stop(how_to_go_on(steps, lines)))
    words = ["pip", "install", "--no-index", "--find-links", str(wheels), *lines]
    print(shlex.join(words), flush=True)
    failed = subprocess.run([sys.executable, "-m", *words], check=False).returncode
    if failed or missing(steps):
        raise SystemExit(stop(f"--wheels {wheels}: pip could not install from it what is missing"))


def how_to_go_on(steps: list[Step], lines: list[str]) -> str:
    """What to do about missing packages: fetch them elsewhere, or leave steps out."""
    try:
        torch = [f"torch=={version('torch').partition('+')[0]}"]  # torchvision must fit it
    except PackageNotFoundError:
        torch = []
    text = (
        "packages are missing. On a machine with a network and the same Python and platform, run "
        f"{shlex.join(['pip', 'download', '-d', 'wheels', *lines, *torch])}, "
        "bring the folder here without what is installed here (torch, nvidia) and give --wheels"
    )
    able = [step.name for step in steps if step.name != "machine" and not missing([step])]
    return text + (f"; or run what needs none of them: --only {' '.join(able)}" if able else "")


def stop(text: str) -> int:
    """Say what is wrong with the request; exit code 2."""
    print(f"error: {text}", file=sys.stderr, flush=True)
    return 2
