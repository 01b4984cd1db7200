"""Bad input ends in one clear error, and whatever happens the model comes out as it went in."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
import torch
from torch import nn
from zoo import Case
from zoo.bad_input import BAD, NAMES, ODD, interrupted
from zoo.checks import QUIET, check_case, expectation, parametrize, unchanged

import fanin
from fanin.errors import BatchError, FaninError

pytestmark = QUIET

BY_NAME = {case.name: case for case in [*BAD, *ODD]}


def outcome(model, batch, loss=None, **options) -> fanin.Report | FaninError:
    """The report, or the error it ended in."""
    try:
        return fanin.check(model, batch, loss, **options)
    except FaninError as error:
        return error


@parametrize(BAD)
def test_bad_input_ends_in_one_clear_error_and_leaves_no_trace(case: Case):
    model, batch, loss = case.build()
    with unchanged(model, batch):
        came = outcome(model, batch, loss, **case.options)
    if isinstance(came, fanin.Report):
        assert case.may_work, f"no error, but a report: ok is {came.ok}"
        return
    message = str(came)
    assert isinstance(came, case.raises), f"{type(came).__name__}: {message}"
    assert message
    assert "\n" not in message.strip(), f"not one line: {message!r}"
    for word in case.words:
        words = (word,) if isinstance(word, str) else word
        assert any(w.lower() in message.lower() for w in words), f"no {word!r} in: {message}"


@pytest.mark.parametrize(
    "name",
    [
        "forward-raises",
        "forward-hook-raises",
        "backward-hook-raises",
        "backward-raises",
        "loss-that-raises",
    ],
)
def test_the_cause_of_an_error_is_chained(name: str):
    model, batch, loss = BY_NAME[name].build()
    with pytest.raises(FaninError) as caught:
        fanin.check(model, batch, loss)
    assert isinstance(caught.value.__cause__, RuntimeError | ValueError)


@parametrize(ODD)
def test_odd_input_simply_works_and_leaves_no_trace(case: Case):
    expectation(case, check_case(case))


# ── names ────────────────────────────────────────────────────────────────────────────────────


class Elements(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "name", ["hostile-module-names", "hostile-module-names-in-findings", "hostile-class-name"]
)
def test_hostile_names_are_escaped_in_every_form_of_the_report(name: str, tmp_path):
    report = check_case(BY_NAME[name])
    assert json.loads(report.to_json())["schema_version"]
    assert json.loads(report.to_json())["model"] == report.model
    text = str(report)
    assert "\x1b[31mescape" not in text
    assert text.strip()
    report.to_html(tmp_path / "report.html")
    for page in ((tmp_path / "report.html").read_text(encoding="utf-8"), report._repr_html_()):
        assert "<script>alert" not in page
        assert "<b>" not in page.split("<style")[0]
        elements = Elements()
        elements.feed(page)
        assert "b" not in elements.tags


def test_hostile_names_come_back_from_json_as_they_are():
    report = check_case(BY_NAME["hostile-module-names"])
    named = {layer["name"] for layer in json.loads(report.to_json())["layers"]}
    assert set(NAMES) <= named


# ── interrupted ──────────────────────────────────────────────────────────────────────────────


def counted(zeros: bool) -> dict[str, int]:
    """How often a whole check passes forward and backward through the model."""
    counts: dict[str, int] = {}
    model, batch, loss = interrupted(counts, None, zeros)
    fanin.check(model, batch, loss)
    return counts


@pytest.mark.parametrize("zeros", [False, True], ids=["healthy", "with-virtual-steps"])
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_ctrl_c_at_any_moment_leaves_no_trace(kind: str, zeros: bool):
    times = counted(zeros)[kind]
    assert times >= 1
    for stop in {1, 2, times} & set(range(1, times + 1)):
        model, batch, loss = interrupted({}, (kind, stop), zeros)
        with unchanged(model, batch), pytest.raises(KeyboardInterrupt):
            fanin.check(model, batch, loss)


def test_ctrl_c_in_the_progress_callback_leaves_no_trace():
    """Whoever is told of the progress may raise as well."""
    told: list[str] = []
    model, batch, loss = interrupted({}, None, zeros=True)
    fanin.check(model, batch, loss, progress=told.append)
    for stop in range(len(told)):
        calls: list[str] = []

        def progress(text: str, stop: int = stop, calls: list[str] = calls) -> None:
            calls.append(text)
            if len(calls) > stop:
                raise KeyboardInterrupt

        with unchanged(model, batch), pytest.raises(KeyboardInterrupt):
            fanin.check(model, batch, loss, progress=progress)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, RecursionError])
def test_whatever_a_hook_raises_leaves_no_trace(error: type[BaseException]):
    for where in ("forward", "backward"):
        model, batch, loss = interrupted({}, None, zeros=True)

        def hook(*_args, error=error):
            raise error("stop")

        if where == "forward":
            model[5].register_forward_hook(hook)
        else:
            model[2].register_full_backward_hook(hook)
        expected = (
            error if issubclass(error, KeyboardInterrupt | SystemExit) else (error, FaninError)
        )
        with unchanged(model, batch), pytest.raises(expected):
            fanin.check(model, batch, loss)


def test_an_error_in_the_virtual_steps_leaves_no_trace():
    """A forward that works once, and not a second time."""

    class Once(nn.Module):
        def __init__(self, calls: list[int]) -> None:
            super().__init__()
            self.advance = lambda: calls.append(1) or len(calls)

        def forward(self, x):
            if self.advance() > 1:
                raise RuntimeError("only once")
            return x

    model = nn.Sequential(nn.Linear(10, 24), Once([]), nn.ReLU(), nn.Linear(24, 3))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    batch = torch.randn(16, 10)
    with unchanged(model, batch):
        came = outcome(model, batch)
    assert isinstance(came, fanin.Report) or "only once" in str(came)


def test_a_check_works_after_one_that_failed():
    case = BY_NAME["backward-raises"]
    model, batch, loss = case.build()
    for _ in range(2):
        with pytest.raises(FaninError):
            fanin.check(model, batch, loss)
    assert fanin.check(model[0], batch, loss).ok


def test_a_check_inside_inference_mode_works_or_says_why_not():
    model, batch = (
        nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 3)),
        torch.randn(16, 10),
    )
    with torch.inference_mode(), unchanged(model, batch):
        came = outcome(model, batch)
    assert came.ok if isinstance(came, fanin.Report) else "inference" in str(came)


def test_a_model_inside_another_watch_is_checked_and_the_watch_goes_on():
    """A torch function mode of the user's own stays active."""
    from torch.overrides import TorchFunctionMode

    class Watch(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            Watch.calls += 1
            return function(*args, **(kwargs or {}))

    model, batch = (
        nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 3)),
        torch.randn(16, 10),
    )
    with Watch(), unchanged(model, batch):
        report = fanin.check(model, batch)
    assert report.ok
    assert Watch.calls


@pytest.mark.parametrize("call", [fanin.check, fanin.plan, fanin.init_])
def test_an_empty_batch_is_refused(call):
    with pytest.raises(BatchError, match=r"batch: it is empty \(\[0, 4\]\)"):
        call(nn.Linear(4, 2), torch.empty(0, 4))


def test_an_input_that_is_empty_beside_one_that_is_not_is_allowed():
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.cat([cache, x]))

    assert fanin.check(Cached(), (torch.randn(8, 4), torch.empty(0, 4))).ok


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_faults_are_found_with_a_dummy_batch_too(value: float):
    model = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 3))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    found = fanin.check(model, torch.full((16, 10), value)).findings
    assert {"S101", "S102"} <= {f.code for f in found}


def test_what_a_dummy_shows_stands_where_the_model_takes_no_other_values():
    class Shares(nn.Sequential):
        def forward(self, x):
            if x.min() < 0:
                raise ValueError("shares are 0 or more")
            return super().forward(x)

    model = Shares(nn.Linear(10, 24, bias=False), nn.ReLU(), nn.Linear(24, 3))
    assert not fanin.check(model, torch.zeros(16, 10)).ok
