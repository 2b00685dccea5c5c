"""A process that wants to use another's pipeline: `attacker.py UID PORT... -- FILE...`.

UID is the user that it becomes once its modules are loaded, which that user may not be able to.

Prints, as JSON, who it is, which addresses answered it in which way, and which files it could read.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401 - names of hosts need it, after the user has changed
import json
import os
import socket
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
from distributed.core import connect  # noqa: E402
from distributed.security import Security  # noqa: E402


async def answers(address: str, security: Security) -> bool:
    """Whether a scheduler, worker or nanny there does what it is asked."""
    try:
        arguments = security.get_connection_args("client")
        comm = await asyncio.wait_for(connect(address, timeout=2, **arguments), 4)
        try:
            await comm.write({"op": "identity", "reply": True})
            found = await asyncio.wait_for(comm.read(), 2)
        finally:
            comm.abort()
    except (OSError, TimeoutError, TypeError, ValueError):
        return False
    return isinstance(found, dict) and "type" in found


def speaks_http(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 2) as stream:
        stream.settimeout(2)
        try:
            stream.sendall(b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return stream.recv(64).startswith(b"HTTP/")
        except OSError:
            return False


async def main(ports: list[str], files: list[str], own: Security) -> None:
    got_in = []
    for port in ports:
        if await answers(f"tcp://127.0.0.1:{port}", Security()):
            got_in.append([port, "tcp"])
        if await answers(f"tls://127.0.0.1:{port}", own):
            got_in.append([port, "tls"])
        if speaks_http(int(port)):
            got_in.append([port, "http"])
    read = []
    for file in files:
        try:
            # A folder that can be listed tells its names.
            _ = os.listdir(file) if Path(file).is_dir() else Path(file).read_bytes()
        except OSError:
            continue
        read.append(file)
    sys.stdout.write(json.dumps({"uid": os.getuid(), "in": got_in, "read": read}))


if __name__ == "__main__":
    cut = sys.argv.index("--")
    another = Security.temporary()  # a key, but not the pipeline's
    if (uid := int(sys.argv[1])) != os.getuid():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    asyncio.run(main(sys.argv[2:cut], sys.argv[cut + 1 :], another))
