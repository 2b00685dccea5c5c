"""Family `dual`: the dual encoders of transformers, from a folder or a Hugging Face id."""

from __future__ import annotations

from hada.extract.backbones import dual_load, hub, weights
from hada.extract.backbones.base import BackboneRequest
from hada.extract.backbones.dual_base import OPTIONS, DualBackbone
from hada.extract.backbones.dual_naflex import NaflexBackbone
from hada.extract.backbones.options import read_options


def load(request: BackboneRequest) -> DualBackbone:
    """A dual encoder from a folder or a Hugging Face id; never runs code from the checkpoint.

    Options: `dual_base.OPTIONS`. Raises `CheckpointError` where the folder holds another kind of
    model.
    """
    options = read_options(request, OPTIONS)
    folder = hub.resolve_folder(request.weights, options["revision"])
    parts = dual_load.read_folder(folder)
    made = NaflexBackbone if parts[0].config.model_type == dual_load.NAFLEX else DualBackbone
    backbone = made(request, *parts, weights.digest(weights.folder_files(folder)))
    backbone.origin = hub.origin(request.weights, folder)
    return backbone
