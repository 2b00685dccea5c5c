"""A training's state to and from its run's folder: checkpoints, best weights, a beginning.

`hada.fuse.run_folder` keeps the files; what of an objective goes into them is decided here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hada.extract.common.console import say
from hada.extract.common.errors import RunError
from hada.fuse.network.fuser import Fuser
from hada.fuse.network.score_mix import ScoreMix
from hada.fuse.run_files.checkpoint import Position, load_state
from hada.fuse.run_folder import METRICS, RunFolder
from hada.fuse.training.objective import Objective


def save_last(
    run: RunFolder, objective: Objective, optimizer: torch.optim.Optimizer, position: Position
) -> None:
    """Write everything that a later process needs to go on as if nothing had happened.

    Args:
        run: Its folder.
        objective: Its weights, slow copies and queues are written.
        optimizer: Its state is written.
        position: Where the training is.
    """
    state = {
        "objective": objective.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "rng_devices": device_states(next(objective.parameters()).device),
    }
    run.save_state(state, position)


def load_last(
    run: RunFolder,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    report: Callable[[str], None] = say,
) -> Position:
    """Put everything back where `save_last` left it; a new run starts at the beginning.

    Where the last checkpoint is damaged the one before takes its place, and a line
    says so.

    Args:
        run: Its folder.
        objective: Gets the weights, slow copies and queues.
        optimizer: Gets its state.
        device: Where both lie.
        report: Is called with lines for people.

    Returns:
        Where the training goes on.

    Raises:
        RunError: Both checkpoints are damaged, or the best weights are not the run's.
    """
    point, faults = run.resume_point()
    if point is None:
        (run.path / METRICS).unlink(missing_ok=True)
        return Position()
    # To the CPU: what belongs elsewhere is copied there, and AdamW counts its steps on the CPU. A
    # count on the GPU would be fetched anew for every tensor in every step.
    state = load_state(point.path)
    try:
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        restore_device(state["rng_devices"], device)
    except Exception as error:  # a file without checksum may hold anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"{point.path}: does not fit this run ({reason}); use --fresh to start over"
        ) from error
    for fault in faults:
        report(
            f"{fault.file}: {fault.kind}: {fault.reason}. Training goes on from the "
            f"checkpoint before: {point.position}"
        )
    run.go_on_from(point)
    return Position(**state["position"])


def device_states(device: torch.device) -> list[Tensor]:
    """The random numbers' state of the GPU that trains, as a list of one; empty for a CPU.

    No other GPU is asked: that would take memory of each, also from a training on the CPU.
    """
    return [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []


def restore_device(states: Sequence[Tensor], device: torch.device) -> None:
    """Set what `device_states` gave, on whatever GPU the training goes on.

    Older checkpoints hold the states of all GPUs of their machine, which may have had more.
    """
    if device.type == "cuda" and states:
        torch.cuda.set_rng_state(states[min(device.index or 0, len(states) - 1)], device)


def best_of(objective: Objective, tensors: Mapping[str, Tensor]) -> tuple[Fuser, ScoreMix]:
    """Copies of an objective's network and shares, with the weights that `save_best` wrote."""
    fuser, mix = copy.deepcopy(objective.fuser), copy.deepcopy(objective.mix)
    part: nn.Module
    for prefix, part in (("fuser.", fuser), ("mix.", mix)):
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        part.load_state_dict(own)
    return fuser.eval(), mix.eval()


def save_best(run: RunFolder, objective: Objective, epoch: int) -> None:
    """Write what retrieval needs, and what another training may start from, as safetensors."""
    parts: dict[str, nn.Module] = {"fuser": objective.fuser, "mix": objective.mix}
    if objective.discriminator is not None:
        parts["discriminator"] = objective.discriminator
    tensors = {f"{p}.{k}": v for p, part in parts.items() for k, v in part.state_dict().items()}
    run.save_tensors({**tensors, "temperature": objective.temperature.detach()}, epoch)


def start_from(run: RunFolder, objective: Objective) -> None:
    """Give a fresh objective a run's encoders and matching head, slow encoders included.

    Temperature, score weights and queues begin anew, as in the published second step; there
    the slow encoders begin at random too, by a mistake that is not repeated.

    Raises:
        RunError: The run has no weights, or they do not fit the objective's recipe.
    """
    tensors = run.load_tensors()
    parts: list[tuple[str, nn.Module | None]] = [
        ("fuser.", objective.fuser),
        ("fuser.", objective.slow),
        ("discriminator.", objective.discriminator),
    ]
    for prefix, part in parts:
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if part is None or not own:
            continue
        try:
            part.load_state_dict(own)
        except RuntimeError as error:
            first = str(error).strip().splitlines()[1].strip()
            raise RunError(
                f"{run.path}: its weights do not fit this recipe: {first} Use the same "
                "widths and norm as that run (the paper's two steps differ in norm)"
            ) from error
