"""Augmented views: reproducible for every image alone, and stored beside view 0."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torchvision import transforms

from hada.extract.cli import extract
from hada.extract.store import open_store
from hada.extract.testing.store_contract import files_of
from hada.extract.variants.views import View

SIZE = (24, 24)


def noise(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return Image.fromarray(values)


def command(*arguments: str) -> Any:
    return CliRunner().invoke(extract, ["--model", "one", "--split", "val", *arguments])


def test_a_view_is_a_function_of_seed_number_and_image() -> None:
    views = {
        (seed, number, id_): np.asarray(View(number, seed).render(noise(), id_, SIZE))
        for seed in (0, 1)
        for number in (1, 2)
        for id_ in ("a.jpg", "b.jpg")
    }
    for key, values in views.items():
        seed, number, id_ = key
        again = np.asarray(View(number, seed).render(noise(), id_, SIZE))
        np.testing.assert_array_equal(values, again)
        assert values.shape == (24, 24, 3)
        others = [other for name, other in views.items() if name != key]
        assert not any(np.array_equal(values, other) for other in others)


def test_threads_and_the_global_generator_do_not_matter() -> None:
    pictures = [noise(seed) for seed in range(6)]
    serial = [np.asarray(View(1, 0).render(p, str(n), SIZE)) for n, p in enumerate(pictures)]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(View(1, 0).render, p, str(n), SIZE) for n, p in enumerate(pictures)] * 3
        for number, job in enumerate(jobs):
            np.testing.assert_array_equal(np.asarray(job.result()), serial[number % 6])
    assert torch.equal(torch.rand(3), expected)


def test_stores_of_views(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    result = command("--views", "2", "--view-seed", "5")
    assert result.exit_code == 0, result.output
    zero = open_store("stores/tiny/val/one")
    views = [open_store(f"stores/tiny/val/one@view{number}") for number in (1, 2)]
    for number, store in enumerate(views, start=1):
        assert store.image.ids == zero.image.ids
        assert store.caption.ids == ()
        assert store.spec.model.preprocessing["view"] == number
        assert store.spec.model.preprocessing["seed"] == 5
        tokens = store.image.tokens(slice(None))
        assert tokens.shape == zero.image.tokens(slice(None)).shape
        assert np.isfinite(tokens).all()
    one, two = (store.image.tokens(slice(None)) for store in views)
    assert not np.array_equal(one, two)
    assert "complete already" in command("--views", "2", "--view-seed", "5").output


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--batch-size", "1"), ("--workers", "2")], ids=str)
def test_batch_and_threads_do_not_change_a_view(tmp_path: Path, options: tuple[str, ...]) -> None:
    makers.make_project(tmp_path)
    places = []
    for name, more in (("a", ()), ("b", options)):
        result = command("--views", "1", "--root", f"stores={name}", *more)
        assert result.exit_code == 0, result.output
        places.append(open_store(f"{name}/tiny/val/one@view1").image.tokens(slice(None)))
    np.testing.assert_array_equal(*places)


def test_another_seed_does_not_fit_the_store(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    assert command("--views", "1").exit_code == 0
    before = files_of(tmp_path / "stores" / "tiny" / "val" / "one")
    result = command("--views", "1", "--view-seed", "1")
    assert result.exit_code == 2
    assert "model.preprocessing.seed: the store has 0, this call wants 1" in result.stderr
    assert command("--views", "1", "--view-seed", "1", "--fresh").exit_code == 0
    assert files_of(tmp_path / "stores" / "tiny" / "val" / "one") == before


def test_a_view_is_the_published_augmentation_of_its_seed() -> None:
    """Half to all of the area, a flip, and two operations of strength 7 of 10, by torchvision."""
    for seed, number, id_ in ((0, 1, "a.jpg"), (3, 2, "b.jpg"), (5, 1, "c.jpg"), (0, 4, "d.jpg")):
        digest = hashlib.sha256(f"{seed}\0{number}\0{id_}".encode()).digest()
        steps = [
            transforms.RandomResizedCrop(
                SIZE, scale=(0.5, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.RandAugment(num_ops=2, magnitude=7, num_magnitude_bins=11),
        ]
        with torch.random.fork_rng():
            torch.manual_seed(int.from_bytes(digest[:7], "big"))
            want = transforms.Compose(steps)(noise(seed))
        found = View(number, seed).render(noise(seed), id_, SIZE)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(want))
