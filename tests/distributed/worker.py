"""The ranks: each does every case of its number of ranks, and writes what it found wrong.

Started with the folder of the truths, where the findings go too, and with the numbers of ranks.
All ranks are forked from one process, which has imported for them what takes longer than the cases.
Without numbers it is one rank that torchrun has started.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # sharded modules import it when they first run
import torch.distributed as dist
from cases import CASES, Case, Truth
from models import part_of
from placing import ALONE, STYLES, SilenceError, difference, part, silence
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import fanin
import fanin.apply
import fanin.placement
from fanin.errors import ArgumentError, ModelError, RecipeError

__all__ = ["main"]

PATIENCE = timedelta(seconds=40)  # a rank that waits longer for another one has lost it
LOSS = 1e-5  # float32 sums in another order
SHARE = 0.5  # of the whole; on four ranks the part and a copy of it, and no more
# Of the largest entry of a tensor, where scales are measured: sums over the batch in another order,
# and a scale that is kept to four digits may be rounded to the other side, as may the next.
MEASURED = {"within_layer": 1e-5, "auto": 2e-3, "lsuv": 2e-3}

Problems = list[str]
#: What is wrong already, and what all ranks do together if nothing is.
Found = tuple[Problems, Callable[[], Problems]]

FOLDER = Path()


@cache
def truth(name: str) -> Truth:
    return Truth.load(FOLDER / name)


def plan_of(case: Case) -> fanin.Plan:
    return fanin.Plan.of(truth(case.truth).recipe)


# ── the model, its parts, and what they have to be ───────────────────────────────────────────


def sharded(case: Case) -> nn.Module:
    """The model of a case, cut up; what has memory but no value is NaN."""
    model = case.made("cpu" if case.start == "real" else "meta")
    STYLES[case.style](model, case.own, dist.get_world_size())
    if case.start == "empty":
        model.to_empty(device="cpu")
        getattr(model, "tie", bool)()  # to_empty parts tied parameters
        for _, held in parts(model):
            held.fill_(torch.nan)
    return model


def parts(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What this rank holds of each parameter."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return [
        (name, (p.to_local() if isinstance(p, DTensor) else p).detach())
        for name, p in model.named_parameters()
    ]


def has(parameter: Tensor) -> bool:
    """Whether this rank is one of those that a parameter is spread over."""
    alone = not isinstance(parameter, DTensor)
    return alone or parameter.device_mesh.get_coordinate() is not None


def wrong_parts(model: nn.Module, due: dict[str, Tensor]) -> Problems:
    """Each parameter of which this rank holds other bits than it should."""
    if [name for name, _ in parts(model)] != list(due):
        return [f"other parameters: {[name for name, _ in parts(model)]}"]
    found = []
    for (name, held), parameter in zip(parts(model), model.parameters(), strict=True):
        whole = due[name]
        if not has(parameter):
            continue
        cuts = [whole]
        if isinstance(parameter, DTensor):
            over, placements = parameter.device_mesh, parameter.placements
            cuts = [part(whole, parameter)]
            if ALONE:
                cuts.append(distribute_tensor(whole, over, placements, **ALONE).to_local())
        told = [difference(held, cut) for cut in cuts]
        found += [f"{name} {list(whole.shape)}: {what}" for what in told if what]
    return found


def wrong_wholes(model: nn.Module, due: dict[str, Tensor]) -> Problems:
    """The same, of what torch makes of the parts of all ranks."""
    told = {
        name: difference(p.full_tensor(), due[name])
        for name, p in model.named_parameters()
        if isinstance(p, DTensor) and has(p)
    }
    return [f"{name}, put together: {what}" for name, what in told.items() if what]


def compared(case: Case, model: nn.Module, due: dict[str, Tensor] | None = None) -> Found:
    """The parts; the whole too, for most cases: it takes long.

    Where the ranks of a mesh do not ascend, torch puts the parts together in another order.
    """
    due = truth(case.truth).values if due is None else due
    wholes = case.start == "real" and case.style != "rows turned"
    return wrong_parts(model, due), lambda: wrong_wholes(model, due) if wholes else []


def raised(error: type[BaseException], act: Callable[[], Any]) -> Problems:
    try:
        act()
    except error:
        return []
    return [f"no {error.__name__}"]


# ── what is done ─────────────────────────────────────────────────────────────────────────────


def applies(case: Case) -> Found:
    """The plan of one process, applied to parts: the bits of one process."""
    model, plan = sharded(case), plan_of(case)
    parameters, state = [id(p) for p in model.parameters()], torch.get_rng_state()
    with nullcontext() if case.spoken else silence():
        plan.apply_(model, case.seed)
    wrong, then = compared(case, model)
    wrong += [f"{name} is on meta" for name, b in model.named_buffers() if b.is_meta]
    if not torch.equal(torch.get_rng_state(), state):
        wrong.append("torch's random state is another")
    if case.start != "meta" and [id(p) for p in model.parameters()] != parameters:
        wrong.append("the parameters are other objects: an optimizer would miss them")
    return wrong, then


def joins(case: Case) -> Found:
    """A plan that knows several parameters, applied where they are one tensor."""
    model, plan, fused = sharded(case), plan_of(case), case.own.fused
    with nullcontext() if case.spoken else silence():
        plan.apply_(model, case.seed, fused=fused)
    values = truth(case.truth).values
    names = [name for name, _ in model.named_parameters()]
    due = {name: case.own.join(name, values) if case.own.join else values[name] for name in names}
    return compared(case, model, due)


def stays_small(case: Case) -> Found:
    """No rank needs memory for more than a copy of its part, which keeps what was there."""
    model, plan = sharded(case), plan_of(case)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _memory("VmRSS")
    except OSError:
        return [], list  # only Linux says what a process has used
    plan.apply_(model, case.seed)
    grown = _memory("VmHWM") - before
    found = wrong_parts(model, truth(case.truth).values)
    if grown > SHARE * whole:
        found.append(f"{grown / 2**20:.0f} MiB more for parts of {whole / 2**20:.0f} MiB")
    return found, list


def _memory(field: str) -> int:
    """Bytes that a field of the process's status tells."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def takes_turns(case: Case) -> Found:
    """One rank after the other: a rank that waited for another would wait for ever."""
    model, plan = sharded(case), plan_of(case)
    failed: Problems = []
    for rank in range(dist.get_world_size()):
        if rank == dist.get_rank():
            failed, _ = tried(lambda: plan.apply_(model, case.seed))
        dist.barrier()
    return (failed, list) if failed else compared(case, model)


def plans(case: Case) -> Found:
    """Every rank plans for itself, on a model without memory."""
    whole, batch = case.made("meta"), case.inputs().to("meta")
    plan = fanin.plan(whole, batch, case.scheme, seed=case.seed)
    model = sharded(case)
    with silence():
        plan.apply_(model, case.seed)
    return compared(case, model)


def reads(case: Case) -> Found:
    """The plan as a file."""
    plan, model = fanin.Plan.from_toml(plan_of(case).to_toml()), sharded(case)
    with silence():
        plan.apply_(model, case.seed)
    return compared(case, model)


def initializes(case: Case) -> Found:
    """Plan and apply in one, on a model that is cut up already."""
    model = sharded(case)
    plan = fanin.init_(model, case.inputs(), case.scheme, seed=case.seed)
    wrong, then = compared(case, model)
    return wrong if plan == plan_of(case) else [*wrong, "the plan is another"], then


def runs_first(case: Case) -> Found:
    """A forward leaves whole copies of the root's parameters behind; they must not count."""
    model, plan, batch = sharded(case), plan_of(case), case.inputs()
    with torch.no_grad():
        model(batch)
    with silence():
        plan.apply_(model, case.seed)

    def then() -> Problems:
        with torch.no_grad():
            output = model(batch)
            due = one_process(case)(batch)
        told = [] if torch.allclose(output, due, atol=LOSS) else ["the output is another"]
        return told + wrong_parts(model, truth(case.truth).values)

    return [], then


def trains(case: Case) -> Found:
    """Steps of SGD, beside those of one process."""
    model, plan = sharded(case), plan_of(case)
    plan.apply_(model, case.seed)
    return wrong_parts(model, truth(case.truth).values), lambda: _trained(case, model, plan)


def initializes_and_trains(case: Case) -> Found:
    """Reading a sharded model leaves nothing behind that its training would meet."""
    model = sharded(case)
    plan = fanin.init_(model, case.inputs(), case.scheme, seed=case.seed)
    return wrong_parts(model, truth(case.truth).values), lambda: _trained(case, model, plan)


def _trained(case: Case, model: nn.Module, plan: fanin.Plan) -> Problems:
    found, due = losses(case, model), losses(case, one_process(case))
    close = all(abs(a - b) <= LOSS * b for a, b in zip(found, due, strict=True))
    told = [] if close and due[2] < due[1] < due[0] else [f"losses {found} in the place of {due}"]
    gradients = [p.grad for p in model.parameters()]
    with silence():
        plan.apply_(model, case.seed)  # begin again
    if any(p.grad is not g for p, g in zip(model.parameters(), gradients, strict=True)):
        told.append("the gradients are others")
    return told + wrong_parts(model, truth(case.truth).values)


def one_process(case: Case) -> nn.Module:
    model = case.made()
    model.load_state_dict(truth(case.truth).values, strict=False)  # a tied head has one name
    return model


def losses(case: Case, model: nn.Module) -> list[float]:
    optimizer, batch, found = torch.optim.SGD(model.parameters(), lr=0.1), case.inputs(), []
    for _ in range(3):
        loss = case.own.loss(model(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def measures_whole(case: Case) -> Found:
    """Scales measured on a batch that every rank has."""
    return _measured(case, case.inputs())


def measures(case: Case) -> Found:
    """Scales measured on a batch of which each rank has a part."""
    rank, world = dist.get_rank(), dist.get_world_size()
    return _measured(case, part_of(case.inputs(), rank, world))


def measures_unequal(case: Case) -> Found:
    """Scales measured on a batch of which the first rank has most."""
    batch, rank, world = case.inputs(), dist.get_rank(), dist.get_world_size()
    sizes = [len(batch) - 2 * (world - 1), *[2] * (world - 1)]
    return _measured(case, batch.split(sizes)[rank])


def _measured(case: Case, batch: Tensor) -> Found:
    model, due = sharded(case), truth(case.truth).values
    given = DistributedDataParallel(model) if case.style == "ddp" else model
    plan = fanin.init_(given, batch, case.scheme, seed=case.seed)

    def then() -> Problems:
        texts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(texts, plan.to_toml())
        found = [] if len(set(texts)) == 1 else ["the ranks have different plans"]
        for name, parameter in model.named_parameters():
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            limit = MEASURED[case.scheme] * float(due[name].abs().max())
            off = float((whole - due[name]).abs().max().detach())
            if off > limit:
                found.append(f"{name} is off by {off:.3g}, more than {limit:.3g}")
        return found

    return [], then


# ── what must not be done ────────────────────────────────────────────────────────────────────


def refuses_seed(case: Case) -> Found:
    return _stays(case, lambda m: raised(ArgumentError, lambda: plan_of(case).apply_(m, -1)))


def refuses_placement(case: Case) -> Found:
    return _stays(case, lambda m: raised(ModelError, lambda: plan_of(case).apply_(m)))


def refuses_recipe(case: Case) -> Found:
    """A recipe for a model whose whole shapes are others; the parts' shapes may well fit."""
    plan = plan_of(case)
    first = plan.assignments[0]
    for size in (first.shape[0] + 1, first.shape[0] - 1):
        other = replace(first, shape=(size, *first.shape[1:]))
        wrong = fanin.Plan((other, *plan.assignments[1:]), plan.untouched)
        found = _stays(case, lambda m, p=wrong: raised(RecipeError, lambda: p.apply_(m)))
        if found[0]:
            break
    return found


def refuses_local_recipe(case: Case) -> Found:
    """The shapes of what this rank holds are not those of the model."""
    plan, model = plan_of(case), sharded(case)
    held = {name: tuple(local.shape) for name, local in parts(model)}
    wrong = fanin.Plan(
        tuple(replace(a, shape=held[a.parameter]) for a in plan.assignments), plan.untouched
    )
    return _stays(case, lambda m: raised(RecipeError, lambda: wrong.apply_(m)))


def _stays(case: Case, act: Callable[[nn.Module], Problems]) -> Found:
    """Nothing of the model is another after what is done to it."""
    model = sharded(case)
    before = [(name, held.clone()) for name, held in parts(model)]
    owners = [id(p) for p in model.parameters()]
    found = act(model)
    if [id(p) for p in model.parameters()] != owners:
        found = [*found, "a parameter is another object"]
    for (name, old), (_, held) in zip(before, parts(model), strict=True):
        if held.is_meta != old.is_meta:
            found = [*found, f"{name} is on {held.device}"]
        elif not held.is_meta and difference(held, old):
            found = [*found, f"{name} changed: {difference(held, old)}"]
    return found, list


def interrupted(case: Case) -> Found:
    """The last rank is interrupted after its third parameter; the others end as they should."""
    plan, rank, world = plan_of(case), dist.get_rank(), dist.get_world_size()
    if rank != world - 1:
        model = sharded(case)
        plan.apply_(model, case.seed)
        return wrong_parts(model, truth(case.truth).values), list
    assign, count = fanin.apply.assign_, 0

    def breaking(*given: Any, **named: Any) -> None:
        nonlocal count
        assign(*given, **named)
        count += 1
        if count == 3:
            raise KeyboardInterrupt

    fanin.apply.assign_ = breaking
    try:
        return _stays(case, lambda m: raised(KeyboardInterrupt, lambda: plan.apply_(m)))
    finally:
        fanin.apply.assign_ = assign


def fails_alone(case: Case) -> Found:
    """The first rank has no memory for its second matrix: all ranks end, and keep what was."""
    first, assign, count = dist.get_rank() == 0, fanin.placement.assign_, 0

    def failing(*given: Any, **named: Any) -> None:
        nonlocal count
        count += 1
        if first and count == 2:
            raise MemoryError
        assign(*given, **named)

    error, plan = MemoryError if first else ModelError, plan_of(case)
    fanin.placement.assign_ = failing
    try:
        return _stays(case, lambda m: raised(error, lambda: plan.apply_(m, case.seed)))
    finally:
        fanin.placement.assign_ = assign


def watches(case: Case) -> Found:
    """The watch on the wires sees every way in which torch's ranks talk: it can fail."""
    one, many = torch.ones(1), [torch.ones(1) for _ in range(dist.get_world_size())]
    rank, world = dist.get_rank(), dist.get_world_size()
    model = sharded(case)
    ways: dict[str, Callable[[], Any]] = {
        "broadcast": lambda: dist.broadcast(one, 0),
        "all_reduce": lambda: dist.all_reduce(one),
        "all_gather": lambda: dist.all_gather(many, one),
        "scatter": lambda: dist.scatter(one, many if rank == 0 else None, 0),
        "send": lambda: dist.send(one, (rank + 1) % world),
        "isend": lambda: dist.isend(one, (rank + 1) % world),
        "barrier": dist.barrier,
        "object": lambda: dist.broadcast_object_list([1], 0),
        "full_tensor": lambda: next(model.parameters()).full_tensor(),
        "forward": lambda: model(case.inputs()),
    }
    found = []
    for name, way in ways.items():
        with silence():
            found += [f"{name}: {told}" for told in raised(SilenceError, way)]
    return found, list


# ── all of it ────────────────────────────────────────────────────────────────────────────────

DOES: dict[str, Callable[[Case], Found]] = {
    f.__name__.replace("_", " "): f
    for f in (
        *(applies, takes_turns, plans, reads, runs_first, trains, joins, stays_small),
        *(initializes, initializes_and_trains),
        *(measures_whole, measures, measures_unequal),
        *(refuses_seed, refuses_placement, refuses_recipe, refuses_local_recipe, interrupted),
        *(fails_alone, watches),
    )
}


def tried(act: Callable[[], Any]) -> tuple[Problems, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
            warnings.filterwarnings("ignore", "DTensor random operators may not have")  # torch 2.6
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
            return [], act()
    except Exception:  # noqa: BLE001 - whatever it is, the other cases go on
        return [traceback.format_exc(limit=-8)], None


def problems_of(case: Case) -> tuple[Problems, bool]:
    """What this rank finds, and whether the ranks can go on.

    What all ranks do together is left out where one of them has a problem.
    """
    failed, found = tried(lambda: DOES[case.does](case))
    problems, then = (failed, list) if found is None else found
    well = torch.tensor([not problems])
    try:
        dist.all_reduce(well, dist.ReduceOp.MIN)
    except RuntimeError as error:
        return [*problems, f"lost the other ranks: {error}"], False
    if well:
        failed, found = tried(then)
        problems = failed or found
    return problems, True


def rank_of(number: int, world: int) -> int:
    """Be one rank: do every case of this number of ranks, one line for each; exit status."""
    store = dist.FileStore(str(FOLDER / f"store-of-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=number, world_size=world, timeout=PATIENCE)
    with (FOLDER / f"rank-{number}-of-{world}.jsonl").open("w", encoding="utf-8") as file:
        for case in CASES:
            if world in case.worlds:
                problems, well = problems_of(case)
                file.write(json.dumps([case.name, problems]) + "\n")
                file.flush()
                if not well:
                    return 1
    dist.destroy_process_group()
    return 0


def forked(number: int, world: int) -> int:
    """Start a rank; its process."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            status = rank_of(number, world)
        except BaseException:  # noqa: BLE001 - a rank must not go on as its parent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return process


def main(folder: Path, worlds: list[int]) -> int:
    """Start the ranks of one number after the other, or be the one that torchrun has started.

    How many of them failed.
    """
    global FOLDER
    FOLDER = folder
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    if not worlds:
        return rank_of(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    failed = 0
    for world in worlds:
        ranks = [forked(number, world) for number in range(world)]
        failed += sum(os.waitpid(rank, 0)[1] != 0 for rank in ranks)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [int(world) for world in sys.argv[2:]]))
