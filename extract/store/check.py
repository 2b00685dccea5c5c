"""Checks whether a store is whole: `hada-store verify` without its output."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hada.extract.common import atomic, remote
from hada.extract.common.errors import HadaError, StoreError, UnreachableError
from hada.extract.spec import SIDES, SideName
from hada.extract.store import commit, damage, seal
from hada.extract.store.reader import open_store, shard_status
from hada.extract.store.record import Record, all_names, read_record, shard_names

# What `extraction` writes beside the features.
ERRORS = "errors.jsonl"
KINDS = ("missing", "damaged", "foreign", "unbound")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    kind: of `KINDS`: it is not there, not as it was written, not of this store, or nothing tells.
    what: the part, e.g. "image shard 3". why: in words.
    """

    kind: str
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.kind}: {self.why}"


@dataclass(frozen=True)
class Verdict:
    """What a check found; `notes` are harmless. shards: how many there should be."""

    folder: Path
    shards: int
    deep: bool
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, damaged, foreign or unbound."""
        return not self.findings

    def text(self) -> str:
        """The verdict in one line, with what to do."""
        if self.whole:
            how = "every byte compared" if self.deep else "sizes and bindings compared"
            return f"{self.folder}: whole ({self.shards} shards, {how})"
        counts = Counter(finding.kind for finding in self.findings)
        said = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
        return f"{self.folder}: not whole: {said}. {self._remedy(set(counts))}"

    def _remedy(self, kinds: set[str]) -> str:
        if kinds == {"unbound"}:
            return f"hada-store upgrade {self.folder}"
        if kinds == {"missing"}:
            return "Extract again: the same command writes what is missing"
        return (
            f"hada-store repair {self.folder} removes bad shards, extracting again writes them "
            "anew; files that are not the store's own are yours to move away, and what else is "
            "damaged needs --fresh"
        )


def check(folder: Path, *, deep: bool = False) -> Verdict:
    """Look at all of a store.

    What `open_store` or any read refuses is found, and what is not refused but was never written
    by HADA, too.

    Args:
        folder: The store's folder or URL.
        deep: Whether every byte is read and compared; else presence and sizes are.

    Raises:
        UnreachableError: Nothing can be known.
    """
    shards = 0
    try:
        record = read_record(folder)
        findings = list(_arrays(record))
        if findings:
            return Verdict(folder, shards, deep, tuple(findings))
        status = shard_status(folder, deep=deep)
    except UnreachableError:
        raise
    except StoreError as error:
        return Verdict(folder, shards, deep, (Finding("damaged", "the record", str(error)),))
    for side, states in status.items():
        shards += len(states)
        for shard, fault in states.items():
            if fault is not None:
                findings.append(Finding(fault.kind, f"{side} shard {shard}", fault))
    if not any(finding.kind == "missing" for finding in findings):
        findings += _binding(record, [(side, k) for side in SIDES for k in status[side]])
    strangers, notes = _files(record, {side: len(status[side]) for side in SIDES})
    findings += strangers
    findings += _errors(record, status)
    if all(finding.kind in ("unbound", "foreign") for finding in findings):
        findings += _reading(folder)
    return Verdict(folder, shards, deep, tuple(findings), tuple(notes))


def _arrays(record: Record) -> Iterator[Finding]:
    wanted, there = set(all_names(record.spec)), record.form.arrays(record.features)
    for name in sorted(wanted - there):
        yield Finding(
            "missing",
            name,
            "the spec declares this array; put it back, or start the store again with --fresh",
        )
    for name in sorted(there - wanted):
        yield Finding("foreign", name, "the spec declares no such array")


def _binding(record: Record, shards: list[tuple[SideName, int]]) -> Iterator[Finding]:
    if not record.root or record.upgrading:
        begun = "binding it was interrupted" if record.upgrading else "it is of the first schema"
        yield Finding(
            "unbound",
            "the store",
            f"{begun}: nothing tells whether its parts belong together; hada-store upgrade "
            f"{record.folder} binds them after a full check",
        )
        return
    markers = commit.read_markers(record.folder, shards)
    if not seal.faults(record.folder, record.root, markers)[0]:
        yield Finding(
            "missing",
            "the seal",
            "all shards are there, but nobody has finished the store: extract again, which "
            "seals it",
        )


def _files(record: Record, counts: dict[SideName, int]) -> tuple[list[Finding], list[str]]:
    """Files that no part of the store accounts for, and what killed writers left."""
    form, inside = record.form, record.features.name
    known = {
        f"{inside}/{name}" for name in form.index_files(record.features, all_names(record.spec))
    }
    known |= {ERRORS, f"{commit.COMMIT}/{seal.FILE}"}
    passing = set()
    for side, count in counts.items():
        arrays = shard_names(record.spec, side)
        for shard in range(count):
            marker = f"{commit.COMMIT}/{commit.marker_name(side, shard)}"
            known.add(marker)
            passing |= {marker.replace(".json", end) for end in (".lock", seal.OPEN)}
            known |= {f"{inside}/{name}" for name in form.shard_files(side, shard, arrays)}
    findings, notes = [], []
    for name in sorted(remote.file_sizes(record.folder)):
        if name in known:
            continue
        if name in passing or atomic.is_temporary(name.rpartition("/")[2]):
            notes.append(f"left by a killed writer, harmless: {name}")
        else:
            findings.append(Finding("foreign", name, "it is no file of this store"))
    return findings, notes


def _errors(
    record: Record, status: dict[SideName, dict[int, damage.Fault | None]]
) -> Iterator[Finding]:
    """`errors.jsonl` names what the markers call failed, where it is there."""
    try:
        lines = remote.read_bytes(record.folder / ERRORS).decode().splitlines()
        said = {int(line["row"]): str(line["reason"]) for line in map(json.loads, lines)}
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        yield Finding("damaged", ERRORS, f"cannot be read ({error}); extracting again writes it")
        return
    if any(fault is not None for fault in status["image"].values()):
        return
    shards: list[tuple[SideName, int]] = [("image", shard) for shard in status["image"]]
    failed: dict[int, str] = {}
    for marker in commit.read_markers(record.folder, shards).values():
        failed |= marker.failed if isinstance(marker, commit.Marker) else {}
    if said != failed:
        yield Finding(
            "damaged",
            ERRORS,
            "it names other pictures than the markers; extracting again writes it",
        )


def _reading(folder: Path) -> Iterator[Finding]:
    """Whatever a reader refuses."""
    try:
        store = open_store(folder)
        for side in SIDES:
            store.side(side).touch()
    except UnreachableError:
        raise
    except HadaError as error:
        yield Finding("damaged", "the store", str(error))
