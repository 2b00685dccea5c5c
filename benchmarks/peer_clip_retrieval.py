"""clip-retrieval's inference on a folder of pictures, timed; run by `benchmarks/extract.py`.

It runs in clip-retrieval's own environment (its pins are not ours), and answers each line on stdin
with the seconds of one run of its reader, mapper and writer, by the wall's clock and of processors
(its own and those of its workers). Its model is loaded before.
"""

import contextlib
import os
import sys
import tempfile
import time

from all_clip import load_clip
from clip_retrieval.clip_inference.mapper import ClipMapper
from clip_retrieval.clip_inference.reader import FilesReader
from clip_retrieval.clip_inference.runner import Runner
from clip_retrieval.clip_inference.writer import NumpyWriter


class _NoLog:
    """In place of its logger, which starts a process for every run."""

    def start(self) -> None:
        """Nothing to start."""

    def end(self) -> None:
        """Nothing to end."""

    def __call__(self, stats: object) -> None:
        """Forget it."""


def main(folder: str, model: str, batch_size: int, workers: int) -> None:
    """`model` is "open_clip:ARCHITECTURE/FILE"."""
    with contextlib.redirect_stdout(sys.stderr):
        _, preprocess, tokenizer = load_clip(model, use_jit=False, warmup_batch_size=1)
        mapper = ClipMapper(True, False, False, False, model, False, "", 1)
    print("ready", flush=True)
    for _ in sys.stdin:
        out = tempfile.mkdtemp(prefix="hada-bench-peer-")
        runner = Runner(
            lambda sampler: FilesReader(
                sampler, preprocess, tokenizer, folder, batch_size, workers, enable_text=False
            ),
            lambda: mapper,
            lambda part, out=out: NumpyWriter(part, out, False, True, False, 1),
            lambda part: _NoLog(),
            1,
        )
        began, began_cpu = time.perf_counter(), sum(os.times()[:4])
        with contextlib.redirect_stdout(sys.stderr):
            runner(0)
        print(time.perf_counter() - began, sum(os.times()[:4]) - began_cpu, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
