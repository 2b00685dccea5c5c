"""What a run is named by: its folder, an exported one, or a model of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from hada.extract.common.errors import RunError

HUB = "hf-hub:"
FILES = ("config.json", "model.safetensors", "README.md")


def located(name: Path | str) -> Path:
    """The folder that a run is in; that of `hf-hub:ORG/NAME` is one of the Hub client's cache.

    `hf-hub:ORG/NAME@REVISION` names a branch, tag or commit. What is downloaded already is found
    without a network (`HF_HUB_OFFLINE=1` asks for nothing else). Other names are folders, which
    need not exist.

    Raises:
        RunError: There is no such model, it is no fusion, or the Hub cannot be reached.

    >>> located("runs/scenes/mine").name
    'mine'
    """
    text = str(name)
    if not text.startswith(HUB):
        return Path(name)
    # Heavy, and not needed for folders.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, revision = text.removeprefix(HUB).partition("@")
    try:
        # One call, so that both files are of one commit.
        folder = Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=[*FILES])
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"{text}: not to be had from the Hub, nor downloaded before: {first} "
            "Expected hf-hub:ORG/NAME; without a network give the folder of hada-fuse export"
        ) from error
    for file in FILES[:2]:
        if not (folder / file).is_file():
            raise RunError(
                f"{text}: {file} is missing there: not a model of hada-fuse export, or not "
                "downloaded whole"
            )
    return folder


def name_of(folder: Path) -> str:
    """The name of a run's folder; of one in the Hub client's cache, the repository's.

    >>> name_of(Path("/cache/models--me--blip-clip/snapshots/0f3a"))
    'blip-clip'
    """
    path = folder.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    return path.name
