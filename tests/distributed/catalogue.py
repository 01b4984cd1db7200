"""One tensor for each scheme and each kind of assignment, in a model that never runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fanin.assignment import Assignment, Recipe

__all__ = ["ALONE", "WHOLE", "Table", "recipe_of"]

Row = tuple[tuple[int, ...], dict[str, Any]]

_CONV = {"layout": "oikk"}

#: Any part can be drawn without the rest.
ALONE: dict[str, Row] = {
    "zeros": ((37, 13), {}),
    "ones": ((13,), {}),
    "constant": ((13, 7), {"gain": 0.3}),
    "normal": ((37, 13), {}),
    "normal scalar": ((), {}),
    "normal vector": ((37,), {}),
    "normal one": ((1,), {}),
    "normal kernel": ((13, 7, 3, 3), _CONV),
    "normal line": ((1, 37), {}),
    "normal padding": ((37, 13), {"layout": "vo", "arguments": {"padding": 36}}),
    "normal rows": ((13, 7), {"arguments": {"rows": tuple(0.5 + 0.1 * i for i in range(13))}}),
    "normal columns": (
        (7, 13),
        {"layout": "io", "arguments": {"rows": tuple(0.5 + 0.1 * i for i in range(13))}},
    ),
    "uniform": ((37, 13), {}),
    "trunc_normal": ((13, 37), {"arguments": {"low": -1.5, "high": 3.0}}),
    "variance_scaling": ((37, 7), {"arguments": {"distribution": "uniform"}, "fan": 7.0}),
    "he_normal": ((7, 37), {"fan": 37.0}),
    "critical": ((13, 13), {"fan": 13.0}),
    "siren": ((13, 7), {"fan": 7.0}),
    "lecun_trunc_normal": ((7, 13, 5), {"layout": "boi", "fan": 5.0}),
    "forget_gate_bias": ((28,), {}),
    "focal_bias": ((13,), {}),
    "hadamard": ((64, 24), {}),
}

#: Drawn whole, or at least by rows, wherever they are held: ranks have to talk.
WHOLE: dict[str, Row] = {
    "normal centred": ((13, 37), {"arguments": {"centred": True}}),
    "he_normal centred": ((13, 7, 3, 3), {**_CONV, "arguments": {"centred": True}, "fan": 63.0}),
    "identity": ((13, 7), {}),
    "dirac": ((7, 5, 3, 3), _CONV),
    "sparse": ((13, 37), {}),
    "orthogonal": ((37, 13), {}),
    "orthogonal wide": ((7, 37), {"arguments": {"centred": True}}),
    "orthogonal kernel": ((13, 7, 3), {"layout": "oik"}),
    "orthogonal experts": ((7, 13, 5), {"layout": "boi"}),
    "orthogonal packed": ((39, 13), {"blocks": 3}),
    "delta_orthogonal": ((13, 7, 3, 3), _CONV),
    "looks_linear": ((13, 7), {}),
    "zero_hadamard": ((13, 7), {}),
    "irnn": ((13, 13), {}),
    "icnr": ((12, 7, 3, 3), {**_CONV, "fan": 63.0}),
    "bilinear_upsampling": ((7, 7, 4, 4), {"layout": "iokk"}),
    "chrono_bias": ((28,), {}),
    "mirrored_bias": ((13,), {}),
    "prior_bias": ((7,), {"arguments": {"priors": (1, 2, 3, 4, 5, 6, 7)}}),
    "mimetic": ((13, 13), {}),
    "kept": ((13, 7), {"gain": 0.5}),
    "normal outputs": ((13, 7), {"arguments": {"outputs": (1, 12), "kept": 0.5}}),
    "normal entries": ((13, 7), {"arguments": {"entries": (0, 45, 90)}}),
    "normal split": ((13, 7), {"arguments": {"split": ((0, 5), (1, 2, 6)), "along": "i"}}),
}

_STD = 0.1  # of what is drawn element by element
_LAYOUTS = {0: "", 1: "o", 2: "oi"}


class Table(nn.Module):
    """A parameter for each row of the table; it starts with values of its own."""

    def __init__(self, rows: dict[str, Row]) -> None:
        super().__init__()
        for name, (shape, _) in rows.items():
            self.register_parameter(name.replace(" ", "_"), nn.Parameter(torch.randn(shape)))


def recipe_of(rows: dict[str, Row]) -> Recipe:
    """What the table says, as a recipe."""
    return Recipe(tuple(_assignment(name, *row) for name, row in rows.items()))


def _assignment(name: str, shape: tuple[int, ...], given: dict[str, Any]) -> Assignment:
    options: dict[str, Any] = {"gain": 1.0, "fan": None, "layout": _LAYOUTS.get(len(shape), "")}
    options |= given
    return Assignment(
        name.replace(" ", "_"), name.split()[0], std=_STD, because="", shape=shape, **options
    )
