"""Base of the families that run in PyTorch: freezing, precision, padding, conversion to NumPy."""

from __future__ import annotations

import functools
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hada.extract.backbones.base import BackboneRequest, Encoded
from hada.extract.common.errors import UsageError, unknown
from hada.extract.spec import ModelSpec

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackbone:
    """A frozen model on one device, in one precision.

    Weights stay float32; `bf16` and `fp16` compute under autocast, which keeps norms and softmax
    in float32. Features always leave as float32.

    truncated: captions that `tokenize` has cut so far because they were too long.
    clock: seconds spent so far on bringing pictures to the device, under "transfer"; shared by
        copies of the backbone.
    """

    spec: ModelSpec

    def __init__(self, request: BackboneRequest, model: nn.Module) -> None:
        self.device = check_device(request.device)
        if request.precision not in _AUTOCAST:
            raise unknown("precision", request.precision, _AUTOCAST)
        self.dtype = _AUTOCAST[request.precision]
        self.model: Any = model.float().eval().requires_grad_(False).to(self.device)
        self.truncated = 0
        self.clock = {"transfer": 0.0}
        self.origin: dict[str, str] = {}
        self._lock = threading.Lock()

    def count_truncated(self, number: int) -> None:
        """Add to `truncated`; captions may be tokenised from several threads."""
        with self._lock:
            self.truncated += number

    def compile(self) -> None:
        """Compile the repeated blocks of the towers: one compilation serves all of a kind.

        Raises `UsageError` where there are none, or nothing to compile with.
        """
        compilers = ("g++", "clang++", os.environ.get("CXX") or "g++")
        if self.device.type == "cpu" and not any(shutil.which(name) for name in compilers):
            raise UsageError("--compile on a CPU needs a C++ compiler: install g++, or set CXX")
        blocks = [block for stack in _stacks(self.model) for block in stack.children()]
        if not blocks:
            raise UsageError(f"--compile: {type(self.model).__name__} has no repeated blocks")
        for block in blocks:
            block.compile(dynamic=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """No gradients, and the precision that was asked for."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.dtype is not None:
                stack.enter_context(torch.autocast(self.device.type, dtype=self.dtype))
            elif self.device.type == "cuda":
                # Convolutions use TF32 by default, which is not what "fp32" promises.
                flags = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
                stack.enter_context(flags)
            yield

    def to_device(self, pixels: NDArray[np.float32]) -> Tensor:
        """(B, 3, H, W) from NumPy to the device.

        To a GPU it goes through pinned memory, in the background: `pixels` may be overwritten
        when this returns, and the device still works on the batch before.
        """
        host = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
        if self.device.type != "cuda":
            return host.to(self.device)
        began = time.monotonic()
        tensor = host.pin_memory().to(self.device, non_blocking=True)
        self.clock["transfer"] += time.monotonic() - began
        return tensor

    def pad(
        self, ids: Sequence[Sequence[int]], pad_id: int, length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids as (B, L) and which of them are real as (B, L) bool; L is the longest or `length`."""
        width = length if length is not None else max(len(row) for row in ids)
        padded = np.full((len(ids), width), pad_id, dtype=np.int64)
        real = np.zeros((len(ids), width), dtype=bool)
        for index, row in enumerate(ids):
            padded[index, : len(row)] = row
            real[index, : len(row)] = True
        return torch.from_numpy(padded).to(self.device), torch.from_numpy(real).to(self.device)


def check_device(name: str) -> torch.device:
    """The device called `name`; raises `UsageError` where this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: PyTorch finds no CUDA device here; use --device cpu")
    return device


def encoded(tokens: Tensor | None, mask: Tensor | None, embeddings: Tensor | None) -> Encoded:
    """(B, N, D) tokens, those that count as (B, N) bool (None: all) and (B, E) as one `Encoded`."""
    if any(part is not None and part.is_cuda for part in (tokens, embeddings)):
        return Arriving(tokens, mask, embeddings)
    host = None if embeddings is None else embeddings.float().cpu().numpy()
    if tokens is None:
        return Encoded(values=None, lengths=None, embeddings=host)
    if mask is None:
        lengths = np.full(tokens.shape[0], tokens.shape[1], dtype=np.int64)
        rows = tokens.reshape(-1, tokens.shape[-1])
    else:
        lengths = mask.sum(dim=1).cpu().numpy().astype(np.int64)
        rows = tokens[mask]
    return Encoded(values=rows.float().cpu().numpy(), lengths=lengths, embeddings=host)


class Arriving(Encoded):
    """An `Encoded` on its way from a GPU, on a stream of its own beside the next batch's forward.

    Padding comes along and is removed here: to know where it is, the device would have to stop.
    """

    arriving = True

    def __init__(
        self, tokens: Tensor | None, mask: Tensor | None, embeddings: Tensor | None
    ) -> None:
        parts = [
            part.float() if part is not None and part.is_floating_point() else part
            for part in (tokens, mask if tokens is not None else None, embeddings)
        ]
        device = next(part.device for part in parts if part is not None)
        computing, sending = torch.cuda.current_stream(device), _sending_stream(device)
        self._computed = computing.record_event()
        sending.wait_stream(computing)
        with torch.cuda.stream(sending):
            self._host = [None if part is None else _send_home(part) for part in parts]
        self._arrived = sending.record_event()
        self._result: Encoded | None = None

    def wait(self) -> float:
        self._computed.synchronize()
        began = time.monotonic()
        self._arrived.synchronize()
        return time.monotonic() - began

    @property
    def values(self) -> NDArray[np.float32] | None:
        return self._here().values

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        return self._here().lengths

    @property
    def embeddings(self) -> NDArray[np.float32] | None:
        return self._here().embeddings

    def _here(self) -> Encoded:
        if self._result is None:
            self._arrived.synchronize()
            self._result = encoded(*self._host)
        return self._result


def _stacks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost lists of two or more modules of one class: a transformer's layers."""
    for child in model.children():
        parts = list(child.children())
        listed = isinstance(child, nn.ModuleList | nn.Sequential)
        if listed and len(parts) > 1 and len({type(part) for part in parts}) == 1:
            yield child
        else:
            yield from _stacks(child)


@functools.cache
def _sending_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _send_home(part: Tensor) -> Tensor:
    """A copy in pinned memory, begun on the current stream."""
    host = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
    host.copy_(part, non_blocking=True)
    # The block must not be handed to the next batch before this stream has read it.
    part.record_stream(torch.cuda.current_stream(part.device))
    return host


MaskT = TypeVar("MaskT", Tensor, None, Tensor | None)


def with_pooled(pooled: Tensor, tokens: Tensor, mask: MaskT) -> tuple[Tensor, MaskT]:
    """The pooled vector (B, D) put in front of (B, N, D) and, where there is one, of the mask."""
    tokens = torch.cat([pooled.unsqueeze(1).to(tokens.dtype), tokens], dim=1)
    if mask is not None:
        mask = torch.cat([mask.new_ones(mask.shape[0], 1), mask], dim=1)
    return tokens, mask


def grid_to_tokens(feature_map: Tensor) -> Tensor:
    """(B, D, H, W) -> (B, H * W, D), row by row of the grid."""
    return feature_map.flatten(2).transpose(1, 2)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree up to rounding in float32."""
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-4, atol=1e-5))


def probe_pixels(height: int, width: int) -> NDArray[np.float32]:
    """Two fixed noise images (2, 3, H, W): enough to see what a tower gives."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((2, 3, height, width), dtype=np.float32)


def library_versions(*packages: str) -> dict[str, str]:
    """Installed version by package name, for the spec."""
    return {package: version(package) for package in packages}


def plain(value: Any) -> Any:
    """JSON-friendly copy of a settings value: tuples become lists, numbers stay, rest as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
