"""All methods that can be compared on one split, made from the stores and runs that exist."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hada.evaluate.methods import combinations as make
from hada.evaluate.methods.corrected import corrected, mean_with_cca, of_models, transductive
from hada.evaluate.methods.cross_encoder import PREFIX, cross_encoded
from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery, Method
from hada.evaluate.methods.linear import concatenation_linear
from hada.evaluate.methods.model_head import model_head
from hada.evaluate.methods.rank_fusion import RankFusion
from hada.evaluate.methods.request import Request
from hada.evaluate.methods.rerank import Reranked, reranked
from hada.evaluate.methods.seen import Fitted, of_store
from hada.evaluate.methods.token_matching import late_method, late_model, late_reranked
from hada.extract.common.console import say
from hada.extract.common.errors import StoreError, StoreMismatchError, UsageError
from hada.extract.manifest import Manifest, StoreRoot
from hada.extract.store import StoreReader, open_store
from hada.fuse.run_files.config import CONFIG
from hada.fuse.run_files.weights import BEST
from hada.fuse.run_folder import RunFolder
from hada.fuse.scores.stored_tokens import TokenSpace, check_tokens, trained_for_it


def finished_runs(folder: Path) -> list[Path]:
    """The trained runs of a folder.

    Args:
        folder: Holds one folder for each run, as `RUNS/DATASET` does.

    Returns:
        Folders of runs that have weights, sorted by name; hidden ones are left out.
    """
    return sorted(
        path.parent
        for path in folder.glob(f"*/{CONFIG}")
        if (path.parent / BEST).exists() and not path.parent.name.startswith(".")
    )


def build(stores: Manifest | StoreRoot, request: Request) -> tuple[Gallery, list[Method]]:
    """Open the stores and make every method that they allow; the others are named on stderr.

    Args:
        stores: Where stores are. Only `rerank_with` needs a manifest: it names a model to load.
        request: What to compare.

    Returns:
        The images and captions, and the methods: single models, combinations, runs, re-ranked.

    Raises:
        StoreError: A store is missing or damaged, or nothing has a score.
        RunError: A run does not fit the stores.
    """
    models = model_names(stores, request)
    gallery = open_gallery(stores, request.dataset, request.split, models)
    singles = make.single_models(gallery)
    for store in gallery.stores:
        if store.spec.model.embedding_width is None:
            say(f"{store.spec.model.name}: no joint space, so no dual-encoder score of its own")
    methods: list[Method] = list(singles)
    if len(singles) > 1:
        methods.append(make.mean_of_cosines(singles))
        if not request.quick:
            methods.append(RankFusion(tuple(singles)))
    late = late_spaces(stores, request, gallery)
    methods += [late_method(gallery, space, fitted) for space, fitted in late.values()]
    if singles and not request.quick:
        methods += _fitted(stores, request, gallery, singles)
    # Those that look at all queries stand apart, behind everything else.
    apart = [method for method in methods if method.kind == "transductive"]
    methods = [method for method in methods if method.kind != "transductive"]
    for run in request.runs:
        methods += make.fusions(run, gallery, request.device)
    again = late_model(request.rerank_with, gallery)
    if request.rerank and again is not None:
        methods += late_reranked(methods, gallery, request.rerank, again, late[again])
    elif request.rerank and request.rerank_with:
        if not isinstance(stores, Manifest):
            raise UsageError("rerank_with: needs the manifest that names the model; give build one")
        if request.rerank_with.startswith(PREFIX):
            place = request.rerank_with.removeprefix(PREFIX)
            second = cross_encoded(stores, gallery, methods, place, request.rerank, request.device)
            return gallery, [*methods, *second, *apart]
        head = model_head(stores, gallery, request.rerank_with, request.device)
        methods += [
            Reranked(method, head, request.rerank)
            for method in list(methods)
            if isinstance(method, EmbeddingMethod)
            and (method.kind == "hada" or method.name == request.rerank_with)
        ]
    elif request.rerank:
        fused = [
            method
            for method in methods
            if isinstance(method, EmbeddingMethod) and method.kind == "hada"
        ]
        for run, method in zip(request.runs, fused, strict=True):
            methods.append(reranked(run, method, gallery, request.rerank, request.device))
    methods += apart
    if not methods:
        raise StoreError("nothing to evaluate: no model has a joint space and no run is given")
    return gallery, methods


def late_spaces(
    stores: Manifest | StoreRoot, request: Request, gallery: Gallery
) -> dict[str, tuple[TokenSpace, tuple[Fitted, ...]]]:
    """How the tokens of models are matched, by model, and what that was fitted on.

    Of the models that were trained for late interaction, and of those that were asked for.

    Raises:
        UsageError: One that was asked for has no tokens that could be matched, or no store.
        StoreError: The training split, which fits the map of a model's tokens, has no store.
    """
    there = {store.spec.model.name: store for store in gallery.stores}
    names = [name for name, store in there.items() if trained_for_it(store.spec.model)]
    again = late_model(request.rerank_with, gallery)
    for name in (*request.late, *((again,) if again is not None else ())):
        if name not in there:
            raise UsageError(
                f"late interaction of {name!r}: not among the models that are evaluated "
                f"({', '.join(there)}); add --model {name}"
            )
        check_tokens(there[name].spec.model)
    found: dict[str, tuple[TokenSpace, tuple[Fitted, ...]]] = {}
    for name in dict.fromkeys([*names, *request.late, *([again] if again else [])]):
        store = there[name]
        if trained_for_it(store.spec.model):
            found[name] = TokenSpace.of(store), of_store(store)
            continue
        (train,) = open_stores(stores, request.dataset, request.train_split, [name])
        say(f"mapping the tokens of {name} to its joint space, on {request.train_split}")
        fitted = (*of_store(store), Fitted.of([train], "trained on"))
        found[name] = TokenSpace.of(train), fitted
    return found


def _fitted(
    stores: Manifest | StoreRoot, request: Request, gallery: Gallery, singles: list[EmbeddingMethod]
) -> list[EmbeddingMethod]:
    """The methods that are tuned, trained or corrected, as far as their stores are there."""
    models = [store.spec.model.name for store in gallery.stores]
    several = len(singles) > 1
    methods: list[EmbeddingMethod] = []
    try:
        val = open_gallery(stores, request.dataset, request.val_split, models)
        if several:
            methods.append(make.tuned_sum(singles, val))
        train = open_gallery(stores, request.dataset, request.train_split, models)
        if several:
            say("training concatenation + linear")
            methods.append(concatenation_linear(gallery, train, val))
        if request.correct == "auto":
            methods += _corrected(request, gallery, train, val, singles)
    except StoreError as error:
        say(f"left out what needs more stores: {error}")
    return methods


def _corrected(
    request: Request,
    gallery: Gallery,
    train: Gallery,
    val: Gallery,
    singles: list[EmbeddingMethod],
) -> list[EmbeddingMethod]:
    """Every simple method with its hubs corrected, and the closed-form head with and without."""
    say("correcting hubs")
    names = [method.name for method in singles]
    pairs = [(method, of_models([method.name], [1.0])) for method in singles]
    closed = None
    if len(singles) > 1:
        mean = make.mean_of_cosines(singles)
        pairs.append((mean, of_models(names, [1 / len(names)] * len(names))))
        weighted = make.tuned_sum(singles, val)
        shares = weighted.details["shares"]
        pairs.append((weighted, of_models(names, [shares[name] for name in names])))
    closed = mean_with_cca(gallery, train, val)
    methods = [closed[0]] if closed else []
    pairs += [closed] if closed else []
    methods += [corrected(method, scored, train, val) for method, scored in pairs]
    if request.transductive:
        methods += [transductive(method, scored, gallery, val) for method, scored in pairs]
    return methods


def open_gallery(
    stores: Manifest | StoreRoot,
    dataset: str,
    split: str,
    models: Sequence[str],
    *,
    alone: bool = False,
) -> Gallery:
    """The items that several models have on one split.

    Args:
        stores: Knows where a model's store lies.
        dataset: Its name.
        split: Its name.
        models: In the order that the gallery has.
        alone: As `Gallery.of` takes it.

    Raises:
        UsageError: The split has images or texts alone, and `alone` is False.
        StoreError: A store is missing or damaged.
        StoreMismatchError: It holds another dataset or split than its path says.
    """
    return Gallery.of(open_stores(stores, dataset, split, models), alone=alone)


def model_names(stores: Manifest | StoreRoot, request: Request) -> list[str]:
    """The models of a request's runs, then those asked for; the manifest's where there are none.

    Args:
        stores: Knows the models to take where none is named.
        request: Names runs and models.

    Returns:
        Each name once.

    Raises:
        UsageError: No model is named, and there is no manifest with defaults.
        RunError: A run is missing or damaged.
    """
    names = [name for run in request.runs for name in RunFolder(run).config()["models"]]
    return list(stores.chosen_models(dict.fromkeys([*names, *request.models])))


def open_stores(
    stores: Manifest | StoreRoot, dataset: str, split: str, models: Sequence[str]
) -> list[StoreReader]:
    """The stores of `open_gallery`, before their items are compared.

    Args:
        stores: As for `open_gallery`.
        dataset: As for `open_gallery`.
        split: As for `open_gallery`.
        models: As for `open_gallery`.

    Raises:
        StoreError: A store is missing or damaged.
        StoreMismatchError: It holds another dataset or split than its path says.
    """
    opened = [open_store(stores.store_path(dataset, split, model)) for model in models]
    for store in opened:
        for field, asked in (("dataset", dataset), ("split", split)):
            if getattr(store.spec, field) != asked:
                raise StoreMismatchError(
                    f"{store.path}: asked for {field} {asked!r}, but the store holds {field} "
                    f"{getattr(store.spec, field)!r}; was it moved? Extract it again"
                )
    return opened
