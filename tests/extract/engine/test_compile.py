"""`--compile` and the way to a GPU and back: the same features as without."""

from __future__ import annotations

import json
from functools import partialmethod
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
import tiny_clip
import torch
from click.testing import CliRunner
from torch import nn

from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.backbones.torch_base import _stacks, encoded
from hada.extract.cli import extract
from hada.extract.common.errors import UsageError
from hada.extract.store import open_store
from hada.extract.testing.backbone_contract import CAPTIONS, pictures

pytestmark = pytest.mark.slow


def clip(folder: Path, device: str = "cpu") -> Any:
    if not folder.exists():
        tiny_clip.make_folder(folder, tiny_clip.VIT, tiny_clip.TEXT)
    return load_backbone(
        BackboneRequest(name="m", family="clip", weights=str(folder), device=device, options={})
    )


def test_the_blocks_of_both_towers_are_found(tmp_path: Path) -> None:
    backbone = clip(tmp_path / "m")
    stacks = list(_stacks(backbone.model))
    assert [len(list(stack.children())) for stack in stacks] == [2, 2]
    mixed = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    assert list(_stacks(nn.ModuleList([mixed]))) == []


@pytest.mark.filterwarnings("ignore")  # of the compiler itself
def test_compiled_through_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and run as traced; the default backend also writes C++, which takes a minute."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    makers.make_project(tmp_path)
    clip(tmp_path / "m")
    arguments = ["--model", "x=clip:m", "--split", "val", "--batch-size", "2"]
    for place, more in (("plain", ()), ("compiled", ("--compile",))):
        result = CliRunner().invoke(extract, [*arguments, "--root", f"stores={place}", *more])
        assert result.exit_code == 0, result.output
    plain, compiled = (open_store(f"{place}/tiny/val/x") for place in ("plain", "compiled"))
    for side in ("image", "caption"):
        one, two = getattr(plain, side), getattr(compiled, side)
        np.testing.assert_allclose(
            one.tokens(slice(None)).astype(np.float32),
            two.tokens(slice(None)).astype(np.float32),
            atol=4e-3,  # one step of float16
        )
    marker = tmp_path / "compiled" / "tiny" / "val" / "x" / "commit" / "image-000000.json"
    assert json.loads(marker.read_text())["provenance"] == {"batch_size": 2, "compiled": True}


def test_what_cannot_be_compiled(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    result = CliRunner().invoke(extract, ["--split", "val", "--compile"])
    assert result.exit_code == 2
    assert "--compile: family 'fake' is no PyTorch model of ours" in result.output


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = clip(tmp_path / "m")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match="needs a C\\+\\+ compiler"):
        backbone.compile()


@pytest.mark.gpu
def test_arrays_arrive_from_a_gpu_as_they_left(tmp_path: Path) -> None:
    """Several on their way at once, with and without padding, read in any order."""
    backbone, host = clip(tmp_path / "m", "cuda"), clip(tmp_path / "m")
    pixels = np.stack([host.preprocess(picture) for picture in pictures()])
    ids = host.tokenize(CAPTIONS)
    sent = [
        *(backbone.encode_images(pixels[[row]]) for row in range(len(pixels))),
        backbone.encode_captions(ids),
    ]
    expected = [
        *(host.encode_images(pixels[[row]]) for row in range(len(pixels))),
        host.encode_captions(ids),
    ]
    assert all(one.arriving for one in sent)
    for one, other in zip(reversed(sent), reversed(expected), strict=True):
        assert one.wait() >= 0
        np.testing.assert_array_equal(one.lengths, other.lengths)
        np.testing.assert_allclose(one.values, other.values, atol=1e-4)
        np.testing.assert_allclose(one.embeddings, other.embeddings, atol=1e-4)
    assert backbone.clock["transfer"] > 0


@pytest.mark.gpu
def test_a_reused_block_does_not_overwrite_what_is_on_its_way() -> None:
    sent = []
    for number in range(50):
        tokens = torch.full((8, 64, 256), float(number), device="cuda")
        sent.append(encoded(tokens, None, tokens[:, 0]))
        del tokens
    for number, one in enumerate(sent):
        assert (np.asarray(one.values) == number).all()


@pytest.mark.gpu
def test_a_run_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    makers.make_project(tmp_path)
    clip(tmp_path / "m")
    for device in ("cpu", "cuda"):
        arguments = ["--model", "x=clip:m", "--split", "val", "--device", device]
        result = CliRunner().invoke(extract, [*arguments, "--root", f"stores={device}"])
        assert result.exit_code == 0, result.output
    one, two = (open_store(f"{place}/tiny/val/x") for place in ("cpu", "cuda"))
    for side in ("image", "caption"):
        a, b = (getattr(store, side).embeddings(slice(None)) for store in (one, two))
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=4e-3)
    assert len(json.loads((tmp_path / "cache" / "hada" / "batch_sizes.json").read_text())) == 1
