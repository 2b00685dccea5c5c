"""The device that a command's `--device` means."""

from __future__ import annotations

from hada.extract.common.errors import UsageError


def choose_device(name: str) -> str:
    """The name of a device that PyTorch can use here.

    Args:
        name: "auto" for the first CUDA GPU where there is one and the CPU elsewhere, or a name
            that PyTorch knows: "cpu", "cuda", "cuda:1", "mps".

    Raises:
        UsageError: PyTorch does not know the device, or this machine has none of that kind.
    """
    if name == "cpu":  # every build of PyTorch has it, so nothing needs to be imported
        return name
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--device {name}: not usable here ({reason}); try auto") from error
    return name
