"""What the correction of hubs gives by the size of its bank, without any training.

    python benchmarks/banks.py [--dataset scenes] [--split test] [--model NAME ...]

Each row is a simple method; the columns are RSum uncorrected and with a bank of 1/64, 1/16, 1/4 and
all of the training split's images, k and alpha chosen on val as always. The last column has a bank
that does not fit, the training split's embeddings with their dimensions shuffled: `auto` is to
refuse it, which gives the uncorrected figure again.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from hada.evaluate.methods.build import open_gallery
from hada.evaluate.methods.combinations import mean_of_cosines, single_models
from hada.evaluate.methods.corrected import Scored, corrected, mean_with_cca, of_models
from hada.evaluate.methods.gallery import Gallery
from hada.extract import load_manifest
from hada.fuse.ranking.ranks import rank_positives

PARTS = (64, 16, 4, 1)


def rsum(pair: Any, gallery: Gallery) -> float:
    """RSum of two sides whose inner product is the score."""
    ranks = rank_positives(*pair, gallery.caption_to_image)
    return sum(100 * float((r < k).mean()) for r in (ranks.i2t, ranks.t2i) for k in (1, 5, 10))


def mismatched(scored: Scored, train: Gallery) -> Scored:
    """The same method, whose embeddings of `train` have their dimensions shuffled."""

    def of(items: Gallery) -> Any:
        image, caption = scored(items)
        if items.stores[0].spec.split != train.stores[0].spec.split:
            return image, caption
        order = np.random.default_rng(0).permutation(image.shape[1])
        return image[:, order], caption[:, order[::-1]]

    return of


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="scenes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", action="append")
    arguments = parser.parse_args()
    manifest = load_manifest()
    models = arguments.model or ["blip", "clip"]
    gallery, train, val = (
        open_gallery(manifest, arguments.dataset, split, models)
        for split in (arguments.split, "train", "val")
    )
    singles = single_models(gallery)
    names = [method.name for method in singles]
    methods = [(method, of_models([method.name], [1.0])) for method in singles]
    methods.append((mean_of_cosines(singles), of_models(names, [1 / len(names)] * len(names))))
    closed = mean_with_cca(gallery, train, val)
    methods += [closed] if closed else []
    images = len(train.image_rows)
    head = ["uncorrected", *(f"{images // part:,}" for part in PARTS), "mismatched"]
    print(f"{'images in the bank':20} " + " ".join(f"{name:>12}" for name in head))
    for method, scored in methods:
        found = [rsum(method.pair, gallery)]
        for part in PARTS:
            better = corrected(method, scored, train, val, bank=images // part)
            found.append(rsum(better.pair, gallery))
        worse = corrected(method, mismatched(scored, train), train, val, bank=images)
        found.append(rsum(worse.pair, gallery))
        print(f"{method.name:20} " + " ".join(f"{value:12.1f}" for value in found), flush=True)


if __name__ == "__main__":
    main()
