"""A split that is searched: its indexes, its models and its captions, loaded once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.build import finished_runs, open_gallery
from hada.evaluate.search.encoder import Encoder
from hada.evaluate.search.graph import faiss_top
from hada.evaluate.search.index import Index, Query, build_index
from hada.extract.common.arrays import group_by_image
from hada.extract.common.console import say
from hada.extract.common.errors import DatasetError, RunError, UnknownNameError, UsageError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import Manifest
from hada.extract.spec import SIDES, SideName
from hada.extract.store import StoreReader
from hada.fuse.run_files.weights import BEST
from hada.fuse.run_folder import RunFolder

Hit = dict[str, Any]


@dataclass
class Searcher:
    """What answers queries about one split.

    Threads may share it: what is loaded late is loaded by one of them.

    Attributes:
        manifest: Where data sets, stores and runs are.
        dataset: The data set's name.
        split: The split.
        stores: One store per model.
        run: The fusion that scores; None for a single model.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        data: Captions and files; None where the data set is not on this machine.
    """

    manifest: Manifest
    dataset: str
    split: str
    stores: Sequence[StoreReader]
    run: RunFolder | None
    device: str
    data: CaptionDataset | None
    _indexes: dict[SideName, Index] = field(default_factory=dict)
    _stored_rows: dict[SideName, dict[str, int]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def open(
        cls,
        manifest: Manifest,
        *,
        run: Path | str | None = None,
        model: str | None = None,
        dataset: str | None = None,
        split: str = "test",
        device: str = "auto",
    ) -> Searcher:
        """Find what a search needs; models and indexes are loaded when they are first used.

        Args:
            manifest: Where data sets, stores and runs are.
            run: The run that scores: a folder, an exported one, or `hf-hub:ORG/NAME`. None takes
                the data set's newest, unless `model` is given.
            model: One frozen model in place of a run.
            dataset: The data set; None takes the run's, else the manifest's default.
            split: The split to search.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.

        Raises:
            UsageError: A run and a model, or an unknown name.
            RunError: There is no trained run.
            StoreError: A store is missing or damaged.
        """
        if run is not None and model is not None:
            raise UsageError("--run and --model: give one of them")
        folder = None if model is not None else _run(manifest, dataset, run)
        name = dataset or (folder.config()["dataset"] if folder else None)
        entry = manifest.dataset(name)
        entry.split(split)
        models = [model] if model is not None else folder.config()["models"] if folder else []
        gallery = open_gallery(manifest, entry.name, split, models, alone=True)
        data = _dataset(manifest, entry.name, split)
        if data is not None:
            data = data.as_stored(gallery.stores[0].spec.dataset_digest)
        return cls(manifest, entry.name, split, gallery.stores, folder, device, data)

    @property
    def name(self) -> str:
        """Of the run or the model."""
        return self.run.name if self.run else self.stores[0].spec.model.name

    @cached_property
    def encoder(self) -> Encoder:
        """The models, loaded."""
        with self._lock:
            return Encoder(self.manifest, self.stores, self.device, self.run)

    def share_models(self, other: Searcher) -> None:
        """Use the models of a searcher of the same run, on another split."""
        self.__dict__["encoder"] = other.encoder

    def load(self) -> None:
        """Load all that queries need: models, both indexes where there can be, ids."""
        _ = self.encoder, self._rows
        for side in SIDES:
            self.index(side)
        if self.data is not None:
            _ = self._groups

    def index_file(self, side: SideName) -> Path:
        """Where the index of a side is kept."""
        if self.run is None:
            folder = Path(self.manifest.runs) / self.dataset
            return folder / f"index-{self.name}-{self.split}-{side}.npz"
        # Of another data set than the run's: a file of its own.
        other = "" if self.dataset == self.run.config()["dataset"] else f"{self.dataset}-"
        folder = self.run.derived(self.manifest.runs)
        return folder / f"index-{other}{self.split}-{side}.npz"

    def index(self, side: SideName) -> Index:
        """The index of a side, read from its file or made."""
        with self._lock:
            if side not in self._indexes:
                file = self.index_file(side)
                index, kept = build_index(self.stores, self.run, side, self.device, file)
                if not kept and file.exists():
                    say(f"index of {len(index.ids):,} {side}s written to {file}")
                    # Mapped from now on: what was made in memory goes.
                    index = build_index(self.stores, self.run, side, self.device, file)[0]
                self._indexes[side] = index
            return self._indexes[side]

    def find(
        self,
        queries: Sequence[Query],
        side: SideName,
        top: int,
        *,
        faiss: bool = False,
        ranks: bool = False,
    ) -> list[list[Hit]]:
        """The best items of a side for each query.

        Args:
            queries: What the encoder made.
            side: What to find: `image` or `caption`.
            top: How many for each query.
            faiss: Search approximately, and say how many exact results were found.
            ranks: Also give each model's own rank of every result.

        Returns:
            For each query its results as plain values: `place` from 1, `score`, `id`, `models` with
            each model's own cosine, `ranks` with its rank where asked for, and `file` and
            `captions` where the data set is here.
        """
        index = self.index(side)
        ranked = index.tops(queries, top)
        if faiss:
            exact, file = ranked, self.index_file(side)
            wanted = min(top, len(index.ids))
            ranked = [faiss_top(index, query, wanted, file) for query in queries]
            same = sum(
                len({row for row, _ in one} & {row for row, _ in other})
                for one, other in zip(ranked, exact, strict=True)
            )
            total = sum(map(len, exact))
            say(f"faiss found {same} of the {total} that an exact search finds")
        found = [
            [self.hit(index, query, place, *one) for place, one in enumerate(best, start=1)]
            for query, best in zip(queries, ranked, strict=True)
        ]
        if ranks:
            for query, best, hits in zip(queries, ranked, found, strict=True):
                own = index.own_ranks(query, [row for row, _ in best])
                for k, hit in enumerate(hits):
                    hit["ranks"] = {name: values[k] for name, values in own.items()}
        return found

    def hit(self, index: Index, query: Query, place: int, row: int, score: float) -> Hit:
        """One result as plain values.

        Args:
            index: The one that was searched.
            query: What it was searched for.
            place: Of the result, from 1.
            row: Of the item in the index.
            score: Of the item.
        """
        id_ = index.ids[row]
        hit: Hit = {"place": place, "score": round(score, 6), "id": id_}
        own = index.own_scores(query, row)
        if own:
            hit["models"] = {name: round(value, 6) for name, value in own.items()}
        known = self._rows[index.side].get(id_)
        if self.data is not None and known is not None:
            image = known if index.side == "image" else int(self.data.caption_to_image[known])
            if image >= 0:  # texts alone are of no image
                hit["file"] = str(self.data.image_paths[image])
            hit["captions"] = (
                self.captions(known) if index.side == "image" else [self.data.captions[known]]
            )
        return hit

    def captions(self, image: int) -> list[str]:
        """The captions of an image of the data set, by its row."""
        if self.data is None:
            return []
        order, bounds = self._groups
        return [self.data.captions[j] for j in order[bounds[image] : bounds[image + 1]]]

    def picture(self, id_: str) -> Any:
        """The file of an image by its id, for `open_image`; None where there is none.

        Only what the data set lists has a file: an id is no path.
        """
        row = self._rows["image"].get(id_)
        return None if row is None or self.data is None else self.data.image_paths[row]

    def image_of(self, side: SideName, id_: str) -> str | None:
        """The id of an item's image, where the data set has its file.

        Args:
            side: Whose item.
            id_: The id of an image, or of a caption, whose image is meant.
        """
        row = self._rows[side].get(id_)
        if row is None or self.data is None:
            return None
        image = row if side == "image" else int(self.data.caption_to_image[row])
        return None if image < 0 else self.data.image_ids[image]

    def stored_row(self, side: SideName, id_: str) -> int | None:
        """The row of an item in the stores by its id; None where it is not searched.

        Args:
            side: Whose item.
            id_: Its id.
        """
        with self._lock:
            if side not in self._stored_rows:
                ids = self.stores[0].side(side).ids
                self._stored_rows[side] = {id_: row for row, id_ in enumerate(ids)}
        row = self._stored_rows[side].get(id_)
        failed = row is None or any(store.side(side).failed[row] for store in self.stores)
        return None if failed else row

    def text_of(self, id_: str) -> str | None:
        """A caption by its id; None where the data set is not here."""
        row = self._rows["caption"].get(id_)
        return None if row is None or self.data is None else self.data.captions[row]

    @cached_property
    def _rows(self) -> dict[SideName, dict[str, int]]:
        if self.data is None:
            return {"image": {}, "caption": {}}
        ids: dict[SideName, Sequence[str]] = {
            "image": self.data.image_ids,
            "caption": self.data.caption_ids,
        }
        return {side: {id_: row for row, id_ in enumerate(names)} for side, names in ids.items()}

    @cached_property
    def _groups(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self.data is not None
        return group_by_image(self.data.caption_to_image, len(self.data.image_ids))


def _run(manifest: Manifest, dataset: str | None, run: Path | str | None) -> RunFolder:
    if run is not None:
        return RunFolder(run)
    runs_folder = Path(manifest.runs) / manifest.dataset(dataset).name
    runs = finished_runs(runs_folder)
    if not runs:
        raise RunError(
            f"{runs_folder}: no trained run. Train one (hada-fuse train) or give --model NAME"
        )
    return RunFolder(max(runs, key=lambda path: (path / BEST).stat().st_mtime))


def _dataset(manifest: Manifest, name: str, split: str) -> CaptionDataset | None:
    """Captions and files; a search works without them, and then shows ids alone."""
    try:
        return read_dataset(manifest.dataset(name), split)
    except (DatasetError, UnknownNameError) as error:
        say(f"ids alone: {error}")
        return None
