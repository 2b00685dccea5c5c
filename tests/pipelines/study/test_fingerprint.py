"""A table is made again when anything that it was made from is another, contents included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import galleries
import pytest

from hada.evaluate.methods.request import Request
from hada.extract.manifest import StoreRoot
from hada.pipelines.study.fingerprint import evaluation_inputs, inputs_file, is_evaluated
from hada.pipelines.study.jobs import EvaluateJob


@pytest.fixture
def job(tmp_path: Path) -> EvaluateJob:
    """The mean of two models on val, without the other splits."""
    for name in ("a", "b"):
        galleries.make_store(tmp_path / "stores/tiny/val" / name, name)
    request = Request(dataset="tiny", split="val", models=("a", "b"), quick=True)
    output = tmp_path / "recall-val.json"
    return EvaluateJob(
        key="evaluate/tiny/val",
        device="cpu",
        stores=StoreRoot(str(tmp_path / "stores")),
        request=request,
        output=output,
    )


def test_a_table_is_done_while_all_inputs_stay(job: EvaluateJob) -> None:
    assert not is_evaluated(job)
    job.output.write_text("{}")
    inputs_file(job).write_text(evaluation_inputs(job))
    assert is_evaluated(job)


def test_other_contents_of_the_same_description_are_noticed(
    job: EvaluateJob, tmp_path: Any
) -> None:
    before = evaluation_inputs(job)
    store = tmp_path / "stores/tiny/val/b"
    store.rename(tmp_path / "old")
    assert not is_evaluated(job)
    galleries.make_store(store, "b", noise=0.7)
    assert evaluation_inputs(job) != before


@pytest.mark.parametrize(
    "changes", [{"correct": "none"}, {"transductive": True}, {"models": ("a",)}, {"rerank": 5}]
)
def test_another_request_is_another_table(job: EvaluateJob, changes: dict[str, Any]) -> None:
    other = replace(job, request=replace(job.request, **changes))
    assert evaluation_inputs(other) != evaluation_inputs(job)
