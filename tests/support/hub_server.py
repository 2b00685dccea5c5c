"""A small server that answers as the Hugging Face hub does: files, revisions and refusals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Handler(BaseHTTPRequestHandler):
    """Models by id, each a folder per revision; ids in `refusals` are refused with their code."""

    models: ClassVar[Mapping[str, Mapping[str, Path]]]
    refusals: ClassVar[Mapping[str, tuple[int, str]]]
    asked: ClassVar[list[str]]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        parts = path.removeprefix("/api/models").strip("/").split("/")
        id_, rest = "/".join(parts[:2]), parts[2:]
        if id_ in self.refusals:
            self._refuse(*self.refusals[id_])
        elif id_ not in self.models:
            self._refuse(404, "RepoNotFound")
        else:
            self._answer(id_, rest)

    def _answer(self, id_: str, rest: list[str]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        names = {commit: name for name, commit in COMMITS.items()}
        name = names.get(revision, revision)
        folder = self.models[id_].get(name)
        if folder is None:
            self._refuse(404, "RevisionNotFound")
            return
        found = sorted(file for file in folder.rglob("*") if file.is_file())
        files = {str(file.relative_to(folder)): file.read_bytes() for file in found}
        if rest[:1] == ["resolve"]:
            file = folder / "/".join(rest[2:])
            if not file.is_file():
                self._refuse(404, "EntryNotFound")
                return
            data = file.read_bytes()
            self._send(data, {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": COMMITS[name]})
        elif rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
                for name, data in files.items()
            ]
            self._send(json.dumps(tree).encode(), {})
        else:
            siblings = [{"rfilename": name} for name in files]
            info = {"id": id_, "modelId": id_, "sha": COMMITS[name], "siblings": siblings}
            self._send(json.dumps({**info, "private": False, "tags": []}).encode(), {})

    def _send(self, data: bytes, headers: Mapping[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status)

    def log_message(self, *_arguments: object) -> None:
        """Nothing: the tests' output is theirs."""


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def serving(
    models: Mapping[str, Mapping[str, Path]],
    refusals: Mapping[str, tuple[int, str]] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with these models, and the paths that were asked for so far."""
    asked: list[str] = []
    kind = type("Hub", (Handler,), {"models": models, "refusals": refusals or {}, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
