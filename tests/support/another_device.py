"""A device beside the CPU, for machines that have none: its tensors do not mix with the CPU's.

On a GPU the commonest mistake is a tensor that was made on the CPU and meets one of the GPU. Here
tensors call themselves `meta`, hold their numbers on the CPU all the same, and every operation that
is given tensors of both places fails, but for copies. So whole trainings run as on a GPU: in larger
pieces than a CPU likes, and with whatever else the code does where the device is not the CPU.

What it does not show: CUDA's own kernels, pinned memory, and autocast, which `meta` has not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from hada.fuse.network import layers
from hada.fuse.tokens import prefetch

ELSEWHERE = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_tensor = torch.tensor


class There(torch.Tensor):
    """A tensor of the other device; its numbers are in `held`."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """In a file it is numbers alone, as what `torch.load` brings from a GPU to the CPU."""
        return self.held.__reduce_ex__(protocol)


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device of its tensors or on the one that it names."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    # Of the CPU's, a GPU takes single numbers alone.
    if there and func not in COPIES and any(x.dim() for x in tensors if not isinstance(x, There)):
        raise RuntimeError(f"{func}: tensors of the CPU and of another device")
    goes = bool(there)
    if kwargs.get("device") is not None:
        goes = torch.device(kwargs["device"]).type == ELSEWHERE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if func is torch.ops.aten.copy_.default:
        goes = isinstance(args[0], There)
    known = {id(x.held): x for x in there}
    args, kwargs = tree_map_only(There, lambda x: x.held, (args, kwargs))
    result = func(*args, **kwargs)
    if not goes:
        return result

    def wrapped(held: torch.Tensor) -> There:
        # What was changed in its place is the tensor that it was.
        return known[id(held)] if id(held) in known else There(held)

    return tree_map_only(torch.Tensor, wrapped, result)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Threads(ThreadPoolExecutor):
    """A mode holds for its thread alone: those that make batches need it, too."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        def inside() -> Any:
            with _Mode():
                return fn(*args, **kwargs)

        return super().submit(inside)


def _made_here(data: Any, *, device: Any = "cpu", **options: Any) -> torch.Tensor:
    """`torch.tensor`, which a mode does not see."""
    return _tensor(data, **options).to(device)


@contextlib.contextmanager
def another_device() -> Iterator[torch.device]:
    """The device; what is made inside stays usable only there."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            mock.patch.object(torch, "tensor", _made_here),
            mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()),
            mock.patch.object(prefetch, "ThreadPoolExecutor", _Threads),
            # The same draws as on the CPU.
            mock.patch.object(layers, "BITS_ON", {"cpu", ELSEWHERE.type}),
            _Mode(),
        ):
            yield ELSEWHERE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
