"""Ways to shard a model, the part of a tensor that a rank must hold, and a watch on the wires."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from models import Model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["STYLES", "SilenceError", "difference", "mesh", "part", "silence"]


@cache  # every new mesh costs new process groups
def mesh(*sizes: int) -> DeviceMesh:
    names = {1: ("dp",), 2: ("dp", "tp"), 3: ("replicate", "dp", "tp")}[len(sizes)]
    return init_device_mesh("cpu", sizes, mesh_dim_names=names)


@cache
def mesh_of(*ranks: Any) -> DeviceMesh:
    return DeviceMesh("cpu", torch.tensor(ranks))


#: Every process cuts its own values; torch 2.6 takes those of the first one.
ALONE = (
    {"src_data_rank": None} if "src_data_rank" in signature(distribute_tensor).parameters else {}
)

# ── ways to shard ────────────────────────────────────────────────────────────────────────────


def _fsdp(model: nn.Module, own: Model, world: int, over: Any = None, **options: Any) -> None:
    over = mesh(world) if over is None else over
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=over, **options)
    if numbers := {p for p in model.parameters() if p.dim() == 0}:  # FSDP2 cannot cut them
        options["ignored_params"] = numbers  # torch 2.8 or later
    fully_shard(model, mesh=over, **options)


def _second_dim(model: nn.Module, own: Model, world: int) -> None:
    def place(parameter: nn.Parameter) -> Shard | None:
        even = parameter.dim() > 1 and parameter.shape[1] % world == 0
        return Shard(1) if even else None  # FSDP2 cuts other dimensions into equal parts only

    _fsdp(model, own, world, shard_placement_fn=place)


def _mixed(model: nn.Module, own: Model, world: int) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    _fsdp(model, own, world, mp_policy=policy)


def _compiled(model: nn.Module, own: Model, world: int) -> None:
    """In place, as training does; nothing is compiled before it first runs.

    The backend that is the quickest to import: each rank would spend five seconds on another.
    """
    _fsdp(model, own, world)
    model.compile(backend="eager")


def _tp(model: nn.Module, own: Model, world: int, over: DeviceMesh | None = None) -> None:
    parallelize_module(model, mesh(world) if over is None else over, own.plan())
    getattr(model, "tie", bool)()  # each module got a parameter of its own


def _hsdp(model: nn.Module, own: Model, world: int) -> None:
    _fsdp(model, own, world, over=mesh(2, world // 2))


def _fsdp_tp(model: nn.Module, own: Model, world: int) -> None:
    both = mesh(world // 2, 2)
    _tp(model, own, world, both["tp"])
    _fsdp(model, own, world, over=both["dp"])


def _hsdp_tp(model: nn.Module, own: Model, world: int) -> None:
    every = mesh(2, world // 4, 2)
    _tp(model, own, world, every["tp"])
    _fsdp(model, own, world, over=every["replicate", "dp"])


def _experts(model: nn.Module, own: Model, world: int, over: DeviceMesh | None = None) -> None:
    over = mesh(world) if over is None else over
    _replace(model, lambda name, p: [Shard(0)] if name in own.experts else None, over)


def _fsdp_experts(model: nn.Module, own: Model, world: int) -> None:
    both = mesh(world // 2, 2)
    _experts(model, own, world, both["tp"])
    _fsdp(model, own, world, over=both["dp"])


def _turned(model: nn.Module, own: Model, world: int) -> None:
    """The last rank comes first."""
    if not ALONE:
        raise NotImplementedError("torch 2.6 deals the parts out in the order of the ranks")
    _dims(model, own, world, (0,), mesh_of(*reversed(range(world))))


def _transposed(model: nn.Module, own: Model, world: int) -> None:
    """Matrices that are stored by columns."""
    for name, p in list(model.named_parameters()):
        if p.dim() > 1:
            columns = p.detach().mT.contiguous().mT
            _set(model, name, nn.Parameter(columns))
    _dims(model, own, world, (0,))


def _crossed(model: nn.Module, own: Model, world: int) -> None:
    """Ranks that count down the columns of the mesh."""
    _dims(model, own, world, (0, 1), mesh_of((0, 2), (1, 3)))


def _some(model: nn.Module, own: Model, world: int) -> None:
    """The first rank holds nothing."""
    _dims(model, own, world, (0,), mesh_of(*range(1, world)))


def _partial(model: nn.Module, own: Model, world: int) -> None:
    """Every rank holds a term of a sum."""
    for name, parameter in list(model.named_parameters()):
        held = DTensor.from_local(parameter.detach(), mesh(world), [Partial()], run_check=False)
        _set(model, name, nn.Parameter(held))


def _dims(
    model: nn.Module,
    own: Model,
    world: int,
    dims: tuple[int | None, ...],
    over: DeviceMesh | None = None,
) -> None:
    """Every parameter sharded over these dimensions, one for each of the mesh; None: a copy."""
    over = over or (mesh(world) if len(dims) == 1 else mesh(world // 2, 2))

    def place(_: str, parameter: Tensor) -> list[Any]:
        last = parameter.dim() - 1
        return [Replicate() if d is None or last < 0 else Shard(min(d, last)) for d in dims]

    _replace(model, place, over)


def _replace(
    model: nn.Module, place: Callable[[str, Tensor], list[Any] | None], over: DeviceMesh
) -> None:
    for name, parameter in list(model.named_parameters()):
        placements = place(name, parameter)
        if placements is None:
            continue
        held = distribute_tensor(parameter.detach(), over, placements, **ALONE)
        _set(model, name, nn.Parameter(held, requires_grad=parameter.requires_grad))


def _set(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, key = name.rpartition(".")
    setattr(model.get_submodule(path), key, parameter)


Style = Callable[[nn.Module, Model, int], None]

STYLES: dict[str, Style] = {
    "fsdp": _fsdp,
    "fsdp kept": partial(_fsdp, reshard_after_forward=False),
    "fsdp resharded": partial(_fsdp, reshard_after_forward=True),
    "fsdp mixed": _mixed,
    "fsdp second": _second_dim,
    "fsdp compiled": _compiled,
    "hsdp": _hsdp,
    "tp": _tp,
    "fsdp tp": _fsdp_tp,
    "hsdp tp": _hsdp_tp,
    "experts": _experts,
    "fsdp experts": _fsdp_experts,
    "ddp": lambda model, own, world: None,  # `worker.py` wraps it
    "rows": partial(_dims, dims=(0,)),
    "rows turned": _turned,
    "rows of some": _some,
    "rows transposed": _transposed,
    "columns": partial(_dims, dims=(1,)),
    "copies": partial(_dims, dims=(None,)),
    "rows columns crossed": _crossed,
    "rows columns": partial(_dims, dims=(0, 1)),
    "columns rows": partial(_dims, dims=(1, 0)),
    "rows rows": partial(_dims, dims=(0, 0)),
    "copies rows": partial(_dims, dims=(None, 0)),
    "terms": _partial,
}


# ── what a rank must hold ────────────────────────────────────────────────────────────────────


def part(whole: Tensor, parameter: DTensor) -> Tensor:
    """The part of a whole tensor that this rank holds: cut again and again, as torch does.

    Where FSDP cut what tensor parallelism had cut before, the inner mesh dimension comes first.
    """
    over, placements = parameter.device_mesh, parameter.placements
    here = over.get_coordinate()
    order = list(range(over.ndim))
    if any(isinstance(p, _StridedShard) for p in placements):
        order.reverse()
    for at in order:
        if placements[at] != Replicate():
            dim = placements[at].dim
            whole = _cut(whole, dim, over.size(at), here[at])
    return whole


def _cut(whole: Tensor, dim: int, count: int, number: int) -> Tensor:
    step = math.ceil(whole.shape[dim] / count)
    first = min(number * step, whole.shape[dim])
    return whole.narrow(dim, first, min(step, whole.shape[dim] - first))


def difference(held: Tensor, due: Tensor) -> str:
    """What is wrong with a tensor, bit for bit; empty where nothing is."""
    if held.shape != due.shape or held.dtype != due.dtype:
        return f"{held.dtype}{list(held.shape)} in the place of {due.dtype}{list(due.shape)}"
    left, right = _bits(held), _bits(due)
    if torch.equal(left, right):
        return ""
    where = (left != right).nonzero()
    first = int(where[0])
    told = f"{held.flatten()[first]} in the place of {due.flatten()[first]}"
    return f"{len(where)} of {due.numel()} differ, first {first}: {told}"


def _bits(tensor: Tensor) -> Tensor:
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(whole).flatten()


# ── a watch on the wires ─────────────────────────────────────────────────────────────────────


class SilenceError(Exception):
    """A rank talked to another one, and should not have."""


class _Watch(TorchDispatchMode):
    """Every collective, and every message between two ranks, is an operator of its own."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if "c10d" in func.namespace:
            raise SilenceError(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def silence() -> Iterator[None]:
    """Raise SilenceError where a rank sends, receives or waits within the block."""
    with _Watch():
        yield
