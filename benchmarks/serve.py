"""The latency of a text query and the queries a second of `hada-evaluate serve`, over HTTP.

    OMP_WAIT_POLICY=passive python benchmarks/serve.py RUN [--items 100000] [--clients 1,4,16]

The policy is the command's own (`hada.extract.common.host.sleep_while_waiting`).
Run it where the demo ran. The split's own gallery comes first; then, in its place, `--items` rows
of random numbers with the nodes of the split's images again and again, all of them mapped from
files. The clients are another process; every query is another caption of the split.
"""

from __future__ import annotations

import argparse
import http.client
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from hada.evaluate.search.index import Index, SecondStage
from hada.evaluate.search.searcher import Searcher
from hada.evaluate.serve.app import build_app
from hada.evaluate.serve.settings import Settings
from hada.extract.manifest import load_manifest
from hada.fuse.scores.item_nodes import ItemNodes


def mapped(folder: Path, name: str, values: Any, times: int) -> Any:
    """`values` one after another, `times` times, as a mapped file."""
    shape = (len(values) * times, *values.shape[1:])
    file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", values.dtype, shape)
    for k in range(times):
        file[k * len(values) : (k + 1) * len(values)] = values
    file.flush()
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def large(index: Index, items: int, folder: Path) -> Index:
    """An index of `items` random rows; its nodes are those of `index` again and again."""
    times = items // len(index.ids)
    random = np.random.default_rng(0)
    file = np.lib.format.open_memmap(
        folder / "e.npy", "w+", np.float32, (items, index.embeddings.shape[1])
    )
    scale = float(np.asarray(index.embeddings).std())
    for first in range(0, items, 10_000):
        part = file[first : first + 10_000]
        part[...] = scale * random.standard_normal(part.shape, dtype=np.float32)
    second = index.second
    if second is not None:
        nodes = ItemNodes(
            *(
                mapped(folder, name, np.asarray(getattr(second.nodes, name)), times)
                for name in ("vectors_SW", "weights_S", "lengths")
            )
        )
        parts = [np.asarray(x) for x in (second.cosines, second.paid)]
        cosines, paid = (mapped(folder, f"p{k}", x, times) for k, x in enumerate(parts))
        second = SecondStage(second.side, cosines, nodes, paid)
    own = {
        name: mapped(folder, f"own{k}", np.asarray(values), times)
        for k, (name, values) in enumerate(index.own.items())
    }
    embeddings = np.load(folder / "e.npy", mmap_mode="r")
    return replace(index, embeddings=embeddings, ids=[*index.ids] * times, second=second, own=own)


def client(port: int, texts: list[str], clients: int) -> dict[str, float]:
    """Milliseconds of each query, and queries a second, of some clients that never pause."""
    parts = [texts[k::clients] for k in range(clients)]

    def one(part: list[str]) -> list[float]:
        connection, seconds = http.client.HTTPConnection("127.0.0.1", port), []
        for text in part:
            began = time.perf_counter()
            connection.request("POST", "/api/text", json.dumps({"text": text}))
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
            seconds.append(time.perf_counter() - began)
        return seconds

    one(texts[:20])
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = [x for part in pool.map(one, parts) for x in part]
    rate = len(texts) / (time.perf_counter() - began)
    p50, p99 = (1e3 * float(x) for x in np.percentile(seconds, [50, 99]))
    return {"p50": p50, "p99": p99, "rate": rate}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--port", type=int, help="Used by the clients' process.")
    arguments = parser.parse_args()
    counts = [int(x) for x in arguments.clients.split(",")]
    if arguments.port:
        texts = json.load(sys.stdin)
        for count in counts:
            x = client(arguments.port, texts, count)
            print(
                f"  {count:2} clients: p50 {x['p50']:.0f} ms, p99 {x['p99']:.0f} ms, "
                f"{x['rate']:.0f} queries a second"
            )
        return
    searcher = Searcher.open(load_manifest(None), run=arguments.run, device="cpu")
    searcher.load()
    assert searcher.data is not None
    texts = [*searcher.data.captions[: arguments.queries]]
    for count in (1, 32):  # where the time goes, without the server
        encode, find = [], []
        for first in range(0, min(len(texts), 60 * count), count):
            began = time.perf_counter()
            queries = searcher.encoder.texts(texts[first : first + count])
            encode.append(time.perf_counter() - began)
            began = time.perf_counter()
            searcher.find(queries, "image", 10)
            find.append(time.perf_counter() - began)
        print(
            f"{count:2} at once: {1e3 * np.median(encode):.1f} ms to encode, "
            f"{1e3 * np.median(find):.1f} ms to search"
        )
    server = uvicorn.Server(
        uvicorn.Config(build_app({"test": searcher}, Settings()), port=8799, log_level="warning")
    )
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.1)
    with tempfile.TemporaryDirectory(prefix="hada-serve-") as folder:
        for items in (0, arguments.items):
            if items:
                found = large(searcher.index("image"), items, Path(folder))
                searcher._indexes["image"] = found
            print(f"{len(searcher.index('image').ids):,} images")
            words = [sys.executable, __file__, "--port", "8799", "--clients", arguments.clients]
            subprocess.run(words, input=json.dumps(texts), text=True, check=True)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"  at most {peak:.2f} GiB, mapped pages among them")
    server.should_exit = True


if __name__ == "__main__":
    main()
