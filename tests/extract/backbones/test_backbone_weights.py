"""Weight files in every state: named, hashed, and refused before anything in them runs."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from hada.extract.backbones import BackboneRequest, load_backbone, weights
from hada.extract.backbones.torch_base import check_device
from hada.extract.common.errors import CheckpointError, UsageError

STATE = {"a.weight": torch.ones(2, 2), "a.bias": torch.zeros(2)}


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("wrap", [None, "model", "state_dict", "model_dict"])
def test_wrappings(tmp_path: Path, wrap: str | None) -> None:
    torch.save({wrap: STATE, "epoch": 3} if wrap else STATE, tmp_path / "a.pth")
    assert weights.read_state_dict(tmp_path / "a.pth").keys() == STATE.keys()
    safetensors.torch.save_file(STATE, tmp_path / "a.safetensors")
    assert weights.read_state_dict(tmp_path / "a.safetensors").keys() == STATE.keys()


def test_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": STATE, "x": Bomb(tmp_path / "touched")}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="can run code"):
        weights.read_state_dict(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "touched")))
    with pytest.raises(CheckpointError):
        weights.read_state_dict(tmp_path / "b.pth")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated(tmp_path: Path, share: float, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    save = torch.save if suffix == "pth" else safetensors.torch.save_file
    save(STATE, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"truncated|damaged"):
        weights.read_state_dict(path)


def test_a_page_instead_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("<html>404</html>")
    with pytest.raises(CheckpointError, match="damaged or not a PyTorch file"):
        weights.read_state_dict(tmp_path / "a.pth")
    torch.save({"epoch": 3}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="holds no tensors; its keys are epoch"):
        weights.read_state_dict(tmp_path / "b.pth")
    torch.save([1, 2], tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        weights.read_state_dict(tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="no weights at"):
        weights.read_state_dict(tmp_path / "missing.pth")


def test_load_strict() -> None:
    inner = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": inner})
    path = Path("x.pth")
    weights.load_strict(model, STATE, path)
    assert torch.equal(inner.weight, STATE["a.weight"])
    many = {**STATE, **{f"b.{n}": torch.zeros(1) for n in range(9)}}
    with pytest.raises(
        CheckpointError, match=r"9 unexpected keys \(b.0, b.1, b.2, b.3, and 5 more\)"
    ):
        weights.load_strict(model, many, path)
    with pytest.raises(CheckpointError, match=r"shape \(3,\), expected \(2,\)"):
        weights.load_strict(model, {**STATE, "a.bias": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        weights.load_strict(model, {**STATE, "a.bias": torch.full((2,), torch.inf)}, path)


def test_digest(tmp_path: Path) -> None:
    for name in ("b.json", "a.safetensors"):
        (tmp_path / name).write_text(name)
    (tmp_path / "README.md").write_text("not part of it")
    files = weights.folder_files(tmp_path)
    assert [file.name for file in files] == ["a.safetensors", "b.json"]
    digest = weights.digest(files)
    assert weights.digest(reversed(files)) == digest
    (tmp_path / "b.json").write_text("other")
    assert weights.digest(files) != digest


@pytest.mark.parametrize("family", ["blip", "dual", "clip"])
def test_offline(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    name = "hf-hub:someone/some-model" if family == "clip" else "someone/some-model"
    request = BackboneRequest(name="m", family=family, weights=name, options={})
    with pytest.raises(CheckpointError, match="give a local folder") as caught:
        load_backbone(request)
    assert "someone/some-model" in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_missing_folders_ask_no_network(name: str) -> None:
    request = BackboneRequest(name="m", family="dual", weights=name, options={})
    with pytest.raises(CheckpointError, match="no model folder at"):
        load_backbone(request)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="finds no CUDA device"):
        check_device("cuda")
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        check_device("gpu")


PREFIXES = ["module.", "model.", "_orig_mod.", "module._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrap", [None, "ema", "model_ema", "model_state_dict"])
def test_a_prefix_of_all_names_is_removed(tmp_path: Path, prefix: str, wrap: str | None) -> None:
    state = {f"{prefix}{name}": value for name, value in STATE.items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "a.pth")
    assert weights.read_state_dict(tmp_path / "a.pth").keys() == STATE.keys()
    assert weights.read_shapes(tmp_path / "a.pth") == {"a.weight": (2, 2), "a.bias": (2,)}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    assert weights.read_state_dict(tmp_path / "a.safetensors").keys() == STATE.keys()
    assert weights.read_shapes(tmp_path / "a.safetensors").keys() == STATE.keys()


def test_a_prefix_of_some_names_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.pth")
    assert weights.read_state_dict(tmp_path / "a.pth").keys() == {"module.a", "b"}
    # torch.compile on a part, and names that would become the same.
    torch.save({"a._orig_mod.b": torch.ones(1), "c": torch.ones(1)}, tmp_path / "b.pth")
    assert weights.read_state_dict(tmp_path / "b.pth").keys() == {"a.b", "c"}
    torch.save({"a._orig_mod.b": torch.ones(1), "a.b": torch.ones(1)}, tmp_path / "c.pth")
    assert weights.read_state_dict(tmp_path / "c.pth").keys() == {"a._orig_mod.b", "a.b"}


def test_the_counter_of_averaged_models_is_no_weight(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(nn.ModuleDict({"a": nn.Linear(2, 2)}))
    torch.save(averaged.state_dict(), tmp_path / "a.pth")
    assert weights.read_state_dict(tmp_path / "a.pth").keys() == STATE.keys()


def test_of_several_wrappings_the_one_with_weights_is_opened(tmp_path: Path) -> None:
    holds = {"model": {"name": "ViT", "depth": 12}, "state_dict": STATE, "ema": {}}
    torch.save(holds, tmp_path / "a.pth")
    assert weights.read_state_dict(tmp_path / "a.pth").keys() == STATE.keys()
    torch.save({"state_dict": {"model": STATE}}, tmp_path / "b.pth")
    assert weights.read_state_dict(tmp_path / "b.pth").keys() == STATE.keys()


def test_missing_keys_are_told_with_the_files_own(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2)})
    with pytest.raises(CheckpointError, match=r"1 missing keys .* own keys are a\.weight, x$"):
        weights.load_strict(model, {"a.weight": STATE["a.weight"]}, Path("f"), ["a.weight", "x"])


def test_torchscript_is_named_and_not_run(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch would rather export
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(CheckpointError, match=r"is a TorchScript archive.*state_dict\(\), NEW"):
        weights.read_state_dict(tmp_path / "ViT-B-32.pt")
