"""Reads weights from outside without running them: PyTorch's pickles and safetensors.

`read_torch` opens nothing but tensors and plain values. A tensor counts only as what it seems:
dense, on the CPU, of plain numbers, and as long in the file as its shape says (a stride of zero
makes a terabyte out of four bytes).
"""

from __future__ import annotations

import contextlib
import pickle
import re
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hada.extract.common.array_files import reason
from hada.extract.common.errors import CheckpointError, HadaError
from hada.extract.common.shapes import shown

DEPTH = 64
# torch.save packs nothing; files that were zipped anew are some times smaller at most.
_MOST_RATIO = 8
_DAMAGE = (
    RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError,
    AssertionError, OverflowError, RecursionError, NotImplementedError, ImportError, SyntaxError,
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, pickle.UnpicklingError,
    UnicodeError,
)  # fmt: skip
_KINDS = frozenset(
    (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8,
     torch.int8, torch.int16, torch.int32, torch.int64)
)  # fmt: skip


def read_torch(
    path: Path,
    error: type[HadaError] = CheckpointError,
    *,
    device: str | torch.device = "cpu",
    safe: Sequence[Any] = (),
    mapped: bool = False,
) -> Any:
    """Read a file of `torch.save`; nothing in it is executed.

    Args:
        path: The file.
        error: The kind of error that is raised.
        device: Where the tensors go.
        safe: Further globals that may be named in it (`torch.serialization.safe_globals`).
        mapped: Read numbers only when they are looked at, where the file's format allows it.

    Returns:
        Tensors and plain values, checked by `check_tensors`.
    """
    with damage(path, "PyTorch", error), warnings.catch_warnings():
        # Old files make torch warn about their pickle protocol and their storage class.
        warnings.simplefilter("ignore")
        _check_size(path)
        if is_torchscript(path):
            raise error(
                f"{path} is a TorchScript archive: a program with its weights, and loading it "
                "runs the program. Where you trust it, save its weights alone: "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
            )
        try:
            with torch.serialization.safe_globals(list(safe)):
                loaded = torch.load(
                    path,
                    map_location=device,
                    weights_only=True,
                    mmap=mapped and zipfile.is_zipfile(path),
                )
        except pickle.UnpicklingError as failure:
            found = re.search(r"GLOBAL ([\w.]+)", str(failure))
            if found or "Unsupported global" in str(failure):
                what = found.group(1) if found else "an object"
                raise error(
                    f"{path} was not loaded: its pickle holds {what}, and unpickling that can run "
                    "code. Expected tensors and plain values only; save its state dict again "
                    "(best as safetensors) where you trust the file"
                ) from failure
            raise error(f"{path} is damaged or not a PyTorch file") from failure
        check_tensors(loaded, path, error)
        return loaded


def read_safetensors(
    path: Path, error: type[HadaError] = CheckpointError
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata.

    Args:
        path: A local file.
        error: The kind of error for a file that is missing or damaged.

    Returns:
        (name -> tensor on the CPU, the file's own metadata).
    """
    import safetensors

    with damage(path, "safetensors", error):
        try:
            with safetensors.safe_open(str(path), framework="pt") as stream:
                tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
                metadata = dict(stream.metadata() or {})
        except safetensors.SafetensorError as failure:
            raise ValueError(str(failure)) from failure
        check_tensors(tensors, path, error)
        return tensors, metadata


def safetensors_shapes(
    path: Path, error: type[HadaError] = CheckpointError
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a safetensors file; the numbers are not read.

    Args:
        path: A local file.
        error: The kind of error for a file that is missing or damaged.
    """
    import safetensors

    with damage(path, "safetensors", error):
        try:
            with safetensors.safe_open(str(path), framework="pt") as stream:
                names = list(stream.keys())
                return {name: tuple(stream.get_slice(name).get_shape()) for name in names}
        except safetensors.SafetensorError as failure:
            raise ValueError(str(failure)) from failure


@contextlib.contextmanager
def damage(path: Path, kind: str, error: type[HadaError]) -> Iterator[None]:
    """Turn what a reader of weights raises into an `error` in one line."""
    try:
        yield
    except HadaError:
        raise
    except FileNotFoundError as failure:
        raise error(f"{path}: no such file") from failure
    except IsADirectoryError as failure:
        raise error(f"{path}: a folder, expected a {kind} file") from failure
    except _DAMAGE as failure:
        # The zip reader reports a cut file as a RuntimeError, older formats as any of these.
        raise error(
            f"{path} is truncated or not a {kind} file ({reason(failure)}); fetch or make it again"
        ) from failure


def check_tensors(value: Any, path: Path | str, error: type[HadaError] = CheckpointError) -> None:
    """Raise `error` for any tensor inside of `value` that is not what it seems; see the module."""
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    seen: set[int] = set()
    while waiting:
        name, inner, depth = waiting.pop()
        if isinstance(inner, Tensor):
            if (wrong := _wrong(inner)) is not None:
                raise error(f"{path}: the tensor {shown(name)} {wrong}")
        elif isinstance(inner, Mapping | list | tuple | set | frozenset):
            if depth > DEPTH:
                raise error(f"{path}: nested more than {DEPTH} deep")
            if id(inner) in seen:
                continue
            seen.add(id(inner))
            named = inner.items() if isinstance(inner, Mapping) else enumerate(inner)
            waiting += [(f"{name}.{key}".lstrip("."), held, depth + 1) for key, held in named]


def _wrong(tensor: Tensor) -> str | None:
    """What is wrong with a tensor, None where it is plain."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_mkldnn:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        return f"is not dense ({layout}); save it with .to_dense()"
    if tensor.is_meta:
        return "has no numbers (it was saved from the meta device)"
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype}); save it with .dequantize()"
    if tensor.dtype not in _KINDS:
        return f"is of {str(tensor.dtype).removeprefix('torch.')}, expected real numbers"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return (
            f"has shape {tuple(tensor.shape)}, but the file holds fewer numbers of it "
            "(it was expanded); save it with .contiguous()"
        )
    return None


def is_torchscript(path: Path) -> bool:
    """Whether a file is a program of `torch.jit.save`; `torch.save` writes no constants.pkl."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return False
    return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in names)


def _check_size(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        total = sum(info.file_size for info in archive.infolist())
    if total > _MOST_RATIO * path.stat().st_size:
        raise ValueError(f"it unpacks to {total:,} bytes")
