"""Activations as formulas of z: ``"z * sigmoid(1.702 * z)"``.

A formula has numbers, z, ``+ - * / **``, comparisons (1 where true, 0 elsewhere), and calls of
functions by name; what a function takes beside its first argument are numbers, but for those of
`_OF_SEVERAL`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["FUNCTIONS", "VARIABLE", "function", "tidy"]

Function = Callable[[np.ndarray], np.ndarray]
Named = Callable[[str, tuple[float, ...]], Function]

VARIABLE = "z"
_LONG = 1e6  # whole numbers beyond it are read better as 1e6
LONGEST = 400  # characters: nobody reads more, and a formula that reuses a part doubles it

_ONE: dict[str, Callable[..., Any]] = {
    "sqrt": np.sqrt, "rsqrt": lambda z: 1 / np.sqrt(z), "log": np.log, "log2": np.log2,
    "log1p": np.log1p, "exp2": np.exp2, "sinh": np.sinh, "cosh": np.cosh, "tan": np.tan,
    "asinh": np.arcsinh, "sinc": np.sinc, "sign": np.sign, "reciprocal": lambda z: 1 / z,
}  # fmt: skip
_OF_SEVERAL: dict[str, tuple[int, Callable[..., Any]]] = {
    "minimum": (2, np.minimum),
    "maximum": (2, np.maximum),
    "logaddexp": (2, np.logaddexp),
    "where": (3, lambda condition, yes, no: np.where(condition != 0, yes, no)),
    "clamp": (3, np.clip),
}
#: Names that formulas know beside those of activations.
FUNCTIONS = frozenset(_ONE) | frozenset(_OF_SEVERAL)

_BINARY: dict[type[ast.operator], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.Pow: np.power,
}  # fmt: skip
_COMPARED: dict[type[ast.cmpop], Callable[..., Any]] = {
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


def function(text: str, named: Named) -> Function:
    """A formula as a numpy function.

    Args:
        text: the formula.
        named: gives the function of an activation's name and its further arguments; raises
            ValueError where it has none.

    Raises:
        ValueError: it is no formula of z, with what is wrong in words.
    """
    if len(text) > LONGEST:
        raise ValueError(f"a formula has {LONGEST} characters at most, not {len(text)}")
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        raise ValueError("it cannot be read as a formula") from None
    if not any(isinstance(n, ast.Name) and n.id == VARIABLE for n in ast.walk(body)):
        raise ValueError(f"a formula is one of {VARIABLE}")
    evaluate = _evaluator(body, named)

    def value(z: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(evaluate(z), dtype=np.float64)

    return value


def tidy(text: str) -> str:
    """The same formula with no more brackets than it needs.

    >>> tidy("((2.0)*((z)**(2.0)))")
    '2 * z ** 2'
    """
    body = ast.parse(text, mode="eval").body
    for node in ast.walk(body):
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            short = node.value.is_integer() and node.value < _LONG
            node.value = int(node.value) if short else node.value
    return ast.unparse(body)


def _evaluator(node: ast.AST, named: Named) -> Function:
    """One node of a formula as a function of z."""
    if isinstance(node, ast.Name) and node.id == VARIABLE:
        return lambda z: z
    if isinstance(node, ast.Constant):
        number = _number(node)
        return lambda z: np.full_like(z, number)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _evaluator(node.operand, named)
        return (lambda z: np.negative(inner(z))) if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _combined(_BINARY[type(node.op)], named, node.left, node.right)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARED:
        compare = _COMPARED[type(node.ops[0])]
        true = _combined(compare, named, node.left, node.comparators[0])
        return lambda z: np.asarray(true(z), dtype=np.float64)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _called(node.func.id, node.args, named)
    raise ValueError(f"{ast.unparse(node)!r} has no place in a formula")


def _called(name: str, given: list[ast.expr], named: Named) -> Function:
    if name in _OF_SEVERAL:
        count, function = _OF_SEVERAL[name]
        if len(given) != count:
            raise ValueError(f"{name} takes {count} arguments, not {len(given)}")
        return _combined(function, named, *given)
    if not given:
        raise ValueError(f"{name} takes the signal as its first argument")
    inner, further = _evaluator(given[0], named), tuple(map(_number, given[1:]))
    outer: Callable[..., Any] = _ONE.get(name) or named(name, further)
    if name in _ONE and further:
        raise ValueError(f"{name} takes the signal alone")
    return lambda z: np.asarray(outer(inner(z)))


def _combined(
    function: Callable[..., Any],
    named: Named,
    *nodes: ast.AST,
) -> Function:
    parts = [_evaluator(node, named) for node in nodes]
    return lambda z: np.asarray(function(*(part(z) for part in parts)))


def _number(node: ast.AST) -> float:
    """A number as it stands in a formula, with its sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        try:
            value = float(node.value)  # type: ignore[arg-type]
        except OverflowError:
            value = math.inf
        if math.isfinite(value):
            return value
    raise ValueError(f"{ast.unparse(node)!r} must be a finite number")
