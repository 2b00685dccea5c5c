"""What a recall will cost: the plan has all methods and widths, and enough memory."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
from click.testing import CliRunner

from hada.evaluate.cli import evaluate as command
from hada.evaluate.methods.build import build
from hada.evaluate.methods.gallery import EmbeddingMethod
from hada.evaluate.methods.late import NodeMethod
from hada.evaluate.methods.request import Request
from hada.evaluate.results import cost as planning
from hada.evaluate.results import cost_rates
from hada.evaluate.results.measure import measure
from hada.extract.manifest import load_manifest
from hada.extract.store import write_store

WIDTHS = {"one": 64, "two": 128}


def write(split: str, images: int, per_image: int, widths: dict[str, int]) -> None:
    caption_to_image = np.repeat(np.arange(images), per_image)
    random = np.random.default_rng(0)
    truth = random.standard_normal((images, max(widths.values())))
    for name, width in widths.items():
        spec = makers.make_spec(
            name=name,
            split=split,
            image=None,
            caption=None,
            embedding_width=width,
            rows_per_shard={"image": images, "caption": len(caption_to_image)},
        )
        write_store(
            f"stores/tiny/{split}/{name}",
            spec,
            ids={
                "image": [f"{split}_{k:012}.jpg" for k in range(images)],
                "caption": [f"{split}_{k:012}" for k in range(len(caption_to_image))],
            },
            caption_to_image=caption_to_image,
            embeddings={
                "image": truth[:, :width],
                "caption": truth[caption_to_image, :width]
                + random.standard_normal((len(caption_to_image), width)),
            },
        )


def planned(request: Request, size: str = "stores", **options: Any) -> planning.CostPlan:
    values = {"folds": 1, "resamples": 1000, **options}
    return planning.make_plan(load_manifest(None), request, size, **values)


@pytest.mark.parametrize("quick", [True, False])
def test_the_plan_has_all_methods(tmp_path: Path, quick: bool) -> None:
    makers.make_project(tmp_path)
    for split in ("train", "val"):
        write(split, 30, 2, WIDTHS)
    request = Request(dataset="tiny", split="val", quick=quick)
    _, methods = build(load_manifest(None), request)
    steps = planned(request).methods
    assert [step.name for step in steps] == [method.name for method in methods]
    for step, method in zip(steps, methods, strict=True):
        if not isinstance(method, EmbeddingMethod):
            continue
        # A share of 0 makes a sum narrower, and so does a narrow head.
        exact = method.kind in ("model", "mean", "linear") or method.name.startswith("mean of")
        width = method.pair[0].shape[1]
        assert width == step.width if exact else width <= step.width, method.name
    assert {step.name for step in steps if step.sorts} == (set() if quick else {"reciprocal ranks"})


def test_the_plan_has_the_widths_of_a_run(
    report_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(report_project)
    request = Request(dataset="tiny", split="val", quick=True, runs=(Path("runs/tiny/mine"),))
    _, methods = build(load_manifest(None), request)
    found = planned(request)
    assert [step.name for step in found.methods] == [method.name for method in methods]
    whole = methods[-1]
    if isinstance(whole, NodeMethod):  # so short a training may leave nodes out
        assert whole.embedded.nodes is not None
        counts = [math.ceil(side.lengths.mean()) for side in whole.embedded.nodes]
        width = whole.embedded.nodes[0].vectors_SW.shape[1]
        assert found.methods[-1].nodes == (*counts, width)
        methods = methods[:-1]
    product = methods[-1]
    assert isinstance(product, EmbeddingMethod)
    # A share of 0 makes it narrower.
    assert product.pair[0].shape[1] <= found.methods[len(methods) - 1].width
    assert "each run's network" in planning.as_text(found, cost_rates.seconds(found, "cpu"), "cpu")


def test_the_memory_is_enough_and_not_far_more(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    write("val", 1000, 3, {"one": 1024, "two": 1024})
    request = Request(dataset="tiny", split="val", quick=True, device="cpu")
    expected = sum(planned(request).memory().values())
    tracemalloc.start()
    gallery, methods = build(load_manifest(None), request)
    measure(gallery, methods, resamples=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.4 * expected < peak < expected


def test_cost_follows_the_size(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    write("val", 20, 5, WIDTHS)
    request = Request(dataset="tiny", split="val", quick=True)
    small, large = planned(request), planned(request, "1_000_000x5000000")
    assert (small.images, small.captions) == (20, 100)
    assert small.multiply_adds(small.methods[0]) == 20 * 100 * 64
    assert large.multiply_adds(large.methods[0]) == 1_000_000 * 5_000_000 * 64
    folds = planned(request, "1000000x5000000", folds=5)
    assert folds.multiply_adds(folds.methods[0]) == 5 * (200_000 * 1_000_000) * 64
    # Beside embeddings, ids and ranks, which grow as the items do, memory is bounded.
    assert large.memory()["one tile of scores, or the draws of the bootstrap"] < 300e6


def test_the_command_says_it_and_does_nothing(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    write("val", 20, 5, WIDTHS)
    words = ["recall", "--split", "val", "--quick", "--plan"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("20 images x 100 captions\n")
    assert "mean of cosines" in done.stdout
    done = CliRunner().invoke(command, [*words, "1000000x5000000"])
    assert "1,000,000 images x 5,000,000 captions" in done.stdout
    assert "960.0 T" in done.stdout  # the mean of cosines, 192 wide
    assert not (tmp_path / "runs").exists()
    for size, says in (("many", "expected IMAGESxCAPTIONS"), ("9x5", "a caption or more an image")):
        done = CliRunner().invoke(command, [*words, size])
        assert done.exit_code == 2
        assert says in done.stderr
