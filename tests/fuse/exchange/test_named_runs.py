"""An exported fusion is a run by another name: the same numbers from every command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fuse_fakes import make_store
from small_trainings import SETTINGS, call

from hada.evaluate.cli import evaluate
from hada.extract.common.errors import RunError
from hada.extract.store import open_store
from hada.fuse.cli import fuse
from hada.fuse.embedding import embed_split
from hada.fuse.exchange.hub import HadaModel
from hada.fuse.fitted import fitted_on
from hada.fuse.run_folder import RunFolder, weights_digest

BASE = ["train", "--manifest", "toy.yaml", "--epochs", "1"]
# What a score may be made of.
KINDS = {
    "small": SETTINGS,
    "nodes": ["--set", "heads=1"],  # the default: nodes, a CCA head, corrected hubs
    "closed-form": ["--recipe", "closed-form", "--epochs", "0"],
    "one share": [
        *("--recipe", "pooled", *SETTINGS, "--set", "scores=first"),
        *("--set", "tune_scores=false", "--set", "score_weights=0.3"),
    ],
    "re-ranked": [*SETTINGS, "--set", "weight_itm=1"],
}


def run(*words: str) -> Any:
    done = CliRunner().invoke(fuse, [*words])
    assert done.exit_code == 0, done.output
    return done


def val_stores(world: Path) -> list[Any]:
    return [open_store(world / "stores" / "toy" / "val" / name) for name in ("left", "right")]


def put_into_the_cache(folder: Path, cache: Path, name: str, commit: str = "0" * 40) -> Path:
    """As the Hub's client lays out what it has downloaded: blobs, and links of a commit."""
    top = cache / f"models--{name.replace('/', '--')}"
    snapshot = top / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (top / "blobs").mkdir(exist_ok=True)
    (top / "refs").mkdir(exist_ok=True)
    (top / "refs" / "main").write_text(commit)
    for file in folder.iterdir():
        shutil.copy(file, top / "blobs" / f"{commit}-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{commit}-{file.name}")
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub client's cache, which read its place when it was imported."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.mark.parametrize(
    "kind",
    [k if k == "one share" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS],
)
def test_an_export_embeds_as_its_run_to_the_last_bit(world: Path, kind: str) -> None:
    assert call(*BASE, *KINDS[kind], "--run", "run")[0] == 0
    run("export", "run", "out")
    stores = val_stores(world)
    own, exported = (embed_split(name, stores, device="cpu") for name in ("run", "out"))
    for a, b in zip(own, exported, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (own.nodes is None) == (kind in ("closed-form", "one share"))
    assert own.shares == exported.shares
    assert own.node_share == exported.node_share
    for field in ("penalties", "node_penalties"):
        pairs = getattr(own, field), getattr(exported, field)
        assert (pairs[0] is None) == (pairs[1] is None)
        for a, b in zip(*(pair or () for pair in pairs), strict=True):
            np.testing.assert_array_equal(a, b)
    for (_, a), (_, b) in zip(own.scores(), exported.scores(), strict=True):
        np.testing.assert_array_equal(a, b)
    # What fitted the run travels too: whoever reports figures has to know.
    assert fitted_on(RunFolder("out").config()) == fitted_on(RunFolder("run").config())
    assert RunFolder("out").recipe() == RunFolder("run").recipe()
    kept = {name for name in RunFolder("run").load_tensors() if name != "temperature"}
    assert set(RunFolder("out").load_tensors()) == kept
    text = (world / "out" / "config.json").read_text()
    assert str(world) not in text, "an export tells no paths of the machine that made it"


@pytest.mark.slow
def test_recall_and_report_of_an_export_have_the_runs_figures(world: Path) -> None:
    assert call(*BASE, *KINDS["re-ranked"], "--run", "runs/toy/mine")[0] == 0
    run("export", "runs/toy/mine", "out/mine")
    results = []
    for name in ("runs/toy/mine", "out/mine"):
        words = ["recall", "--manifest", "toy.yaml", "--split", "val", "--run", name, "--quick"]
        words += ["--rerank", "4", "--resamples", "100", "--json", "-o", f"{len(results)}.json"]
        done = CliRunner().invoke(evaluate, words)
        assert done.exit_code == 0, done.output
        methods = json.loads(done.stdout)["methods"]
        assert any("match head" in method["name"] for method in methods), [
            m["name"] for m in methods
        ]
        for method in methods:
            # What it took differs from time to time.
            method.get("second_stage", {}).pop("milliseconds_per_query", None)
        results.append([{**method, "run": ""} for method in methods])
    assert results[0] == results[1]
    words = ["report", "out/mine", "--manifest", "toy.yaml", "--split", "val", "--quick"]
    done = CliRunner().invoke(evaluate, [*words, "--resamples", "100"])
    assert done.exit_code == 0, done.output
    # An export may be read-only, or go to the Hub: nothing is put into it.
    assert done.stdout.strip().endswith("mine-exported/report-val.html")
    files = {file.name for file in (world / "out" / "mine").iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors"}


@pytest.mark.slow
def test_an_export_of_the_hub_is_found_in_the_clients_cache(world: Path, cache: Path) -> None:
    assert call(*BASE, *SETTINGS, "--run", "run")[0] == 0
    run("export", "run", "out")
    put_into_the_cache(world / "out", cache, "me/left-right")
    folder = RunFolder("hf-hub:me/left-right")
    assert folder.exported
    assert folder.name == "left-right"
    assert weights_digest("hf-hub:me/left-right") == weights_digest("out")
    words = ["--manifest", "toy.yaml", "--split", "val"]
    run("embed", "hf-hub:me/left-right", *words)
    run("embed", "run", *words)
    one, two = (open_store(f"stores/toy/val/{name}") for name in ("left-right", "run"))
    np.testing.assert_array_equal(one.image.embeddings(), two.image.embeddings())
    done = run("verify", "hf-hub:me/left-right", "out")
    assert done.stdout == "hf-hub:me/left-right: whole\nout: whole\n"
    assert HadaModel.from_pretrained("hf-hub:me/left-right", cache_dir=cache).recipe == "fast"
    # A revision: the client's own names of commits.
    other = put_into_the_cache(world / "out", cache, "me/left-right", "1" * 40)
    assert RunFolder(f"hf-hub:me/left-right@{'1' * 40}").path == other
    assert RunFolder(f"hf-hub:me/left-right@{'0' * 40}").path != other


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf-hub:me/none", "hf-hub:me/none: not to be had from the Hub, nor downloaded before"),
        ("hf-hub:", "not to be had from the Hub"),
        ("hf-hub:../../etc", "not to be had from the Hub"),
        ("hf-hub:me/bare", "model.safetensors is missing there: not a model of hada-fuse export"),
    ],
)
def test_what_is_not_on_this_machine_is_one_message(
    world: Path, cache: Path, name: str, says: str
) -> None:
    (world / "bare").mkdir()
    (world / "bare" / "config.json").write_text("{}")
    put_into_the_cache(world / "bare", cache, "me/bare")
    words = ["embed", name, "--split", "val", "--manifest", "toy.yaml"]
    done = CliRunner().invoke(fuse, words)
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_export_of_an_earlier_version_retrieves_the_same(world: Path) -> None:
    """Without `run` in its configuration: the recipe is told by the rest."""
    from hada.fuse.run_files.exported import seal_weights

    for kind in ("nodes", "one share"):
        assert call(*BASE, *KINDS[kind], "--run", kind)[0] == 0
        run("export", kind, f"{kind}-out")
        file = world / f"{kind}-out" / "config.json"
        config = {k: v for k, v in json.loads(file.read_text()).items() if k != "run"}
        file.write_text(json.dumps(config))
        seal_weights(file.with_name("model.safetensors"), config)
        stores = val_stores(world)
        pair = [embed_split(name, stores, device="cpu") for name in (kind, f"{kind}-out")]
        for a, b in zip(*pair, strict=True):
            np.testing.assert_array_equal(a, b)
        assert fitted_on(RunFolder(f"{kind}-out").config())[0]["how"] == "trained elsewhere"


@pytest.mark.slow
def test_a_damaged_or_half_export_is_refused_by_name(world: Path) -> None:
    assert call(*BASE, *SETTINGS, "--run", "run")[0] == 0
    run("export", "run", "out")
    file = world / "out" / "model.safetensors"
    whole = file.read_bytes()
    for change, says in (
        (whole[:-8], "model.safetensors"),
        (whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], "model.safetensors"),
    ):
        file.write_bytes(change)
        with pytest.raises(RunError, match=says):
            RunFolder("out").load_best()
    file.write_bytes(whole)
    config = world / "out" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"seed": 0', '"seed": 1'))
    assert config.read_text() != text
    with pytest.raises(RunError, match=r"not the one that model\.safetensors was written with"):
        RunFolder("out").config()
    config.unlink()
    with pytest.raises(RunError, match=r"config.json: missing"):
        RunFolder("out").config()


@pytest.mark.slow
def test_no_training_goes_on_in_an_export_but_begins_with_it(world: Path) -> None:
    assert call(*BASE, *SETTINGS, "--run", "run")[0] == 0
    run("export", "run", "out")
    before = {file.name: file.read_bytes() for file in (world / "out").iterdir()}
    for more in ([], ["--fresh"]):
        done = CliRunner().invoke(fuse, [*BASE, *SETTINGS, "--run", "out", *more])
        assert done.exit_code == 2, done.output
        assert "an exported fusion, in which no training goes on" in done.stderr
    after = {f.name: f.read_bytes() for f in (world / "out").iterdir() if f.name in before}
    assert after == before
    assert call(*BASE, *SETTINGS, "--run", "second", "--init", "out")[0] == 0
    assert len(fitted_on(RunFolder("second").config())) == 2
    # An export of an export is the same model.
    run("export", "out", "again")
    assert RunFolder("again").config() == RunFolder("out").config()


@pytest.mark.slow
def test_a_run_is_applied_to_another_data_set(world: Path) -> None:
    assert call(*BASE, *SETTINGS, "--run", "run")[0] == 0
    text = (world / "toy.yaml").read_text()
    begin, end = text.index("  toy:"), text.index("\nmodels:") + 1
    other = text[begin:end].replace("  toy:", "  other:")
    (world / "toy.yaml").write_text(text[:end] + other + text[end:])
    for name in ("left", "right"):
        store = make_store(world / "elsewhere", name, "val", images=16)
        target = world / "stores" / "other" / "val" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(store.path, target)
    run("embed", "run", "--dataset", "other", "--split", "val", "--manifest", "toy.yaml")
    assert open_store(world / "stores/other/val/run").spec.model.name == "run"
