"""A fusion in a stranger's hands: the wheel alone, an exported run, a folder of pictures.

    pip wheel --no-deps -w wheels . && python -m venv fresh
    fresh/bin/pip install "$(echo wheels/hada-*.whl)[serve,parquet,faiss]" pandas
    hada-fuse export runs/scenes/blip+clip-fast-s0 blip-clip
    python benchmarks/put_to_use.py fresh/bin blip-clip data/scenes/images [--pictures 200]

Run it anywhere; it works in a temporary folder, with the commands of the environment at the first
argument alone. The pictures are copied without their captions. It extracts and embeds them,
searches by text and by picture, serves, exports to parquet and faiss, and reloads both: the ten
best for each text must be the same in pandas, in faiss and in HADA's first stage, and what is
served the same as what is searched. Any difference ends it with status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

TEXTS = ("two hearts on a mint background", "a teal moon on the left of a ring", "a brown square")
MODELS = ("blip=blip:builtin:scenes/blip", "clip=clip:builtin:scenes/clip")
RELOAD = """
import json, sys
from pathlib import Path
import faiss, numpy as np, pandas as pd
import hada.extract
where = Path(hada.extract.__file__).parents[1]
texts = pd.read_parquet("texts-parquet/caption.parquet")
images = pd.read_parquet("pictures-parquet/image.parquet")
rows, asked = (np.stack(table["embedding"]).astype(np.float32) for table in (images, texts))
by_pandas = [[images["id"][k] for k in np.argsort(-(rows @ one), kind="stable")[:10]]
    for one in asked]
index = faiss.read_index("pictures-faiss/image.faiss")
ids = [json.loads(line) if line.startswith('"') else line
    for line in Path("pictures-faiss/image_ids.txt").read_text().splitlines()]
by_faiss = [[ids[k] for k in found] for found in index.search(asked, 10)[1]]
from hada.evaluate.search.index import Query
from hada.evaluate.search.searcher import Searcher
from hada.extract.manifest import load_manifest
searcher = Searcher.open(load_manifest(), run=sys.argv[1], dataset="pictures", split="all",
    device="cpu")
index = searcher.index("image")
queries = searcher.encoder.texts(list(texts["caption"]))
first = [[index.ids[row] for row, _ in index.top(Query(query.vector), 10)] for query in queries]
print(json.dumps({"pandas": by_pandas, "faiss": by_faiss, "first stage": first,
    "width": rows.shape[1], "package": str(where)}))
"""


class Stranger:
    """A folder and an environment, in which commands are run and timed."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def run(self, program: str, *words: str) -> str:
        """The output of a command; its failure ends everything."""
        began = time.monotonic()
        done = subprocess.run(
            [str(self.programs / program), *words],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
        )
        shown = " ".join([program, *words]) if len(str(words)) < 200 else program
        print(f"{time.monotonic() - began:6.1f} s  {shown}", flush=True)
        if done.returncode:
            sys.exit(f"status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done.stdout

    def searched(self, *words: str) -> list[dict[str, Any]]:
        """The results of a search."""
        out = self.run("hada-evaluate", "search", "--jsonl", *words)
        return [json.loads(line) for line in out.splitlines()]


def served(stranger: Stranger, words: list[str], picture: Path) -> list[list[str]]:
    """The ids of the results for every text, then for the picture, over HTTP."""
    began = time.monotonic()
    log = stranger.folder / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(stranger.programs / "hada-evaluate"), "serve", *words, "--port", "0"],
            cwd=stranger.folder,
            env=stranger.variables,
            stdout=file,
            stderr=file,
        )
    try:
        address = None
        while address is None:
            if process.poll() is not None or time.monotonic() - began > 300:
                sys.exit(f"the server does not start:\n{log.read_text()}")
            time.sleep(0.2)
            address = re.search(r"serving at (http://\S+)/", log.read_text())
        print(f"{time.monotonic() - began:6.1f} s  until the server listens", flush=True)
        bodies = [("/api/text", json.dumps({"text": text}).encode()) for text in TEXTS]
        bodies.append(("/api/image?find=images", picture.read_bytes()))
        answers = []
        for path, body in bodies:
            with urllib.request.urlopen(address[1] + path, data=body) as answer:
                answers.append([hit["id"] for hit in json.load(answer)["results"]])
        return answers
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    """Do it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", type=Path, help="bin of the environment")
    parser.add_argument("run", type=Path, help="what hada-fuse export wrote")
    parser.add_argument("images", type=Path)
    parser.add_argument("--pictures", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hada-use-") as name:
        folder = Path(name)
        stranger = Stranger(arguments.programs.absolute(), folder)
        shutil.copytree(arguments.run, folder / "fusion")
        (folder / "pictures").mkdir()
        for file in sorted(arguments.images.iterdir())[: arguments.pictures]:
            shutil.copy(file, folder / "pictures")
        (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n")
        check(stranger, use(stranger))


def use(stranger: Stranger) -> dict[str, list[list[str]]]:
    """Every way to the ten best for the texts: name -> per text the ids of the results."""
    models = [word for model in MODELS for word in ("--model", model)]
    for data in ("pictures", "texts=texts.txt"):
        stranger.run("hada-extract", "--data", data, *models)
    for data, formats in (("pictures", ("parquet", "faiss")), ("texts", ("parquet",))):
        stranger.run("hada-fuse", "embed", "fusion", "--dataset", data, "--split", "all")
        for form in formats:
            store = f"stores/{data}/all/fusion"
            stranger.run("hada-store", "export", store, f"{data}-{form}", "--format", form)
    where = ["--dataset", "pictures", "--split", "all"]
    picture = sorted((stranger.folder / "pictures").iterdir())[0]
    asked = stranger.searched("--run", "fusion", *where, "--queries", "texts.txt")
    found = {text: [hit["id"] for hit in asked if hit["query"] == text] for text in TEXTS}
    alike = stranger.searched(
        "--run", "fusion", *where, "--image", str(picture), "--find", "images"
    )
    ways = json.loads(stranger.run("python", "-c", RELOAD, "fusion").splitlines()[-1])
    print(f"the package is in {ways.pop('package')}; vectors have {ways.pop('width')} numbers")
    ways["search"] = [*found.values(), [hit["id"] for hit in alike]]
    ways["server"] = served(stranger, ["fusion", *where], picture)
    if alike[0]["id"] != picture.name:
        sys.exit(f"{picture.name} does not find itself first: {alike[0]}")
    return dict(ways)


def check(stranger: Stranger, ways: dict[str, list[list[str]]]) -> None:
    """Compare; exits with 1 where two ways differ."""
    for left, right in (("pandas", "faiss"), ("pandas", "first stage"), ("search", "server")):
        if ways[left] != ways[right]:
            sys.exit(f"{left} and {right} differ:\n{ways[left]}\n{ways[right]}")
        print(f"{left} and {right}: the same ten best, {len(ways[left])} queries")
    shared = [len({*a} & {*b}) for a, b in zip(ways["search"], ways["pandas"], strict=False)]
    print(f"of the ten after the second stage, the first alone has {shared}")


if __name__ == "__main__":
    main()
