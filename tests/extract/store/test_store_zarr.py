"""The Zarr format: the contract of stores, and plain zarr-python reading it without HADA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from hada.extract.testing.store_contract import Content, StoreContract


class TestZarrStore(StoreContract):
    format = "zarr"
    shard_glob = "features.zarr/image/tokens/c/*/0/0"
    caption_glob = "features.zarr/caption/tokens/c/*/0"

    def test_stock_zarr_opens_it(self, path: Path, content: Content) -> None:
        content.write(path)
        group = zarr.open_group(path / "features.zarr", mode="r")
        tokens = group["image/tokens"]
        assert (tokens.chunks, tokens.shards) == ((1, 3, 6), (2, 3, 6))
        np.testing.assert_array_equal(tokens[:], np.stack(content.tokens["image"]).astype("f2"))
        start, stop = group["caption/spans"][7]
        np.testing.assert_array_equal(
            group["caption/tokens"][start:stop], content.tokens["caption"][7].astype("f2")
        )
        raw = bytes(group["image/ids"][4]).rstrip(b"\0")
        assert raw.decode() == "4.jpg"
        assert group.attrs["hada"]["model"]["name"] == "model"

    def test_unwritten_rows_are_nan(self, path: Path, content: Content) -> None:
        content.open(path)
        assert np.isnan(zarr.open_array(path / "features.zarr/image/tokens", mode="r")[:]).all()
