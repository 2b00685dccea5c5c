"""The epochs of a split, as batches for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from hada.fuse.batch import Batch
from hada.fuse.tokens.order import Epoch, Order, shuffle_all, shuffle_windows
from hada.fuse.tokens.prefetch import ahead, ahead_in_windows, reading_threads
from hada.fuse.tokens.sources import Window
from hada.fuse.tokens.split import Split
from hada.fuse.tokens.windows import Windows


class Loader:
    """Batches of a split, shuffled anew in every epoch.

    What a batch holds depends on the split, on the arguments here and on the number of the epoch
    alone: not on threads, memory or device.
    """

    def __init__(
        self,
        split: Split,
        order: Order,
        batch_size: int,
        seed: int,
        *,
        shards: int = 0,
        windows: bool = False,
    ) -> None:
        """Make a loader.

        Args:
            split: Where the features come from.
            order: "images" (each with all its captions) or "pairs".
            batch_size: Images or pairs of a batch.
            seed: Of the shuffling.
            shards: Blocks of a window in which items are shuffled; 0 shuffles the whole split.
            windows: Whether to read whole windows into memory, two at a time, instead of items;
                needs `shards`.

        Raises:
            ValueError: `windows` without `shards`.
        """
        if windows and not shards:
            raise ValueError("windows: the whole split is shuffled, not windows of it")
        self.split, self.order, self.batch_size, self.seed = split, order, batch_size, seed
        self.shards = shards
        self._windows = Windows(split, shards) if windows else None

    def epoch(self, number: int) -> Epoch:
        """The steps of an epoch."""
        split, size = self.split, self.batch_size
        if self.shards:
            return shuffle_windows(
                self.order,
                split.blocks,
                split.caption_to_image,
                self.shards,
                size,
                self.seed,
                number,
            )
        count = split.images if self.order == "images" else split.captions
        return shuffle_all(self.order, count, size, self.seed, number)

    def batches(
        self,
        epoch: Epoch,
        first: int = 0,
        device: torch.device | str = "cpu",
        *,
        threads: int | None = None,
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Args:
            epoch: Its order.
            first: The step to begin with.
            device: Where the batches go.
            threads: How many threads make batches ahead; None takes what suits this machine.
        """
        # What is on the device needs no fetching, and batches ahead take the device's memory.
        threads = threads or (1 if self.split.resident else reading_threads())

        def make(items: NDArray[np.int64], windows: Sequence[Window] = ()) -> Batch:
            return self.split.batch(epoch.order, items, windows).to(device)

        windows = self._windows
        if windows is None:
            return ahead(make, epoch.steps[first:], threads=threads)

        def read(number: int) -> Window:
            return windows.read(number, epoch.windows[number])

        return ahead_in_windows(read, make, epoch, first, threads=threads)
