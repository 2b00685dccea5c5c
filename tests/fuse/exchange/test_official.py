"""The authors' checkpoints: read safely, made into runs, and computing what theirs compute."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fuse_fakes import make_world
from fuse_golden import load_npz, load_safetensors

from hada.extract.common.errors import CheckpointError, UsageError
from hada.extract.spec import ModelSpec, StoreSpec, TokenSpec
from hada.extract.store import open_store, write_store
from hada.fuse.cli import fuse
from hada.fuse.embedding import embed_split
from hada.fuse.exchange.import_official import import_checkpoint
from hada.fuse.exchange.official import our_names, read_official
from hada.fuse.recipes import RECIPES
from hada.fuse.training.trainer import build_objective

TEMPERATURE = 0.05


def store_of(folder, name, tokens, embeddings):
    """A store of given features, in float32: tokens per side as (rows, lengths)."""
    width, counts = tokens["image"][0].shape[1], len(embeddings["image"])
    spec = StoreSpec(
        model=ModelSpec(
            name=name,
            family="fake",
            weights_digest=name,
            embedding_width=embeddings["image"].shape[1],
            normalized=False,
            image=TokenSpec(width=width, count=None),
            caption=TokenSpec(width=width, count=None),
        ),
        dataset="toy",
        split="test",
        dataset_digest="d" * 16,
        dtype="float32",
    )
    write_store(
        folder / name,
        spec,
        ids={side: [f"{side}{n}" for n in range(counts)] for side in ("image", "caption")},
        caption_to_image=np.arange(counts),
        embeddings=embeddings,
        tokens={
            side: np.split(rows, lengths.cumsum()[:-1]) for side, (rows, lengths) in tokens.items()
        },
    )
    return open_store(folder / name)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The golden inputs as two stores, and the expected embeddings of each side."""
    folder = tmp_path_factory.mktemp("golden")
    sides = {
        "image": load_npz("hada_m_C5_forward_img.npz"),
        "caption": load_npz("hada_m_C5_forward_cap.npz"),
    }
    stores = [
        store_of(
            folder,
            name,
            {s: (z[f"in.node_{name}"], z[f"in.n_node_{name}"]) for s, z in sides.items()},
            {s: z[f"in.cls_{name}"] for s, z in sides.items()},
        )
        for name in ("albef", "dot")
    ]
    return stores, {side: z["eval.out_l2"] for side, z in sides.items()}


def checkpoint_of(path, encoder, disc=None, **more):
    """A file as the authors' `save_model` writes it, their NumPy scalar and Parameter included."""
    width = 4 * next(v for k, v in encoder.items() if k.endswith("linear.0.weight")).shape[0]
    disc = disc or {"disc.linear.0.weight": torch.zeros(1, width)}
    content = {
        "epoch": 7,
        "img_encoder": encoder,
        "cap_encoder": encoder,
        "discriminator": disc,
        "temp_para": torch.nn.Parameter(torch.tensor(TEMPERATURE)),
        "best_loss": np.float64(-530.5),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
    }
    torch.save(content | more, path)
    return path


def test_golden_weights_through_a_checkpoint_a_run_and_embedding(golden, tmp_path):
    stores, want = golden
    encoder = load_safetensors("hada_m_C5_mh_weights_f16.safetensors")
    path = checkpoint_of(tmp_path / "best.pth.tar", encoder)
    # The golden inputs are standardised already.
    run = import_checkpoint(path, stores, tmp_path / "run", settings={"inputs": "as-is"})
    found = embed_split(run, stores[::-1], device="cpu")
    np.testing.assert_allclose(found.fused_image, want["image"], atol=1e-6)
    np.testing.assert_allclose(found.fused_caption, want["caption"], atol=1e-6)
    assert found.shares == (1.0,) + (0.0,) * len(found.own)
    assert float(run.load_tensors()["temperature"]) == pytest.approx(TEMPERATURE)
    assert run.recipe().network.norm == "batch"
    with pytest.raises(UsageError, match="holds a run already"):
        import_checkpoint(path, stores, tmp_path / "run")


def theirs(branch):
    """A branch's weights under the authors' names, the LayerNorms that never act included."""
    state = branch.state_dict()
    found = {}
    for name, value in state.items():
        key = name
        for m in range(len(branch.config.models)):
            key = key.replace(f"project.{m}.", f"enc.gcn.trans_{m + 1}.")
        key = key.replace("graph.attention.", "enc.gcn.gcn.conv.0.")
        key = key.replace("graph.mix.", "enc.gcn.gcn.conv_lin.0.")
        key = key.replace("head.", "enc.lin." if branch.graph is not None else "enc.")
        found[key.replace(".linear.", ".linear.0.").replace(".norm.", ".norm.0.")] = value
    if branch.graph is None:
        found |= {f"enc.norm.0.{k}": torch.ones(branch.config.out_width) for k in ("weight",)}
    assert set(our_names(found).values()) == set(state)
    return found


OFF = {"second_from_first": "false"}
SMALL = {"node_width": 8, "head_width": 6, "graph_width": 6, "out_width": 5, "queue": 0}


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("hada-extend", {"weight_albef": 0.4}),
        ("hada-lavis", {}),
        ("hada-lavis-weighted", {"weight_1": 0.4}),
        ("hada-lavis-both", {"weight_0": 1.0, "weight_1": 0.5, "weight_2": 0.25}),
        ("concat", {}),
    ],
)
def test_every_published_model_is_recognised(golden, tmp_path, name, weights):
    """What a recipe's network computes survives the way out under their names and back."""

    from hada.fuse.tokens.split import Split

    stores, _ = golden
    recipe = RECIPES[name].changed(**SMALL)
    lavis = {"first_tokens_only": "true"} if recipe.features.first_tokens_only else {}
    split = Split(stores, first_tokens_only=recipe.features.first_tokens_only)
    recipe = recipe.changed(second_from_first=False)
    fuser = build_objective(recipe, split, 0).fuser.eval()
    scalars = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in weights.items()}
    disc = {"disc.linear.0.weight": torch.randn(1, 20), "disc.linear.0.bias": torch.randn(1)}
    path = checkpoint_of(tmp_path / "best.pth.tar", theirs(fuser.image), disc, **scalars)
    run = import_checkpoint(path, stores, tmp_path / "run", settings=lavis | OFF)
    again, mix = run.load_best()
    kept = run.load_tensors()
    for part in ("weight", "bias"):  # the matching head re-ranks, so it comes along
        assert torch.equal(kept[f"discriminator.head.linear.{part}"], disc[f"disc.linear.0.{part}"])
    with torch.no_grad():
        batch = split.features("image", np.arange(5))
        assert torch.equal(again.image(batch), fuser.image(batch))
    if lavis:
        (tmp_path / "run").rename(tmp_path / "corrected")
        config = import_checkpoint(path, stores, tmp_path / "run", settings=lavis).config()
        assert config["recipe"]["network"]["second_from_first"] is True
        assert config["branches"]["image"]["models"][1]["has_tokens"] is False
        found = embed_split(tmp_path / "run", stores, device="cpu")
        assert np.isfinite(found.fused_image).all()
    values = np.array([*weights.values()])
    shares = {0: [1], 1: [1 - values.sum(), values.sum()]}.get(len(values), values / values.sum())
    np.testing.assert_allclose(mix.shares()[: len(shares)], shares, rtol=1e-6)
    assert run.recipe().network.convolution == recipe.network.convolution


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_is_refused_and_not_run(golden, tmp_path):
    encoder = {"enc.linear.0.weight": torch.zeros(4, 1024), "enc.linear.0.bias": torch.zeros(4)}
    path = checkpoint_of(tmp_path / "best.pth.tar", encoder, extra=Evil(tmp_path / "owned"))
    with pytest.raises(CheckpointError, match="that can run code"):
        read_official(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda c: c.pop("cap_encoder"), "no checkpoint of HADA: cap_encoder not among its keys"),
        (lambda c: c["img_encoder"].update({"enc.linear.0.bias": torch.full((4,), np.nan)}),
         "enc.linear.0.bias is not a tensor of finite numbers"),
        (lambda c: c.update(img_encoder=[1]), "img_encoder: expected named tensors, got list"),
    ],
)  # fmt: skip
def test_other_files_are_named(tmp_path, spoil, says):
    encoder = {"enc.linear.0.weight": torch.zeros(4, 1024), "enc.linear.0.bias": torch.zeros(4)}
    path = checkpoint_of(tmp_path / "best.pth.tar", encoder)
    content = torch.load(path, weights_only=False)
    spoil(content)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=says):
        read_official(path)


def test_weights_of_other_models_do_not_fit(golden, tmp_path):
    stores, _ = golden
    encoder = load_safetensors("hada_m_C5_mh_weights_f16.safetensors")
    path = checkpoint_of(tmp_path / "best.pth.tar", encoder)
    with pytest.raises(CheckpointError, match="does not fit these models' stores"):
        import_checkpoint(path, stores[:1], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command(tmp_path, monkeypatch):
    """From a file to a store of fused embeddings, with models of other widths."""

    from hada.fuse.tokens.split import Split

    manifest = make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    stores = [open_store(tmp_path / "stores" / "toy" / "val" / m) for m in ("left", "right")]
    fuser = build_objective(RECIPES["hada-extend"].changed(**SMALL), Split(stores), 0).fuser
    checkpoint_of(tmp_path / "best.pth.tar", theirs(fuser.image), weight_albef=torch.tensor(0.3))
    words = ["--model", "left", "--model", "right", "--manifest", str(manifest), "--split", "val"]
    result = CliRunner().invoke(fuse, ["import", "best.pth.tar", *words])
    assert result.exit_code == 0, result.stderr
    run = result.stdout.strip()
    assert run == "runs/toy/left+right-imported"
    done = CliRunner().invoke(fuse, ["embed", run, "--split", "val", "--manifest", str(manifest)])
    assert done.exit_code == 0, done.stderr
    (tmp_path / "cut.pth.tar").write_bytes((tmp_path / "best.pth.tar").read_bytes()[:500])
    result = CliRunner().invoke(fuse, ["import", "cut.pth.tar", *words, "--run", "other"])
    assert result.exit_code == 2
    assert "truncated" in result.stderr
