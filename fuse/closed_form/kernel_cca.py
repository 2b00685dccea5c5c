"""Kernel canonical correlation analysis of pooled tokens, by random features.

A linear map of the embeddings (`hada.fuse.closed_form.cca`) sees what the frozen models agreed on
when they were trained. Their tokens hold more, and a kernel sees more of it. Per side, with x the
pools of all models' tokens side by side:

    y    = (x - mean) P, at unit length           P: the first principal directions, whitened
    z(y) = [sqrt(2 / R) cos(y W + b), y / 2]      W ~ N(0, 1 / scale^2), b ~ U(0, 2 pi)

The inner product of two z approximates the kernel exp(-|y - y'|^2 / (2 scale^2)) + <y, y'> / 4
(Rahimi and Recht 2007), and linear CCA of z is then kernel CCA (Lopez-Paz et al. 2014, arXiv
1402.0119), whose cost grows with the number of items and not with its cube. The linear part needs
no random numbers: on Flickr8k 1,536 waves beside it are worth 4,096 without.

Shape letters: I images, T captions, N items of one side, D width of the pools, P directions, R
waves, K width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from hada.extract.common.arrays import group_by_image, unit_rows
from hada.extract.common.errors import UsageError
from hada.extract.spec import SIDES, SideName
from hada.fuse.closed_form.cca import CCA, WIDTHS, Moments

Floats = NDArray[np.float32]
DIRECTIONS = 512
WAVES = 1536
LINEAR = 0.5
SCALE = 2.0
SHRINKAGES = (0.3, 1.0)
# The share of the kept directions' mean variance that is added to each before they are whitened.
FLOOR = 0.1
# Items that show the directions in which items differ.
ITEMS_OF_DIRECTIONS = 10_000
# Items whose features are held at once: 128 MiB of them at 2,048, float32.
ITEMS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class FeatureMap:
    """Pools of one side to the features whose inner product is the kernel.

    mean: (D,). directions: (D, P), whitened. frequencies: (P, R). phases: (R,). All float32.
    """

    mean: Floats
    directions: Floats
    frequencies: Floats
    phases: Floats

    @classmethod
    def of(cls, values_ND: Floats, scale: float, waves: int, seed: int) -> Self:
        """The map whose directions are those in which these items differ most."""
        mean = values_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
        kept = min(DIRECTIONS, values_ND.shape[1], max(1, len(values_ND) - 1))
        rng = np.random.default_rng(seed)
        shown = np.sort(rng.permutation(len(values_ND))[:ITEMS_OF_DIRECTIONS])
        centred = torch.from_numpy(values_ND[shown] - mean)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # All principal directions of some thousand dimensions take minutes.
            _, strength, vectors = torch.svd_lowrank(centred, q=kept, niter=2)
        variances = np.square(strength.numpy().astype(np.float64)) / max(1, len(shown))
        # Items that are all alike have no variance, and nothing to whiten.
        mean_variance = variances.mean() or 1.0
        whitened = vectors.numpy() / np.sqrt(variances + FLOOR * mean_variance)
        return cls(
            mean,
            whitened.astype(np.float32),
            (rng.standard_normal((kept, waves)) / scale).astype(np.float32),
            rng.uniform(0, 2 * np.pi, waves).astype(np.float32),
        )

    def features(self, values_ND: NDArray[Any]) -> Floats:
        """(N, R + P) features of (N, D) pools."""
        y_NP = unit_rows((values_ND.astype(np.float32) - self.mean) @ self.directions)
        z_NR = np.cos(y_NP @ self.frequencies + self.phases)
        z_NR *= np.float32(np.sqrt(2 / len(self.phases)))
        return np.concatenate([z_NR, np.float32(LINEAR) * y_NP], axis=1)


@dataclass(frozen=True)
class KernelCCA:
    """A feature map for each side, and the linear head on the features."""

    image: FeatureMap
    caption: FeatureMap
    cca: CCA

    def encode(self, side: SideName, values_ND: NDArray[Any]) -> Floats:
        """Embeddings in the head's space.

        Args:
            side: Whose.
            values_ND: (N, D) pools of the models' tokens, in the order of the fit.

        Returns:
            (N, K) of unit length.
        """
        one = self.image if side == "image" else self.caption
        blocks = [
            self.cca.encode(side, one.features(values_ND[first : first + ITEMS_AT_ONCE]))
            for first in range(0, max(1, len(values_ND)), ITEMS_AT_ONCE)
        ]
        return np.concatenate(blocks)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """As arrays by name, for the file of a run's weights."""
        found: dict[str, NDArray[np.generic]] = {
            f"{side}.{name}": value
            for side in SIDES
            for name, value in vars(getattr(self, side)).items()
        }
        return found | {f"cca.{name}": value for name, value in vars(self.cca).items()}

    @classmethod
    def from_arrays(cls, found: Mapping[str, NDArray[np.generic]]) -> Self:
        """Back from `arrays`."""

        def below(start: str) -> dict[str, Any]:
            return {n.removeprefix(start): x for n, x in found.items() if n.startswith(start)}

        image, caption = (FeatureMap(**below(f"{side}.")) for side in SIDES)
        return cls(image, caption, CCA(**below("cca.")))


def choose_kernel_cca(
    image_ID: Floats,
    caption_TD: Floats,
    caption_to_image_T: NDArray[Any],
    *,
    value: Callable[[KernelCCA], float],
    scale: float = SCALE,
    waves: int = WAVES,
    shrinkages: Sequence[float] = SHRINKAGES,
    widths: Sequence[int] = WIDTHS,
    seed: int = 0,
) -> tuple[KernelCCA, dict[str, Any]]:
    """Fit the head on all caption-image pairs, with the shrinkage and width that serve best.

    Args:
        image_ID: (I, D) pools of the images' tokens, all models' side by side.
        caption_TD: (T, D) those of the captions'.
        caption_to_image_T: (T,) the row of each caption's image.
        value: How good a head is, on another split.
        scale: Of the kernel; two unit vectors at right angles are sqrt(2) apart.
        waves: R, random features of each side; no more than there are images.
        shrinkages: What is tried; see `hada.fuse.closed_form.cca.fit_cca`.
        widths: What is tried, as far as there are as many features.
        seed: Of the directions and the waves.

    Returns:
        The head, and its `shrinkage` and `width`.

    Raises:
        UsageError: There are fewer than two pairs, or a number of captions without its images.
    """
    if len(caption_to_image_T) != len(caption_TD) or len(caption_TD) < 2:
        raise UsageError(
            f"kernel_cca: expected an image for each of two captions at least, got "
            f"{len(caption_TD)} captions and {len(caption_to_image_T)} images of captions"
        )
    # A covariance of so few images has no more directions.
    waves = min(waves, len(image_ID))
    image = FeatureMap.of(image_ID, scale, waves, seed)
    caption = FeatureMap.of(caption_TD, scale, waves, seed + 1)
    blocks = _pairs(image, caption, image_ID, caption_TD, caption_to_image_T)
    moments = Moments.summed(blocks)
    narrow = waves + min(image.directions.shape[1], caption.directions.shape[1])
    tried = sorted({min(width, narrow) for width in widths})
    heads = {
        key: KernelCCA(image, caption, cca) for key, cca in moments.heads(shrinkages, tried).items()
    }
    best = max(heads, key=lambda key: value(heads[key]))
    return heads[best], {"shrinkage": best[0], "width": best[1]}


def _pairs(
    image: FeatureMap,
    caption: FeatureMap,
    image_ID: Floats,
    caption_TD: Floats,
    caption_to_image_T: NDArray[Any],
) -> Iterator[tuple[Floats, Floats, NDArray[np.int64]]]:
    """The features of some images with all their captions, block after block."""
    order_T, bounds_I = group_by_image(np.asarray(caption_to_image_T), len(image_ID))
    counts_I = np.diff(bounds_I)
    # As many images as have about ITEMS_AT_ONCE captions; one at least.
    cuts = np.flatnonzero(np.diff(bounds_I[1:] // ITEMS_AT_ONCE)) + 1
    for images in np.split(np.arange(len(image_ID)), cuts):
        captions = order_T[bounds_I[images[0]] : bounds_I[images[-1] + 1]]
        caption_to_image = np.repeat(np.arange(len(images)), counts_I[images])
        yield (
            image.features(image_ID[images]),
            caption.features(caption_TD[captions]),
            caption_to_image,
        )
