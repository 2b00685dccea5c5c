"""The inputs of a recall table, kept beside it: it is made again when they change."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hada.extract.common.errors import StoreError
from hada.pipelines.study.jobs import EvaluateJob


def evaluation_inputs(job: EvaluateJob) -> str:
    """A digest of all that a result is made from: request, contents of stores, weights of runs."""
    from hada.extract.store import open_store
    from hada.fuse.run_files.features import contents_of
    from hada.fuse.run_files.weights import BEST

    request = job.request
    digest = hashlib.sha256(repr(request).encode())
    others = [] if request.quick else [request.train_split, request.val_split]
    for split in dict.fromkeys([request.split, *others]):
        for model in request.models:
            store = open_store(job.stores.store_path(request.dataset, split, model))
            digest.update(contents_of(store).encode())
    for run in request.runs:
        digest.update((run / BEST).read_bytes())
    return digest.hexdigest()[:16]


def inputs_file(job: EvaluateJob) -> Path:
    """Where the digest of a result's inputs lies."""
    return job.output.with_name(f".{job.output.stem}.inputs")


def is_evaluated(job: EvaluateJob) -> bool:
    """Whether the table is there and all that it was made from is still the same."""
    file = inputs_file(job)
    if not (file.exists() and job.output.exists()):
        return False
    try:
        return file.read_text().strip() == evaluation_inputs(job)
    except (StoreError, OSError):
        return False
