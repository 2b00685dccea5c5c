"""Models on the Hugging Face hub: ids with a revision, fetching into the cache, and errors.

An id is ORG/NAME or ORG/NAME@REVISION; the revision is a branch, a tag or a commit, and only a
commit always names the same files.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from hada.extract.common.console import say
from hada.extract.common.documents import decode, parse_json, read_bytes
from hada.extract.common.errors import CheckpointError, UsageError

_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w][\w./-]*))?")
# What a model's folder has beside its weights; the card says the licence.
COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")
TOKENIZER = ("*.json", "*.txt", "*.model")
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
# Those of sentence-transformers may lie in the folders of its modules.
SENTENCE_WEIGHTS = ("*.safetensors", "*.bin")
OPEN_CLIP_WEIGHTS = ("open_clip*.safetensors", "open_clip*.bin")
_MOST_CARD = 1 << 20
# A pattern of no file: what is in the cache is found, whatever of the model is missing there.
_NOTHING = "."
_CARD = re.compile(r"---\s*\n(.*?)\n---", re.DOTALL)
_LICENCE = re.compile(r"^license(_name)?:[ \t]*[\"']?([^\"'\n#]+)", re.MULTILINE)


def is_id(text: str) -> bool:
    """Whether a text has the form of an id.

    >>> is_id("org/name@v1.0"), is_id("name"), is_id("./org/name")
    (True, False, False)
    """
    return _ID.fullmatch(text) is not None


def parsed(text: str, revision: str | None = None) -> tuple[str, str | None]:
    """An id without its revision, and the revision.

    Raises:
        UsageError: The text has another form, or names another revision than `revision`.

    >>> parsed("org/name@abc123")
    ('org/name', 'abc123')
    """
    match = _ID.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no id: expected ORG/NAME or ORG/NAME@REVISION")
    written = match["revision"]
    if written and revision and written != revision:
        raise UsageError(
            f"weights {text!r} name a revision, the option `revision` says {revision!r}"
        )
    return match["id"], written or revision


def fetch(
    text: str, patterns: Sequence[str], revision: str | None = None, *, whole: bool = False
) -> Path:
    """The folder in the cache that holds the files of a model that fit `patterns`.

    Args:
        text: ORG/NAME or ORG/NAME@REVISION.
        patterns: Which files, as in `*.json`.
        revision: As the option says it.
        whole: Whether all of them must be there. Else, offline, those are enough that another
            program left in the cache.

    Raises:
        CheckpointError: The hub cannot be reached, or has no such model or revision, or the model
            is gated.
        UsageError: Two revisions are named.
    """
    name, revision = parsed(text, revision)
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(patterns)
            )
        )
    except Exception as error:  # any of a dozen network, HTTP and cache errors of three packages
        known = cached(text, revision) if offline() and not whole else None
        if known is not None and any(any(known.glob(pattern)) for pattern in patterns):
            return known
        raise unreachable(name, error, revision) from error


def resolve_folder(
    weights: str, revision: str | None = None, kinds: Sequence[str] = WEIGHTS
) -> Path:
    """The local folder behind a folder path or an id, with its weights; fetched where needed.

    Args:
        weights: A folder, ORG/NAME or ORG/NAME@REVISION.
        revision: As the option says it.
        kinds: Patterns of weight files; the first that the model has is fetched.

    Raises:
        CheckpointError: The folder does not exist, or see `fetch`.
    """
    local = Path(weights).expanduser()
    if local.is_dir():
        return local
    if local.exists() or not is_id(weights):
        raise CheckpointError(f"no model folder at {weights!r}: expected one with a config.json")
    _tell_fetching(weights, revision)
    for kind in kinds:
        wanted = [kind] if offline() else [*COMPANIONS, kind]
        folder = fetch(weights, wanted, revision, whole=True)
        if any(folder.glob(kind)) or any(folder.glob(f"*/{kind}")):
            return folder
    if offline():
        raise _offline_error(*parsed(weights, revision))
    raise CheckpointError(
        f"{weights!r} on the Hugging Face hub has no weights that HADA reads: expected "
        f"{' or '.join(kinds)}. They are looked for in {cache()}"
    )


def _tell_fetching(weights: str, revision: str | None) -> None:
    """Say where a model goes, if none of it is in the cache yet."""
    known = None if offline() else cached(weights, revision)
    if offline() or (known and any(file.suffix != ".json" for file in known.iterdir())):
        return
    say(f"fetching {weights} from the Hugging Face hub into {cache()} (HF_HUB_CACHE moves it)")


def cached(text: str, revision: str | None = None) -> Path | None:
    """The folder in the cache with what was fetched of a model; asks no network."""
    import huggingface_hub

    name, revision = parsed(text, revision)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=[_NOTHING], local_files_only=True
            )
        )
    except Exception:  # whatever it is, fetching says it better
        return None


def cache() -> Path:
    """The folder in which everything from the hub is kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def offline() -> bool:
    """Whether the environment forbids the network (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def origin(weights: str, folder: Path) -> dict[str, str]:
    """What a store records of weights beside their digest: the commit on the hub, the licence.

    Args:
        weights: A folder or an id.
        folder: Where the files lie.
    """
    found = {}
    if not Path(weights).expanduser().exists() and folder.parent.name == "snapshots":
        found["weights"] = f"{parsed(weights)[0]}@{folder.name}"
    if (licence := licence_of(folder)) is not None:
        found["licence"] = licence
    return found


def licence_of(folder: Path) -> str | None:
    r"""The licence that a model's config or card states; None where neither does.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        >>> licence_of(folder)
        'apache-2.0'
    """
    for name in ("config.json", "open_clip_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        value = parse_json(_text(file), str(file), CheckpointError)
        for key in ("license", "licence"):
            if isinstance(value, dict) and isinstance(value.get(key), str) and value[key]:
                return str(value[key])[:200]
    card = folder / "README.md"
    block = None
    # A model can be used whatever its card is.
    with contextlib.suppress(CheckpointError):
        block = _CARD.match(_text(card)) if card.is_file() else None
    stated = {
        bool(named): text.strip() for named, text in _LICENCE.findall(block[1] if block else "")
    }
    # `license: other` has its own name beside it.
    return next((stated[key][:200] for key in (True, False) if stated.get(key)), None)


def _text(file: Path) -> str:
    return decode(read_bytes(file, CheckpointError, _MOST_CARD), str(file), CheckpointError)


def unreachable(name: str, error: Exception, revision: str | None = None) -> CheckpointError:
    """The one error for a name on the hub that could not be fetched, and what to do about it."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{name}"
    # open_clip puts the hub's error into one of its own.
    behind = error if isinstance(error, errors.HfHubHTTPError) else error.__context__
    if isinstance(behind, errors.HfHubHTTPError):
        error = behind
    if offline():
        return _offline_error(name, revision)
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{name!r} is gated: its owner wants you to agree to its terms. Do so at {page} , "
            "then `hf auth login` (or set HF_TOKEN to your token) and run the same command"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(
            f"{name!r} has no revision {revision!r}: expected a branch, tag or commit of {page}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"{name!r} is not a local folder, and {constants.ENDPOINT} knows no such model, or it "
            "is private: check the name (for a private one `hf auth login`), or give a local "
            "folder as `weights`"
        )
    return CheckpointError(
        f"{name!r} is not a local folder and could not be fetched from the Hugging Face hub "
        f"({type(error).__name__}: {_first_line(error)}); check the name and the network, or "
        f"give a local folder as `weights`. What is fetched is kept in {cache()}"
    )


def _offline_error(name: str, revision: str | None) -> CheckpointError:
    pinned = f" --revision {revision}" if revision else ""
    return CheckpointError(
        f"{name!r} is not a local folder, not (whole) in the cache {cache()}, and the network is "
        f"switched off (HF_HUB_OFFLINE={os.environ.get('HF_HUB_OFFLINE', 'on')}). Where there is "
        f"one: `HF_HUB_OFFLINE=0 hf download {name}{pinned}`; or give a local folder as `weights`"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
