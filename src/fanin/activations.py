"""Torch activations as functions of `fanin.moments`: modules, torch functions and any callable."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fanin import moments
from fanin.errors import ArgumentError
from fanin.moments.functions import arguments

__all__ = ["as_function", "gain", "traced"]

# Torch functions of the same name and meaning as in `fanin.moments`; these two need arguments.
_WITHOUT_DEFAULTS = {"threshold", "prelu"}
_FUNCTIONS: dict[Any, str] = {
    getattr(place, name): name
    for place in (torch.special, torch, F)
    for name in moments.NAMES
    if name not in _WITHOUT_DEFAULTS and hasattr(place, name)
} | {torch.special.expit: "sigmoid", torch.arctan: "atan", torch.absolute: "abs"}

# Names by which a watch sees torch functions that are called otherwise here.
_SEEN_AS = {
    "_threshold": "threshold", "log_sigmoid": "logsigmoid", "arctan": "atan", "absolute": "abs",
    "special_expit": "sigmoid", "special_erf": "erf", "special_expm1": "expm1",
}  # fmt: skip
_CLAMPS = {"clamp": ("min", "max"), "clip": ("min", "max"), "clamp_min": ("min",)}

# Exact types only: a subclass may compute anything.
_MODULES: dict[type[nn.Module], Callable[[Any], str | None]] = {
    nn.Identity: lambda _: "identity",
    nn.ReLU: lambda _: "relu",
    nn.LeakyReLU: lambda m: _call("leaky_relu", m.negative_slope),
    nn.PReLU: lambda m: _call("prelu", _common_slope(m.weight)),
    nn.RReLU: lambda m: None if m.training else _call("rrelu", m.lower, m.upper),
    nn.ReLU6: lambda _: "relu6",
    nn.Threshold: lambda m: _call("threshold", m.threshold, m.value),
    nn.ELU: lambda m: _call("elu", m.alpha),
    nn.SELU: lambda _: "selu",
    nn.CELU: lambda m: _call("celu", m.alpha) if m.alpha > 0 else None,
    nn.GELU: lambda m: "gelu" if m.approximate == "none" else "gelu_tanh",
    nn.SiLU: lambda _: "silu",
    nn.Mish: lambda _: "mish",
    nn.Softplus: lambda m: _call("softplus", m.beta) if m.threshold == _STRAIGHT else None,
    nn.Tanh: lambda _: "tanh",
    nn.Sigmoid: lambda _: "sigmoid",
    nn.LogSigmoid: lambda _: "logsigmoid",
    nn.Softsign: lambda _: "softsign",
    nn.Hardtanh: lambda m: _call("hardtanh", m.min_val, m.max_val),
    nn.Hardsigmoid: lambda _: "hardsigmoid",
    nn.Hardswish: lambda _: "hardswish",
    nn.Tanhshrink: lambda _: "tanhshrink",
    nn.Softshrink: lambda m: _call("softshrink", m.lambd),
    nn.Hardshrink: lambda m: _call("hardshrink", m.lambd),
}
# From there on torch's softplus is the identity, 2e-9 below the function; any other is no softplus.
_STRAIGHT = 20.0
_PRELU_START = 0.25  # torch's own first value, for a parameter that has none yet (meta)

# Points at which an unknown callable is tried: irregular, on both sides of zero, and so many that
# dropout of one in a thousand shows.
_POINTS = 5 * torch.sin(torch.arange(1, 8193, dtype=torch.float64, device="cpu"))
# A callable that computes in float32 may differ by this share from itself on other neighbours.
_SAME = 1e-6


def gain(activation: str | nn.Module | Callable[[Any], Any]) -> float:
    """Gain of an activation: E[φ(z)²]^(−1/2) for z ~ N(0, 1), so that signals keep their scale.

    The std of a weight is gain / √fan_in: then the pre-activations of the next layer have the
    second moment of these, if these are N(0, 1).

        relu 1.4142    tanh 1.5925    sigmoid 1.8462    gelu 1.5335    silu 1.6765
        elu  1.2452    selu 1.0000    softplus 1.0419   mish 1.4868    sin  1.5209

    ``torch.nn.init.calculate_gain`` has other values for tanh (5/3), selu (3/4) and sigmoid (1),
    and none for most others.

    Args:
        activation: a name (`fanin.moments.NAMES`, as in ``"leaky_relu(0.2)"``), a formula of z (as
            ``"z * sigmoid(1.702 * z)"``, see `fanin.moments.find`), a module, or a function of a
            tensor.  Modules and functions are evaluated elementwise in float64 and
            left as they are.

    Raises:
        ArgumentError: the name is unknown; the module or function raises, is random (dropout in
            training mode), is not elementwise (softmax, glu), or gives values that are not finite;
            or all its values are zero.

    Source: He et al. 2015, section 2.2, for relu; Klambauer et al. 2017 for selu.

    >>> round(gain("relu"), 4), round(gain(nn.GELU(approximate="tanh")), 4)
    (1.4142, 1.5336)
    >>> round(gain(lambda x: x * torch.sigmoid(x)), 4)
    1.6765
    """
    return moments.gain(as_function(activation))


def as_function(
    activation: str | nn.Module | Callable[[Any], Any],
) -> str | Callable[[np.ndarray], np.ndarray]:
    """An activation as `fanin.moments` takes it: a name where it is known, else a numpy function.

    Parameters are read now: later changes of the module do not reach the function.

    Args:
        activation: a name, a module, or a function of a tensor.

    Returns:
        A name with its arguments, or a function from a float64 array to one of the same shape.

    Raises:
        ArgumentError: see `gain`.

    >>> as_function(nn.LeakyReLU(0.2)), as_function(torch.tanh)
    ('leaky_relu(0.2)', 'tanh')
    """
    if isinstance(activation, (str, moments.Activation, np.ufunc)):
        moments.function(activation)
        return activation
    if isinstance(activation, type):
        raise ArgumentError(
            f"activation must be a name, a module or a function, not the class "
            f"{activation.__qualname__}: pass an instance"
        )
    if not callable(activation):
        raise ArgumentError(
            f"activation must be a name, a module or a function, not {activation!r}"
        )
    name = _known(activation)
    if name is not None:
        return name
    evaluate = _evaluator(activation)

    def function(z: np.ndarray) -> np.ndarray:
        with _quiet():
            return evaluate(torch.from_numpy(np.array(z, dtype=np.float64))).numpy()

    function.__qualname__ = _described(activation)
    return function


def traced(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, str | None]:
    """A watched call of torch: the operation it is, and what `fanin.moments` takes it for.

    Args:
        name: of the torch function, without the mark of a call in place.
        args: of the call, the signal first.
        kwargs: of the call.

    Returns:
        The name of the operation, and the same with its arguments; None for the latter where
        moments are not known.

    >>> traced("hardtanh", (torch.ones(1), 0.0, 6.0), {})
    ('relu6', 'relu6')
    >>> traced("leaky_relu", (torch.ones(1),), {"negative_slope": 0.2})
    ('leaky_relu', 'leaky_relu(0.2)')
    >>> traced("softmax", (torch.ones(1), -1), {})
    ('softmax', None)
    """
    op = _SEEN_AS.get(name, name)
    if op in _CLAMPS:
        return _clamped(op, args, kwargs)
    if op not in moments.NAMES:
        return op, None
    given = _numbers(tuple(arguments(op)), args, kwargs)
    if op == "gelu" and "tanh" in (*args[1:], *kwargs.values()):
        return op, "gelu_tanh"
    values = [given.get(key, default) for key, default in arguments(op).items()]
    if op == "hardtanh" and values == [0.0, 6.0]:
        return "relu6", "relu6"  # how torch's module calls it
    return op, _allowed(_call(op, *values)) if given else op


def _allowed(curve: str) -> str | None:
    """None where torch allows arguments that moments have no meaning for: an infinite bound."""
    try:
        return moments.find(curve).name
    except ArgumentError:
        return None


def _numbers(
    keys: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, float]:
    """The numbers that a call is given under these keys, or at their places."""
    given = {**dict(zip(keys, args[1:], strict=False)), **kwargs}
    numbers = {k: v for k, v in given.items() if k in keys and isinstance(v, (int, float))}
    return {k: float(v) for k, v in numbers.items() if not isinstance(v, bool)}


def _clamped(op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, str | None]:
    """A bound at 0 makes a rectifier; others only keep a signal in bounds."""
    bounds = _numbers(_CLAMPS[op], args, kwargs)
    if bounds.get("min") != 0.0:
        return op, None
    high = bounds.get("max", math.inf)
    if high == math.inf:
        return "relu", "relu"
    return ("hardtanh", _allowed(_call("hardtanh", 0.0, high))) if high > 0 else (op, None)


def _known(activation: Callable[[Any], Any]) -> str | None:
    """The name of a module or function that `fanin.moments` has in closed form."""
    if isinstance(activation, nn.Module):
        named = _MODULES.get(type(activation))
        return named(activation) if named is not None else None
    try:
        return _FUNCTIONS.get(activation)
    except TypeError:  # not hashable
        return None


def _call(name: str, *arguments: float) -> str:
    return f"{name}({', '.join(repr(float(a)) for a in arguments)})"


def _common_slope(weight: Tensor) -> float:
    """Of several channels the slope with their common second moment."""
    if weight.is_meta:
        return _PRELU_START
    return float(weight.detach().double().square().mean().sqrt())


def _described(activation: Callable[[Any], Any]) -> str:
    name = None if isinstance(activation, nn.Module) else getattr(activation, "__qualname__", None)
    return name or type(activation).__qualname__


# ── evaluation that leaves no trace ──────────────────────────────────────────────────────────

Evaluate = Callable[[Tensor], Tensor]


def _evaluator(activation: Callable[[Any], Any]) -> Evaluate:
    """The activation as a function of float64 vectors, found to be elementwise; to run `_quiet`.

    What cannot take float64, for it holds float32 parameters, is given float32.
    """
    name = _described(activation)
    called = _double(activation, name) if isinstance(activation, nn.Module) else activation
    wide, narrow = (partial(_evaluate, called, name, t) for t in (torch.float64, torch.float32))
    try:
        _check_elementwise(wide, name)
    except ArgumentError as error:
        if error.__cause__ is None:  # it ran, and is not elementwise
            raise
        try:
            _check_elementwise(narrow, name)
        except ArgumentError:
            raise error from error.__cause__
        return narrow
    return wide


def _evaluate(called: Callable[[Any], Any], name: str, dtype: torch.dtype, x: Tensor) -> Tensor:
    """called(x) in float64, checked for its shape."""
    result = called(x.to(dtype, copy=True))  # a private input: it may work in place
    if isinstance(result, np.ndarray):
        result = torch.from_numpy(result)
    if not isinstance(result, Tensor) or result.shape != x.shape or result.is_complex():
        given = type(result).__name__
        if isinstance(result, Tensor):
            given = f"{str(result.dtype).removeprefix('torch.')} {list(result.shape)}"
        raise ArgumentError(
            f"activation {name!r} must be elementwise: of a vector {list(x.shape)} it must make a "
            f"real one of that shape, not {given}"
        )
    return result.detach().to("cpu", torch.float64)


def _check_elementwise(evaluate: Evaluate, name: str) -> None:
    """An ArgumentError unless each value depends on its own input alone, and always in one way."""
    try:
        with _quiet():
            whole, again = evaluate(_POINTS), evaluate(_POINTS)
            some = evaluate(_POINTS[::3].flip(0))
    except ArgumentError:
        raise
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ArgumentError(
            f"activation {name!r} must take a vector, but raised {cause}"
        ) from error
    if not torch.equal(whole.nan_to_num(), again.nan_to_num()):
        raise ArgumentError(
            f"activation {name!r} must not be random (a module in training mode: call its eval())"
        )
    if not torch.allclose(whole[::3].flip(0), some, rtol=_SAME, atol=_SAME, equal_nan=True):
        raise ArgumentError(
            f"activation {name!r} must be elementwise: its value at one input must not depend on "
            "the others"
        )


def _double(module: nn.Module, name: str) -> nn.Module:
    """A float64 copy without hooks."""
    if any(t.is_meta for t in (*module.parameters(), *module.buffers())):
        raise ArgumentError(f"activation {name!r} has parameters without values (meta)")
    try:
        double = copy.deepcopy(module).to("cpu", torch.float64)
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ArgumentError(
            f"activation {name!r} must be copied to be evaluated, which raised {cause}"
        ) from error
    for part in double.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return double


@contextmanager
def _quiet() -> Iterator[None]:
    """No gradients, on the CPU whatever the default device, and every random state as before."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
