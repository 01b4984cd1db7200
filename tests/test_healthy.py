"""Healthy models get no error, and come out of a check as they went in."""

from __future__ import annotations

import pytest
import torch
from zoo import Case
from zoo.checks import QUIET, check_case, expectation, parametrize, unchanged
from zoo.healthy import HEALTHY

import fanin

pytestmark = QUIET

SOME = [
    case
    for case in HEALTHY
    if case.name in ("vae", "unet", "lstm-classifier", "rezero-40", "weight-norm-old")
]


@parametrize(HEALTHY)
def test_a_healthy_model_gets_no_error_and_stays_as_it_is(case: Case):
    report = check_case(case)
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert not errors, "\n".join(map(str, errors))
    expectation(case, report)


def test_the_published_gpt2_has_no_finding():
    """GPT-2 124M, as its library makes it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    tokens = torch.randint(0, 50257, (2, 16))
    assert fanin.check(model, {"input_ids": tokens, "labels": tokens}).findings == ()


@parametrize(SOME)
def test_a_second_check_of_the_same_model_says_the_same(case: Case):
    model, batch, loss = case.build()
    with unchanged(model, batch):
        first, second = (fanin.check(model, batch, loss).to_dict() for _ in range(2))
    first.pop("seconds"), second.pop("seconds")
    assert first == second


@parametrize(SOME)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_mode_is_that_of_the_model(case: Case, mode: str):
    model, batch, loss = case.build()
    model.train(mode == "train")
    with unchanged(model, batch):
        assert fanin.check(model, batch, loss).mode == mode


@parametrize(SOME)
def test_gradients_that_are_there_stay_there(case: Case):
    model, batch, loss = case.build()
    for number, parameter in enumerate(model.parameters()):
        if number % 2:
            parameter.grad = torch.full_like(parameter, float(number))
    with unchanged(model, batch):
        assert fanin.check(model, batch, loss).ok


@parametrize(SOME)
def test_a_model_works_after_a_check_as_it_did_before(case: Case):
    """It trains on, to the bit, as if it had never been checked."""

    def trained(check: bool) -> list[torch.Tensor]:
        model, batch, loss = case.build()
        if check:
            fanin.check(model, batch, loss)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            for _ in range(2):
                optimizer.zero_grad()
                loss(model(*batch) if isinstance(batch, tuple) else model(batch)).backward()
                optimizer.step()
        return [value.detach() for value in model.state_dict().values()]

    assert all(map(torch.equal, trained(check=True), trained(check=False)))


@pytest.mark.parametrize("name", ["vae", "rezero-40", "mlp-without-loss"])
def test_two_seeds_agree_on_the_verdict(name: str):
    case = next(case for case in HEALTHY if case.name == name)
    model, batch, loss = case.build()
    with unchanged(model, batch):
        reports = [fanin.check(model, batch, loss, seed=seed) for seed in (0, 1, 12345)]
    assert {report.ok for report in reports} == {True}
    assert [report.seed for report in reports] == [0, 1, 12345]


def test_a_check_inside_no_grad_says_the_same_and_leaves_the_mode():
    model, batch, loss = HEALTHY[0].build()
    outside = fanin.check(model, batch, loss).to_dict()
    with torch.no_grad(), unchanged(model, batch):
        inside = fanin.check(model, batch, loss).to_dict()
    outside.pop("seconds"), inside.pop("seconds")
    assert inside == outside


def test_a_check_under_another_default_dtype_says_the_same():
    model, batch, loss = HEALTHY[0].build()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with unchanged(model, batch):
            assert fanin.check(model, batch, loss).ok
    finally:
        torch.set_default_dtype(before)


def test_the_random_state_decides_nothing():
    """The same report, whatever was drawn before."""
    model, batch, loss = next(case for case in HEALTHY if case.name == "vae").build()
    reports = []
    for draws in (0, 3):
        torch.rand(draws)
        reports.append(fanin.check(model, batch, loss).to_dict())
        reports[-1].pop("seconds")
    assert reports[0] == reports[1]
