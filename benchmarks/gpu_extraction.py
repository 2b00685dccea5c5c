"""The extractions of `benchmarks/gpu_steps.py`: full-size models with random weights.

Worker processes take seconds to start, which is nothing beside a real split and much beside a
thousand images. So one more extraction has `LONGER` times as many images (the same files under
other names), and the steady figures are the difference of the two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import torch

# For a CPU: the tiny models that go the same way.
SMALL = {"ViT-L-14-336": "tiny", "blip-base-384": "builtin:scenes/blip"}
LONGER = 8


class Loaded:
    """`extract.load` with what it loaded kept, made ready for a GPU day."""

    def __init__(self, load: Callable[..., Any], *, fresh: bool, compiled: bool) -> None:
        self.load, self.fresh, self.compiled = load, fresh, compiled
        self.backbone: Any = None

    def __call__(self, *words: Any) -> Any:
        """The backbone."""
        self.backbone = self.load(*words)
        if self.fresh:
            redraw(self.backbone.model)
        if self.compiled:
            self.backbone.compile()
        return self.backbone


@torch.no_grad()
def redraw(model: torch.nn.Module) -> None:
    """Matrices of the usual size: BLIP's configuration draws them so small that tokens vanish."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.02)


def extraction(
    arguments: argparse.Namespace,
    say: Callable[..., None],
    *,
    model: str,
    tokens: str,
    compiled: bool = False,
) -> None:
    """Images a second of a model beside its bare forward pass, and what bound the store's."""
    from extract_inputs import make_pictures

    import extract

    tiny = arguments.tiny
    if compiled and tiny:  # traced and run as traced: writing kernels takes a minute
        backend = partialmethod(torch.nn.Module.compile, backend="aot_eager")
        torch.nn.Module.compile = backend  # type: ignore[assignment]
    fresh = model == "blip-base-384" and not tiny
    loaded = Loaded(extract.load, fresh=fresh, compiled=compiled)
    extract.load = loaded
    images = 8 if tiny else 512
    paths = make_pictures(Path("pictures"), images, (80, 60) if tiny else (500, 375))
    wanted = argparse.Namespace(
        model=SMALL[model] if tiny else model,
        images=images,
        repeat=1 if tiny else 2,
        batch_size=4 if tiny else 128,
        device=arguments.device,
        precision="bf16",
        tokens=tokens,
        workers=None,
        pictures=paths[0].parent,
        peer=None,
    )
    figures = extract.speed(wanted)
    say(tokens=tokens, compiled=compiled, **figures)
    say(**steady(loaded.backbone, paths, figures, wanted))


def steady(
    backbone: Any, paths: list[Path], figures: dict[str, Any], wanted: argparse.Namespace
) -> dict[str, Any]:
    """Rates and waits of a longer extraction, less those of the short one."""
    from extract_inputs import make_dataset

    from hada.extract.datasets.caption_dataset import CaptionDataset
    from hada.extract.engine.options import ExtractOptions
    from hada.extract.engine.runner import run

    count = LONGER * len(paths)
    dataset = make_dataset([Path(f"{number:06d}.jpg") for number in range(count)])
    dataset = CaptionDataset(**{**vars(dataset), "image_paths": tuple(paths * LONGER)})
    options = ExtractOptions(
        batch_size=wanted.batch_size, workers=figures["workers"], tokens=wanted.tokens
    )
    report = run(backbone, dataset, Path("longer"), options)
    rates = figures["images_per_second"]
    seconds = report.side_seconds["image"] - len(paths) / rates["hada"]
    waits = {
        key: round(value - figures["hada_seconds"][key] / wanted.repeat, 3)
        for key, value in report.seconds.items()
    }
    found: dict[str, Any] = {"longer_images": count, "longer_store_bytes": report.bytes}
    found |= {"steady_waits": waits, "bound_by": max(waits, key=lambda key: waits[key])}
    if seconds > 0:  # noise may exceed the difference of tiny runs
        rate = (count - len(paths)) / seconds
        found |= {"steady_images_per_second": round(rate, 1)}
        found |= {"steady_of_bare": round(rate / rates["bare"], 3)}
    return found
