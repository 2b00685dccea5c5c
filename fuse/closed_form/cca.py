"""Canonical correlation analysis of stored embeddings: a joint space in one decomposition.

All models' image embeddings side by side and all their caption embeddings side by side are two
views of each caption-image pair. With their covariances regularised, C + s trace(C) / d I, both
views are whitened, and the singular vectors of the whitened cross covariance are the directions
in which they agree most (Hotelling 1936; regularised: Vinod 1976). Both sides are weighed by the
square roots of the singular values and brought to unit length, as in Gong et al. 2014 for
image-text retrieval and Li et al. 2024 (CSA, arXiv 2410.07610) for frozen encoders.

Shape letters: I images, T captions, D and K widths, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.arrays import group_by_image, unit_rows
from hada.extract.common.errors import UsageError
from hada.extract.spec import SideName
from hada.fuse.ranking.ranks import rank_positives, recalls

Floats = NDArray[np.float32]
MOST_VALIDATED = 1000
WIDTHS = (64, 128, 256)


@dataclass(frozen=True)
class CCA:
    """A centre and a linear map for each side.

    image_mean: (Di,) and image_map: (Di, K); caption_mean: (Dc,) and caption_map: (Dc, K).
    """

    image_mean: Floats
    image_map: Floats
    caption_mean: Floats
    caption_map: Floats

    @property
    def width(self) -> int:
        """K, dimensions of the joint space."""
        return int(self.image_map.shape[1])

    def encode(self, side: SideName, values_ND: NDArray[Any]) -> Floats:
        """Embeddings in the head's space.

        Args:
            side: Whose.
            values_ND: The models' stored embeddings side by side, in the order of the fit.

        Returns:
            (N, K) of unit length, K dimensions of the head.
        """
        mean, map_ = (
            (self.image_mean, self.image_map)
            if side == "image"
            else (self.caption_mean, self.caption_map)
        )
        return np.asarray(unit_rows((values_ND.astype(np.float32) - mean) @ map_), np.float32)


@dataclass(frozen=True)
class Moments:
    """What the pairs of a split say of both sides.

    image_mean: (Di,) and caption_mean: (Dc,). image and caption: eigenvalues and vectors of the
    covariances. cross: (Di, Dc) the cross covariance between the eigenvectors of both.
    """

    image_mean: NDArray[np.float64]
    caption_mean: NDArray[np.float64]
    image: tuple[NDArray[np.float64], NDArray[np.float64]]
    caption: tuple[NDArray[np.float64], NDArray[np.float64]]
    cross: NDArray[np.float64]

    @classmethod
    def of(cls, image_ID: Floats, caption_TD: Floats, caption_to_image_T: NDArray[Any]) -> Moments:
        """The moments of pairs.

        Args:
            image_ID: As in `fit_cca`.
            caption_TD: As in `fit_cca`.
            caption_to_image_T: As in `fit_cca`.
        """
        count = np.bincount(caption_to_image_T, minlength=len(image_ID)).astype(np.float64)
        pairs = count.sum()
        image, caption = image_ID.astype(np.float64), caption_TD.astype(np.float64)
        image_mean, caption_mean = count @ image / pairs, caption.mean(axis=0)
        image, caption = image - image_mean, caption - caption_mean
        # An image stands in as many pairs as it has captions.
        by_image, _ = group_by_image(caption_to_image_T, len(image))
        owned = _sums(caption[by_image], count.astype(np.int64))
        return cls._of_covariances(
            image_mean,
            caption_mean,
            image.T @ (count[:, None] * image) / pairs,
            caption.T @ caption / pairs,
            image.T @ owned / pairs,
        )

    @classmethod
    def summed(cls, blocks: Iterable[tuple[Floats, Floats, NDArray[np.int64]]]) -> Moments:
        """The moments of pairs that come block by block, in memory that does not grow with them.

        Args:
            blocks: Images, captions and the row, in the block, of each caption's image; one block
                at least, and a pair in it.
        """
        pairs, sums = 0, None
        for image, caption, caption_to_image in blocks:
            count = np.bincount(caption_to_image, minlength=len(image)).astype(np.float32)
            by_image, _ = group_by_image(caption_to_image, len(image))
            owned = _sums(caption[by_image], count.astype(np.int64))
            block = (
                count @ image,
                caption.sum(axis=0),
                image.T @ (count[:, None] * image),
                caption.T @ caption,
                image.T @ owned,
            )
            pairs += len(caption)
            if sums is None:
                sums = [np.zeros(part.shape, np.float64) for part in block]
            for total, part in zip(sums, block, strict=True):
                total += part
        assert sums is not None, "there is a pair"
        image_mean, caption_mean, image_DD, caption_DD, cross = (part / pairs for part in sums)
        return cls._of_covariances(
            image_mean,
            caption_mean,
            image_DD - np.outer(image_mean, image_mean),
            caption_DD - np.outer(caption_mean, caption_mean),
            cross - np.outer(image_mean, caption_mean),
        )

    @classmethod
    def _of_covariances(
        cls,
        image_mean: NDArray[np.float64],
        caption_mean: NDArray[np.float64],
        image_DD: NDArray[np.float64],
        caption_DD: NDArray[np.float64],
        cross_DD: NDArray[np.float64],
    ) -> Moments:
        image, caption = np.linalg.eigh(image_DD), np.linalg.eigh(caption_DD)
        cross = image[1].T @ cross_DD @ caption[1]
        return cls(image_mean, caption_mean, image, caption, cross)

    def cca(self, shrinkage: float, width: int) -> CCA:
        """The head of these moments.

        Args:
            shrinkage: See `fit_cca`.
            width: K, directions that are kept.
        """
        scales = []
        for values, _ in (self.image, self.caption):
            # A covariance has no negative eigenvalues; rounding has. Rows that are all alike have
            # none at all, and nothing to whiten.
            mean = np.maximum(values.sum(), 0) / len(values)
            kept = np.maximum(values, 0) + shrinkage * mean if mean > 0 else np.ones_like(values)
            scales.append(1 / np.sqrt(kept))
        # The singular vectors by way of a symmetric matrix: LAPACK's SVD does not converge on some
        # matrices without full rank, as those of few images are.
        crossed = scales[0][:, None] * self.cross * scales[1]
        width = min(width, *crossed.shape)
        squares, vectors = np.linalg.eigh(crossed.T @ crossed)
        right = vectors[:, ::-1][:, :width]
        strength = np.sqrt(np.maximum(squares[::-1][:width], np.finfo(np.float64).eps))
        weight = np.sqrt(strength)
        left = crossed @ right / weight
        return CCA(
            self.image_mean.astype(np.float32),
            (self.image[1] @ (scales[0][:, None] * left)).astype(np.float32),
            self.caption_mean.astype(np.float32),
            (self.caption[1] @ (scales[1][:, None] * (right * weight))).astype(np.float32),
        )

    def heads(
        self, shrinkages: Sequence[float], widths: Sequence[int]
    ) -> dict[tuple[float, int], CCA]:
        """The head of every shrinkage and width.

        Args:
            shrinkages: See `fit_cca`.
            widths: In ascending order.
        """
        return {
            (shrinkage, width): _narrowed(widest, width)
            for shrinkage in shrinkages
            for widest in (self.cca(shrinkage, widths[-1]),)
            for width in widths
        }


def fit_cca(
    image_ID: Floats,
    caption_TD: Floats,
    caption_to_image_T: NDArray[Any],
    *,
    shrinkage: float,
    width: int,
) -> CCA:
    """Fit the head on all caption-image pairs.

    Args:
        image_ID: (I, Di) all models' image embeddings side by side, as stored.
        caption_TD: (T, Dc) all models' caption embeddings side by side.
        caption_to_image_T: (T,) the row of each caption's image.
        shrinkage: s, the share of the mean variance that is added to every direction; above 0.
        width: K, directions that are kept; there are no more than the narrower side has.

    Raises:
        UsageError: A number is out of its range, or there are fewer than two pairs.
    """
    _check(image_ID, caption_TD, caption_to_image_T, shrinkage, width)
    return Moments.of(image_ID, caption_TD, caption_to_image_T).cca(shrinkage, width)


def choose_cca(
    image_ID: Floats,
    caption_TD: Floats,
    caption_to_image_T: NDArray[Any],
    *,
    folds: int = 3,
    seed: int = 0,
    shrinkages: Sequence[float] = (0.03, 0.1, 0.3, 1.0),
    widths: Sequence[int] = WIDTHS,
    value: Callable[[CCA], float] | None = None,
) -> tuple[CCA, dict[str, Any]]:
    """Fit the head with the shrinkage and width that serve best on images that did not fit it.

    The head that is best alone is not the one that adds most to other scores: on Flickr8k it has
    more shrinkage, is closer to the models' own cosines, and the mixture is worse by four RSum.
    With `value` heads are compared by what they are wanted for; without, alone, on folds.

    Args:
        image_ID: As in `fit_cca`.
        caption_TD: As in `fit_cca`.
        caption_to_image_T: As in `fit_cca`.
        folds: Into how many parts images are cut, each scored by a head of all the others.
        seed: Of the cutting.
        shrinkages: What is tried.
        widths: What is tried, as far as the embeddings are as wide.
        value: How good a head is, on another split; it replaces the folds.

    Returns:
        The head, fitted on everything, and `shrinkage`, `width` and, of folds, `rsum`: the mean
        over them, of at most 1,000 images each.

    Raises:
        UsageError: There are fewer images than folds.
    """
    _check(image_ID, caption_TD, caption_to_image_T, min(shrinkages), min(widths))
    if len(image_ID) < 2 * folds:
        raise UsageError(
            f"cca: {len(image_ID)} images are too few to choose a head on {folds} folds of them: "
            f"{2 * folds} are needed. Train on more images, or without this head (--set cca=false)"
        )
    narrow = min(image_ID.shape[1], caption_TD.shape[1])
    tried = sorted({min(width, narrow) for width in widths})
    if value is not None:
        heads = Moments.of(image_ID, caption_TD, caption_to_image_T).heads(shrinkages, tried)
        best = max(heads, key=lambda key: value(heads[key]))
        return heads[best], {"shrinkage": best[0], "width": best[1]}
    fold_I = np.random.default_rng(seed).permutation(len(image_ID)) % folds
    rsums: dict[tuple[float, int], list[float]] = {}
    for fold in range(folds):
        inside, outside = np.flatnonzero(fold_I != fold), np.flatnonzero(fold_I == fold)
        fitted = Moments.of(*_part(image_ID, caption_TD, caption_to_image_T, inside))
        image, caption, held_out_T = _part(
            image_ID, caption_TD, caption_to_image_T, outside[:MOST_VALIDATED]
        )
        for shrinkage in shrinkages:
            widest = fitted.cca(shrinkage, tried[-1])
            for width in tried:
                head = _narrowed(widest, width)
                ranks = rank_positives(
                    head.encode("image", image), head.encode("caption", caption), held_out_T
                )
                rsums.setdefault((shrinkage, width), []).append(recalls(ranks)["rsum"])
    shrinkage, width = max(rsums, key=lambda key: float(np.mean(rsums[key])))
    head = fit_cca(image_ID, caption_TD, caption_to_image_T, shrinkage=shrinkage, width=width)
    rsum = float(np.mean(rsums[shrinkage, width]))
    return head, {"shrinkage": shrinkage, "width": width, "rsum": round(rsum, 1)}


def _sums(values_TD: NDArray[Any], count_I: NDArray[np.int64]) -> NDArray[Any]:
    """(I, D) sums of the first `count_I[0]` rows, of the next `count_I[1]`, and so on."""
    sums = np.zeros((len(count_I), values_TD.shape[1]), values_TD.dtype)
    some = np.flatnonzero(count_I)
    if len(some):
        starts = np.cumsum(count_I) - count_I
        sums[some] = np.add.reduceat(values_TD, starts[some], axis=0)
    return sums


def _narrowed(head: CCA, width: int) -> CCA:
    """The first `width` directions of a head: those that agree most."""
    maps = head.image_map[:, :width], head.caption_map[:, :width]
    return CCA(head.image_mean, maps[0], head.caption_mean, maps[1])


def _part(
    image_ID: Floats,
    caption_TD: Floats,
    caption_to_image_T: NDArray[Any],
    images: NDArray[np.int64],
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Some images, in ascending order, with their captions."""
    captions = np.flatnonzero(np.isin(caption_to_image_T, images))
    of_part_T = np.searchsorted(images, caption_to_image_T[captions])
    return image_ID[images], caption_TD[captions], of_part_T


def _check(
    image_ID: Floats,
    caption_TD: Floats,
    caption_to_image_T: NDArray[Any],
    shrinkage: float,
    width: int,
) -> None:
    if len(caption_to_image_T) != len(caption_TD) or len(caption_to_image_T) < 2:
        raise UsageError(
            f"cca: expected an image for each of two captions at least, got {len(caption_TD)} "
            f"captions and {len(caption_to_image_T)} images of captions"
        )
    if not shrinkage > 0:
        raise UsageError(f"cca: shrinkage: expected more than 0, got {shrinkage}")
    if width < 1:
        raise UsageError(f"cca: width: expected at least 1, got {width}")
