"""Feature stores: all features of one model on one split, in shards that are whole or absent.

A store is a folder:

    <stores>/<dataset>/<split>/<model>/
        features.zarr/          a plain Zarr v3 group that zarr-python opens without HADA
            image/tokens        (I, N, D); or ragged rows (R, D) with image/spans
            image/steps         (I, N, 1) float32 beside int8 tokens; see `dtypes`
            image/embeddings    (I, E)
            image/ids           (I, L) uint8: UTF-8, zero-padded
            caption/tokens      (R, D) rows of all captions; caption j owns rows spans[j]
            caption/spans       (T, 2) int64: first row and the row after the last
            caption/embeddings  (T, E)
            caption/ids         (T, L) uint8
            caption/image_index (T,) int64: the image row of each caption
        commit/                 one marker per finished shard: its files, sizes and checksums

or, in place of features.zarr, the same arrays as HDF5 files that h5py opens without HADA:

        features.hdf5/
            index.h5            ids, spans and image_index; the attributes as JSON
            image/000000.h5     tokens and embeddings of one shard, a crc32c of each chunk beside
            caption/000000.h5

The attributes hold the `StoreSpec`. A shard counts when its marker exists and matches. Local
shards are read by byte range, every chunk verified the first time; whatever we did not write
that way is read through zarr-python or h5py. A store may lie behind a URL, too: see
`hada.extract.common.remote`. docs/store.md tells users all of it.
"""

from hada.extract.store.block import Block
from hada.extract.store.index import StoreIndex
from hada.extract.store.reader import StoreReader, open_store, stores_below
from hada.extract.store.side_reader import SideReader
from hada.extract.store.writer import StoreWriter, write_store

__all__ = [
    "Block",
    "SideReader",
    "StoreIndex",
    "StoreReader",
    "StoreWriter",
    "open_store",
    "stores_below",
    "write_store",
]
