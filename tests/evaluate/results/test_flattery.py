"""Methods whose parameters saw the evaluated images say so, everywhere, and get no p-value."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
from click.testing import CliRunner

from hada.evaluate.cli import evaluate as command
from hada.evaluate.methods.combinations import mean_of_cosines, single_models, tuned_sum
from hada.evaluate.methods.gallery import Gallery
from hada.evaluate.methods.linear import concatenation_linear
from hada.evaluate.methods.seen import Fitted, saw
from hada.evaluate.results.flattery import NO_RECORD, flattered
from hada.evaluate.results.measure import measure
from hada.extract.cli import extract
from hada.extract.spec import SideName
from hada.extract.store import StoreReader, open_store, write_store
from hada.fuse.cli import fuse
from hada.fuse.fitted import fitted_on

FITTED = (
    "weighted sum",
    "concatenation + linear",
    "mean + CCA",
    "one, corrected",
    "two, corrected",
    "mean of cosines, corrected",
    "weighted sum, corrected",
    "mean + CCA, corrected",
    "HADA mine",
)
SPLITS = {"train": [3] * 12, "val": [2, 1, 3, 2] * 5, "test": [2, 1, 2] * 6}
# `again` is val under another name, `half` has val's images and test's.
MORE = "      test: {}\n      again: {from: [val]}\n      half: {from: [val, test]}\n"
E = 6
# The CCA head is most of a small training's time.
FAST = ("--epochs", "1", "--set", "heads=1", "--set", "cca=false")


def call(group: Any, *words: str) -> Any:
    done = CliRunner().invoke(group, words)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A trained run and the stores of all splits, made by the commands."""
    folder = tmp_path_factory.mktemp("flattery")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        makers.make_project(folder, splits=SPLITS)
        text = makers.MANIFEST.replace("      val: {}\n", f"      val: {{}}\n{MORE}")
        (folder / "data_manifest.yaml").write_text(text)
        for split in (*SPLITS, "again", "half"):
            call(extract, "--split", split)
        # Whether nodes get a share of so few images is chance: a run of one stage is one method.
        call(fuse, "train", *FAST, "--set", "match_width=0", "--run", "runs/tiny/mine")
        yield folder


def measured(split: str, *words: str) -> dict[str, Any]:
    """The result of `recall`, methods by name."""
    call(command, "recall", "--split", split, "--resamples", "100", *words)
    result: dict[str, Any] = json.loads(Path(f"runs/tiny/recall-{split}.json").read_text())
    return result | {"by_name": {method["name"]: method for method in result["methods"]}}


@pytest.mark.parametrize(
    ("split", "seen", "images"),
    [
        ("val", FITTED, 20),
        ("again", FITTED, 20),
        ("half", FITTED, 20),
        ("train", FITTED[1:], 12),
        ("test", (), 0),
    ],
)
def test_what_saw_the_images_says_so_under_any_name_of_the_split(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    split: str,
    seen: tuple[str, ...],
    images: int,
) -> None:
    monkeypatch.chdir(project)
    result = measured(split)
    found = {
        method["name"]: method["saw_split"] for method in result["methods"] if method["saw_split"]
    }
    assert tuple(name for name in result["by_name"] if name in found) == seen
    assert all(line["images"] == images for lines in found.values() for line in lines)
    for name, method in result["by_name"].items():
        for gain in (method["gain"], method["gain_over_simple"]):
            if gain is None:
                continue
            sides = {name, gain["over"]}
            assert (gain["p"] is None) == bool(sides & set(seen)) == ("withheld" in gain)
            assert gain["low"] <= gain["high"]
        assert ("flattered" in method["rsum_interval"]) == (name in seen)
    assert [entry["how"] for entry in result["by_name"]["HADA mine"]["fitted_on"]] == [
        "trained on",
        "epoch and shares chosen on",
    ]


def test_asked_for_p_values_come_with_the_reason(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    words = ("recall", "--split", "val", "--resamples", "100", "--p-values-anyway")
    said = call(command, *words, "-o", "asked.json").stdout
    result = json.loads(Path("asked.json").read_text())
    assert all(method["gain"]["p"] is not None for method in result["methods"] if method["gain"])
    (fused,) = [method for method in result["methods"] if method["kind"] == "hada"]
    assert fused["saw_split"]
    verdict = [line for line in said.splitlines() if "the best single model, " in line]
    assert "p = " in verdict[0]
    assert "Flattered, so this says little: HADA mine: epoch and shares chosen on val" in verdict[0]


def test_tables_verdicts_and_pages_say_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    said = call(command, "recall", "--split", "val", "--resamples", "100").stdout
    flat = " ".join(said.split())
    for name in ("weighted sum †", "HADA mine †", "† its parameters saw images of this split"):
        assert name in flat, said
    assert "HADA mine is not judged against the best single model" in flat
    assert "p withheld. Flattered: HADA mine: epoch and shares chosen on val" in flat
    assert "stopped by val" in flat
    assert "p = " not in flat
    file = "runs/tiny/recall-val.json"
    markdown = call(command, "table", file).stdout
    assert "**HADA mine †**" in markdown
    assert "\n† its parameters saw" in markdown
    latex = call(command, "table", file, "--format", "latex").stdout
    assert latex.count(r"$^\dagger$") == len(FITTED) + 1
    rows = csv.DictReader(io.StringIO(call(command, "table", file, "--format", "csv").stdout))
    assert [row["score"] for row in rows if row["flattered"]] == list(FITTED)
    call(command, "report", "runs/tiny/mine", "--split", "val", "--quick", "--resamples", "100")
    page = Path("runs/tiny/mine/report-val.html").read_text()
    assert page.count("HADA mine †") == 2  # plot and table
    assert "not judged against the best single model" in page
    assert "† its parameters saw images of this split" in page
    clean = call(command, "recall", "--split", "test", "--resamples", "100").stdout
    assert "†" not in clean
    assert "p = " in clean
    call(command, "report", "runs/tiny/mine", "--split", "test", "--quick", "--resamples", "100")
    assert "†" not in Path("runs/tiny/mine/report-test.html").read_text()


def test_compare_withholds_p_as_well(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    measured("val")
    words = ["compare", "runs/tiny/recall-val.json", "--method", "one", "--resamples", "100"]
    said = call(command, *words).stdout
    assert "HADA mine is not judged against one" in said
    found = json.loads(call(command, *words, "--json").stdout)
    assert found["rsum"]["p"] is None
    assert found["flattered"] == ["", "epoch and shares chosen on val"]
    anyway = call(command, *words, "--p-values-anyway").stdout
    assert "p = " in anyway
    assert "this says little" in anyway
    both = call(command, *words, "--with-method", "two").stdout
    assert "Flattered" not in both
    picked = CliRunner().invoke(command, [*words[:2], "--with-method", "one", "--method", "two"])
    assert "picked as the best" not in picked.stderr


def test_old_results_are_read_and_what_they_do_not_say_counts_as_flattered(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    for split in ("val", "test"):
        result = measured(split, "--p-values-anyway")
        del result["by_name"], result["protocol"]["p_values"]
        del result["protocol"]["left_out_captions"]
        for method in result["methods"]:
            del method["saw_split"], method["fitted_on"]
            method["rsum_interval"].pop("flattered", None)
        Path(f"old-{split}.json").write_text(json.dumps(result))
    said = call(command, "table", "old-val.json", "old-test.json").stdout
    assert said.count("weighted sum †") == 1
    assert f"weighted sum on tiny val: {NO_RECORD}" in said
    words = ("--method", "one", "--with-method", "mine", "--resamples", "100")
    old = call(command, "compare", "old-val.json", *words).stdout
    assert "p withheld" in old
    assert NO_RECORD in old
    assert "p = " in call(command, "compare", "old-test.json", *words).stdout


def test_a_run_that_began_with_another_remembers_what_that_one_saw(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    call(fuse, "train", "--run", "runs/first", "--val-split", "test", *FAST)
    call(fuse, "train", "--run", "runs/second", "--init", "runs/first", *FAST)
    call(fuse, "train", "--run", "runs/second", "--init", "runs/first", *FAST)  # goes on
    words = ("--run", "runs/second", "--quick", "-o", "second.json")
    call(command, "recall", "--split", "test", "--resamples", "100", *words)
    last = json.loads(Path("second.json").read_text())["methods"][-1]
    assert [(line["how"], line["split"]) for line in last["saw_split"]] == [
        ("epoch and shares chosen on", "test")
    ]
    config = json.loads(Path("runs/second/config.json").read_text())
    del config["init_fitted"]  # a run of before it was kept
    assert fitted_on(config)[-1]["split"] is None


def test_the_embeddings_of_a_run_stay_flattered_as_a_model_of_their_own(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    for split in ("val", "test"):
        call(fuse, "embed", "runs/tiny/mine", "--split", split)
        words = ("--model", "mine", "--model", "one", "--run", "runs/tiny/mine", "--quick")
        call(command, "recall", "--split", split, "-o", "e.json", "--resamples", "100", *words)
        methods = json.loads(Path("e.json").read_text())["methods"]
        told = {method["name"]: bool(method["saw_split"]) for method in methods}
        assert told["mine"] == told["mean of cosines"] == (split == "val")
        assert not told["one"]


def store(path: str, truth: Any, **changes: Any) -> StoreReader:
    """Embeddings of one model: what it sees is `truth`, one caption an image."""
    ids = changes.pop("ids", [f"i{k}" for k in range(len(truth))])
    spec = makers.make_spec(
        name="a", image=None, caption=None, embedding_width=E, dtype="float32", **changes
    )
    sides: dict[SideName, Any] = {"image": truth, "caption": truth + 0.5}
    names: dict[SideName, list[str]] = {"image": ids, "caption": [f"c{i}" for i in ids]}
    write_store(path, spec, ids=names, caption_to_image=np.arange(len(truth)), embeddings=sides)
    return open_store(path)


TRUTH = np.random.default_rng(0).normal(size=(30, E))
OTHER = np.random.default_rng(1).normal(size=(30, E))


@pytest.mark.parametrize(
    ("change", "truth", "images"),
    [
        ({"dataset_digest": "1"}, OTHER, 30),  # the digest alone decides where it is the same
        ({"dataset_digest": "2", "split": "mine"}, TRUTH, 30),
        ({"dataset_digest": "2", "dataset": "alias"}, TRUTH, 30),
        ({"dataset_digest": "2", "split": "mine", "ids": [f"i{k}" for k in range(29, -1, -1)]},
         TRUTH[::-1], 30),
        ({"dataset_digest": "2", "split": "mine"}, np.concatenate([TRUTH[:7], OTHER[7:]]), 7),
        # Files that count from 0 in every split: the same ids, other pictures.
        ({"dataset_digest": "2", "split": "mine"}, OTHER, 0),
        ({"dataset_digest": "2", "dataset": "stranger"}, OTHER, 0),
        ({"dataset_digest": "2", "split": "mine", "ids": [f"j{k}" for k in range(30)]}, OTHER, 0),
        # Other weights cannot tell: ids count within the data set.
        ({"dataset_digest": "2", "split": "mine", "weights_digest": "x"}, OTHER, 30),
        ({"dataset_digest": "2", "dataset": "stranger", "weights_digest": "x"}, TRUTH, 0),
    ],
)  # fmt: skip
def test_splits_are_told_apart_by_their_items(
    change: dict[str, Any], truth: Any, images: int
) -> None:
    evaluated = Gallery.of([store("evaluated", TRUTH, dataset_digest="1")])
    fitted = Fitted.of([store("fitted", truth, **change)], "tuned on")
    found = saw([fitted], evaluated.stores, evaluated.image_rows)
    assert [line["images"] for line in found] == ([images] if images else [])


@pytest.mark.parametrize(("split", "seen"), [("val", True), ("train", False)])
def test_where_the_stores_are_gone_the_name_is_what_is_left(split: str, seen: bool) -> None:
    evaluated = Gallery.of([store("evaluated", TRUTH, dataset_digest="1")])
    gone = Fitted("trained on", "tiny", split, "9")
    found = saw([gone], evaluated.stores, evaluated.image_rows)
    assert [line["images"] for line in found] == ([None] if seen else [])


def test_every_fitted_method_of_the_comparison_says_what_it_was_fitted_on() -> None:
    val = Gallery.of([store("v", TRUTH, dataset_digest="1")])
    train = Gallery.of([store("t", OTHER, dataset_digest="2", split="train")])
    models = single_models(val)
    linear = concatenation_linear(val, train, val)
    methods = [*models, mean_of_cosines(models), tuned_sum(models, val), linear]
    result = measure(val, methods, resamples=100)
    told = [[line["how"] for line in method["saw_split"]] for method in result["methods"]]
    assert told == [[], [], ["tuned on"], ["stopped by"]]
    assert flattered(result["methods"][-1], result["protocol"]) == "stopped by val"


def test_what_looks_at_all_queries_stands_apart(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    plain = measured("test")
    result = measured("test", "--transductive")
    names = [method["name"] for method in result["methods"]]
    apart = [name for name in names if name.endswith(", transductive")]
    assert names == [method["name"] for method in plain["methods"]] + apart
    assert len(apart) == 5
    for name in apart:
        one = result["by_name"][name]
        assert (one["class"], one["gain_over_simple"]) == ("transductive", None)
        assert [entry["how"] for entry in one["saw_split"]] == ["bank from"]
        assert one["gain"]["p"] is None
    assert not set(apart) & {
        method[gain]["over"]
        for method in result["methods"]
        for gain in ("gain", "gain_over_simple")
        if method[gain]
    }
    refused = CliRunner().invoke(
        command, ["recall", "--split", "test", "--transductive", "--quick"]
    )
    assert refused.exit_code == 2
    assert "needs --correct auto" in refused.output
