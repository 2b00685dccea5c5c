"""Reading from memory, from files and in windows: the same batches, within the memory allowed."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from fuse_fakes import make_store

from hada.extract.common import host
from hada.extract.common.errors import UsageError
from hada.fuse.tokens import placement
from hada.fuse.tokens.loader import Loader
from hada.fuse.tokens.placement import GIB, batches_bytes, choose_reading
from hada.fuse.tokens.prefetch import ahead_in_windows
from hada.fuse.tokens.split import Split
from hada.fuse.tokens.windows import window_sizes

MODELS = ("left", "right", "flat")
ORDERS = pytest.mark.parametrize("order", ["images", "pairs"])


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """100 images in shards of 8 and of 16, the last ones not full."""
    root = tmp_path_factory.mktemp("stores")
    sizes = {"left": (8, 10), "right": (16, 50), "flat": (8, 200)}
    return [make_store(root, m, "train", images=100, shards=sizes[m]) for m in MODELS]


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    return Split([make_store(tmp_path_factory.mktemp("val"), m, "val") for m in MODELS])


def split_that_reads(stores, way):
    split = Split(stores, in_memory=way == "memory")
    if way == "device":
        split.reside(torch.device("cpu"))
    return split


def loader_of(stores, way, shards=0, order="images", batch_size=12, seed=0):
    split = split_that_reads(stores, way)
    return Loader(split, order, batch_size, seed, shards=shards, windows=way == "window")


@pytest.fixture(scope="module")
def expected(stores):
    """The plain loop's batches of some epochs, each made once: (epoch, first step) -> batches."""

    @functools.cache
    def made(order, shards):
        plain = loader_of(stores, "mapped", shards, order, seed=5)
        return {
            (number, first): [
                plain.split.batch(order, items).to("cpu")
                for items in plain.epoch(number).steps[first:]
            ]
            for number, first in ((0, 0), (1, 3), (2, 0))
        }

    return made


def tensors(batch):
    """Everything that a batch holds, by name."""
    found = {"ids": batch.ids_B, "owner": batch.caption_to_image_T}
    for side in ("image", "caption"):
        features = getattr(batch, side)
        for m, (nodes, layout) in enumerate(zip(features.nodes, features.layouts, strict=True)):
            found[f"{side} {m} nodes"] = nodes
            found[f"{side} {m} embeddings"] = features.embeddings[m]
            for field in dataclasses.fields(layout):
                found[f"{side} {m} {field.name}"] = getattr(layout, field.name)
    return found


def assert_same(batches, others):
    for one, two in zip(batches, others, strict=True):
        a, b = tensors(one), tensors(two)
        for name in a:
            assert (a[name] is None and b[name] is None) or torch.equal(a[name], b[name]), name


@ORDERS
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("way", "shards"),
    [
        ("mapped", 0),
        ("mapped", 2),
        ("memory", 2),
        ("device", 0),
        ("device", 2),
        ("window", 2),
        ("window", 9),
    ],
)
def test_batches_are_those_of_the_plain_loop(stores, expected, order, threads, way, shards):
    loader = loader_of(stores, way, shards, order, seed=5)
    for (number, first), batches in expected(order, shards).items():
        assert_same(loader.batches(loader.epoch(number), first, threads=threads), batches)


@ORDERS
def test_the_order_of_windows_depends_on_seed_and_epoch_alone(stores, order):
    loader = loader_of(stores, "mapped", 2, order, seed=1)
    split = loader.split
    count = split.images if order == "images" else split.captions
    first = loader.epoch(2)
    assert [s.tolist() for s in first.steps] == [s.tolist() for s in loader.epoch(2).steps]
    assert sorted(np.concatenate(first.steps).tolist()) == list(range(count))
    assert sorted(np.concatenate(first.windows).tolist()) == list(range(split.images))
    for seed, epoch in ((1, 3), (2, 2)):
        other = loader_of(stores, "mapped", 2, order, seed=seed).epoch(epoch)
        assert first.steps[0].tolist() != other.steps[0].tolist()
        assert [w.tolist() for w in first.windows] != [w.tolist() for w in other.windows]
    # Blocks are the larger shards, 16 images: 7 of them, 2 in a window.
    assert len(first.windows) == 4
    assert all(len(np.unique(w // 16)) == 2 for w in first.windows[:3])
    for items, (low, high) in zip(first.steps, first.needs, strict=True):
        assert high <= low + 1
        images = items if order == "images" else split.caption_to_image[items]
        here = np.concatenate(first.windows[low : high + 1])
        assert np.isin(images, here).all()
        # Shuffled inside: a step is not a run of neighbours.
        assert (np.diff(images) < 0).any()


def test_failed_items_are_left_out_of_windows_too(stores, monkeypatch):
    failed = np.zeros(100, bool)
    failed[16:32] = True  # a whole block
    failed[[0, 40, 99]] = True
    monkeypatch.setattr(stores[1].image, "failed", failed)
    plain = split_that_reads(stores, "mapped")
    loader = loader_of(stores, "window", 1, batch_size=8)
    epoch = loader.epoch(0)
    assert loader.split.images == 81
    assert len(epoch.windows) == 6
    expected = [plain.batch("images", items).to("cpu") for items in epoch.steps]
    assert_same(loader.batches(epoch), expected)


def test_never_are_three_windows_in_memory(stores):
    """The third of three is read only when no step of the first is left to be made."""
    epoch = loader_of(stores, "mapped", 1, batch_size=10).epoch(0)
    lock, made, left = threading.Lock(), [], {}
    for low, high in epoch.needs:
        for k in range(low, high + 1):
            left[k] = left.get(k, 0) + 1
    reads = []

    def read(number):
        with lock:
            assert all(left[k] == 0 for k in range(number - 1)), number
            reads.append(number)
        return number

    def make(items, windows):
        with lock:
            for k in windows:
                left[k] -= 1
            made.append((items.tolist(), windows))
        return windows

    found = list(ahead_in_windows(read, make, epoch, 0, threads=3))
    assert reads == list(range(len(epoch.windows)))
    assert [(w[0], w[-1]) for w in found] == epoch.needs
    assert len(made) == len(epoch)


def test_an_error_in_a_thread_arrives(stores):
    loader = loader_of(stores, "window", 2)

    def broken(number, images):
        raise OSError(f"window {number}")

    loader._windows.read = broken
    with pytest.raises(OSError, match="window 0"):
        list(loader.batches(loader.epoch(0)))


def test_windows_in_memory_need_windows_in_the_order(stores):
    with pytest.raises(ValueError, match="the whole split is shuffled"):
        loader_of(stores, "window", 0)


def choose(stores, val, **options):
    return choose_reading(Split(stores, in_memory=False), val, "images", 12, **options)


def test_auto_chooses_by_free_memory(stores, val, monkeypatch):
    train = Split(stores, in_memory=False)
    everything = train.bytes + val.bytes
    for free, mode in (
        (2.1 * everything, "memory"),
        (1.9 * everything, "mapped"),
        (0.9 * train.bytes, "mapped"),  # too little even for windows, with the batches
    ):
        monkeypatch.setattr(placement, "free_memory", lambda free=free: free)
        found = choose(stores, val)
        assert found.mode == mode, free
        assert "half of what is free" in str(found)
        assert str(found).startswith(f"{mode}: the tokens take ")
    monkeypatch.setattr(placement, "batches_bytes", lambda *_: 0)
    for begun, mode, shards in (
        (None, "window", 2),
        (1, "window", 1),
        (0, "mapped", 0),
        (6, "mapped", 6),  # begun where there was more memory: the order stays
    ):
        found = choose(stores, val, begun=begun, memory=0.8 * train.bytes)
        assert (found.mode, found.shards) == (mode, shards)


def test_the_gpu_holds_what_fits_there(stores, val, monkeypatch):
    train = Split(stores, in_memory=False)
    gpu = torch.device("cuda", 0)
    needed = train.bytes + val.bytes + batches_bytes(train, "images", 12, threads=1)
    for free, mode in ((1.01 * needed / placement.DEVICE_SHARE, "device"), (needed, "memory")):
        monkeypatch.setattr(placement, "free_on_device", lambda _, free=free: free)
        found = choose(stores, val, device=gpu)
        assert (found.mode, found.device) == (mode, gpu if mode == "device" else None)
        # A run that began in windows keeps its order there too.
        assert choose(stores, val, device=gpu, begun=2).shards == 2
    with pytest.raises(UsageError, match=r"--reading device: the tokens take .* of cuda:0 may be"):
        choose(stores, val, mode="device", device=gpu)
    monkeypatch.undo()
    cpu = torch.device("cpu")
    assert choose(stores, val, device=cpu).mode == "memory"
    with pytest.raises(UsageError, match="cpu has no memory of its own"):
        choose(stores, val, mode="device", device=cpu)


def test_a_split_on_a_device_holds_nothing_else(stores):
    """Its tokens, in the type they are stored in; validation reads them there too."""
    split = split_that_reads(stores, "device")
    plain = split_that_reads(stores, "mapped")
    for side in ("image", "caption"):
        for source in split.sources[side]:
            assert source.held is None
            assert not source.has_tokens or source.resident.bytes == source.bytes
        items = np.arange(len(split.rows(side)))[::-3]
        ours, theirs = split.features(side, items), plain.features(side, items)
        assert all(map(torch.equal, ours.nodes, theirs.nodes))


def test_everything_goes_to_a_gpu_through_pinned_memory(stores, monkeypatch):
    """What CUDA alone has is faked here: pinned memory, and a place behind it."""
    made, pinned, went = torch.empty, [], []

    def empty(*sizes, pin_memory=False, **options):
        room = made(*sizes, **options)
        if pin_memory:
            pinned.append(room.data_ptr())
        return room

    monkeypatch.setattr(torch, "empty", empty)
    split = Split(stores, in_memory=False, pinned=True)
    batch = split.batch("images", np.arange(5))
    nodes = [x for side in (batch.image, batch.caption) for x in side.nodes]
    # Tokens are read into it, without a second copy; single embeddings are gathered before.
    assert [x.data_ptr() in pinned for x in nodes] == [True, True, False] * 2

    def pin(tensor):
        copy = tensor.clone()
        pinned.append(copy.data_ptr())
        return copy

    def to(tensor, *target, non_blocking=False):
        went.append((target, non_blocking, tensor.data_ptr() in pinned))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    arrived = batch.to("cuda:1")
    monkeypatch.undo()
    assert_same(
        [arrived], [split_that_reads(stores, "mapped").batch("images", np.arange(5)).to("cpu")]
    )
    assert set(went) == {(("cuda:1",), True, True)}
    assert len(went) == sum(x is not None for x in tensors(batch).values())


def test_nothing_is_pinned_where_there_is_no_gpu(stores, monkeypatch):
    def refused(*_):
        raise AssertionError("pinned")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
    batch = split_that_reads(stores, "mapped").batch("images", np.arange(5))
    assert_same([batch.to("cpu")], [batch.to(torch.device("cpu", 0))])


@pytest.mark.gpu
def test_batches_of_a_split_on_a_gpu(stores, val):
    device = torch.device("cuda")
    plain, split = split_that_reads(stores, "mapped"), split_that_reads(stores, "mapped")
    found = choose_reading(split, val, "images", 12, device=device)
    assert found.mode == "device"
    found.apply(split, val)
    loader = Loader(split, "images", 12, 0)
    epoch = loader.epoch(0)
    batches = [b.to("cpu") for b in loader.batches(epoch, device=device)]
    assert_same(batches, [plain.batch("images", items).to("cpu") for items in epoch.steps])


@pytest.mark.gpu
@pytest.mark.parametrize(("way", "shards"), [("memory", 0), ("mapped", 0), ("window", 2)])
def test_pinned_batches_reach_a_gpu_whole(stores, way, shards):
    """Many small batches, made by threads that do not wait for their copies."""
    split = Split(stores, in_memory=way == "memory", pinned=True)
    batch = split.batch("images", np.arange(3))
    assert batch.image.nodes[0].is_pinned()
    loader = Loader(split, "images", 3, 0, shards=shards, windows=way == "window")
    plain = split_that_reads(stores, "mapped")
    for number in range(5):
        epoch = loader.epoch(number)
        batches = [b.to("cpu") for b in list(loader.batches(epoch, device="cuda", threads=3))]
        expected = [plain.batch("images", items).to("cpu") for items in epoch.steps]
        assert_same(batches, expected)


def test_what_was_asked_for_must_fit(stores, val):
    train = Split(stores, in_memory=False)
    with pytest.raises(UsageError, match=r"--reading memory: the tokens take .* Use --reading map"):
        choose(stores, val, mode="memory", memory=1000)
    with pytest.raises(UsageError, match="this run shuffles the whole split"):
        choose(stores, val, mode="window", begun=0)
    with pytest.raises(UsageError, match=r"two windows of 2 shards .* Give --memory 0.0\d or more"):
        choose(stores, val, mode="window", memory=1000)
    assert choose(stores, val, mode="mapped", memory=1000).mode == "mapped"
    # A window of 1 block may have 4 images (the last one), a step has 12.
    batches = batches_bytes(train, "images", 12)
    for shards in (2, 5):
        enough = batches + val.bytes * 4 + 2 * int(window_sizes(train)[shards - 1])
        held = choose(stores, val, mode="window", memory=enough)
        assert held.shards >= shards
        assert (
            2 * int(window_sizes(train)[held.shards - 1]) + batches + held.hold_val * val.bytes
            <= enough
        )
    with pytest.raises(UsageError, match="two windows of 6 shards"):
        choose(
            stores,
            val,
            mode="window",
            memory=batches + 2 * int(window_sizes(train)[5 - 1]),
            begun=6,
        )


MEASURE = """
import sys
from pathlib import Path
from hada.extract.common.host import reuse_freed_memory
from hada.extract.store import open_store
from hada.fuse.tokens.loader import Loader
from hada.fuse.tokens.split import Split
from hada.fuse.tokens.placement import choose_reading

def status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024

mode, bound, store = sys.argv[1], float(sys.argv[2]), sys.argv[3]
reuse_freed_memory()
train, val = (Split([open_store(store)], in_memory=False) for _ in range(2))
way = choose_reading(train, val, "images", 16, mode=mode, memory=bound)
assert not way.hold_val or mode == "memory"
train.batch("images", train.image_rows[:1])
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
anonymous, most = status("RssAnon"), 0
way.apply(train, val)
loader = Loader(train, "images", 16, 0, shards=way.shards, windows=way.mode == "window")
for number in range(2):
    for batch in loader.batches(loader.epoch(number)):
        most = max(most, status("RssAnon") - anonymous)
print(train.bytes, most if mode == "mapped" else status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells its peak")
def test_the_memory_allowed_is_kept(tmp_path, big_store):
    """Resident memory, as the kernel counts it, on a store that is larger than what is allowed.

    Of the mapped files' pages, which the system may take back, nothing counts.
    """
    bound = 60 * 2**20
    # Blocks that the allocator keeps for the next batch come and go with the threads' timing.
    kept = 8 * 2**20
    took = {}
    for mode, limit in (("window", bound), ("mapped", bound), ("memory", 10 * bound)):
        words = [sys.executable, "-c", MEASURE, mode, str(limit), str(big_store)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        total, took[mode] = map(int, done.stdout.split())
        assert total > 1.5 * bound
    assert took["window"] <= bound + kept
    assert took["mapped"] <= bound + kept
    # Memory mode holds train and val: the measure sees what is held.
    assert took["memory"] >= 2 * total


@pytest.fixture(scope="module")
def big_store(tmp_path_factory):
    """About 100 MiB of tokens in 32 shards."""
    from hada.extract.spec import ModelSpec, StoreSpec, TokenSpec
    from hada.extract.store import write_store

    images, width = 1024, 512
    random = np.random.default_rng(0)
    owner = np.repeat(np.arange(images), 2)
    lengths = random.integers(8, 40, len(owner))
    model = ModelSpec(
        name="big",
        family="fake",
        weights_digest="0",
        embedding_width=None,
        normalized=False,
        image=TokenSpec(width=width, count=50),
        caption=TokenSpec(width=width, count=None),
    )
    path = tmp_path_factory.mktemp("big") / "store"
    write_store(
        path,
        StoreSpec(
            model=model,
            dataset="big",
            split="train",
            dataset_digest="0",
            rows_per_shard={"image": 32, "caption": 64},
        ),
        ids={"image": list(map(str, range(images))), "caption": list(map(str, range(len(owner))))},
        caption_to_image=owner,
        tokens={
            "image": [np.full((50, width), k % 7, np.float16) for k in range(images)],
            "caption": [np.full((n, width), n, np.float16) for n in lengths],
        },
    )
    return path


def test_free_memory_is_the_least_of_machine_and_job(tmp_path):
    assert 0 < host.free_memory() < 2**50
    inner = tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    assert host._free_of_job(tmp_path, own) == float("inf")
    for folder, limit in ((inner, "max"), (inner.parent, str(6 * 2**30))):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{4 * 2**30}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {2**30}\n")
    assert host._free_of_job(tmp_path, own) == 3 * GIB
