"""Models on the hub: revisions, the offline mode, gated models, licences; on a small server."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import makers
import pytest
import tiny_sentence
from click.testing import CliRunner
from hub_server import COMMITS, serving
from tiny_clip import TEXT, VIT, make_folder
from tiny_dual import make_clip

from hada.extract.backbones import hub
from hada.extract.cli import store as store_command
from hada.extract.common.errors import UsageError
from hada.extract.store import open_store
from hada.extract.store.maintain import describe

CARD = "---\nlicense: other\nlicense_name: tiny-licence # note\ntags: [a]\n---\n# Tiny\n"
REFUSALS = {"org/gated": (403, "GatedRepo"), "org/private": (401, "RepoNotFound")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    root = tmp_path_factory.mktemp("hub")
    for name in ("dual", "clip", "nothing", "code", "sentences", "late"):
        (root / name).mkdir()
    make_clip(root / "dual")
    (root / "dual" / "README.md").write_text(CARD)
    make_folder(root / "clip", VIT, TEXT)
    config = json.loads((root / "clip" / "open_clip_config.json").read_text())
    (root / "clip" / "open_clip_config.json").write_text(json.dumps({**config, "license": "mit"}))
    (root / "nothing" / "README.md").write_text("# A repository of text\n")
    (root / "code" / "config.json").write_text('{"model_type": "clip"}')
    module = {"path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (root / "sentences" / "modules.json").write_text(json.dumps([module]))
    (root / "late" / "config.json").write_text(
        '{"model_type": "paligemma", "architectures": ["ColPali"]}'
    )
    vectors = {}
    if importlib.util.find_spec("sentence_transformers"):
        vectors = {"org/embedder": {"main": tiny_sentence.chat_embedder(root / "chat", dense=8)}}
    return {
        **vectors,
        "org/sentences": {"main": root / "sentences"},
        "org/late": {"main": root / "late"},
        "org/tiny-dual": {"main": root / "dual", "v1": root / "dual"},
        "org/tiny-clip": {"main": root / "clip", "v1": root / "clip"},
        "org/nothing": {"main": root / "nothing"},
        "org/code": {"main": root / "code"},
    }


@pytest.fixture
def server(models: Any) -> Iterator[tuple[str, list[str]]]:
    with serving(models, REFUSALS) as found:
        yield found


def python(endpoint: str, cache: Path, code: str, *arguments: str, offline: bool = False) -> Any:
    """A process of its own: the hub's settings are read when its library is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_TOKEN": "",
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=300,
    )


COMMAND = "from hada.extract.cli import extract; extract()"
# What `--model` does with each text: what is known of the weights, or the error.
LOAD = """
import json, sys
from hada.extract.common.errors import UsageError
from hada.extract.job import model_entry
from hada.extract.manifest import load_manifest
from hada.extract.one_model import load_model

answers = []
for text in sys.argv[1:]:
    try:
        model = load_model(model_entry(load_manifest(), text), "any", "cpu", "fp32")
        answers.append([model.spec.name, model.spec.weights_digest, model.origin])
    except UsageError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def loaded(endpoint: str, cache: Path, *texts: str, offline: bool = False) -> list[Any]:
    done = python(endpoint, cache, LOAD, *texts, offline=offline)
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


ASKED = ("--split", "val", "--model", "org/tiny-dual@v1")


@pytest.mark.slow
def test_the_command_fetches_a_pinned_model_records_it_and_finds_it_again_offline(
    server: Any, tmp_path: Path
) -> None:
    makers.make_project(tmp_path)
    endpoint, asked = server
    cache = tmp_path / "cache"
    first = python(endpoint, cache, COMMAND, *ASKED)
    assert first.returncode == 0, first.stderr
    assert f"fetching org/tiny-dual@v1 from the Hugging Face hub into {cache}" in first.stderr
    assert any("v1" in path for path in asked)
    assert not any("main" in path or COMMITS["main"] in path for path in asked), asked
    store = open_store("stores/tiny/val/tiny-dual")
    (provenance,) = describe(Path("stores/tiny/val/tiny-dual"))["provenance"]
    assert provenance["weights"] == f"org/tiny-dual@{COMMITS['v1']}"
    assert provenance["licence"] == "tiny-licence"
    told = CliRunner().invoke(store_command, ["info", "stores/tiny/val/tiny-dual"]).output
    assert f"fetched as  org/tiny-dual@{COMMITS['v1']}\n" in told
    assert "licence     tiny-licence\n" in told
    again = python("http://127.0.0.1:9", cache, COMMAND, "--fresh", *ASKED, offline=True)
    assert again.returncode == 0, again.stderr
    assert "fetching" not in again.stderr
    digest = store.spec.model.weights_digest
    assert open_store("stores/tiny/val/tiny-dual").spec.model.weights_digest == digest
    # Another program leaves only what it needs itself.
    next(cache.rglob("snapshots/*/README.md")).unlink()
    ((_, found, origin),) = loaded(endpoint, cache, "org/tiny-dual@v1", offline=True)
    assert found == digest
    assert origin == {"weights": f"org/tiny-dual@{COMMITS['v1']}"}
    # Without its weights the model in the cache is not whole, and the command says so at once.
    (weights,) = cache.rglob("snapshots/*/model.safetensors")
    weights.unlink()
    (message,) = loaded(endpoint, cache, "org/tiny-dual@v1", offline=True)
    assert "`HF_HUB_OFFLINE=0 hf download org/tiny-dual --revision v1`" in message


@pytest.mark.slow
def test_pinned_and_unpinned_weights_have_one_digest(server: Any, tmp_path: Path) -> None:
    texts = ("org/tiny-clip@v1", "org/tiny-clip", "clip:hf-hub:org/tiny-clip@main")
    answers = loaded(server[0], tmp_path / "cache", *texts)
    assert {name for name, _, _ in answers} == {"tiny-clip"}
    assert len({digest for _, digest, _ in answers}) == 1
    assert [origin for _, _, origin in answers] == [
        {"weights": f"org/tiny-clip@{COMMITS[name]}", "licence": "mit"}
        for name in ("v1", "main", "main")
    ]


def test_the_modules_of_sentence_transformers_are_fetched(
    server: Any, models: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    tiny_sentence.library()
    from hada.extract.backbones.sentence_load import digest as sentence_digest

    ((name, digest, _),) = loaded(server[0], tmp_path / "cache", "org/embedder")
    assert (name, digest) == ("embedder", sentence_digest(models["org/embedder"]["main"]))


REFUSED = {
    "org/gated": r"'org/gated' is gated: .* agree to its terms. Do so at .*/org/gated , then `hf",
    "org/private": r"knows no such model, or it is private: check the name \(for a private one",
    "org/tiny-dual@v9": r"'org/tiny-dual' has no revision 'v9': expected a branch, tag or",
    "org/nothing": r"has none of open_clip_config.json, config.json, modules.json",
    "org/code": r"'org/code' on the Hugging Face hub has no weights that HADA reads: expected mode",
    "m=blip:org/tiny-dual": r"holds a 'clip' model.* It is a transformers CLIP model: dual:org/tin",
    "m=clip:hf-hub:org/tiny-dual": r"has no open_clip_config.json.* CLIP model: dual:org/tiny-dual",
    "m=dual:org/tiny-clip@v1": r"It is an open_clip model: clip:hf-hub:org/tiny-clip@v1",
    "org/sentences": r"a CLIP in its folder '0_CLIPModel'; fetch it \(hf download org/sentenc",
    "org/late": r"is a late-interaction model of colpali-engine \(ColPali\); use its form for tr",
}


@pytest.mark.slow
def test_refusals_say_what_to_do(server: Any, tmp_path: Path) -> None:
    answers = loaded(server[0], tmp_path / "cache", *REFUSED)
    for (text, message), answer in zip(REFUSED.items(), answers, strict=True):
        assert isinstance(answer, str), text
        assert re.search(message, answer), f"{text}: {answer}"
        assert "\n" not in answer


OFFLINE = {
    "org/tiny-dual@v1": "HF_HUB_OFFLINE=0 hf download org/tiny-dual --revision v1`",
    "m=dual:org/tiny-dual": "hf download org/tiny-dual`",
    "m=clip:hf-hub:org/tiny-clip": "hf download org/tiny-clip`",
    "ViT-B-32/laion2b_s34b_b79k": "hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K`",
}


@pytest.mark.slow
def test_offline_tells_the_command_and_asks_nobody(server: Any, tmp_path: Path) -> None:
    endpoint, asked = server
    cache = tmp_path / "cache"
    for (text, command), answer in zip(
        OFFLINE.items(), loaded(endpoint, cache, *OFFLINE, offline=True), strict=True
    ):
        assert command in answer, f"{text}: {answer}"
        assert str(cache) in answer
        assert "give a local folder as `weights`" in answer
    assert not asked


def test_ids_and_revisions() -> None:
    assert hub.parsed("org/name") == ("org/name", None)
    assert hub.parsed("org/name@v1") == ("org/name", "v1")
    assert hub.parsed("org/name", "v1") == ("org/name", "v1")
    assert hub.parsed("org/name@v1", "v1") == ("org/name", "v1")
    with pytest.raises(UsageError, match=r"name a revision, the option `revision` says 'v2'"):
        hub.parsed("org/name@v1", "v2")
    for text in ("name", "a/b/c", "./a/b", "a/b@", "/a/b", "a b/c"):
        assert not hub.is_id(text)
    with pytest.raises(UsageError, match=r"is no id: expected ORG/NAME"):
        hub.parsed("a/b/c")


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("README.md", "---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("README.md", "---\ntags: x\nlicense: 'mit'\n---\nlicense: bsd\n", "mit"),
        ("README.md", CARD, "tiny-licence"),
        ("README.md", "# Title\nlicense: mit\n", None),
        ("README.md", "---\nlicense:\n- mit\n---\n", None),
        ("config.json", '{"license": "cc-by-4.0"}', "cc-by-4.0"),
        ("config.json", '{"license": 3}', None),
        ("model.txt", "license: mit", None),
    ],
)
def test_licences_that_are_stated(
    name: str, text: str, licence: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    assert hub.licence_of(tmp_path) == licence
    assert hub.origin(str(tmp_path), tmp_path) == ({} if licence is None else {"licence": licence})


def test_a_card_that_cannot_be_read_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert hub.licence_of(tmp_path) is None
