"""Models spread over processes, in one process: what is refused, and what a copy is made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import fanin
from fanin.assignment import Assignment
from fanin.errors import BatchError, ModelError
from fanin.fill import assign_
from fanin.placement import _window, agreement
from fanin.unsharded import is_sharded, unsharded

# torch 2.13 says so of its own hooks in a forward without gradients.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*backward hook.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:DTensor random operators may not have:UserWarning"),  # 2.6
]


needs_forward = pytest.mark.skipif(
    torch.__version__ < (2, 7), reason="FSDP2 of torch 2.6 runs on a GPU only"
)


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), Block(), Block(), nn.Linear(8, 3))


BATCH = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


def sharded(mesh: DeviceMesh) -> nn.Module:
    model = build()
    for block in model[1:3]:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def fully_sharded(mesh: DeviceMesh) -> nn.Module:
    model = build()
    for block in model[1:3]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@pytest.mark.parametrize("spread", [sharded, fully_sharded])
@pytest.mark.parametrize("scheme", ["auto", "lsuv", "orthogonal", "residual_scaling"])
def test_a_sharded_model_is_planned_and_drawn_like_the_whole(mesh, spread, scheme) -> None:
    whole, model = build(), spread(mesh)
    expected = fanin.init_(whole, BATCH, scheme, seed=2)
    assert fanin.init_(model, BATCH, scheme, seed=2) == expected
    for parameter, same in zip(model.parameters(), whole.parameters(), strict=True):
        values = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        assert torch.equal(values, same)


@pytest.mark.parametrize("spread", [sharded, fully_sharded])
def test_the_copy_is_whole_empty_and_free_of_parallel_hooks(mesh, spread) -> None:
    model = spread(mesh)
    called = []
    model[0].register_forward_hook(lambda *_: called.append("the user's"))
    assert is_sharded(model)
    copy = unsharded(model)
    assert not is_sharded(copy)
    assert [type(m) for m in copy.modules()] == [type(m) for m in build().modules()]
    for (name, one), (same, other) in zip(
        copy.named_parameters(), build().named_parameters(), strict=True
    ):
        assert name == same
        assert one.is_meta
        assert one.shape == other.shape
    copy(BATCH.to("meta"))
    assert called == ["the user's"]


@needs_forward
def test_gathered_parameters_are_let_go(mesh) -> None:
    model, whole = fully_sharded(mesh), build()
    plan = fanin.plan(whole, BATCH)
    model(BATCH)  # the root keeps its gathered parameters for the backward pass
    plan.apply_(model, seed=3)
    plan.apply_(whole, seed=3)
    assert torch.allclose(model(BATCH), whole(BATCH), atol=1e-6)


def test_tied_parameters_are_drawn_once(mesh) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Embedding(11, 8), Block(), nn.Linear(8, 11, bias=False))
        model[2].weight = model[0].weight
        return model

    tokens = torch.arange(10).view(2, 5)
    whole, model = tied(), fully_shard(tied(), mesh=mesh)
    plan = fanin.plan(whole, tokens)
    plan.apply_(whole, seed=1)
    plan.apply_(model, seed=1)
    assert model[2].weight is model[0].weight
    assert torch.equal(model[0].weight.full_tensor(), whole[0].weight)


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
def test_flat_parameters_are_refused(mesh) -> None:
    model = FullyShardedDataParallel(build(), device_id=torch.device("cpu"))
    plan = fanin.plan(build(), BATCH)
    for attempt in (
        lambda: plan.apply_(model),
        lambda: fanin.init_(model, BATCH),
        # Several processes would crash: the memory that was there in the pass is gone after it.
        lambda: fanin.check(model, BATCH),
        lambda: fanin.repair_(model, BATCH),
        lambda: fanin.calibrate_(model, BATCH),
    ):
        with pytest.raises(ModelError, match="wrapped by FullyShardedDataParallel"):
            attempt()


def test_a_partial_parameter_is_refused(mesh) -> None:
    model = build()
    plan = fanin.plan(model, BATCH)
    partial = DTensor.from_local(torch.zeros(3, 8), mesh, [Partial()])
    model[3].weight = nn.Parameter(partial)
    before = model[0].weight.clone()
    with pytest.raises(ModelError, match=r"'3\.weight' is placed as .*Shard and Replicate"):
        plan.apply_(model)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize(
    "verb",
    [
        lambda model: fanin.check(model, BATCH),
        lambda model: fanin.calibrate_(model, BATCH),
        lambda model: fanin.repair_(model, BATCH),
    ],
    ids=["check", "calibrate_", "repair_"],
)
def test_what_watches_one_process_says_so(mesh, verb) -> None:
    model = fully_sharded(mesh)
    before = [p.full_tensor() for p in model.parameters()]
    with pytest.raises(ModelError, match=r"'0\.weight' is a DTensor"):
        verb(model)
    assert all(map(torch.equal, before, (p.full_tensor() for p in model.parameters())))


def test_a_model_that_cannot_be_copied_is_named(mesh) -> None:
    model = fully_sharded(mesh)
    model.lock = (each for each in ())  # generators cannot be copied
    with pytest.raises(ModelError, match="cannot be copied to be read"):
        fanin.plan(model, BATCH)


@pytest.mark.parametrize("drawing", ["fanin.apply.assign_", "fanin.placement.assign_"])
def test_a_failure_after_some_writes_puts_all_shards_back(mesh, monkeypatch, drawing) -> None:
    """Of the shards that a process draws by itself, and of those that are exchanged before."""
    model = fully_sharded(mesh)
    plan = fanin.plan(build(), BATCH, "orthogonal")
    before = [p.full_tensor().clone() for p in model.parameters()]
    draw, drawn = assign_, []

    def fail(tensor: Tensor, *given: object) -> None:
        draw(tensor, *given)
        drawn.append(tensor)
        if len(drawn) == 3:
            changed = [not torch.equal(*pair) for pair in zip(before, values(model), strict=True)]
            assert any(changed)
            raise MemoryError("no room for the matrix")

    def values(model: nn.Module) -> list[Tensor]:
        return [p.full_tensor().clone() for p in model.parameters()]

    monkeypatch.setattr(drawing, fail)
    with pytest.raises(MemoryError, match="no room"):
        plan.apply_(model, seed=7)
    assert all(map(torch.equal, before, values(model)))


@needs_forward
def test_memory_of_shards_on_meta_is_made(mesh) -> None:
    with torch.device("meta"):
        model = build()
    plan = fanin.plan(model, BATCH)
    fully_shard(model, mesh=mesh)
    plan.apply_(model, seed=4)
    whole = build()
    plan.apply_(whole, seed=4)
    output = model(BATCH)
    output.sum().backward()
    assert torch.allclose(output, whole(BATCH), atol=1e-6)
    assert all(p.grad is not None for p in model.parameters())


def test_experts_are_cut_along_their_axis(mesh) -> None:
    model = nn.Module()
    model.up = nn.Parameter(distribute_tensor(torch.zeros(4, 6, 5), mesh, [Shard(0)]))
    row = {"std": 0.1, "gain": 1.0, "fan": 5.0, "because": "", "shape": (4, 6, 5), "layout": "boi"}
    plan = fanin.Plan((fanin.assignment.Assignment("up", "orthogonal", **row),))
    plan.apply_(model, seed=1)
    for expert in model.up.full_tensor().detach():
        assert torch.allclose(expert.T @ expert, torch.eye(5), atol=1e-6)


def test_a_bad_batch_is_refused_where_it_would_be_measured(mesh) -> None:
    bad = BATCH.clone()
    bad[3, 2] = float("nan")
    with pytest.raises(BatchError, match="1 NaN or infinite"):
        fanin.plan(fully_sharded(mesh), bad, "lsuv")


def test_a_part_that_is_kept_is_not_exchanged(mesh) -> None:
    model = nn.Module()
    model.w = nn.Parameter(distribute_tensor(torch.ones(6, 5), mesh, [Shard(0)]))
    given = {"outputs": (1, 4), "kept": 0.5}
    row = Assignment("w", "orthogonal", 1.0, 0.4, 5.0, "", (6, 5), "oi", 1, given)
    fanin.Plan((row,)).apply_(model, seed=1)
    values = model.w.full_tensor()
    assert (values[[0, 2, 3, 5]] == 0.5).all()
    assert (values[[1, 4]] != 0.5).all()


UNEVEN = [
    # What fully_shard holds of a tensor that tensor parallelism has cut before it.
    (mesh, size, place)
    for mesh, size in [((4, 2), 9), ((3, 4), 27), ((3, 8), 55), ((4, 4), 38), ((2, 2), 5)]
    for place in itertools.product(*map(range, mesh))
]


@pytest.mark.parametrize(("sizes", "size", "place"), UNEVEN)
def test_uneven_shards_are_cut_in_the_order_in_which_they_were(sizes, size, place) -> None:
    cut = torch.arange(size).chunk(sizes[1])
    cut = cut[place[1]] if place[1] < len(cut) else torch.empty(0)
    held = cut.chunk(sizes[0]) if cut.numel() else ()
    expected = held[place[0]].tolist() if place[0] < len(held) else []
    window = _window((size,), sizes, place, [(0, sizes[1]), (0, 1)])
    assert window.indices(0) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_who_agrees_on_scales(mesh) -> None:
    assert agreement(build()) is None
    parallel = nn.parallel.DistributedDataParallel(build())
    for model in (fully_sharded(mesh), parallel, torch.compile(parallel)):
        total = agreement(model)
        assert total is not None
        assert total(torch.tensor([2.0])).item() == 2.0
