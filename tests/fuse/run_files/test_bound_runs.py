"""What lies in a run's folder is what was written, of this run and of one moment, or is told."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fuse_fakes import make_store, make_world
from small_trainings import FAST, SETTINGS, call, job, without_time

from hada.evaluate.search.index import Index
from hada.extract.common.errors import HadaError, RunError
from hada.extract.store import open_store
from hada.fuse.exchange.hub import HadaModel
from hada.fuse.recipes import Recipe
from hada.fuse.run_files.checkpoint import LAST, PREVIOUS
from hada.fuse.run_files.config import CONFIG
from hada.fuse.run_files.sealed import check_sealed
from hada.fuse.run_files.weights import BEST
from hada.fuse.run_folder import METRICS, RunFolder, weights_digest
from hada.fuse.tokens.split import Split
from hada.fuse.training import checkpoint
from hada.fuse.training.trainer import build_objective, build_optimizer, train
from hada.fuse.verify import bind, examine

pytestmark = pytest.mark.slow

WORDS = ["train", "--manifest", "toy.yaml", "--report-to=none", "--set=save_minutes=0",
         "--epochs=2", *SETTINGS]  # fmt: skip
INDEX = "index-val-image.npz"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs of different seeds, each with an index, and the first one exported."""
    folder = tmp_path_factory.mktemp("bound")
    make_world(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed in ("0", "1"):
            assert call(*WORDS, "--seed", seed, "--run", f"run{seed}")[0] == 0
            values = np.random.default_rng(int(seed)).normal(size=(5, 8)).astype(np.float32)
            index = Index(values, list("abcde"), "key")
            index.save(folder / f"run{seed}" / INDEX, weights_digest(folder / f"run{seed}"))
        assert call("export", "run0", "saved")[0] == 0
    return folder


@pytest.fixture
def run(runs, tmp_path):
    return Path(shutil.copytree(runs / "run0", tmp_path / "run0"))


@pytest.fixture(scope="module")
def parts(runs):
    """What a checkpoint is loaded into."""
    stores = [open_store(runs / "stores/toy/train" / name) for name in ("left", "right")]
    recipe = Recipe.from_json(RunFolder(runs / "run0").config()["recipe"])
    objective = build_objective(recipe, Split(stores), 0)
    return objective, build_optimizer(recipe, objective)


def read(folder, parts, *, resuming=True):
    """All that is ever read of a run, piece by piece: a value, or the error in its place."""

    def resume():
        run, said, (objective, optimizer) = RunFolder(folder), [], parts
        run.config()
        position = checkpoint.load_last(run, objective, optimizer, torch.device("cpu"), said.append)
        return position, said, [v.numpy().tobytes() for v in objective.state_dict().values()]

    def best():
        fuser, mix = RunFolder(folder).load_best()
        return [v.numpy().tobytes() for m in (fuser, mix) for v in m.state_dict().values()]

    def index():
        found = Index.load(folder / INDEX, "key")
        return found and (found.ids, found.embeddings.tobytes())

    pieces = {
        "config": lambda: RunFolder(folder).config(),
        "best": best,
        "metrics": lambda: RunFolder(folder).metrics(),
        "index": index,
        "position": lambda: RunFolder(folder).position(),
        "resume": resume,
    }
    found = {}
    if not resuming:
        del pieces["resume"]  # `position` decides the same, and loads nothing
    for name, piece in pieces.items():
        try:
            found[name] = piece()
        except HadaError as error:
            found[name] = error
    return found


def told(folder, parts, whole, *, resuming=True):
    """Whether a change was told; asserts that what was read in silence is what was written."""
    errors = 0
    faults = examine(folder)
    for name, value in read(folder, parts, resuming=resuming).items():
        if isinstance(value, HadaError) or (name == "resume" and value[1]):
            errors += 1
        elif name == "position" and value != whole[name]:
            # Of the checkpoint before; `resume` says so.
            assert faults, "another position in silence"
        else:
            assert value == whole[name], f"{name} changed in silence"
    assert faults or not errors, "verify calls whole what a reader refuses"
    return bool(faults)


def restore(runs, run):
    """Every file as it was: a resumed training puts the older checkpoint in place."""
    for name in (CONFIG, BEST, METRICS, LAST, PREVIOUS, INDEX):
        shutil.copyfile(runs / "run0" / name, run / name)


def test_a_trained_run_and_an_export_are_whole(runs, monkeypatch):
    monkeypatch.chdir(runs)
    code, out, _ = call("verify", "run0", "run1", "saved")
    assert (code, out) == (0, "run0: whole\nrun1: whole\nsaved: whole\n")
    assert {p.name for p in (runs / "run0").iterdir()} == {
        CONFIG, BEST, METRICS, LAST, PREVIOUS, INDEX, "lock"
    }  # fmt: skip
    # Stock libraries open them.
    assert torch.load("run0/last.pt", weights_only=True)["position"]["epoch"] == 2
    with np.load(runs / "run0" / INDEX) as file:
        assert file["embeddings"].shape == (5, 8)


def test_one_flipped_bit_anywhere_is_told_or_harmless(runs, run, parts):
    whole = read(run, parts)
    rng = random.Random(12)
    harmless = 0
    for name in (CONFIG, BEST, METRICS, LAST, PREVIOUS, INDEX):
        file = run / name
        data = file.read_bytes()
        ends = [*range(8), *range(len(data) - 120, len(data))]
        for at in [*rng.sample(range(len(data)), 22), *rng.sample(ends, 12)]:
            changed = bytearray(data)
            changed[at] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            harmless += not told(run, parts, whole, resuming=name == LAST)
            restore(runs, run)
    assert harmless < 10  # white space in config.json


def test_flips_in_an_exported_model_are_told(runs, tmp_path):
    folder = Path(shutil.copytree(runs / "saved", tmp_path / "saved"))
    want = {k: v.clone() for k, v in HadaModel.from_pretrained(folder).state_dict().items()}
    rng = random.Random(3)
    for name in ("config.json", "model.safetensors"):
        data = (folder / name).read_bytes()
        for at in rng.sample(range(len(data)), 25):
            changed = bytearray(data)
            changed[at] ^= 1 << rng.randrange(8)
            (folder / name).write_bytes(changed)
            try:
                got = HadaModel.from_pretrained(folder).state_dict()
            except HadaError:
                assert examine(folder)[0].file.name == name or name == "model.safetensors"
                continue
            assert all(torch.equal(value, got[key]) for key, value in want.items())
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("name", [CONFIG, BEST, METRICS, LAST, PREVIOUS, INDEX])
def test_cut_emptied_and_other_contents_are_told(runs, run, parts, name):
    whole = read(run, parts)
    data = (run / name).read_bytes()
    others = [b"", data[:-2], data[:40], data[: len(data) // 2], data + b"x", bytes(len(data))]
    others += [b"[1, 2]", b'"text"', b"7", b"null", b"{}", b"[" * 5000, b"\xff\xfe", b"9" * 5000]
    for other in others:
        restore(runs, run)
        (run / name).write_bytes(other)
        # What follows the lines that the checkpoint remembers is a killed process's, and cut off.
        assert told(run, parts, whole) or (name == METRICS and other == data + b"x"), other[:20]


@pytest.mark.parametrize(
    ("name", "kind"),
    [(CONFIG, "foreign"), (BEST, "foreign"), (METRICS, "damaged"), (LAST, "foreign"),
     (PREVIOUS, "foreign"), (INDEX, "stale")],
)  # fmt: skip
def test_a_file_of_another_run_is_told(runs, run, parts, name, kind):
    whole = read(run, parts)
    shutil.copy(runs / "run1" / name, run / name)
    assert kind in {fault.kind for fault in examine(run)}
    # The index's key does not know the run: here it is the same, its weights are not.
    found = read(run, parts) if name in (CONFIG, INDEX) else None
    if found is None:
        assert told(run, parts, whole)
    elif name == CONFIG:
        assert isinstance(found["best"], RunError)
        assert "best.safetensors: foreign: it belongs to another run" in str(found["best"])


def test_best_weights_of_an_older_epoch_are_told(splits, tmp_path):
    made = job(splits, tmp_path, FAST.changed(epochs=1))
    position = train(made)
    first = (tmp_path / BEST).read_bytes()
    with torch.no_grad():
        made.objective.temperature.add_(0.1)
    checkpoint.save_best(made.run, made.objective, 1)
    with pytest.raises(RunError, match="foreign"):  # the training was finished
        RunFolder(tmp_path).load_tensors()
    position.finished = ""
    checkpoint.save_last(made.run, made.objective, made.optimizer, position)
    (tmp_path / BEST).write_bytes(first)
    checkpoint.save_best(made.run, made.objective, 1)
    run = RunFolder(tmp_path)
    run.load_tensors()  # the process died before the checkpoint knew of them
    position.epoch, position.best_epoch = 2, 1
    checkpoint.save_last(made.run, made.objective, made.optimizer, position)
    run.load_tensors()
    (tmp_path / BEST).write_bytes(first)
    with pytest.raises(RunError, match=r"foreign: not the weights that last\.pt remembers; put it"):
        run.load_tensors()
    (tmp_path / BEST).unlink()
    with pytest.raises(RunError, match="missing: it was there; put it back"):
        run.load_tensors()


def stopped(splits, path, saves):
    """A training that died after so many checkpoints."""
    save, count = checkpoint.save_last, 0

    def save_then_die(self, *args):
        nonlocal count
        save(self, *args)
        count += 1
        if count == saves:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_last", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            train(job(splits, path, FAST.changed(save_minutes=0)))


@pytest.fixture(scope="module")
def uninterrupted(splits, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    made = job(splits, path, FAST)
    train(made)
    return made


def ends_like(uninterrupted, made):
    for key, value in uninterrupted.objective.state_dict().items():
        assert torch.equal(value, made.objective.state_dict()[key]), key
    one, two = uninterrupted.run, made.run
    assert (one.path / BEST).read_bytes() == (two.path / BEST).read_bytes()
    assert without_time(one.metrics()) == without_time(two.metrics())


@pytest.mark.parametrize("saves", [3, 12, 13])
def test_a_damaged_checkpoint_falls_back_and_ends_the_same(
    splits,
    tmp_path,
    uninterrupted,
    saves,
):
    """In the first epoch, at the end of one, and just after."""
    stopped(splits, tmp_path, saves)
    data = bytearray((tmp_path / LAST).read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / LAST).write_bytes(data)
    before = check_sealed(tmp_path / PREVIOUS)["position"]
    made = job(splits, tmp_path, FAST.changed(save_minutes=0))
    made.report = (said := []).append
    train(made)
    assert said[0] == (
        f"{tmp_path / LAST}: damaged: its bytes are not those that were written. Training goes on "
        f"from the checkpoint before: epoch {before['epoch'] + 1}, step {before['step']}"
    )
    ends_like(uninterrupted, made)


def test_without_a_good_checkpoint_there_is_one_error(splits, tmp_path):
    stopped(splits, tmp_path, 4)
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(RunError, match=r"no checkpoint to go on from \(last.pt: damaged: .*; prev"):
        train(job(splits, tmp_path, FAST))
    (tmp_path / LAST).unlink()
    (tmp_path / PREVIOUS).unlink()


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_kill_between_any_two_renames_leaves_a_run_that_goes_on(
    splits,
    tmp_path,
    uninterrupted,
    monkeypatch,
    links,
):
    """The n-th rename never happens; the next process knows nothing of it."""
    real, count, failing_call = os.replace, 0, 1

    def dying(*places):
        nonlocal count, failing_call
        count += 1
        if count == failing_call:
            count, failing_call = 0, failing_call + 1
            raise KeyboardInterrupt
        real(*places)

    def no_link(*_places):
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "replace", dying)
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    for _ in range(40):
        made = job(splits, tmp_path, FAST.changed(save_minutes=0.0005))
        try:
            train(made)
        except KeyboardInterrupt:
            continue
        break
    assert failing_call > 4
    ends_like(uninterrupted, made)


def make_old(run):
    """A run's folder as it was written before there were checksums."""
    from safetensors.torch import load, save

    (run / PREVIOUS).unlink()
    (run / INDEX).unlink()
    config = json.loads((run / CONFIG).read_text())
    config.pop("checksum")
    (run / CONFIG).write_text(json.dumps({**config, "format": 1}, indent=2))
    (run / BEST).write_bytes(save(load((run / BEST).read_bytes()), {"format": "1"}))
    state = torch.load(run / LAST, weights_only=True)
    torch.save({**state, "format": 1}, run / LAST)


def test_runs_of_before_there_were_checksums_open_and_can_be_bound(runs, run, parts, monkeypatch):
    want = read(run, parts)
    make_old(run)
    monkeypatch.chdir(run.parent)
    got = read(run, parts)
    for name in ("best", "metrics", "position"):
        assert got[name] == want[name]
    code, out, said = call("verify", "run0")
    assert code == 1
    assert out.count("unbound: it is of before there were checksums; hada-fuse verify --bind") == 3
    assert out.endswith("run0: not whole: unbound\n")
    old = shutil.copytree(run, run.parent / "old")
    code, out, said = call("verify", "--bind", "run0")
    assert (code, out) == (0, "run0: whole\n"), said
    assert "run0: best.safetensors, last.pt, config.json bound" in said
    got = read(run, parts)
    for name in ("best", "metrics", "position"):
        assert got[name] == want[name]
    assert bind(run) == []
    # An old file does not pass for one of a bound run.
    for name in (BEST, LAST, CONFIG):
        kept = (run / name).read_bytes()
        shutil.copy(old / name, run / name)
        assert examine(run)
        (run / name).write_bytes(kept)
    # zip's own checksums tell of old checkpoints what they can.
    data = bytearray((old / LAST).read_bytes())
    data[len(data) // 2] ^= 1
    (old / LAST).write_bytes(data)
    code, out, said = call("verify", "--bind", "old")
    assert code == 2
    assert "is not what was written" in said


def test_an_old_run_goes_on(runs, tmp_path, monkeypatch):
    """Killed by the version before, continued by this one."""
    monkeypatch.chdir(runs)
    run = tmp_path / "run0"
    monkeypatch.setattr(checkpoint, "save_last", dying_save := Dying(5))
    assert call(*WORDS, "--run", str(run))[0] == 130
    monkeypatch.setattr(checkpoint, "save_last", dying_save.real)
    shutil.copy(runs / "run0" / INDEX, run / INDEX)
    make_old(run)
    assert call(*WORDS, "--run", str(run))[0] == 0
    tensors = [RunFolder(folder).load_tensors() for folder in (run, runs / "run0")]
    assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())
    bind(run)
    assert examine(run) == []


class Dying:
    """`checkpoint.save_last`, fatal the n-th time."""

    def __init__(self, left):
        self.real, self.left = checkpoint.save_last, left

    def __call__(self, *args):
        self.real(*args)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": "left"}, "models: expected a list, got text"),
        ({"models": []}, "models: expected 1 to"),
        ({"recipe": [1]}, "recipe: expected a mapping, got a list"),
        ({"recipe": {"heads": "4"}}, "recipe: network.heads: expected a whole number, got text"),
        ({"recipe": {"heads": 0}}, "recipe: heads: expected at least 1"),
        ({"recipe": {"skip": 1}}, "recipe: network.skip: expected true or false"),
        ({"recipe": {"hedas": 1}}, "recipe: unknown recipe setting 'hedas'"),
        ({"branches": {"image": 3}}, "branches.image: expected a mapping"),
        ({"features": {"left": {"family": 1}}}, "features"),
        ({"format": 99}, "format: expected 2 or 1, got 99"),
        ({"format": True}, "format: expected"),
        ({"window_shards": -1}, "window_shards: expected at least 0"),
        ({"dataset": None}, "dataset: expected text"),
    ],
)
def test_a_config_of_wrong_types_names_the_field(run, change, says):
    config = json.loads((run / CONFIG).read_text())
    config.pop("checksum")
    (run / CONFIG).write_text(json.dumps({**config, "format": 1, **change}))
    with pytest.raises(RunError) as caught:
        RunFolder(run).config()
    assert says in str(caught.value)
    assert CONFIG in str(caught.value)
    assert "\n" not in str(caught.value)
    assert examine(run)[0].kind == "damaged"


def test_the_branches_of_a_config_are_checked_field_by_field(run):
    config = json.loads((run / CONFIG).read_text())
    config.pop("checksum")
    for field, value, says in (
        ("node_width", 10**9, "node_width: expected 1 to"),
        ("out_width", -1, "out_width: expected at least 1"),
        ("heads", 2.5, "heads"),
        ("dropout_head", 1.5, "dropout_head: expected at least 0"),
        ("nodes", 3, "unknown field 'nodes'"),
        ("models", [{"node_width": "10"}], "models"),
        ("edges", {"own": "much"}, "edges.own"),
    ):
        branches = json.loads(json.dumps(config["branches"]))
        branches["image"][field] = value
        (run / CONFIG).write_text(json.dumps({**config, "format": 1, "branches": branches}))
        with pytest.raises(RunError) as caught:
            RunFolder(run).config()
        assert says in str(caught.value)
        assert "branches.image" in str(caught.value)


def test_embeddings_of_other_weights_or_stores_are_made_anew_or_refused(tmp_path, monkeypatch):
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["embed", "--manifest", "toy.yaml", "run", "--split", "val"]
    assert call(*WORDS, "--run", "run")[0] == 0
    assert call(*words)[0] == 0
    assert call(*words, "--output", "mine")[0] == 0
    place = tmp_path / "stores/toy/val/run"
    first = np.array(open_store(place).image.embeddings())
    assert "stale" not in call(*words)[2]
    # The same spec and other contents: extracted again from other pictures, say.
    shutil.rmtree(tmp_path / "stores/toy/val/left")
    make_store(tmp_path / "stores", "left", "val", images=16, noise=0.9)
    code, _, said = call(*words)
    assert code == 0, said
    assert "stale: it is of other weights or stores. It is made anew" in said
    second = np.array(open_store(place).image.embeddings())
    assert not np.array_equal(first, second)
    code, _, said = call(*words, "--output", "mine")
    assert code == 2
    assert "preprocessing" in said
    assert call(*WORDS, "--run", "run", "--seed=3", "--fresh")[0] == 0
    assert "stale" in call(*words)[2]
    assert not np.array_equal(second, open_store(place).image.embeddings())


def test_verify_says_what_is_not_whole_and_what_to_do(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    (run / LAST).write_bytes((run / LAST).read_bytes()[:-3])
    code, out, said = call("verify", "run0")
    assert code == 1
    assert out.startswith("run0/last.pt: damaged: ")
    assert "start over with --fresh" in out
    assert out.endswith("run0: not whole: damaged\n")
    assert "1 of 1 not whole" in said
    assert call("verify", "nowhere")[0] == 2
    (run / BEST).unlink()
    assert "best.safetensors: missing: it was there" in call("verify", "run0")[1]
