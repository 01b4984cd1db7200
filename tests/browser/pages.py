"""The pages that the browser tests open, each written by what a user calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import sample_reports
import torch
from click.testing import CliRunner
from sample_reports import HOSTILE, finding, layer, report, start
from torch import nn
from torch.nn import functional as F

import fanin
from fanin.cli import cli
from fanin.report import Report

DEEP = 2_000  # layers of the largest page
# Names that would run something, were they taken for markup, script, a template or a formula.
RUNS = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    "'\"><svg onload=alert(4)>",
    "javascript:alert(5)",
    "{{ 7 * 7 }}{% raw %}",
    "datum.x + signal('y') \\u003cscript\\u003ealert(6)",
    "<!--<script>",
    *HOSTILE,
)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(64, 8, generator=draws), torch.randint(3, (64,), generator=draws)


def zeros() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def zero_report() -> Report:
    x, y = data()
    return fanin.check(zeros(), x, lambda output: F.cross_entropy(output, y))


def hostile_report() -> Report:
    """Every text of a report is hostile, and every figure that can be is odd."""
    layers = [layer(name, "linear", 3, 4 + at) for at, name in enumerate(RUNS)]
    odd = sample_reports.hostile()
    guilty = finding("N403", "error", *RUNS, measured=RUNS[1], message=RUNS[0], fix=RUNS[1])
    return replace(
        odd,
        model=RUNS[1],
        layers=(*layers, odd.layers[1]),
        findings=(guilty, *odd.findings),
        starts=tuple(start(name, 0.1, 0.2, scheme="he_normal", because=name) for name in RUNS),
        batch=(RUNS[0],),
    )


def deep_report(layers: int = DEEP) -> Report:
    """A made-up deep network in blocks of four layers; every 50th layer is guilty."""
    names = [f"blocks.{at // 4}.layers.{at % 4}" for at in range(layers)]
    stats = [
        layer(
            name, ("linear", "layer_norm", "conv2d", "matmul")[at % 4], 256, 256,
            rms=0.999**at + at * 1e-7, cotangent_rms=1e-3 * 0.998 ** (layers - at),
            variation=0.9 - at * 1e-4, correlation=at / layers, predicted_rms=0.998**at,
            predicted_correlation=min(1.0, (at + 50) / layers), dead=at / layers / 2,
            activation="gelu" if at % 4 == 2 else None,
        )
        for at, name in enumerate(names)
    ]  # fmt: skip
    counts = tuple(range(20)) + tuple(range(20, 0, -1))
    return report(
        stats,
        model="Deep",
        findings=(
            finding("P203", "error", *names[49::50], measured="1e-9", expected="1"),
            finding("S104", "warning", names[3]),
        ),
        starts=tuple(
            start(
                f"{name}.{part}", 0.02 + at * 1e-6, 0.0625, counts=counts[: 40 * (part != "bias")]
            )
            for at, name in enumerate(names)
            for part in ("weight", "bias")
        ),
        batch=("float32 [32, 256]",),
        compute_dtype="float32",
    )


def comparison(path: Path) -> None:
    x, y = data()

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    starts = {"auto": "auto", "he_normal": "he_normal", RUNS[1]: _zero}
    fanin.compare(build, (x, y), F.cross_entropy, schemes=starts, steps=30).to_html(path)


def _zero(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.zeros_(parameter)


def repair(path: Path) -> None:
    x, y = data()
    fanin.repair_(zeros(), x, lambda output: F.cross_entropy(output, y)).to_html(path)


def lab(path: Path) -> None:
    done = CliRunner().invoke(cli, ["lab", "-o", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def _of(build: Callable[[], Report]) -> Callable[[Path], object]:
    return lambda path: build().to_html(path)


REPORTS: dict[str, Callable[[Path], object]] = {
    "healthy": _of(sample_reports.gpt2),
    "zeros": _of(zero_report),
    "hostile": _of(hostile_report),
}
PAGES: dict[str, Callable[[Path], object]] = {
    **REPORTS,
    "comparison": comparison,
    "repair": repair,
    "lab": lab,
    "deep": _of(deep_report),
}
