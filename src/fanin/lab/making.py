"""The lab as one page: weights, data and verdicts are computed here, all else in the page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from torch.nn import functional as F

from fanin import __version__, check, fill_
from fanin.demo import (
    ITERATIONS,
    LEARNING_RATE,
    PUBLISHED,
    TEST,
    TRAIN,
    circles,
    last_record,
)
from fanin.lab.running import (
    ACTIVATIONS,
    BREAK,
    CHANGES,
    DRAWN,
    STARTS,
    TOLERANCE,
    model,
    weights,
)
from fanin.report import page as pages
from fanin.report.wording import MARKS

__all__ = ["page", "write"]

PRINTED = last_record(ITERATIONS)
JUMPS = (0, 1, 10, 100, 1_000, PRINTED)
# Only starts with copies have something to break; the verdict on another start is that before.
SYMMETRIC = ("zeros", "constant")
SCRIPTS = ("numbers.js", "draw.js", "view.js")
CONSEQUENCES = (
    ("Equal inputs", "Units with equal weights receive the same sum at every point."),
    ("Equal outputs", "The same activation of the same sum gives the same output."),
    (
        "Equal gradients",
        "They read the same and are read the same, so the cost cannot tell them apart.",
    ),
    ("Equal updates", "Equal gradients move equal weights by equal amounts."),
    (
        "Copies for ever",
        "So the next step starts with equal weights again. All copies together can do what one "
        "unit can.",
    ),
)


def page(progress: Callable[[str], None] | None = None) -> str:
    """The page as HTML text, which loads nothing from anywhere.

    Args:
        progress: told in a few words what is under way, or None.

    Example::

        pathlib.Path("lab.html").write_text(page(), encoding="utf-8")
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("fanin.lab"), PackageLoader("fanin.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    scripts = [(files("fanin.lab") / "templates" / s).read_text("utf-8") for s in SCRIPTS]
    return environment.get_template("lab.html").render(
        data=_data(progress or (lambda _: None)),
        policy=pages.policy(scripts),
        scripts=[Markup(script) for script in scripts],
        starts=STARTS,
        activations=ACTIVATIONS,
        consequences=CONSEQUENCES,
        jumps=JUMPS,
        printed=PRINTED,
        version=__version__,
    )


def write(path: str | Path, progress: Callable[[str], None] | None = None) -> Path:
    """Write the page to a file and return its path.

    Args:
        path: of the file; what is there is replaced once the page is made.
        progress: told in a few words what is under way, or None.

    Raises:
        ArgumentError: the file cannot be written.

    Example::

        fanin.lab.write("lab.html")
    """
    return pages.write(page(progress), path)


def _data(progress: Callable[[str], None]) -> dict[str, Any]:
    """All that the page cannot compute; arrays as base64 of little-endian float64."""
    findings, verdicts = _verdicts(progress)
    return {
        "rate": LEARNING_RATE,
        "steps": ITERATIONS,
        "printed": PRINTED,
        "nudge": BREAK,
        "tolerance": TOLERANCE,
        "marks": MARKS,
        "train": _samples(*TRAIN),
        "test": _samples(*TEST),
        "starts": {name: _start(name, formula) for name, formula in STARTS.items()},
        "directions": _encoded(_directions()),
        "findings": findings,
        "verdicts": verdicts,
    }


def _start(name: str, formula: str) -> dict[str, Any]:
    flat = np.concatenate([part.ravel() for pair in weights(name) for part in pair])
    published = PUBLISHED.get(DRAWN.get(name, name))
    return {
        "formula": formula,
        "weights": _encoded(flat),
        "published": published and published.cost,
    }


def _samples(count: int, seed: int) -> dict[str, str]:
    points, labels = circles(count, seed)
    return {"points": _encoded(points), "labels": _encoded(labels)}


def _directions() -> np.ndarray:
    """Two orthonormal directions, drawn once, to show ten weights in a plane."""
    drawn = torch.empty(2, 10, dtype=torch.float64, device="cpu")
    return fill_(drawn, "orthogonal", seed=0).numpy()


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode()


def _verdicts(progress: Callable[[str], None]) -> tuple[list[dict[str, str]], dict[str, list[int]]]:
    """What `check` finds: the findings, each once, and their numbers by start/activation/change."""
    findings: dict[tuple[tuple[str, str], ...], int] = {}
    known: dict[tuple[str, bytes], list[int]] = {}
    verdicts = {}
    for start in STARTS:
        progress(f"checking {start}")
        for activation in ACTIVATIONS:
            for change in CHANGES:
                if change.startswith("break") and start not in SYMMETRIC:
                    continue
                drawn = b"".join(w.tobytes() for w, _ in weights(start, change))
                if (activation, drawn) not in known:
                    known[activation, drawn] = [
                        findings.setdefault(tuple(found.items()), len(findings))
                        for found in _findings(start, activation, change)
                    ]
                verdicts[f"{start}/{activation}/{change}"] = known[activation, drawn]
    return [dict(found) for found in findings], verdicts


def _findings(start: str, activation: str, change: str) -> list[dict[str, str]]:
    points, labels = (torch.from_numpy(array) for array in circles(*TRAIN))
    report = check(
        model(start, activation, change),
        points,
        lambda output: F.binary_cross_entropy(output[:, 0], labels),
    )
    return [
        {"code": f.code, "name": f.name, "severity": f.severity, "message": f.message}
        for f in report.findings
    ]
