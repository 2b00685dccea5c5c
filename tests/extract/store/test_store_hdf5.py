"""The HDF5 format: the contract of stores, and plain h5py reading it without HADA."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from hada.extract.testing.store_contract import Content, StoreContract


class TestHdf5Store(StoreContract):
    format = "hdf5"
    shard_glob = "features.hdf5/image/*.h5"
    caption_glob = "features.hdf5/caption/*.h5"

    def test_stock_h5py_opens_it(self, path: Path, content: Content) -> None:
        content.write(path)
        features = path / "features.hdf5"
        parts = []
        for file in sorted((features / "image").glob("*.h5")):
            with h5py.File(file) as part:
                assert part["tokens"].chunks == (1, 3, 6)
                assert part["tokens"].fletcher32
                parts.append(part["tokens"][...])
        np.testing.assert_array_equal(
            np.concatenate(parts), np.stack(content.tokens["image"]).astype("f2")
        )
        with h5py.File(features / "index.h5") as index:
            start, stop = index["caption/spans"][7]
            rows = json.loads(index.attrs["arrays"])["caption/tokens"]["shard_rows"]
            assert bytes(index["image/ids"][4]).rstrip(b"\0").decode() == "4.jpg"
            assert json.loads(index.attrs["hada"])["model"]["name"] == "model"
        with h5py.File(features / "caption" / f"{start // rows:06d}.h5") as part:
            np.testing.assert_array_equal(
                part["tokens"][start % rows : start % rows + stop - start],
                content.tokens["caption"][7].astype("f2"),
            )
