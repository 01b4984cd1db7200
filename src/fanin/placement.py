"""What one process holds of a parameter that is spread over several (DTensor)."""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fanin.assignment import Assignment
from fanin.errors import ModelError
from fanin.fill import assign_, taken
from fanin.memory import empty_like
from fanin.window import Runs, Window, chunk

__all__ = [
    "Draw",
    "Holders",
    "Share",
    "agreement",
    "exchange_",
    "held",
    "is_spread",
    "made",
    "prepared",
    "reject_flat",
    "share",
]


#: Processes by rank, and what each holds.
Holders: TypeAlias = tuple[tuple[int, Window], ...]


@dataclass(frozen=True)
class Share:
    """A parameter as this process holds it.

    Attributes:
        tensor: its values here: the parameter itself, or a shard of it.
        window: which part of the parameter they are.
        spread: whether the parameter is spread over processes.
        everyone: finds `holders`, which takes longer the more processes there are.
    """

    tensor: Tensor
    window: Window
    spread: bool = False
    everyone: Callable[[], Holders] = tuple

    @functools.cached_property
    def holders(self) -> Holders:
        """Of a parameter that is spread: every process of its mesh, and what it holds."""
        return self.everyone()


@dataclass(frozen=True)
class Draw:
    """What this process draws of one logical parameter, and where."""

    assignment: Assignment
    name: str
    share: Share


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor: whole in its shape, of which a process holds a shard."""
    module = sys.modules.get("torch.distributed.tensor")  # nobody has one who never imported it
    return module is not None and isinstance(tensor, module.DTensor)


def held(tensor: Tensor) -> Tensor:
    """The values of a parameter that this process has, in the parameter's own memory.

    >>> held(nn.Parameter(torch.ones(2))).requires_grad
    False
    """
    if not is_spread(tensor):
        return tensor.detach()
    spread: Any = tensor
    with torch.no_grad():  # a call of autograd's would take longer than most draws
        local: Tensor = spread.to_local()
    return local.detach()


def reject_flat(model: nn.Module) -> None:
    """Raise ModelError where parameters are flattened into memory that comes and goes."""
    module: Any = sys.modules.get("torch.distributed.fsdp")
    if module is None:
        return
    for name, each in model.named_modules():
        if isinstance(each, module.FullyShardedDataParallel):
            raise ModelError(
                f"model: {name or 'it'} is wrapped by FullyShardedDataParallel, which flattens its "
                "parameters; do this before it is wrapped, or shard it by "
                "torch.distributed.fsdp.fully_shard, which plan, init_ and Plan.apply_ take"
            )


def prepared(model: nn.Module) -> None:
    """Make sure that the parameters of a model are its shards.

    After a forward, modules of `fully_shard` may still show their gathered parameters, which are
    copies; they are let go.

    Raises:
        ModelError: the model is wrapped by FullyShardedDataParallel, whose parameters are flat.
    """
    reject_flat(model)
    module: Any = sys.modules.get("torch.distributed.fsdp")
    if module is None:
        return
    for each in model.modules():
        sharded: Any = each
        if isinstance(each, module.FSDPModule):
            sharded.reshard()


def share(name: str, tensor: Tensor) -> Share:
    """What this process holds of a parameter.

    Raises:
        ModelError: the parameter is spread in a way that no part of it can be drawn.
    """
    if not is_spread(tensor):
        return Share(tensor, Window.whole(tensor.shape))
    spread: Any = tensor
    mesh, local = spread.device_mesh, held(tensor)
    sizes, ranks, here = tuple(mesh.shape), mesh.mesh, mesh.get_coordinate()
    shape = tuple(tensor.shape)
    cuts = [_cut(name, placement, len(shape)) for placement in spread.placements]

    def everyone() -> Holders:
        places = itertools.product(*map(range, sizes))
        return tuple((int(ranks[place]), _window(shape, sizes, place, cuts)) for place in places)

    if here is None:  # of another part of a pipeline
        nothing: tuple[Runs, ...] = ((),) * len(shape)
        return Share(local, Window(shape, nothing), True, everyone)
    window = _window(shape, sizes, here, cuts)
    # Of a shard without elements torch forgets the other sizes.
    if window.sizes != tuple(local.shape) and (window.count or local.numel()):
        raise ModelError(
            f"model: the process holds {list(local.shape)} of the parameter {name!r}, and its "
            f"placement {spread.placements} says {list(window.sizes)}"
        )
    return Share(local, window, True, everyone)


def _cut(name: str, placement: Any, dims: int) -> tuple[int, int] | None:
    """(dimension, parts cut before) of a placement; None where it repeats the whole."""
    if placement.is_replicate():
        return None
    dim = getattr(placement, "dim", None)
    if placement.is_partial() or not isinstance(dim, int):
        raise ModelError(
            f"model: the parameter {name!r} is placed as {placement}; "
            "Shard and Replicate hold values that can be drawn"
        )
    return dim % dims, int(getattr(placement, "split_factor", 1))


def _window(
    shape: Sequence[int],
    sizes: Sequence[int],
    place: Sequence[int],
    cuts: Sequence[tuple[int, int] | None],
) -> Window:
    """What the process at one place of a mesh holds.

    Cut from the first dimension of the mesh to the last.  A strided placement says that later ones
    came before it: `fully_shard` cuts what tensor parallelism has left.  Where sizes are uneven the
    order counts.
    """
    runs = list(Window.whole(shape).runs)
    found = [(*cut, n, at) for cut, n, at in zip(cuts, sizes, place, strict=True) if cut]
    late = {
        k
        for k, (dim, factor, _, _) in enumerate(found)
        if factor > 1 and factor == math.prod(n for d, _, n, _ in found[k + 1 :] if d == dim)
    }
    for k, (dim, factor, size, index) in enumerate(found):
        if k not in late:
            runs[dim] = chunk(runs[dim], size, index, factor)
    for k in sorted(late, reverse=True):
        dim, _, size, index = found[k]
        runs[dim] = chunk(runs[dim], size, index)
    return Window(tuple(shape), tuple(runs))


def made(tensor: nn.Parameter, device: torch.device | str | None) -> nn.Parameter:
    """A parameter with memory in the place of one on the meta device."""
    if not is_spread(tensor):
        empty = empty_like(tensor, device or "cpu")
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    spread: Any = tensor
    local = empty_like(held(tensor), device or spread.device_mesh.device_type)
    whole = type(spread).from_local(
        local,
        spread.device_mesh,
        spread.placements,
        run_check=False,
        shape=spread.shape,
        stride=spread.stride(),
    )
    return nn.Parameter(whole, requires_grad=tensor.requires_grad)


# ── values that one process draws for all ────────────────────────────────────────────────────


def exchange_(pieces: Sequence[Draw], seed: int) -> None:
    """Draw what linear algebra is needed for: by one process each, which sends the others theirs.

    Its last bits depend on the machine, so that parts from different machines would not fit
    together.  The processes take turns; as many parameters as there are processes are drawn at
    the same time.

    Raises:
        ModelError: another process could not draw a parameter; that one has the reason.
    """
    at = 0
    while at < len(pieces):
        several = pieces[at : at + max(1, len(pieces[at].share.holders))]
        drawn = [_drawn(piece, turn, seed) for turn, piece in enumerate(several)]
        for turn, (piece, whole) in enumerate(zip(several, drawn, strict=True)):
            _spread_(piece, _owner(piece, turn), whole)
        at += len(several)


def _owner(piece: Draw, turn: int) -> int:
    holders = piece.share.holders
    return holders[turn % len(holders)][0]


def _drawn(piece: Draw, turn: int, seed: int) -> Tensor | Exception | None:
    """The whole parameter, or why it cannot be, if it is this process's turn."""
    if _owner(piece, turn) != torch.distributed.get_rank():
        return None
    whole = torch.empty(piece.share.window.shape, dtype=piece.share.tensor.dtype, device="cpu")
    try:
        assign_(whole, piece.assignment, seed, piece.name)
    except Exception as error:  # noqa: BLE001 - told to all, then raised
        return error
    return whole


def _spread_(piece: Draw, owner: int, whole: Tensor | Exception | None) -> None:
    """Send every process its part; write this one's."""
    mine, me = piece.share.tensor.detach(), torch.distributed.get_rank()
    if me not in {rank for rank, _ in piece.share.holders}:
        return  # it holds nothing, and nobody sends it anything
    failed = torch.tensor([isinstance(whole, Exception)], dtype=torch.uint8, device=mine.device)
    if whole is None:
        torch.distributed.recv(failed, owner)
        if failed.item():
            raise ModelError(f"model: process {owner} could not draw {piece.name!r}; it says why")
        if mine.numel():
            part = torch.empty_like(mine, memory_format=torch.contiguous_format)
            torch.distributed.recv(part.view(-1).view(torch.uint8), owner)
            mine.copy_(part)
        return
    for rank, window in piece.share.holders:
        if rank != me:
            torch.distributed.send(failed, rank)
        if isinstance(whole, Exception) or not window.count:
            continue
        part = taken(whole, window)
        if rank == me:
            mine.copy_(part)
        else:
            sent = part.contiguous().view(-1).view(torch.uint8)
            torch.distributed.send(sent.to(mine.device), rank)
    if isinstance(whole, Exception):
        raise whole


def agreement(model: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """How the processes that train a model together sum a tensor; None where there is but one.

    Of `fully_shard` and other meshes those of the parameters' mesh, of DistributedDataParallel its
    group.
    """
    groups = list(_groups(model))
    if not groups:
        return None

    def total(values: Tensor) -> Tensor:
        values = values.clone()
        for group in groups:
            torch.distributed.all_reduce(values, group=group)
        return values

    return total


def _groups(model: nn.Module) -> Iterator[Any]:
    """Groups of processes, a sum over each of which in turn is the sum over all."""
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner  # compiled
    if isinstance(model, nn.parallel.DistributedDataParallel):
        yield model.process_group
        return
    spread: list[Any] = [p for p in model.parameters() if is_spread(p)]
    meshes = [p.device_mesh for p in spread]
    if meshes:
        largest = max(meshes, key=lambda mesh: mesh.size())
        for dim in range(largest.ndim):
            yield largest.get_group(dim)
