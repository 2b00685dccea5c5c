"""What is sent is written nowhere, so that no other user of the machine can read it."""

from __future__ import annotations

import base64
import ctypes
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served_runs import make_served, serving

for _package in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(_package, reason=f"needs {_package}: pip install 'hada[serve]'")
httpx = pytest.importorskip("httpx", reason="needs httpx: pip install httpx")
pytestmark = pytest.mark.slow

# Says every file that Python opens for writing, and every temporary file, once the server listens.
HOOK = """
import os, sys

def hook(event, arguments):
    if event.startswith("tempfile."):
        os.write(2, f"WRITES {event} {arguments!r}\\n".encode())
    writes = os.O_WRONLY | os.O_RDWR
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & writes:
        os.write(2, f"WRITES {arguments!r}\\n".encode())

sys.addaudithook(hook)
"""
CREATED, MODIFIED, MOVED = 0x100, 0x2, 0x80


class Watched:
    """Names of files that appear in some folders or are written there, however short they live."""

    def __init__(self, folders: list[Path]) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.handle = self.libc.inotify_init1(os.O_NONBLOCK)
        assert self.handle >= 0
        for folder in folders:
            mask = CREATED | MODIFIED | MOVED
            assert self.libc.inotify_add_watch(self.handle, os.fsencode(folder), mask) >= 0

    def names(self) -> list[str]:
        found = []
        try:
            data = os.read(self.handle, 1 << 20)
        except BlockingIOError:
            return []
        while data:
            length = struct.unpack_from("iIII", data)[3]
            found.append(data[16 : 16 + length].rstrip(b"\0").decode())
            data = data[16 + length :]
        return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_served(tmp_path)


def noise(form: str, pixels: int = 900) -> bytes:
    """An image that is megabytes in most formats."""
    data = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 255, (pixels, pixels, 3), np.uint8)
    Image.fromarray(values).save(data, form)
    return data.getvalue()


def uploads() -> list[tuple[str, dict[str, Any], int]]:
    files = {form: noise(form) for form in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")}
    found: list[tuple[str, dict[str, Any], int]] = [
        ("/api/image", {"content": data}, 200) for data in files.values()
    ]
    small = [base64.b64encode(noise("JPEG", 40)).decode()] * 3
    return [
        *found,
        ("/api/batch", {"json": {"images": small}}, 200),
        # What a form would send, which frameworks keep in a file from a megabyte on.
        ("/api/image", {"files": {"file": ("a.png", files["PNG"], "image/png")}}, 400),
        ("/api/text", {"files": {"file": ("a.png", files["PNG"], "image/png")}}, 400),
        ("/api/look/image?id=val_001.jpg-0", {"content": files["TIFF"]}, 200),
        ("/api/image", {"content": files["TIFF"][:-1000]}, 400),
        ("/api/image", {"content": bytes(9 << 20)}, 400),
        ("/api/image", {"content": bytes(30 << 20)}, 413),
        ("/api/image", {"content": (bytes(1 << 20) for _ in range(30))}, 413),
    ]


def test_no_file_appears_while_uploads_are_served(project: Path) -> None:
    temporary = project / "temporary"
    (project / "hook").mkdir()
    temporary.mkdir()
    (project / "hook/sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join([str(project / "hook"), os.environ.get("PYTHONPATH", "")])
    places = {name: str(temporary) for name in ("TMPDIR", "TMP", "TEMP", "HOME")}
    words = ["out", "--split", "val"]
    with (
        serving(project, *words, PYTHONPATH=path, **places) as (address, log),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        # What is made once, such as caches of libraries, is made before.
        assert client.post("/api/text", json={"text": "red"}).status_code == 200
        ours = [folder for folder in project.rglob("*") if folder.is_dir()]
        before = log.read_text()
        assert "WRITES" in before, "the hook is not there: an index was written"
        watched = Watched([temporary, *(f for f in ours if f != temporary)])
        for where, body, status in uploads():
            answer = client.post(where, **body)
            assert answer.status_code == status, (where, answer.text)
        assert watched.names() == []
        after = log.read_text().removeprefix(before)
    assert [line for line in after.splitlines() if line.startswith("WRITES")] == []


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    watched = Watched([tmp_path])
    (tmp_path / "upload").write_bytes(b"x")
    (tmp_path / "upload").unlink()
    assert set(watched.names()) == {"upload"}


def test_the_hook_sees_a_file_that_a_form_would_be_kept_in(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = HOOK + "import tempfile\nwith tempfile.SpooledTemporaryFile(10) as f: f.write(bytes(99))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "WRITES" in done.stderr
