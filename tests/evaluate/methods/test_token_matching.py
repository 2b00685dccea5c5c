"""Late interaction over stored tokens: a slow loop, and sentence-transformers' own MaxSim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from token_stores import IMAGES, OWNER, multi_vector, projected, slow

from hada.evaluate.cli import evaluate as command
from hada.evaluate.methods.build import build
from hada.evaluate.methods.effort import LATE, ONE_PRODUCT, effort
from hada.evaluate.methods.gallery import EmbeddingMethod
from hada.evaluate.methods.request import Request
from hada.evaluate.methods.rerank import Reranked
from hada.evaluate.methods.token_matching import TokenMethod
from hada.extract.cli import extract
from hada.extract.common.errors import StoreError, UsageError
from hada.extract.manifest import StoreRoot
from hada.fuse.ranking.ranks import rank_matrix
from hada.fuse.scores import item_nodes
from hada.fuse.scores.item_nodes import score_matrix
from hada.fuse.scores.stored_tokens import TokenSpace


def scores_of(method: TokenMethod) -> Any:
    return score_matrix(*method.nodes, method.mirror)


def built(folder: Path, models: tuple[str, ...], **more: Any) -> list[Any]:
    request = Request(dataset="d", split="val", models=models, quick=True, **more)
    return build(StoreRoot(str(folder / "stores")), request)[1]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("numbers", [1 << 26, 40])
def test_a_multi_vector_model_has_a_row_of_its_own(
    tmp_path: Path, dtype: str, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own vectors count, the mean that is stored in front of them does not."""
    monkeypatch.setattr(item_nodes, "IMAGE_NUMBERS", numbers)
    _, images, captions = multi_vector(tmp_path, dtype=dtype)
    (method,) = built(tmp_path, ("colpali",))
    assert isinstance(method, TokenMethod)
    assert (method.name, method.kind, method.fitted) == ("colpali, late interaction", "late", ())
    plain = slow(images, captions)
    np.testing.assert_allclose(scores_of(method), plain, atol=2e-6 if dtype == "float16" else 1e-3)
    found, wanted = method.ranks(OWNER), rank_matrix(scores_of(method), OWNER)
    for name, values in vars(wanted).items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)
    some = np.array([1, 4]), np.array([2, 7, 8])
    part = method.part(*some).ranks(np.array([0, 1, 1]))
    wanted = rank_matrix(scores_of(method)[np.ix_(*some)], np.array([0, 1, 1]))
    assert part.t2i_lo.tolist() == wanted.t2i_lo.tolist()
    told = effort(method, IMAGES, len(OWNER))
    tokens = sum(map(len, images)), sum(map(len, captions))
    assert told["stages"] == [LATE]
    assert told["multiply_adds_per_query"]["t2i"] == tokens[0] * tokens[1] * 8 // len(OWNER)


def test_it_equals_the_librarys_own(tmp_path: Path) -> None:
    similarity = pytest.importorskip(
        "sentence_transformers.util.similarity", reason="sentence-transformers is not installed"
    )
    if not hasattr(similarity, "mean_maxsim"):
        pytest.skip("this sentence-transformers is older than its late interaction (6.0)")
    _, images, captions = multi_vector(tmp_path)
    (method,) = built(tmp_path, ("colpali",))
    own, queries = ([torch.from_numpy(x.astype("f4")) for x in side] for side in (images, captions))
    mean = similarity.mean_maxsim(queries, own).numpy().T
    np.testing.assert_allclose(scores_of(method), mean, atol=1e-6)
    lengths = np.array([len(x) for x in captions])
    whole = similarity.maxsim(queries, own).numpy().T
    np.testing.assert_allclose(scores_of(method) * lengths, whole, atol=5e-6)


def test_other_tokens_are_mapped_to_the_joint_space(tmp_path: Path) -> None:
    """The map is the model's own projection, where its embedding is one of the global token."""
    train, _, _ = projected(tmp_path, split="train", seed=1)
    _, images, captions = projected(tmp_path)
    single, method = built(tmp_path, ("clip",), late=("clip",))
    assert single.name == "clip"
    assert isinstance(method, TokenMethod)
    np.testing.assert_allclose(scores_of(method), slow(images, captions), atol=2e-3)
    assert method.details["explained"] == pytest.approx([1, 1], abs=1e-3)
    assert "100 % and 100 % of the embeddings' variance" in method.note
    assert [entry.how for entry in method.fitted] == ["trained on"]
    space = TokenSpace.of(train)
    again = TokenSpace.from_arrays(space.arrays())
    assert again.projections is not None
    assert space.projections is not None
    assert again.model == "clip"
    np.testing.assert_array_equal(again.projections[1].weight_DE, space.projections[1].weight_DE)


@pytest.mark.parametrize("depth", [1, 3, 99])
def test_the_first_places_are_ordered_exactly(tmp_path: Path, depth: int) -> None:
    """Behind another model's cosines: a multi-vector model has no embeddings of its own."""
    _, images, captions = multi_vector(tmp_path)
    projected(tmp_path)
    more = {"rerank": depth, "rerank_with": "colpali"}
    assert [method.name for method in built(tmp_path, ("clip", "colpali"), **more)] == [
        "clip",
        "colpali, late interaction",
        "clip + colpali's late interaction",
    ]
    projected(tmp_path, name="other", seed=5)
    methods = built(tmp_path, ("clip", "other", "colpali"), **more)
    second = methods[-1]
    assert isinstance(second, Reranked)
    assert second.name == "mean of cosines + colpali's late interaction"
    assert isinstance(second.first, EmbeddingMethod)
    first = second.first.pair[0] @ second.first.pair[1].T
    plain, found = slow(images, captions), second.ranks(OWNER)
    before = second.first.ranks(OWNER)
    for caption, image in enumerate(OWNER):
        best = np.argsort(-first[:, caption], kind="stable")[:depth]
        above = (plain[best, caption] > plain[image, caption]).sum()
        wanted = above if image in best else max(depth, before.t2i_lo[caption])
        assert found.t2i_lo[caption] == wanted
    told = effort(second, IMAGES, len(OWNER))
    assert told["stages"] == [ONE_PRODUCT, f"late interaction on the first {depth}"]
    assert (
        told["multiply_adds_per_query"]["t2i"]
        > effort(second.first, IMAGES, len(OWNER))["multiply_adds_per_query"]["t2i"]
    )


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    projected(tmp_path)
    with pytest.raises(UsageError, match="'x': not among the models that are evaluated"):
        built(tmp_path, ("clip",), late=("x",))
    multi_vector(tmp_path)
    with pytest.raises(UsageError, match="nothing brings the first results"):
        built(tmp_path, ("colpali",), rerank=2, rerank_with="colpali")
    with pytest.raises(StoreError, match="train"):
        built(tmp_path, ("clip",), late=("clip",))
    with pytest.raises(UsageError, match="'x': not among the models that are evaluated"):
        built(tmp_path, ("clip",), rerank=2, rerank_with="late:x")


def test_the_command_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    makers.make_project(tmp_path, splits={"train": [3] * 12, "val": [2, 1, 3, 2] * 3})
    for split in ("train", "val"):
        assert CliRunner().invoke(extract, ["--split", split]).exit_code == 0
    words = ["recall", "--split", "val", "--quick", "--resamples", "100", "--late", "two"]
    done = CliRunner().invoke(command, [*words, "--rerank", "4", "--rerank-with", "late:two"])
    assert done.exit_code == 0, done.output
    methods = json.loads((tmp_path / "runs/tiny/recall-val.json").read_text())["methods"]
    assert [method["name"] for method in methods] == [
        "one",
        "two",
        "mean of cosines",
        "two, late interaction",
        "two + two's late interaction",
        "mean of cosines + two's late interaction",
    ]
    assert methods[3]["saw_split"] == []
    assert methods[3]["class"] == "inductive"
    assert methods[4]["second_stage"]["pairs_per_query"]["t2i"] == 4
    refused = CliRunner().invoke(command, ["recall", "--split", "val", "--quick", "--late", "x"])
    assert refused.exit_code == 2
    assert "add --model x" in refused.stderr
