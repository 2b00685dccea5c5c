"""`${VAR}` in a manifest: replaced where it says a place, sent nowhere, an error elsewhere."""

from __future__ import annotations

from pathlib import Path

import makers
import pytest
from click.testing import CliRunner

from hada.extract.cli import extract
from hada.extract.common.errors import ManifestError
from hada.extract.common.variables import Rule, expand
from hada.extract.manifest import load_manifest, load_shipped
from hada.pipelines.study.config import load_pipeline

VALUES = {"DISK": "/data", "CANARY": "dont-send-me", "BUCKET": "s3://mine/top", "SCHEME": "http:"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("API_TOKEN", "dont-send-me")
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${DISK}/x", "/data/x"),
        ("a/${CANARY}/b", "a/dont-send-me/b"),
        ("${NOWHERE:-stores}/x", "stores/x"),
        ("${NOWHERE:-}x", "x"),
        ("${NOWHERE:-s3://theirs/x}", "s3://theirs/x"),
        ("${BUCKET}", "s3://mine/top"),
        ("${BUCKET}/x", "s3://mine/top/x"),
        ("${BUCKET:-stores}/x?y", "s3://mine/top/x?y"),
        ("s3://theirs/${NOWHERE:-x}", "s3://theirs/x"),
        ("$DISK", "$DISK"),
    ],
)
def test_a_place(text: str, expected: str) -> None:
    assert expand(text, Rule.PLACE, "m.yaml, line 1", "stores") == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://host/${CANARY}",
        "http://${CANARY}/x",
        "http://${CANARY}@host/",
        "http://h/?q=${CANARY}",
        "http://h/#${CANARY}",
        "http://h:${CANARY}/",
        "${SCHEME}//host/${CANARY}",
        "${SCHEME}//host/x",
        "${NOWHERE:-http}://host/${CANARY}",
        "${NOWHERE:-http://host}/${CANARY}",
        "${BUCKET}.evil.example/x",
        "${BUCKET}@evil.example/x",
        "${BUCKET}/${CANARY}",
        "simplecache::http://host/${CANARY}",
        "${CANARY}://host",
        "${DISK}::http://host/x",
        "s3://bucket/${DISK}",
        "file:///x/${CANARY}",
        "${API_TOKEN}",
        "x/${API_TOKEN:-y}",
        "${NOWHERE}",
        "${CANARY:?gone}",
        "${CANARY",
        "${}",
        "${${CANARY}}",
    ],
)
@pytest.mark.parametrize("rule", [Rule.PLACE, Rule.WEIGHTS])
def test_what_would_be_sent_is_refused(text: str, rule: Rule) -> None:
    with pytest.raises(ManifestError, match=r"^m\.yaml, line 1: .stores.") as error:
        expand(text, rule, "m.yaml, line 1", "stores")
    assert "dont-send-me" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "org/${CANARY}",
        "${NOWHERE:-org}/${CANARY}",
        "hf-hub:o/${CANARY}",
        "${CANARY}/${CANARY}",
        "${CANARY}-x",
    ],
)
def test_weights_are_no_id_of_a_hub_with_a_value_inside(text: str) -> None:
    with pytest.raises(ManifestError, match="looked up on a hub"):
        expand(text, Rule.WEIGHTS, "m.yaml, line 1", "weights")


def test_weights_on_this_machine() -> None:
    for text, expected in {
        "${DISK}/x.pt": "/data/x.pt",
        "./w/${CANARY}.pt": "./w/dont-send-me.pt",
        "${NOWHERE:-org/name}": "org/name",
        "/w/${CANARY}/${CANARY}": "/w/dont-send-me/dont-send-me",
    }.items():
        assert expand(text, Rule.WEIGHTS, "m.yaml, line 1", "weights") == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dataset: tiny", "dataset: ${CANARY}"),
        ("models: [one, two]", "models: [one, '${CANARY}']"),
        ("reader: karpathy", "reader: ${CANARY}"),
        ("family: fake", "family: ${CANARY}"),
        ("https://example.org/tiny", "https://example.org/${CANARY}"),
        ("dataset_tiny.json", "${CANARY}.json"),
        ("images: images", "images: ${CANARY}"),
        ("train: {}", "train: {from: ['${CANARY}']}"),
        ("pooled: true", "pooled: '${CANARY}'"),
        ("stores: stores", "stores: http://host/${CANARY}"),
        ("weights: a", "weights: {default: org/${CANARY}}"),
        ("root: data", "root: ${API_TOKEN}"),
        ("width: 10", "regions: http://host/${CANARY}"),
    ],
)
def test_everywhere_else_it_is_an_error_with_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = makers.make_project(tmp_path)
    manifest.write_text(makers.MANIFEST.replace(old, new, 1))
    done = CliRunner().invoke(extract, ["--split", "val"])
    assert done.exit_code == 2
    assert "data_manifest.yaml, line" in done.output
    assert "dont-send-me" not in done.output


def test_the_documented_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = makers.MANIFEST.replace("stores: stores", "stores: ${BUCKET}/stores")
    text = text.replace("runs: runs", "runs: ${DISK}/runs").replace("root: data", "root: ${DISK}")
    text = text.replace("weights: a", "weights: {tiny: '${DISK}/a', default: b}")
    text = text.replace("width: 10", "regions: '${DISK}/{dataset}'")
    file = tmp_path / "m.yaml"
    file.write_text(text)
    manifest = load_manifest(file)
    assert (manifest.stores, manifest.runs) == ("s3://mine/top/stores", "/data/runs")
    assert manifest.dataset("tiny").root == Path("/data")
    assert manifest.model("one").weights["tiny"] == "/data/a"
    assert manifest.model("two").options["regions"] == "/data/{dataset}"
    assert load_shipped({}).models


def test_a_pipeline_has_variables_of_the_shell_only(tmp_path: Path) -> None:
    manifest = load_manifest(makers.make_project(tmp_path))
    file = tmp_path / "study.yaml"
    study = "schema: 1\nextract: [{dataset: tiny, splits: [val]}]\ncluster: "
    file.write_text(study + "{setup: ['source ${HOME}/env.sh']}")
    assert load_pipeline(file, manifest).cluster.setup == ("source ${HOME}/env.sh",)
    for field in ("queue: '${CANARY}'", "directives: ['--comment=${CANARY}']"):
        file.write_text(f"{study}{{{field}}}")
        with pytest.raises(ManifestError, match="uses a variable"):
            load_pipeline(file, manifest)
