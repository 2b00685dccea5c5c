"""A pipeline's YAML: what it may say, and what is told of what it must not."""

from __future__ import annotations

import json
from pathlib import Path

import layouts
import pytest
from jobs_fakes import PIPELINE, make_study
from places import ROOT

from hada.extract.common.errors import ManifestError
from hada.extract.datasets.named import dataset_at, settled
from hada.extract.datasets.table import read_table
from hada.extract.manifest import load_manifest, load_shipped
from hada.extract.remembered import remember_dataset
from hada.pipelines.study.config import load_pipeline
from hada.pipelines.study.datasets import dataset_of
from hada.pipelines.study.jobs import ExtractJob, TrainJob, from_json, of_kind, to_json
from hada.pipelines.study.resolve import build_jobs


def test_jobs_in_order_and_what_they_need(tmp_path: Path) -> None:
    jobs = build_jobs(*make_study(tmp_path))
    keys = [job.key for job in jobs]
    assert keys == [
        "extract/tiny/train/one",
        "extract/tiny/val/one",
        "extract/tiny/train/two",
        "extract/tiny/val/two",
        "train/tiny/one+two-fast-s0",
        "evaluate/tiny/val",
    ]
    assert set(jobs[4].needs) == set(keys[:4])
    assert set(jobs[5].needs) == {keys[1], keys[3], keys[4]}
    assert all(Path(job.store).is_absolute() for job in of_kind(jobs, ExtractJob))


def test_jobs_travel_as_json(tmp_path: Path) -> None:
    for job in build_jobs(*make_study(tmp_path)):
        assert from_json(json.loads(json.dumps(to_json(job)))) == job
        assert len(json.dumps(to_json(job))) < 4000


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("models: [one, two], splits", "models: [one, tow], splits", "line 5.*'tow'.*'two'"),
        ("splits: [train, val]", "splits: [train, vall]", "line 5.*'vall'.*'val'"),
        ("shard_size", "shardsize", "line 5: unknown key.*'extract.shard_size'|'shard_size'"),
        ("shard_size: 3", "shard_size: 0", "line 5.*1 or more, got 0"),
        ("shard_size: 3", "tokens: pool", "line 5.*expected all, none or pool:K"),
        ("shard_size: 3", "store_dtype: float8", "line 5.*'float8'.*float16"),
        ("dataset: tiny\n", "dataset: tny\n", "line 7.*'tny'.*'tiny'"),
        ("epochs: 1", "epoch: 1", "line 9.*'epoch'.*'epochs'"),
        ("    models: [one, two]\n", "    models: one\n", "line 8.*expected a list of models"),
        ("    models: [one, two]\n", "    seeds: [-1]\n", "line 8.*whole numbers from 0"),
        ("    models: [one, two]\n", "    recipe: hadda\n", "line 8.*'hadda'.*'hada'"),
        ("quick: true", "quick: maybe", "line 11.*true or false"),
        ("name: study", "name: a/b", "line 2.*folder"),
        ("schema: 1", "schema: 2", "line 1.*expected schema 1"),
        ("evaluate:", "evaluation:", "line 10.*'evaluation'.*'evaluate'"),
        ("evaluate:", "cluster: {walltime: 4}\nevaluate:", "line 10.*hours:minutes:seconds"),
        ("extract:\n", "fuse2:\n", "unknown key 'fuse2'"),
        ("quick: true", "models: [zwei]", "line 11.*'zwei'"),
    ],
)
def test_mistakes_name_line_and_nearest_word(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert old in PIPELINE
    with pytest.raises(ManifestError, match=f"study.yaml, {expected}|{expected}"):
        make_study(tmp_path, PIPELINE.replace(old, new, 1))


def test_a_fusion_whose_stores_nobody_makes(tmp_path: Path) -> None:
    study = make_study(tmp_path, PIPELINE.replace("splits: [train, val]", "splits: [train]"))
    with pytest.raises(ManifestError, match=r"line 7.*'one' on tiny/val.*hada-extract"):
        build_jobs(*study)


def test_one_run_for_two_things(tmp_path: Path) -> None:
    again = "  - {dataset: tiny, models: [one, two], set: {epochs: 2}}\nevaluate:"
    text = PIPELINE.replace("evaluate:", again)
    with pytest.raises(ManifestError, match=r"line 10.*twice.*`name`"):
        build_jobs(*make_study(tmp_path, text))
    named = text.replace("set: {epochs: 2}", "name: long, set: {epochs: 2}")
    (tmp_path / "study.yaml").write_text(named)
    pipeline, manifest = make_study_again(tmp_path)
    assert [job.key for job in of_kind(build_jobs(pipeline, manifest), TrainJob)] == [
        "train/tiny/one+two-fast-s0",
        "train/tiny/long-s0",
    ]


def make_study_again(folder: Path):
    manifest = load_manifest(folder / "data_manifest.yaml")
    return load_pipeline(folder / "study.yaml", manifest), manifest


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines/examples").glob("*.yaml")), ids=str)
def test_examples_are_valid(path: Path) -> None:
    manifest = load_shipped({})
    assert build_jobs(load_pipeline(path, manifest), manifest)


def test_a_study_of_a_dataset_that_a_command_line_named(tmp_path: Path) -> None:
    """`hada-extract --data` keeps its entry beside the stores; a study may name it, and travels."""
    _, manifest = make_study(tmp_path)
    sample = layouts.make_sample(tmp_path / "photos", images=8)
    entry = dataset_at(
        tmp_path / "photos", split_by="0.5,0.5", columns="image=a,caption=b,caption=c"
    )
    remember_dataset(manifest.stores, settled(read_table(entry)), anew=True)
    file = tmp_path / "study.yaml"
    file.write_text(PIPELINE.replace("tiny", "photos"))
    jobs = build_jobs(load_pipeline(file, manifest), manifest)
    assert jobs[0].key == "extract/photos/train/one"
    for job in jobs:
        assert from_json(json.loads(json.dumps(to_json(job)))) == job
    parts = [dataset_of(job) for job in of_kind(jobs, ExtractJob)[:2]]
    assert sorted(id_ for part in parts for id_ in part.image_ids) == sorted(sample.names)
    assert all(part.image_ids for part in parts)
