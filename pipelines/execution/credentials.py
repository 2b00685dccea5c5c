"""TLS credentials: only the user who starts schedulers and workers may connect to them.

Dask runs whatever a client sends it, so whoever reaches a port without credentials is the user that
the worker runs as. Every connection is TLS in both directions, with a key that is made for one run
(`distributed.Security.temporary`) and is known to its own processes only: locally it stays in
memory, for batch jobs it lies in files of mode 0600. Dask's HTTP servers know no credentials, so
they are not started.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed import Scheduler, Security, Worker

from hada.extract.common.console import say
from hada.extract.common.errors import HadaError, UsageError
from hada.pipelines.state import private_folder

LOOPBACK = "127.0.0.1"
PROTOCOL = "tls://"
# Where batch jobs find the key; in the pipeline's folder, which other users cannot enter.
FOLDER = "credentials"


class PrivateWorker(Worker):  # type: ignore[misc]
    """A worker without an HTTP server: it would answer to every user of the machine."""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Nothing listens."""


class PrivateScheduler(Scheduler):  # type: ignore[misc]
    """A scheduler without an HTTP server."""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Nothing listens."""


def scheduler(dashboard: bool) -> tuple[type[Scheduler], dict[str, Any]]:
    """The scheduler's class and its options; with `dashboard` its pages, on loopback only.

    Raises `UsageError` where there is no bokeh to draw the pages.
    """
    if not dashboard:
        return PrivateScheduler, {"dashboard": False}
    if importlib.util.find_spec("bokeh") is None:
        raise UsageError("--dashboard: Dask draws its pages with bokeh: pip install bokeh")
    say(
        "warning: --dashboard: every user of this machine can read Dask's pages, with the paths "
        "and names of this pipeline's work"
    )
    return Scheduler, {"dashboard": True, "dashboard_address": f"{LOOPBACK}:0"}


def temporary() -> Security:
    """A key and a certificate for one run, in memory; without them a connection is refused."""
    return Security.temporary()


@contextlib.contextmanager
def shared_folder(state: Path) -> Iterator[Path]:
    """A folder for keys of batch jobs, below the pipeline's `state`; emptied before and after.

    The pipeline's lock is held, so what lies there is a killed driver's, and is of no use.
    """
    folder = state / FOLDER
    private_folder(folder)
    if " " in str(folder):
        # Dask's command line in the job's script is not quoted.
        raise UsageError(f"{folder}: batch jobs need a path of runs without spaces")

    def clear() -> None:
        for file in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                file.unlink()

    clear()
    try:
        yield folder
    finally:
        clear()


def check_address(address: str) -> None:
    """Whether `--on ADDRESS` can be used, and what it lets in.

    Raises `UsageError` for a scheme that Dask does not know, or TLS without certificates.
    """
    from distributed.comm.registry import backends

    scheme = address.partition("://")[0]
    if scheme not in backends or scheme == "inproc":
        known = ", ".join(f"{name}://" for name in sorted(backends) if name != "inproc")
        raise UsageError(f"--on {address}: no scheduler is reached by {scheme}://, but by {known}")
    if scheme in ("tls", "wss"):
        words = Security().get_tls_config_for_role("client")
        missing = [name for name in ("ca_file", "cert", "key") if not words.get(name)]
        if missing:
            names = {"ca_file": "ca-file", "cert": "client.cert", "key": "client.key"}
            raise UsageError(
                f"--on {address}: Dask is not told the certificates. Set "
                + ", ".join(f"distributed.comm.tls.{names[name]}" for name in missing)
                + " in ~/.config/dask/tls.yaml, or the variables "
                "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ..__CLIENT__CERT and ..__CLIENT__KEY"
            )
        absent = [str(words[name]) for name in words if name != "ciphers" and words[name]]
        absent = [name for name in absent if "\n" not in name and not Path(name).is_file()]
        if absent:
            raise UsageError(f"--on {address}: no certificate or key at {', '.join(absent)}")
        return
    say(
        f"warning: --on {address}: anybody who reaches this scheduler or its workers over the "
        "network can run code as their user; a scheduler at tls:// admits only who has the key"
    )


def refused(address: str, error: BaseException) -> HadaError:
    """The error of a scheduler that does not answer, or not to us."""
    return HadaError(
        f"--on {address}: no Dask scheduler answers there ({type(error).__name__}: {error}). Is it "
        "running, at this address, with tcp or tls as said, and with these certificates?"
    )
