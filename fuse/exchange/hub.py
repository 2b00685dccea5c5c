"""A trained fusion as a model of the Hugging Face Hub: safetensors, its config, and a card.

    HadaModel.from_run("runs/flickr8k/blip+clip-fast-s0").save_pretrained("blip-clip")
    model = HadaModel.from_pretrained("blip-clip")
    images, captions = model.embed(stores)

The frozen models are no part of it: the card names them, their weights' digests and licences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from hada.extract.common.device import choose_device
from hada.extract.common.errors import RunError
from hada.extract.spec import SideName
from hada.extract.store import StoreReader
from hada.fuse.batch import Features
from hada.fuse.embedding import Embedded, embed
from hada.fuse.network.fuser import Fuser
from hada.fuse.network.score_mix import ScoreMix, mixable_models
from hada.fuse.run_files.config import branch_from_json
from hada.fuse.run_files.exported import KEPT, check_export, exported_tensors, seal_weights
from hada.fuse.run_files.features import check_features
from hada.fuse.run_files.named import HUB
from hada.fuse.run_folder import RunFolder
from hada.fuse.scores.heads import Heads
from hada.fuse.settings import NodeSettings
from hada.fuse.tokens.split import Split
from hada.fuse.training.objective import Discriminator

# Of the code and weights that each family's authors published; a fine-tuned copy may differ.
LICENCES = {
    "albef": "BSD-3-Clause (salesforce/ALBEF)",
    "blip": "BSD-3-Clause (salesforce/BLIP)",
    "blip2": "BSD-3-Clause (salesforce/LAVIS)",
    "clip": "MIT (openai/CLIP, mlfoundations/open_clip); other weights have their own",
    "lightningdot": "MIT (intersun/LightningDOT)",
    "uniter": "MIT (ChenRocks/UNITER)",
}
MATCH_HEAD = "discriminator."
DOWNLOADING = ("force_download", "token", "cache_dir", "local_files_only", "revision")
UNKNOWN = "not recorded: see where its weights were published"

CARD = """\
---
library_name: hada
license: apache-2.0
tags:
- image-text-retrieval
- model-fusion
---

# HADA: {names}

A small graph network that fuses the features of frozen vision-language models for image-text
retrieval (HADA, ECIR 2023). It holds {parameters:,} parameters and none of the frozen models:
their features are extracted first, with the very weights named here.

| frozen model | family | weights (digest) | licence |
| --- | --- | --- | --- |
{rows}

The frozen models keep their own licences, which bind whoever uses them.

Trained on `{dataset}` with the recipe `{recipe}`. Its score is the sum of cosines with these
shares: {shares}.

```python
from hada.extract.store import open_store
from hada.fuse.exchange.hub import HadaModel

model = HadaModel.from_pretrained("{repo}")
images, captions = model.embed([{stores}])
```
"""


class HadaModel(nn.Module, PyTorchModelHubMixin, library_name="hada", license="apache-2.0"):
    """A fusion and the weights of its scores; made by `from_run` or `from_pretrained`.

    Args:
        branches: Per side what `hada.fuse.run_folder.branch_to_json` gives.
        features: Per frozen model, in the order of its nodes, what a store must hold of it.
        licences: Of each frozen model.
        scores: `fused`, `first` or `all`, and
        score_weights: how many numbers that takes; their values are among the weights.
        recipe: The recipe's name.
        dataset: What it was trained on.
        nodes: The settings of node matching, `hada.fuse.settings.NodeSettings`; None without.
        heads: Per tensor of `hada.fuse.scores.heads.Heads` its type and shape; None without.
        match_head: Whether there is a match head, which re-ranks.
        run: What else the run's configuration says; None in exports of earlier versions.
    """

    def __init__(
        self,
        *,
        branches: dict[str, Any],
        features: dict[str, dict[str, Any]],
        licences: dict[str, str],
        scores: str,
        score_weights: list[float],
        recipe: str,
        dataset: str,
        nodes: dict[str, Any] | None = None,
        heads: dict[str, list[Any]] | None = None,
        match_head: bool = False,
        run: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.features, self.licences = features, licences
        self.recipe, self.dataset = recipe, dataset
        image, caption = (branch_from_json(branches[side]) for side in ("image", "caption"))
        self.fuser = Fuser(image, caption, NodeSettings(**nodes) if nodes else None)
        count, matching = len(mixable_models(self.fuser)), self.fuser.nodes is not None
        self.mix = ScoreMix(scores, score_weights, count, False, nodes=matching)  # type: ignore[arg-type]
        self.discriminator = Discriminator(image.out_width, image.norm, 0.0) if match_head else None
        # A name of a buffer holds no dot.
        self.heads = nn.Module()
        for name, (dtype, *shape) in (heads or {}).items():
            empty = torch.zeros(shape, dtype=getattr(torch, dtype))
            self.heads.register_buffer(name.replace(".", "__"), empty)
        self.eval().requires_grad_(False)

    @classmethod
    def from_run(
        cls, run: RunFolder | Path | str, licences: Mapping[str, str] | None = None
    ) -> Self:
        """A run's best weights, with what is needed to use them.

        Args:
            run: The run, or its folder.
            licences: Model -> licence, for frozen models whose licence is not the usual one.

        Raises:
            RunError: No epoch is finished, or a licence is of a model that the run does not fuse.
        """
        folder = run if isinstance(run, RunFolder) else RunFolder(run)
        config, recipe = folder.config(), folder.recipe()
        licences = licences or {}
        for name in licences:
            if name not in config["models"]:
                raise RunError(f"licence of {name!r}: the run fuses {', '.join(config['models'])}")
        fuser, mix = folder.load_best()
        heads, match_head = _parts(folder.load_tensors())
        whole = Discriminator(fuser.image.config.out_width, fuser.image.config.norm, 0.0)
        if whole.state_dict().keys() != match_head.keys():
            # A published checkpoint without all of it: nothing of ours uses such a head.
            match_head = {}
        model = cls(
            branches=config["branches"],
            features={name: config["features"][name] for name in config["models"]},
            licences={
                name: licences.get(name, LICENCES.get(config["features"][name]["family"], UNKNOWN))
                for name in config["models"]
            },
            scores=recipe.scores.mode,
            score_weights=mix_values(mix),
            recipe=recipe.name,
            dataset=config["dataset"],
            nodes=asdict(recipe.nodes) if fuser.nodes is not None else None,
            heads={name: _kind(value) for name, value in heads.items()} or None,
            match_head=bool(match_head),
            run={name: config[name] for name in KEPT if name in config},
        )
        for name, value in heads.items():
            model.heads.get_buffer(name.replace(".", "__")).copy_(value)
        model.fuser.load_state_dict(fuser.state_dict())
        model.mix.load_state_dict(mix.state_dict())
        if model.discriminator is not None:
            model.discriminator.load_state_dict(match_head)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """A saved fusion, from a folder or the Hub.

        Args:
            pretrained_model_name_or_path: A folder, or OWNER/NAME of the Hub, also with hf-hub:
                before it.
            **options: Those of `huggingface_hub`: `revision`, `token`, `cache_dir`.

        Raises:
            RunError: There is none, or its files are damaged or not of each other.
        """
        place = str(pretrained_model_name_or_path).removeprefix(HUB)
        download = {key: options[key] for key in DOWNLOADING if key in options}
        names = (constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE)
        check_export(*(_fetch(place, name, download) for name in names))
        options.pop("force_download", None)  # done
        model: Self = super().from_pretrained(place, **options)
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        file = save_directory / constants.SAFETENSORS_SINGLE_FILE
        seal_weights(file, self._hub_mixin_config)  # type: ignore[arg-type]

    @classmethod
    def _load_as_safetensor(  # type: ignore[override]
        cls, model: Self, model_file: str, map_location: str, strict: bool
    ) -> Self:
        # Always strictly: a tensor that is not there would stay random.
        try:
            model.load_state_dict(exported_tensors(Path(model_file), map_location))
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise RunError(
                f"{model_file}: does not fit its config: {first} Export or download it again"
            ) from error
        return model.to(map_location).eval()

    def forward(self, side: SideName, features: Features) -> Tensor:
        """(B, E) fused embeddings of unit length.

        Args:
            side: Whose encoder.
            features: B items' stored features of every model, in the order of `self.features`.
        """
        return self.fuser.encode(side, features)

    def embed(self, stores: Sequence[StoreReader], *, device: str = "auto") -> Embedded:
        """Embeddings of one split; they unpack into both sides.

        Args:
            stores: Of the fused models, in any order; others are not read.
            device: Where the network runs.

        Raises:
            RunError: A model's store is missing or holds features of another kind.
        """
        by_name = {store.spec.model.name: store for store in stores}
        missing = [name for name in self.features if name not in by_name]
        if missing:
            raise RunError(f"the store of {missing[0]!r} is missing")
        for name, recorded in self.features.items():
            check_features(
                recorded, by_name[name], Path("the model"), inputs=self.fuser.image.config.inputs
            )
        image = self.fuser.image.config.models
        split = Split(
            [by_name[name] for name in self.features],
            first_tokens_only=len(image) > 1 and not any(m.has_tokens for m in image[1:]),
            alone=True,
        )
        heads = Heads.from_tensors(
            {name.replace("__", "."): value for name, value in self.heads.named_buffers()}
        )
        return embed(self.fuser, self.mix, split, torch.device(choose_device(device)), heads)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card: what is fused, under which licences, and how to use it."""
        rows = [
            f"| {name} | {x['family']} | `{x['weights_digest'][:16]}` | {self.licences[name]} |"
            for name, x in self.features.items()
        ]
        fuser = self.fuser
        names = [*self.features]
        shown = ["fused", *(names[m] for m in mixable_models(fuser))]
        shares = zip(shown, self.mix.shares().tolist(), strict=False)
        return ModelCard(
            CARD.format(
                names=" + ".join(names),
                parameters=sum(p.numel() for p in fuser.parameters()),
                rows="\n".join(rows),
                dataset=self.dataset,
                recipe=self.recipe,
                shares=", ".join(f"{name} {share:.2f}" for name, share in shares),
                repo=kwargs.get("repo_id") or "this-folder",
                stores=", ".join(f'open_store("{name}")' for name in names),
            )
        )


def _parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of a run's weights, what was fitted at the end, and the match head."""
    found = Heads.from_tensors(tensors)
    match_head = {
        name.removeprefix(MATCH_HEAD): value
        for name, value in tensors.items()
        if name.startswith(MATCH_HEAD)
    }
    return {} if found is None else found.tensors(), match_head


def _kind(value: Tensor) -> list[Any]:
    """Type and shape, as JSON takes them."""
    return [str(value.dtype).removeprefix("torch."), *value.shape]


def _fetch(place: str, name: str, download: Mapping[str, Any]) -> Path:
    """One file of a saved fusion, downloaded where `place` is no folder here."""
    if Path(place).is_dir():
        if not (Path(place) / name).is_file():
            raise RunError(f"{place}: {name} is missing; make the folder with hada-fuse export")
        return Path(place) / name
    try:
        return Path(hf_hub_download(place, name, **download))
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise RunError(
            f"{place}: no such folder, and not to be had from the Hub: {first}"
        ) from error


def mix_values(mix: ScoreMix) -> list[float]:
    """A score mix's own numbers."""
    return [float(value.detach()) for value in mix.values]
