"""Finds and reads weight files without running what they contain."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hada.extract.backbones.key_names import bare_names, family_of, unwrapped, why_not
from hada.extract.common.errors import CheckpointError
from hada.extract.common.tensor_files import read_safetensors, read_torch, safetensors_shapes

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
CONFIG_SUFFIXES = (".json", ".txt", ".model")
_NAMED = 4  # how many keys a message names before it only counts them


def digest(files: Iterable[Path]) -> str:
    """sha256 over the names and contents of `files`, in the order of their names."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda path: path.name):
        with file.open("rb") as stream:
            inner = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.name}\0{inner}\n".encode())
    return total.hexdigest()


def folder_files(folder: Path) -> list[Path]:
    """The weight and config files that lie directly in a model folder, sorted by name."""
    wanted = WEIGHT_SUFFIXES + CONFIG_SUFFIXES
    return sorted(file for file in folder.iterdir() if file.suffix in wanted and file.is_file())


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, on the CPU, taken out of their wrapping.

    Accepts a bare state dict and one under `state_dict`, `model`, `ema` or another of
    `key_names.WRAPPERS`, from safetensors or from a pickle that holds nothing but tensors and
    plain values. A prefix that all names share (`module.`, `model.`, `_orig_mod.`) is removed.
    Raises `CheckpointError` for anything else.
    """
    return _named_tensors(_read(path), path)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names, as `read_state_dict` gives them, and shapes; the numbers themselves are not read.

    Raises `CheckpointError` as `read_state_dict` does.
    """
    if path.suffix == ".safetensors":
        shapes = safetensors_shapes(path)
        return {bare: shapes[name] for name, bare in bare_names(shapes).items()}
    state = _named_tensors(_read(path, mapped=True), path)
    return {name: tuple(value.shape) for name, value in state.items()}


def cleaned_state(files: Sequence[Path], dropped: Collection[str] = ()) -> dict[str, Tensor] | None:
    """The tensors of a model's files, where a library that reads the files would not know them.

    That is so where they lie in a wrapping, have a prefix in common, or some are in `dropped`;
    None where nothing is to be changed.
    """
    loaded = [_read(file, mapped=True) if file.suffix != ".safetensors" else
              safetensors_shapes(file) for file in files]  # fmt: skip
    names = {str(name) for part in loaded if isinstance(part, Mapping) for name in part}
    wrapped = any(unwrapped(part) is not part for part in loaded)
    named = bare_names(names).items()
    if not wrapped and all(name == bare and bare not in dropped for name, bare in named):
        return None
    state = {k: v for file in files for k, v in _named_tensors(_read(file), file).items()}
    kept = {bare: state[name] for name, bare in bare_names(state).items() if bare not in dropped}
    return {bare: value.clone() for bare, value in kept.items()}


def _read(path: Path, *, mapped: bool = False) -> Any:
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}: expected a checkpoint file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    return read_torch(path, mapped=mapped)


def _named_tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    loaded = unwrapped(loaded)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, expected named tensors")
    state = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(
            f"{path} holds no tensors; its keys are {some(str(key) for key in loaded)}"
        )
    return {bare: state[name] for name, bare in bare_names(state).items()}


def refuse_other_family(state: Iterable[str], expected: str, path: Path) -> None:
    """Raise `CheckpointError` where the tensor names are those of another known family."""
    names = list(state)
    if (unusable := why_not(names)) is not None:
        raise CheckpointError(f"{path} is {unusable[0]}; {unusable[1]}")
    found = family_of(names)
    if found is not None and found != expected:
        raise CheckpointError(
            f"{path} holds {found.upper()} weights (keys such as {some(names)}), "
            f"expected {expected.upper()}; set `family: {found}`"
        )


def load_strict(
    model: nn.Module, state: Mapping[str, Tensor], path: Path, own: Iterable[str] | None = None
) -> None:
    """Copy weights into a model; every tensor must be there, of the right shape, and finite.

    Args:
        model: Gets them.
        state: Tensors by the model's own names.
        path: Where they come from, for messages.
        own: The names in the file, where those of `state` were made from them.

    Raises:
        CheckpointError: A tensor is missing, left over, of another shape, or not finite.
    """
    wanted = model.state_dict()
    problems = []
    if missing := [key for key in wanted if key not in state]:
        problems.append(f"{len(missing)} missing keys ({some(missing)})")
    if unexpected := [key for key in state if key not in wanted]:
        problems.append(f"{len(unexpected)} unexpected keys ({some(unexpected)})")
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ][:_NAMED]
    if missing:
        problems.append(f"the file's own keys are {some(own or state)}")
    if problems:
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(dict(state))
    check_finite(model, path)


def not_of(family: str, state: Iterable[str], path: Path, missing: KeyError) -> CheckpointError:
    """The error for a file in which a tensor is missing that every model of the family has.

    Args:
        family: With its article: "an ALBEF retrieval".
        state: The names of the file's tensors.
        path: The file.
        missing: Names the tensor.
    """
    return CheckpointError(
        f"{path} is not {family} checkpoint: no tensor {missing}; the file's own keys are "
        f"{some(state)}"
    )


def check_finite(model: nn.Module, path: Path | str) -> None:
    """Raise `CheckpointError` where a weight is NaN or infinite."""
    bad = [
        name
        for name, value in model.named_parameters()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise CheckpointError(f"{path}: {len(bad)} tensors hold NaN or infinity ({some(bad)})")


def check_loading_info(info: Mapping[str, Any], path: Path) -> None:
    """Raise where `from_pretrained` left something out (it only warns, and fills in noise)."""
    # Buffers that newer versions of the library no longer save are not weights.
    unexpected = sorted(key for key in info["unexpected_keys"] if "position_ids" not in key)
    problems = [
        f"{len(keys)} {kind} ({some(keys)})"
        for kind, keys in (
            ("missing keys", sorted(info["missing_keys"])),
            ("unexpected keys", unexpected),
            ("keys of another shape", sorted(str(key[0]) for key in info["mismatched_keys"])),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(problems)}")


def from_pretrained(model_class: Any, folder: Path, config: Any) -> tuple[Any, dict[str, Any]]:
    """A model of transformers in float32, and what its loading left out.

    Weights with a prefix or in a wrapping are freed from it first: the library would warn, and
    fill in noise.
    """
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    state = cleaned_state(files)
    source: dict[str, Any] = {"pretrained_model_name_or_path": folder}
    if state is not None:
        source = {"pretrained_model_name_or_path": None, "state_dict": state}
        if not hasattr(model_class, "config_class"):  # one that looks the class up in a folder
            with torch.device("meta"):
                model_class = type(model_class.from_config(config))
    with no_loading_bar():
        model, info = model_class.from_pretrained(
            **source, config=config, dtype=torch.float32, output_loading_info=True
        )
    return model, info


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Without transformers' bar, which would run through our own progress line."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def explained(path: Path, family: str) -> Iterator[None]:
    """Turn what a library raises while it loads `path` into a `CheckpointError` with the cause."""
    try:
        yield
    except (CheckpointError, ImportError):
        raise
    except Exception as error:  # libraries and their file formats raise nearly anything
        for file in [path] if path.is_file() else _weight_files(path):
            # Our own reader names a damaged, dangerous or foreign file better than the library.
            refuse_other_family(read_state_dict(file), family, file)
        raise CheckpointError(f"{path} could not be loaded: {_shortened(str(error))}") from error


def _weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [file for file in folder_files(folder) if file.suffix in WEIGHT_SUFFIXES]


def require_sentencepiece(folder: Path) -> None:
    """Raise `ModuleNotFoundError` where a folder's only tokenizer needs sentencepiece.

    Without it transformers takes the file for one of tiktoken's, and asks for that.
    """
    only = any(folder.glob("*.model")) and not (folder / "tokenizer.json").is_file()
    if only and importlib.util.find_spec("sentencepiece") is None:
        raise ModuleNotFoundError("No module named 'sentencepiece'", name="sentencepiece")


def some(keys: Iterable[str]) -> str:
    """The first few keys, and how many more there are."""
    names = list(keys)
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _shortened(message: str) -> str:
    """A library's message with its long lists of quoted keys cut to the first few."""

    def cut(match: re.Match[str]) -> str:
        keys = re.findall(r'"([^"]+)"', match.group(0))
        return f"{len(keys)}: {some(keys)}"

    short = re.sub(r'"[^"]+"(?:,\s*"[^"]+")+', cut, message)
    return re.sub(r"\s+", " ", short).strip()[:800]
