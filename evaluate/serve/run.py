"""`hada-evaluate serve`: load everything once, then listen."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from hada.evaluate.search.searcher import Searcher
from hada.evaluate.serve.settings import Settings
from hada.extract.common.console import say
from hada.extract.common.errors import UsageError
from hada.extract.manifest import Manifest


def serve(
    manifest: Manifest,
    *,
    run: Path | str | None,
    model: str | None = None,
    dataset: str | None = None,
    splits: Sequence[str] = ("test",),
    device: str = "auto",
    settings: Settings,
) -> None:
    """Serve a run until it is stopped; this is the command `hada-evaluate serve`.

    Args:
        manifest: Where data sets, stores and runs are.
        run: The run's folder, an exported one, or `hf-hub:ORG/NAME`; None takes the newest.
        model: One frozen model in place of a run.
        dataset: The data set; None takes the run's.
        splits: The splits to search; the first is the default.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        settings: Address, token and limits.

    Raises:
        UsageError: The extra `serve` is missing, or the address cannot be listened at.
        RunError: There is no trained run.
        StoreError: A store is missing or damaged.
    """
    try:
        import uvicorn

        from hada.evaluate.serve.app import build_app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("hada"):
            raise
        raise UsageError(
            f"serve needs the package {error.name}, which is not installed: "
            "pip install 'hada[serve]'"
        ) from error
    listening = _listen(settings)
    with listening:
        searchers = load(manifest, run, model, dataset, splits, device)
        config = uvicorn.Config(
            build_app(searchers, settings),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=10,
        )
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        if not settings.loopback:
            say(
                f"warning: {settings.host} is not this machine alone. Everybody who has the token "
                "sees the images, and it travels unencrypted: put a proxy with TLS in front"
            )
        say(f"serving at http://{shown}:{port}/")
        uvicorn.Server(config).run(sockets=[listening])


def load(
    manifest: Manifest,
    run: Path | str | None,
    model: str | None,
    dataset: str | None,
    splits: Sequence[str],
    device: str,
) -> dict[str, Searcher]:
    """The searchers of some splits, with models and indexes loaded; the models are shared.

    Args:
        manifest: Names data sets and models.
        run: The run's folder; None for a single model, or the data set's newest run.
        model: A single model in place of a run.
        dataset: Its name; None for the run's.
        splits: To search.
        device: Where queries are encoded.

    Returns:
        Split -> searcher.
    """
    searchers: dict[str, Searcher] = {}
    for split in dict.fromkeys(splits):
        searcher = Searcher.open(
            manifest, run=run, model=model, dataset=dataset, split=split, device=device
        )
        if searchers:
            searcher.share_models(next(iter(searchers.values())))
        searcher.load()
        searchers[split] = searcher
    return searchers


def _listen(settings: Settings) -> socket.socket:
    """A socket at the address, before anything slow is loaded; raises `UsageError`."""
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise UsageError(
            f"{settings.host}:{settings.port}: cannot be listened at: {error.strerror or error}; "
            "choose another --port (0 takes a free one) or --host"
        ) from error
