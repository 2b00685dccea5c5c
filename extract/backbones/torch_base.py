"""What the families that run in PyTorch share: freezing, precision, padding, the way to NumPy."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hada.extract.backbones.base import BackboneRequest, Encoded
from hada.extract.errors import UsageError, unknown
from hada.extract.spec import ModelSpec

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackbone:
    """A frozen model on one device, in one precision.

    Weights stay float32; `bf16` and `fp16` compute under autocast, which keeps norms and softmax
    in float32. Features always leave as float32.

    truncated: captions that `tokenize` has cut so far because they were too long.
    """

    spec: ModelSpec

    def __init__(self, request: BackboneRequest, model: nn.Module) -> None:
        self.device = check_device(request.device)
        if request.precision not in _AUTOCAST:
            raise unknown("precision", request.precision, _AUTOCAST)
        self.dtype = _AUTOCAST[request.precision]
        self.model: Any = model.float().eval().requires_grad_(False).to(self.device)
        self.truncated = 0
        self._lock = threading.Lock()

    def count_truncated(self, number: int) -> None:
        """Add to `truncated`; captions may be tokenised from several threads."""
        with self._lock:
            self.truncated += number

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
        """(B, 3, H, W) from NumPy to the device."""
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).to(self.device)

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
