"""What binds the parts of a store: nothing that was not written together passes for a whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import makers
import pytest
import store_edits
from click.testing import CliRunner

from hada.extract.common.errors import HadaError, StoreError
from hada.extract.store import commit, damage, open_store, record, seal
from hada.extract.store.check import check
from hada.extract.store.record import read_record
from hada.extract.store_cli import store
from hada.extract.testing.store_contract import Content, files_of

pytestmark = pytest.mark.slow

FORMATS = pytest.mark.parametrize("form", ["zarr", "hdf5"])
# Of several hundred edits; `benchmarks/store_edits.py` does them all.
EVERY = 14


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(store, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def unbind(path: Path) -> None:
    """Make a store what an earlier version of HADA wrote: markers with crc32c and no record."""
    known = read_record(path)
    attributes = {key: value for key, value in known.attributes.items() if key != record.BOUND}
    known.form.set_attributes(known.features, attributes)
    (path / "commit" / seal.FILE).unlink()
    for marker in (path / "commit").glob("*-*.json"):
        value = json.loads(marker.read_text())
        for key in ("root", "crcs", "digest"):
            del value[key]
        for name, entry in value["files"].items():
            entry[1] = damage.checksum(known.features / name)
        marker.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


@FORMATS
def test_no_edit_is_silent_and_no_wrong_row_is_read(tmp_path: Path, form: str) -> None:
    whole = store_edits.make_stores(tmp_path, form)
    truth = store_edits.content_of(whole)
    assert store_edits.outcome(whole, truth) == (True, "right")
    for name, edit in list(store_edits.edits(whole))[::EVERY]:
        victim = tmp_path / "victim"
        shutil.copytree(whole, victim)
        edit(victim)
        silent, read = store_edits.outcome(victim, truth)
        assert not silent, name
        assert read != "wrong", name
        shutil.rmtree(victim)


@FORMATS
def test_whatever_a_reader_refuses_verify_names(tmp_path: Path, form: str) -> None:
    whole = store_edits.make_stores(tmp_path, form)
    truth = store_edits.content_of(whole)
    named = 0
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        data = path.read_bytes()
        step = max(1, len(data) // 3)
        for place in range(step // 2, len(data), step):
            flipped = bytearray(data)
            flipped[place] ^= 1 << (place % 8)
            path.write_bytes(flipped)
            is_whole, read = store_edits.outcome(whole, truth)
            assert read != "wrong", (path, place)
            assert read == "right" or not is_whole, (path, place)
            named += not is_whole
        path.write_bytes(data)
    assert named > 20
    assert store_edits.outcome(whole, truth) == (True, "right")


@FORMATS
def test_a_shard_in_another_s_place_is_not_read(tmp_path: Path, form: str) -> None:
    whole = store_edits.make_stores(tmp_path, form)
    glob = {"zarr": "features.zarr/image/embeddings/c/*/0", "hdf5": "features.hdf5/image/*.h5"}
    first, second, _ = sorted(whole.glob(glob[form]))
    content, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(content)
    with pytest.raises(StoreError, match="its marker says"):
        open_store(whole).image.embeddings()
    code, output = call("verify", "--deep", whole)
    assert code == 1
    assert "image shard 0: damaged" in output
    assert "not whole: 2 damaged. hada-store repair" in output
    assert call("repair", whole)[0] == 0
    Content(makers.make_spec(), format=form).write(whole)
    assert call("verify", "--deep", whole) == (
        0,
        f"{whole}: whole (6 shards, every byte compared)\n",
    )


@FORMATS
def test_an_older_version_is_written_anew(tmp_path: Path, form: str) -> None:
    whole = store_edits.make_stores(tmp_path, form)
    before = files_of(whole)
    for name, edit in store_edits.edits(whole):
        if name == "caption-000001 and its files of another older":
            edit(whole)
    with pytest.raises(StoreError, match="not the one that was sealed"):
        open_store(whole)
    assert "caption shard 1: foreign" in call("verify", whole)[1]
    writer = Content(makers.make_spec(), format=form).open(whole)
    assert writer.pending("caption") == [1]
    Content(makers.make_spec(), format=form).write(whole)
    assert files_of(whole) == before


@FORMATS
def test_a_missing_array_is_not_a_model_without_one(tmp_path: Path, form: str) -> None:
    whole = store_edits.make_stores(tmp_path, form)
    wanted = {"zarr": "image/embeddings removed whole", "hdf5": "image/embeddings taken out"}
    for name, edit in store_edits.edits(whole):
        if name.startswith(wanted[form]):
            edit(whole)
    with pytest.raises(StoreError, match="image/embeddings"):
        open_store(whole)
    assert "image/embeddings: missing" in call("verify", whole)[1]


@FORMATS
def test_killed_before_the_seal(tmp_path: Path, form: str) -> None:
    content = Content(makers.make_spec(), format=form)
    content.write(tmp_path / "s")
    whole = files_of(tmp_path / "s")
    (tmp_path / "s" / "commit" / seal.FILE).unlink()
    assert open_store(tmp_path / "s").spec == content.spec
    verdict = check(tmp_path / "s")
    assert [finding.what for finding in verdict.findings] == ["the seal"]
    assert "bound, not sealed yet" in call("info", tmp_path / "s")[1]
    content.write(tmp_path / "s")
    assert files_of(tmp_path / "s") == whole
    # A shard is mended, and the process dies before the store is sealed again.
    commit.marker_path(tmp_path / "s", "image", 1).unlink()
    writer = content.open(tmp_path / "s")
    writer.write("image", 1, content.block(writer, "image", 1, provenance={"batch_size": 3}))
    assert open_store(tmp_path / "s").spec == content.spec
    assert not check(tmp_path / "s").whole
    content.open(tmp_path / "s").finish()
    assert check(tmp_path / "s", deep=True).whole


def test_a_damaged_seal_is_removed_by_repair(tmp_path: Path) -> None:
    content = Content(makers.make_spec())
    content.write(tmp_path / "s")
    (tmp_path / "s" / "commit" / seal.FILE).write_text("{}")
    with pytest.raises(StoreError, match="repair"):
        open_store(tmp_path / "s")
    assert "the seal: removed" in call("repair", tmp_path / "s")[1]
    content.write(tmp_path / "s")
    assert check(tmp_path / "s", deep=True).whole


@FORMATS
def test_upgrade_binds_a_store_of_the_first_schema(tmp_path: Path, form: str) -> None:
    whole = store_edits.make_stores(tmp_path, form)
    truth, before = store_edits.content_of(whole), files_of(whole)
    unbind(whole)
    assert store_edits.content_of(whole) == truth
    code, output = call("verify", "--deep", whole)
    assert code == 1
    assert f"not whole: 1 unbound. hada-store upgrade {whole}" in output
    assert "unbound; hada-store upgrade" in call("info", whole)[1]
    code, output = call("upgrade", whole, whole)
    assert code == 0, output
    assert output.splitlines()[-2:] == [f"{whole}: bound", f"{whole}: is bound already"]
    after = files_of(whole)
    assert {k: v for k, v in after.items() if "index.h5" not in k} == {
        k: v for k, v in before.items() if "index.h5" not in k
    }
    assert store_edits.outcome(whole, truth) == (True, "right")


@FORMATS
def test_upgrade_may_be_killed_at_any_step(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store_edits.make_stores(tmp_path, form)
    truth = store_edits.content_of(whole)
    unbind(whole)
    old, replacing = tmp_path / "old", os.replace
    shutil.copytree(whole, old)
    steps = 0
    for kill in (0, 1, 4, 7, 8, 99):
        shutil.rmtree(whole)
        shutil.copytree(old, whole)
        left = [kill]

        def dying(*names: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise HadaError("killed")
            left[0] -= 1
            replacing(*names)

        monkeypatch.setattr(os, "replace", dying)
        code, _ = call("upgrade", whole)
        monkeypatch.setattr(os, "replace", replacing)
        assert store_edits.content_of(whole) == truth
        assert call("upgrade", whole)[0] == 0
        assert store_edits.outcome(whole, truth) == (True, "right")
        steps += code != 0
    assert steps == 5  # of nine: two records, six markers and a seal


@FORMATS
def test_upgrade_refuses_what_is_damaged(tmp_path: Path, form: str) -> None:
    whole = store_edits.make_stores(tmp_path, form)
    unbind(whole)
    glob = {"zarr": "features.zarr/image/tokens/c/1/0/0", "hdf5": "features.hdf5/image/000001.h5"}
    (shard,) = whole.glob(glob[form])
    data = bytearray(shard.read_bytes())
    data[len(data) // 2 if form == "hdf5" else 3] ^= 1
    shard.write_bytes(data)
    before = files_of(whole)
    code, output = call("upgrade", whole)
    assert code == 1
    assert "image shard 1" in output
    assert files_of(whole) == before


def test_a_failed_row_of_another_shard_is_damage_in_old_stores_too(tmp_path: Path) -> None:
    whole = store_edits.make_stores(tmp_path, "zarr")
    unbind(whole)
    marker = commit.marker_path(whole, "image", 0)
    value = json.loads(marker.read_text())
    marker.write_text(json.dumps(value | {"failed": {"3": "broken"}}))
    with pytest.raises(StoreError, match="rows failed that are not its own"):
        open_store(whole)
    marker.write_text(json.dumps(value | {"shard": 1}))
    with pytest.raises(StoreError, match="put elsewhere"):
        open_store(whole)
