"""The cost of a recall before it runs: multiply-adds, seconds and memory.

Sizes come from the stores' own descriptions, seconds from `cost_rates`.

Shape letters: I images, T captions, E embedding width, Q queries of a block, G gallery items.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hada.evaluate.methods.build import model_names, open_stores
from hada.evaluate.methods.linear import LinearConfig
from hada.evaluate.methods.rank_fusion import BLOCK_NUMBERS
from hada.evaluate.methods.request import Request
from hada.evaluate.results.significance import BLOCK_COUNTS
from hada.extract.common.device import choose_device
from hada.extract.common.errors import UsageError
from hada.extract.common.progress import duration, size
from hada.extract.common.terminal import in_line
from hada.extract.manifest import Manifest
from hada.extract.spec import SIDES, SideName
from hada.extract.store import StoreReader
from hada.fuse.closed_form.cca import WIDTHS
from hada.fuse.ranking.counting import PAIRS_AT_ONCE, TILE_NUMBERS, TILE_NUMBERS_ELSEWHERE
from hada.fuse.run_folder import RunFolder
from hada.fuse.scores.stored_tokens import check_tokens, trained_for_it

# What one item costs beside its embeddings: ids in every store, and ranks, hits and their copies.
BYTES_ID, BYTES_RANKS = 120, 400
# A tile: float32 scores and comparisons; of the pairs computed again, a number of float64.
BYTES_TILE_SCORE, BYTES_PAIR_NUMBER, BYTES_SORTED_SCORE = 12, 16, 48
# A draw: as drawn, counted, and as float64.
BYTES_DRAW = 32


@dataclass(frozen=True)
class PlannedMethod:
    """A method: `width` of its embeddings, or 0 where it sorts the scores of `sorts` models.

    `nodes` are the nodes of an image and of a caption, and their width, where they are matched.
    """

    name: str
    width: int
    sorts: int = 0
    nodes: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class CostPlan:
    """A recall of `images` x `captions` in `folds` galleries."""

    images: int
    captions: int
    folds: int
    methods: tuple[PlannedMethod, ...]
    models: int
    resamples: int
    tile_numbers: int
    runs: int = 0

    @property
    def pairs(self) -> int:
        """Scores of one method: every image with every caption of its fold."""
        return self.images * self.captions // self.folds

    def multiply_adds(self, method: PlannedMethod) -> int:
        """Of one method; a fusion of ranks has those of its models, once a direction."""
        return self.pairs * method.width

    def memory(self) -> dict[str, int]:
        """Bytes at the peak, part by part."""
        items = self.images + self.captions
        widths = [method.width for method in self.methods if not method.sorts]
        work = min(self.tile_numbers, self.pairs) * BYTES_TILE_SCORE
        work += PAIRS_AT_ONCE * max(widths) * BYTES_PAIR_NUMBER
        if any(method.sorts for method in self.methods):
            longest = max(self.images, self.captions) // self.folds
            work = max(work, max(longest, min(BLOCK_NUMBERS, self.pairs)) * BYTES_SORTED_SCORE)
        draws = min(max(BLOCK_COUNTS, self.images), self.images * self.resamples) * BYTES_DRAW
        return {
            "embeddings of all methods": items * sum(widths) * 4,
            # Joining or normalising the widest method's captions holds them once more.
            "while they are made": max(self.images, self.captions) * max(widths) * 4,
            "nodes that are matched": sum(
                2 * width * (self.images * of_image + self.captions * of_caption)
                for of_image, of_caption, width in (m.nodes for m in self.methods if m.nodes)
            ),
            "ids and ranks": items * (self.models * BYTES_ID + len(self.methods) * BYTES_RANKS),
            "one tile of scores, or the draws of the bootstrap": max(work, draws),
        }


def make_plan(
    manifest: Manifest, request: Request, asked: str, *, folds: int, resamples: int
) -> CostPlan:
    """The plan of a request.

    Args:
        manifest: Where stores are.
        request: What would be compared.
        asked: "stores" for the stores' own size, or one like "1000000x5000000" (images x captions).
        folds: Number of galleries.
        resamples: Resamples of the bootstrap.

    Raises:
        StoreError: A store is missing.
        UsageError: `asked` is not a size.
    """
    stores = open_stores(manifest, request.dataset, request.split, model_names(manifest, request))
    images, captions = len(stores[0].image.ids), len(stores[0].caption.ids)
    if asked != "stores":
        sizes = re.fullmatch(r"([\d_,]+)[xX]([\d_,]+)", asked.replace(" ", ""))
        if sizes is None:
            raise UsageError(f"--plan {asked}: expected IMAGESxCAPTIONS, e.g. 1000000x5000000")
        images, captions = (int(re.sub("[_,]", "", part)) for part in sizes.groups())
    if min(images, captions) < folds or captions < images:
        raise UsageError(f"--plan: {images:,} x {captions:,}: expected a caption or more an image")
    on_cpu = choose_device(request.device) == "cpu"
    return CostPlan(
        images=images,
        captions=captions,
        folds=folds,
        methods=tuple(_methods(request, stores)),
        models=len(stores),
        resamples=resamples,
        tile_numbers=TILE_NUMBERS if on_cpu else TILE_NUMBERS_ELSEWHERE,
        runs=len(request.runs),
    )


def _methods(request: Request, stores: Sequence[StoreReader]) -> list[PlannedMethod]:
    """The methods that `build` would make, without making them."""
    widths = {
        store.spec.model.name: store.spec.model.embedding_width
        for store in stores
        if store.spec.model.embedding_width is not None
    }
    methods = [PlannedMethod(name, width) for name, width in widths.items()]
    both = sum(widths.values())
    if len(widths) > 1:
        methods.append(PlannedMethod("mean of cosines", both))
        if not request.quick:
            methods.append(PlannedMethod("reciprocal ranks", both, sorts=len(widths)))
            methods.append(PlannedMethod("weighted sum", both))
            methods.append(PlannedMethod("concatenation + linear", LinearConfig().width))
    if widths and not request.quick and request.correct == "auto":
        cca = both + min(both, max(WIDTHS))
        simple = [method for method in methods if method.width == widths.get(method.name)]
        if len(widths) > 1:
            simple += [PlannedMethod(name, both) for name in ("mean of cosines", "weighted sum")]
        simple.append(PlannedMethod("mean + CCA", cca))
        methods.append(simple[-1])
        kinds = ("corrected", "transductive") if request.transductive else ("corrected",)
        methods += [
            PlannedMethod(f"{one.name}, {kind}", one.width + 2) for kind in kinds for one in simple
        ]
    for store in stores:
        name = store.spec.model.name
        if name in request.late or trained_for_it(store.spec.model):
            check_tokens(store.spec.model)
            methods.append(PlannedMethod(f"{name}, late interaction", 1, nodes=_tokens(store)))
    for run in request.runs:
        methods += _of_run(RunFolder(run), stores, widths)
    return methods


def _of_run(
    run: RunFolder, stores: Sequence[StoreReader], widths: Mapping[str, int]
) -> list[PlannedMethod]:
    """A run's one product and, where it matches nodes, its whole score."""
    config, recipe = run.config(), run.recipe()
    own = sum(widths.get(name, 0) for name in config["models"])
    width = config["branches"]["image"]["out_width"] + own
    closed = recipe.scores.cca + recipe.scores.kernel_cca
    if closed:
        width += closed * max(WIDTHS) + 2
    name = f"HADA {run.name}"
    heads = run.load_heads()
    late = heads.late if heads is not None else None
    if not recipe.nodes.width and late is None:
        return [PlannedMethod(name, width)]
    if heads is not None and not heads.shares[-1]:
        return [PlannedMethod(name, width)]
    fused = [store for store in stores if store.spec.model.name in config["models"]]
    counts = [sum(_nodes(store, side) for store in fused) for side in SIDES]
    nodes = (math.ceil(counts[0]), math.ceil(counts[1]), recipe.nodes.width)
    if late is not None:
        nodes = _tokens(next(s for s in fused if s.spec.model.name == late.model))
    return [PlannedMethod(f"{name}, cosines", width), PlannedMethod(name, width, nodes=nodes)]


def _tokens(store: StoreReader) -> tuple[int, int, int]:
    """Mean tokens of an image and of a caption, and the width that they are matched in."""
    counts = [math.ceil(float(np.mean(store.side(side).lengths))) for side in SIDES]
    tokens = store.spec.model.image
    stored = 0 if tokens is None else tokens.width
    joint = None if trained_for_it(store.spec.model) else store.spec.model.embedding_width
    return counts[0], counts[1], joint or stored


def _nodes(store: StoreReader, side: SideName) -> float:
    """Mean nodes of an item: its tokens and one for the model's embedding."""
    reader = store.image if side == "image" else store.caption
    tokens = float(np.mean(reader.lengths)) if store.spec.model.tokens(side) else 0.0
    return 1 + tokens


def as_text(plan: CostPlan, times: dict[str, float], device: str) -> str:
    """The plan for a terminal.

    Args:
        plan: What will be computed.
        times: What `hada.evaluate.results.cost_rates.seconds` gave.
        device: Named in the text.
    """
    lines = [
        f"{plan.images:,} images x {plan.captions:,} captions"
        + (f" in {plan.folds} folds" if plan.folds > 1 else ""),
        f"  {'method':36} {'width':>6} {'multiply-adds':>14} {'time':>9}",
    ]
    for method in plan.methods:
        work = _short(plan.multiply_adds(method) * (2 if method.sorts else 1))
        note = "  sorts every row" if method.sorts else ""
        lines.append(
            f"  {method.name[:36]:36} {method.width:6} {work:>14} "
            f"{duration(times[method.name]):>9}{note}"
        )
    draws = plan.images * plan.resamples
    lines.append(
        f"  {'bootstrap':36} {'':6} {_short(draws):>8} draws {duration(times['bootstrap']):>9}"
    )
    total = sum(times.values())
    lines.append(f"time about {duration(total)}, at the rates measured just now on {device}")
    memory = plan.memory()
    lines.append(
        f"memory about {size(sum(memory.values()))}: "
        + ", ".join(f"{name} {size(part)}" for name, part in memory.items())
    )
    if plan.runs:
        lines.append("not counted: the pass of the split's tokens through each run's network")
    if any(method.sorts for method in plan.methods):
        lines.append("--quick leaves out what is tuned, trained or sorted")
    return "\n".join(map(in_line, lines))


def _short(count: float) -> str:
    for unit, one in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= one:
            return f"{count / one:,.1f} {unit}"
    return f"{count:,.0f}"
