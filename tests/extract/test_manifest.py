"""The manifest: what is right is read, what is wrong is named with its line."""

from __future__ import annotations

import shutil
from pathlib import Path

import makers
import pytest

from hada.extract.common.errors import CheckpointError, ManifestError, UnknownNameError, UsageError
from hada.extract.manifest import check_sums, default_path, load_manifest, load_shipped


@pytest.fixture
def manifest_file(tmp_path: Path) -> Path:
    path = tmp_path / "data_manifest.yaml"
    path.write_text(makers.MANIFEST)
    return path


def test_the_shipped_manifest_is_valid_and_names_the_published_datasets() -> None:
    manifest = load_manifest()
    assert manifest.path == default_path()
    assert {"scenes", "flickr8k", "flickr30k", "coco"} <= set(manifest.datasets)
    assert manifest.dataset("coco").split("train").sources == ("train", "restval")
    assert manifest.dataset().name == manifest.defaults.dataset
    assert manifest.store_path("coco", "val", "blip") == "stores/coco/val/blip"


def test_variables_have_defaults_and_can_be_set(
    manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = makers.MANIFEST.replace("root: data", "root: ${PLACE:-here}/x")
    manifest_file.write_text(text)
    assert load_manifest().dataset("tiny").root == Path("here/x")
    monkeypatch.setenv("PLACE", "there")
    assert load_manifest().dataset("tiny").root == Path("there/x")
    manifest_file.write_text(makers.MANIFEST.replace("root: data", "root: ${NOWHERE}"))
    with pytest.raises(ManifestError, match=r"line 10: .*NOWHERE.*export NOWHERE="):
        load_manifest()


def test_roots_win_over_the_file(manifest_file: Path) -> None:
    manifest = load_manifest(roots={"tiny": "/elsewhere", "stores": "/fast"})
    assert manifest.dataset("tiny").root == Path("/elsewhere")
    assert manifest.store_path("tiny", "val", "one") == "/fast/tiny/val/one"
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny'"):
        load_manifest(roots={"tyni": "x"})
    with pytest.raises(UsageError, match="expected a folder"):
        load_manifest(roots={"tiny": ""})


def test_weights_may_differ_per_dataset(manifest_file: Path) -> None:
    manifest_file.write_text(makers.MANIFEST.replace("weights: a", "weights: {tiny: a, coco: b}"))
    model = load_manifest().model("one")
    assert model.weights_for("tiny") == "a"
    with pytest.raises(ManifestError, match="no weights for dataset 'flickr30k'"):
        model.weights_for("flickr30k")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("    images: images", "    imagse: images"),
            r"line 12: unknown key .*Did you mean 'images'",
        ),
        (
            ("    reader: karpathy", "    reader: karpaty"),
            r"line 9: 'reader' is 'karpaty'. Did you",
        ),
        (("schema: 1", "schema: one"), r"line 1: 'schema': expected a whole number, got 'one'"),
        (("schema: 1", "schema: 2"), r"line 1: expected schema 1, got 2"),
        (("  dataset: tiny", "  dataset: tinny"), r"line 3: unknown dataset 'tinny'. Did you mean"),
        (("[one, two]", "[one, tow]"), r"line 4: unknown model 'tow'. Did you mean 'two'"),
        (("      val: {}", "      val: {images: many}"), r"line 16: .*expected a whole number"),
        (("      val: {}", "      ../val: {}"), r"line 16: '../val' cannot be a name"),
        (
            ("      val: {}", "      val: {form: x}"),
            r"line 16: unknown key .*'datasets.tiny.splits.val.form'",
        ),
        (("images: images", "split_by: 0.5,0.6"), r"line 12: .*expected shares that add up to 1"),
        (
            ("images: images", "columns: {picture: a}"),
            r"unknown key 'datasets.tiny.columns.picture'",
        ),
        (
            ("reader: karpathy", "reader: karpaty"),
            r"'reader' is 'karpaty'. Did you mean 'karpathy'",
        ),
        (
            ("family: fake, weights: b", "weights: b"),
            "'family' is missing",
        ),
        (("stores: stores", "stores: stores\nstores: again"), r"line 6: 'stores' is written twice"),
        (("datasets:", "datasets: ["), r"line \d+: not YAML"),
        (("    root: data\n", ""), r"'root' is missing in 'datasets.tiny'"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    manifest_file: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in makers.MANIFEST
    manifest_file.write_text(makers.MANIFEST.replace(*change))
    with pytest.raises(ManifestError, match=message):
        load_manifest()


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        load_manifest(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("model", ["blip", "clip"])
def test_shipped_weights_are_checked_before_they_are_used(tmp_path: Path, model: str) -> None:
    shipped = Path(load_shipped({}).model(model).weights_for("scenes"))
    copy = tmp_path / "weights"
    shutil.copytree(shipped.parent, copy)
    check_sums(copy / model)
    (weights,) = (copy / model).glob("*.safetensors")
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=rf"{weights.name}: shipped weights are damaged"):
        check_sums(copy / model)
    weights.unlink()
    with pytest.raises(CheckpointError, match="no file"):
        check_sums(copy / model)


def test_every_shipped_file_has_a_sum() -> None:
    weights = Path(load_shipped({}).model("blip").weights_for("scenes")).parent
    listed = {line.split("  ")[1] for line in (weights / "SHA256SUMS").read_text().splitlines()}
    there = {str(path.relative_to(weights)) for path in weights.glob("*/*")}
    assert there - listed == {"blip/README.md", "clip/README.md"}


def test_stores_that_were_imported_need_no_models(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(
        "schema: 1\ndefaults: {dataset: toy}\ndatasets:\n  toy:\n    reader: karpathy\n"
        "    root: .\n    annotations: a.json\n    splits: {test: {}}\n"
    )
    manifest = load_manifest(file)
    assert dict(manifest.models) == {}
    assert manifest.chosen_models(["mine"]) == ("mine",)
    with pytest.raises(UsageError, match=r"no models: .*m\.yaml names none.*give --model NAME"):
        manifest.chosen_models([])
