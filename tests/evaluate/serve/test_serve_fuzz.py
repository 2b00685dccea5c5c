"""The API keeps to its own description, whatever schemathesis sends: no 500, no traceback."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from served_runs import TOKEN, make_served, serving

for _package in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(_package, reason=f"needs {_package}: pip install 'hada[serve]'")
COMMAND = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        COMMAND is None or importlib.util.find_spec("schemathesis") is None,
        reason="needs schemathesis: pip install schemathesis",
    ),
]
SECONDS, SEED = 30, 1
# No schema can say that bytes are an image: what is base64 and no image is rightly refused.
SETTINGS = """
[[operations]]
include-path = "/api/batch"
checks.positive_data_acceptance.enabled = false
"""


def test_a_fuzzed_api_never_fails_and_keeps_to_its_description(tmp_path: Path) -> None:
    make_served(tmp_path)
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(SETTINGS)
    with serving(tmp_path, "out", "--split", "val", HADA_TOKEN=TOKEN) as (address, log):
        words = [str(COMMAND), "--config-file", str(settings), "run", f"{address}/openapi.json"]
        words += ["--seed", str(SEED), "--max-time", str(SECONDS), "--continue-on-failure"]
        words += ["-H", f"Authorization: Bearer {TOKEN}", "--no-color"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-6000:]
        # Nine operations, none of them passed over.
        assert "9 selected / 9 total" in said
        generated = re.search(r"(\d+) generated, (\d+) passed", said)
        assert generated, said[-2000:]
        assert int(generated[1]) == int(generated[2]) > 200
        lines = log.read_text().splitlines()
    failed = [line for line in lines if re.match(r"(GET|POST) |Traceback", line)]
    assert failed == []
