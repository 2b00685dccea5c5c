"""GET /api/picture: images of the data set, small; some stay in memory."""

from __future__ import annotations

import io
from functools import lru_cache

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from hada.evaluate.search.searcher import Searcher
from hada.evaluate.serve.served import Served
from hada.extract.datasets.images import ImageError, open_image

PICTURE, PICTURES_KEPT = 320, 512  # pixels of the longer side; how many stay in memory


async def picture(served: Served, request: Request) -> Response:
    """GET /api/picture: an image of the data set by its id."""
    split = served.split(request.query_params.get("split"))
    id_ = request.query_params.get("id", "")
    searcher = served.searchers[split]
    if searcher.picture(id_) is None:
        raise HTTPException(404, "no image of that id here")
    try:
        data = await run_in_threadpool(_small, _Picture(searcher, id_))
    except ImageError as error:
        raise HTTPException(404, "that image cannot be read") from error
    headers = {"cache-control": "private, max-age=3600"}
    return Response(data, media_type="image/jpeg", headers=headers)


class _Picture:
    """An image of a split, by which a small copy is kept."""

    def __init__(self, searcher: Searcher, id_: str) -> None:
        self.searcher, self.id = searcher, id_

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Picture) and (self.searcher is other.searcher, self.id) == (
            True,
            other.id,
        )

    def __hash__(self) -> int:
        return hash((id(self.searcher), self.id))


@lru_cache(PICTURES_KEPT)
def _small(wanted: _Picture) -> bytes:
    image = open_image(wanted.searcher.picture(wanted.id))
    image.thumbnail((PICTURE, PICTURE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return data.getvalue()
