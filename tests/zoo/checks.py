"""Checks a case of the zoo, and that the check leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest

import fanin
from zoo import Case
from zoo.snapshot import snapshot

__all__ = ["QUIET", "check_case", "expectation", "parametrize", "unchanged"]

#: Warnings that the models of the zoo raise by themselves; everything else stays an error.
QUIET = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "LSTM with projections is not supported",
        "Full backward hook is firing",
        "torch.quantize_per_tensor",
        "`torch.jit.*` is deprecated",
        ".*is deprecated.*weight_norm",
        "`torch.nn.utils.weight_norm` is deprecated",
        "Sparse .* tensor support is in beta",
        "TypedStorage is deprecated",
    )
]


def parametrize(cases: list[Case]) -> Callable:
    """Each case as one test, named for it; slow ones are marked so."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])
            for case in cases
        ],
    )


@contextmanager
def unchanged(model: Any, batch: Any):
    """Fails when the block leaves the model, the batch or the process other than it found them."""
    before = snapshot(model, batch)
    try:
        yield
    finally:
        after = snapshot(model, batch)
        assert after == before, "the check left a trace:\n" + before.difference(after)


def check_case(case: Case) -> fanin.Report:
    """The report on a freshly built case."""
    if case.needs:
        pytest.importorskip(case.needs)
    if case.watched:
        _, batch, loss = case.build()
        with unchanged(None, batch):
            return fanin.check(lambda: case.build()[0], batch, loss, **case.options)
    model, batch, loss = case.build()
    with unchanged(model, batch):
        return fanin.check(model, batch, loss, **case.options)


# ── what the findings must say ───────────────────────────────────────────────────────────────


def expectation(case: Case, report: fanin.Report) -> None:
    """Asserts that the findings are those the case asks for."""
    told = "\n".join(
        f"{f.code} {f.severity} at {f.layers or f.layer}: {f.message} [{f.measured}]"
        for f in report.findings
    )
    told = f"{case.name} {f'({case.thread})' if case.thread else ''}\nfindings:\n{told or 'none'}"
    if case.ok is not None:
        assert report.ok is case.ok, f"report.ok is {report.ok}: {told}"
    for finding in report.findings:
        assert finding.code not in case.absent, f"{finding.code} must not appear: {told}"
    if not case.codes:
        return
    meeting = [f for f in report.findings if f.code in case.codes]
    assert meeting, f"none of {case.codes}: {told}"
    assert any(f.severity in case.severities for f in meeting), (
        f"no severity of {case.severities}: {told}"
    )
    meeting = [f for f in meeting if f.severity in case.severities]
    for place in case.layers:
        places = (place,) if isinstance(place, str) else place
        assert any(_names(f, p) for f in meeting for p in places), (
            f"no finding names {place!r}: {told}"
        )
    for word in case.words:
        words = (word,) if isinstance(word, str) else word
        text = "\n".join(f"{f.layers}\n{f.measured}\n{f.message}\n{f.why}" for f in meeting)
        assert any(w in text for w in words), f"no finding says {word!r}: {told}"


def _names(finding: fanin.Finding, place: str) -> bool:
    """Whether a finding names a place, what lies right inside it, or the module of a parameter."""
    for named in (finding.layer, *finding.layers):
        outer = named.rpartition(".")[0]
        inner = place.rpartition(".")[0]
        if named == place or outer == place != "" or inner == named != "":
            return True
    return False
