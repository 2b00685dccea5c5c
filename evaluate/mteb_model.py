"""A fusion as a model of MTEB 2 (MIEB): `mteb.evaluate(FusionModel("RUN"), tasks)`.

Retrieval takes the run's whole score, node matching included; other tasks take one vector an item.
Needs the extra `mteb`. Shape letters: Q queries, N items, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.search.blank import blank_stores
from hada.evaluate.search.encoder import Encoder
from hada.evaluate.search.index import Query, SecondStage, best_rows
from hada.extract.common.arrays import unit_rows
from hada.extract.common.errors import UsageError
from hada.extract.manifest import Manifest, load_manifest
from hada.extract.spec import SIDES, SideName
from hada.fuse.run_folder import RunFolder, weights_digest
from hada.fuse.scores.item_nodes import ItemNodes, score_matrix

BATCH = 32
# Queries that are scored together with all items.
BLOCK = 256


class FusionModel:
    """A trained fusion and its frozen models, with the methods that MTEB calls.

    It answers both of MTEB's protocols, of a search and of an encoder. An item is an image or a
    text; tasks whose items are both at once are refused.
    """

    def __init__(
        self,
        run: Path | str,
        revision: str | None = None,
        *,
        manifest: Manifest | None = None,
        device: str = "auto",
        **_others: Any,
    ) -> None:
        """Load a run; stores and data sets are not needed.

        Args:
            run: The run's folder, one of `hada-fuse export`, or `hf-hub:ORG/NAME`.
            revision: Unused; MTEB passes one.
            manifest: Names the models' weights; None takes the working folder's, else HADA's.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.

        Raises:
            RunError: There is no trained run.
            BackboneError: A model's weights cannot be loaded.
        """
        self.run = RunFolder(run)
        manifest = load_manifest() if manifest is None else manifest
        stores = blank_stores(manifest, self.run, device)
        self.encoder = Encoder(manifest, stores, device, self.run)
        self._items: list[Query] = []
        self._ids: list[str] = []

    @property
    def mteb_model_meta(self) -> Any:
        """What MTEB writes beside results: name, and the digest of the run's weights."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        return ModelMeta(
            loader=None,
            name=f"hada/{self.run.name}",
            revision=weights_digest(self.run.path)[:40],
            release_date=None,
            languages=None,
            n_parameters=None,
            memory_usage_mb=None,
            max_tokens=None,
            embed_dim=None,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.DOT_PRODUCT,
            use_instructions=False,
            training_datasets=None,
            modalities=["image", "text"],
        )

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: Any, **_others: Any
    ) -> NDArray[np.float32]:
        """(N, E) one vector an item; the inner product of an image's and a text's is a score.

        Where a task compares items of one kind, images with images or texts with texts, vectors
        are of unit length and without what items pay for their popularity.

        Args:
            inputs: MTEB's batches, with `image` or `text`.
            task_metadata: Of the task; its `category` and `modalities` say what is compared.
        """
        queries = self._encoded(inputs)
        if not _crosses(task_metadata):
            values = np.stack([query.against(query.side or "image") for query in queries])
            return np.asarray(unit_rows(values), np.float32)
        return np.stack([query.vector for query in queries])

    def similarity(self, first: Any, second: Any) -> Any:
        """(N, M) inner products."""
        import torch

        return torch.as_tensor(first).float() @ torch.as_tensor(second).float().T

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        """(N,) inner products of pairs."""
        import torch

        return (torch.as_tensor(first).float() * torch.as_tensor(second).float()).sum(-1)

    def index(self, corpus: Any, *, task_metadata: Any, **options: Any) -> None:
        """Encode the items that are searched for; MTEB calls it before `search`."""
        from mteb.types import PromptType

        loader = _loader(corpus, task_metadata, PromptType.document, options)
        self._items, self._ids = self._encoded(loader, as_items=True), list(corpus["id"])

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **options: Any,
    ) -> dict[str, dict[str, float]]:
        """The best items of the index for each query, by the run's whole score of all of them.

        Args:
            queries: MTEB's data set of queries.
            task_metadata: Of the task.
            top_k: How many items for each query.
            top_ranked: Per query the items among which to search; None searches all.
            **options: What else MTEB passes; the batch size is used.
        """
        from mteb.types import PromptType

        loader = _loader(queries, task_metadata, PromptType.query, options)
        asked = self._encoded(loader)
        numbers = {id_: row for row, id_ in enumerate(self._ids)}
        found: dict[str, dict[str, float]] = {}
        scores_QN = self._scores(asked)
        for id_, scores_N in zip(queries["id"], scores_QN, strict=True):
            rows = best_rows(scores_N, top_k)
            if top_ranked is not None:
                some = np.array([numbers[other] for other in top_ranked[id_]], np.int64)
                rows = some[best_rows(scores_N[some], top_k)]
            found[id_] = {self._ids[row]: float(scores_N[row]) for row in rows}
        return found

    def _encoded(
        self, inputs: Iterable[Mapping[str, Any]], *, as_items: bool = False
    ) -> list[Query]:
        """Every item of MTEB's batches."""
        queries: list[Query] = []
        for batch in inputs:
            both = [kind for kind in ("image", "text") if kind in batch]
            if len(both) != 1:
                raise UsageError(
                    f"an item is an image or a text, and this task's have {' and '.join(both)}"
                    if both
                    else f"an item is an image or a text, and this task's have {', '.join(batch)}"
                )
            if both == ["image"]:
                images = [image.convert("RGB") for image in batch["image"]]
                queries += self.encoder.images(images, as_items=as_items)
            else:
                queries += self.encoder.texts(list(batch["text"]), as_items=as_items)
        return queries

    def _scores(self, asked: Sequence[Query]) -> NDArray[np.float32]:
        """(Q, N) the whole score of queries and the index's items."""
        side: SideName = self._items[0].side or "image"
        if not asked[0].matches_nodes(side):
            items = np.stack([item.against(asked[0].side or side) for item in self._items])
            return np.stack([query.against(side) for query in asked]) @ items.T
        stages = [SecondStage.of(item.embedded, side) for item in self._items if item.embedded]
        kept = [stage for stage in stages if stage is not None]
        cosines, paid = (
            np.concatenate([getattr(stage, name) for stage in kept]) for name in ("cosines", "paid")
        )
        nodes = _joined([stage.nodes for stage in kept])
        parts = []
        for first in range(0, len(asked), BLOCK):
            some = [q.embedded for q in asked[first : first + BLOCK] if q.embedded is not None]
            number = 1 - SIDES.index(side)
            own = _joined([one.nodes[number] for one in some if one.nodes is not None])
            pair = (nodes, own) if side == "image" else (own, nodes)
            matched = score_matrix(*pair, some[0].mirror)
            matched_QN = matched.T if side == "image" else matched
            plain_QN = np.concatenate([one.cosines()[number] for one in some]) @ cosines.T
            parts.append(some[0].node_share * matched_QN + plain_QN - paid)
        return np.asarray(np.concatenate(parts), np.float32)


def _joined(parts: Sequence[ItemNodes]) -> ItemNodes:
    return ItemNodes(
        np.concatenate([part.vectors_SW for part in parts]),
        np.concatenate([part.weights_S for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )


def _crosses(task_metadata: Any) -> bool:
    """Whether a task compares images with texts."""
    category = str(getattr(task_metadata, "category", None) or "")
    kinds = category.split("2")
    if len(kinds) == 2 and all(kind in ("i", "t") for kind in kinds):
        return kinds[0] != kinds[1]
    return {"image", "text"} <= set(task_metadata.modalities)


def _loader(data: Any, task_metadata: Any, prompt: Any, options: Mapping[str, Any]) -> Any:
    """MTEB's batches of a data set."""
    from mteb._create_dataloaders import create_dataloader

    size = (options.get("encode_kwargs") or {}).get("batch_size", BATCH)
    return create_dataloader(
        data,
        task_metadata=task_metadata,
        prompt_type=prompt,
        batch_size=size,
        num_proc=options.get("num_proc"),
    )
