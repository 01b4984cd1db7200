"""The whole product on a GPU: a model there is checked, planned, drawn and mended as on the CPU.

Skipped where there is none.  Models are built under ``torch.device("cuda")``, so that batches and
the labels inside of losses are there as well.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_repair import HOPELESS
from torch import nn
from zoo import Case
from zoo.blocks import classify, mlp
from zoo.checks import QUIET, check_case, expectation, parametrize
from zoo.faults import FAULTS
from zoo.healthy import HEALTHY
from zoo.traps import TRAPS

import fanin

pytestmark = QUIET

if not torch.cuda.is_available():
    pytest.skip("no GPU here: checks models on CUDA", allow_module_level=True)

#: Built by what CUDA does not have; torch says so where the model is built or run.
ONLY_ON_CPU = ("quantized", "not implemented for 'CUDA'", "not supported on CUDA", "mkldnn")


def on_cuda(case: Case) -> fanin.Report:
    with torch.device("cuda"):
        try:
            return check_case(case)
        except (NotImplementedError, RuntimeError, fanin.FaninError) as error:
            if any(words in str(error) for words in ONLY_ON_CPU):
                pytest.skip(f"CUDA has no such operation: {error}")
            raise


@parametrize([*HEALTHY, *TRAPS, *FAULTS])
def test_a_check_says_on_a_gpu_what_it_says_on_the_cpu(case: Case):
    expectation(case, on_cuda(case))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def differing(one: nn.Module, other: nn.Module) -> list[str]:
    theirs = dict(other.named_parameters())
    return [
        name
        for name, parameter in one.named_parameters()
        if not torch.equal(bits(parameter), bits(theirs[name]))
    ]


@parametrize([case for case in HEALTHY if not case.slow])
def test_one_plan_gives_a_model_there_and_here_the_same_bits(case: Case):
    if case.needs:
        pytest.importorskip(case.needs)
    here, batch, _ = case.build()
    there = case.build()[0].cuda()
    plan = fanin.plan(here, batch)
    plan.apply_(here)
    plan.apply_(there)
    assert not differing(here, there)


@pytest.mark.parametrize("scheme", sorted(fanin.schemes))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_scheme_draws_the_same_bits_there_and_here(scheme: str, dtype: torch.dtype):
    found = {}
    for device in ("cpu", "cuda"):
        tensor = torch.empty(64, 64, dtype=dtype, device=device)
        try:
            fanin.fill_(tensor, scheme, seed=3)
        except fanin.FaninError as error:
            found[device] = type(error)
        else:
            found[device] = bits(tensor)
    here, there = found["cpu"], found["cuda"]
    assert here is there if isinstance(here, type) else torch.equal(here, there)


def network(depth: int) -> tuple[nn.Module, torch.Tensor, Any]:
    with torch.device("cuda"):
        torch.manual_seed(0)
        return mlp(20, *[64] * depth, 5), torch.randn(48, 20), classify(48, 5)


def test_a_deep_network_is_planned_measured_and_sound_there():
    model, batch, loss = network(60)
    assert not fanin.check(model, batch, loss).ok
    fanin.init_(model, batch, seed=1)
    assert fanin.check(model, batch, loss).ok
    assert all(parameter.is_cuda for parameter in model.parameters())


def test_constant_layers_are_repaired_there():
    model, batch, loss = network(3)
    for layer in (model[2], model[4]):
        nn.init.constant_(layer.weight, 0.1)
        nn.init.zeros_(layer.bias)
    before = copy.deepcopy(model)
    repair = fanin.repair_(model, batch, loss)
    assert repair.ok
    assert {"2.weight", "4.weight"} & set(repair.changed)
    assert sorted(differing(before, model)) == sorted(repair.changed)


@parametrize([case for case in FAULTS if not case.watched])
def test_no_error_is_left_of_a_fault_that_is_mended_there(case: Case):
    if case.needs:
        pytest.importorskip(case.needs)
    with torch.device("cuda"):
        model, batch, loss = case.build()
        repair = fanin.repair_(model, batch, loss)
    assert repair.ok is (repair.before.ok or case.name not in HOPELESS)


def test_a_deep_network_is_calibrated_there():
    model, batch, _ = network(30)
    calibration = fanin.calibrate_(model, batch)
    assert calibration
    assert fanin.check(model, batch).ok


def test_meta_becomes_a_model_there_without_passing_through_the_cpu():
    with torch.device("meta"):
        model = mlp(20, 64, 64, 5)
    plan = fanin.plan(model, torch.empty(8, 20, device="meta"))
    model.to_empty(device="cuda")
    plan.apply_(model)
    here = mlp(20, 64, 64, 5)
    plan.apply_(here)
    assert not differing(here, model)
