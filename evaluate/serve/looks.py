"""POST /api/look and /api/look/image: what the run looks at in a query and a result."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from hada.evaluate.pages.look import LEVELS, Shown
from hada.evaluate.serve.batches import Look
from hada.evaluate.serve.gate import json_response
from hada.evaluate.serve.requests import TEXT_BYTES, LookQuery, checked_text, parsed, read_body
from hada.evaluate.serve.served import Served, answered, sent_image
from hada.extract.spec import SideName

DIGITS = 3  # of heat


async def by_text(served: Served, request: Request) -> Response:
    """POST /api/look: a sentence and an image of the data set."""
    asked: LookQuery = parsed(await read_body(request, TEXT_BYTES), LookQuery)
    split = served.split(asked.split)
    _check(served, split, "image", asked.id)
    return await _looked(
        served, request, Look("caption", checked_text(asked.text), split, asked.id)
    )


async def by_image(served: Served, request: Request) -> Response:
    """POST /api/look/image: an image, which is the body, and a caption of the data set."""
    split = served.split(request.query_params.get("split"))
    id_ = request.query_params.get("id", "")
    _check(served, split, "caption", id_)
    image = await sent_image(served, request)
    return await _looked(served, request, Look("image", image, split, id_))


def _check(served: Served, split: str, side: SideName, id_: str) -> None:
    searcher = served.searchers[split]
    if searcher.run is None:
        raise HTTPException(400, "a single model is served, which matches no patches with words")
    if searcher.stored_row(side, id_) is None:
        raise HTTPException(404, f"no {side} of that id here")


async def _looked(served: Served, request: Request, look: Look) -> Response:
    return json_response(_plain(await answered(request, served.batches.look(look))))


def _plain(shown: Shown) -> dict[str, Any]:
    """The heat as it is sent."""
    heats = [
        {
            "model": heat.model,
            "heat": heat.heat.round(DIGITS).tolist(),
            "cut": heat.cut,
            "most": round(heat.most, DIGITS),
        }
        for heat in shown.heats
    ]
    words: dict[str, list[dict[str, Any]]] = {}
    for model, read in shown.words.items():
        words[model] = [
            {
                "text": word.text,
                "heat": round(word.level / LEVELS, DIGITS),
                "tip": word.tip,
                "patch": word.patch
                and dict(zip(("model", "row", "column"), word.patch, strict=True)),
            }
            for word in read
        ]
    return {"heats": heats, "words": words}
