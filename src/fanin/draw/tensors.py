"""Tensors filled in place from a stream: element i of the logical tensor is word i.

i counts the elements in row-major order, whatever the strides.  Values are computed on the CPU in
float32 and rounded once to the dtype of the tensor (nearest, ties to even; a float64 tensor gets
the float32 values as they are): by compiled code, into its memory, where it is contiguous and on
the CPU, else in pieces that are copied to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fanin.draw import native
from fanin.draw.gaussian import LARGEST, UNIT
from fanin.draw.philox import CHUNK, Key, integer
from fanin.draw.truncation import interval
from fanin.draw.values import Values, draw
from fanin.errors import ArgumentError

__all__ = ["normal_", "trunc_normal_", "uniform_"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# A smaller std would make std·2⁻²⁸ a subnormal float32, of fewer bits or, on some machines, zero.
_SMALLEST = 2.0**-98


def normal_(
    tensor: Tensor, key: Key, std: float = 1.0, mean: float = 0.0, *, start: int = 0
) -> Tensor:
    """Fill a tensor of any shape with normal values; returns it.

    std: of one element, 0 or at least 2⁻⁹⁸.  A `mean` that is not 0 costs one more rounding: it
    is added in float32 to the product std·z.  start: the index of the tensor's first element in the
    logical tensor that it is a part of.

    Raises ArgumentError for a tensor that cannot be filled (of another dtype, sparse, quantized,
    meta), for an argument that is out of range, and for values that overflow the dtype.

    >>> from fanin.draw import key
    >>> normal_(torch.empty(3), key(0, "layer.weight"), std=0.02)
    tensor([0.0085, 0.0222, 0.0410])

    Source: `fanin.draw.gaussian`.
    """
    std, mean = _scale("std", std), _number("mean", mean)
    _check(tensor, start, "std", std, LARGEST * std + abs(mean))
    values = Values("normal", np.float32(std * UNIT), np.float32(mean))
    return _fill_(tensor, key, start, values)


def uniform_(tensor: Tensor, key: Key, bound: float = 1.0, *, start: int = 0) -> Tensor:
    """Fill a tensor of any shape with uniform values between −bound and bound; returns it.

    2²⁴ values (2k + 1 − 2²⁴)·bound·2⁻²⁴, symmetric and never 0: std is bound/√3.  bound: 0 or at
    least 2⁻⁹⁸.  start: as in `normal_`, and so are the errors raised.

    >>> from fanin.draw import key
    >>> uniform_(torch.empty(3), key(0, "layer.weight", "uniform"))
    tensor([-0.0640,  0.3744,  0.6372])

    Source: the upper 24 bits of each word, in the middle of their interval.
    """
    bound = _scale("bound", bound)
    _check(tensor, start, "bound", bound, bound)
    return _fill_(tensor, key, start, Values("uniform", np.float32(bound * 2.0**-24)))


def trunc_normal_(
    tensor: Tensor,
    key: Key,
    std: float = 1.0,
    low: float = -2.0,
    high: float = 2.0,
    corrected: bool = True,
    *,
    start: int = 0,
) -> Tensor:
    """Fill a tensor of any shape with normal values cut at two bounds; returns it.

    low, high: in σ of the normal variable that is cut; may be infinite.  With `corrected`, std is
    that of the result (cut at ±2σ the variable itself has 0.8796 σ); without, it is σ.  Bounds that
    are not symmetric leave a mean, which is not removed.  start: as in `normal_`.

    Nothing is rejected or moved to a bound: all words are mapped, in order, to those between the
    bounds.  So values are few where little probability is (1231 between 5σ and ∞).

    Raises ArgumentError as `normal_`, and where low < high does not hold or fewer than 64 words
    lie between them.

    >>> from fanin.draw import key
    >>> trunc_normal_(torch.empty(3), key(0, "layer.weight", "trunc_normal"), std=0.02)
    tensor([ 0.0111, -0.0062,  0.0079])

    Source: inversion, L. Devroye, Non-Uniform Random Variate Generation, 1986, section II.2.
    """
    std = _scale("std", std)
    low, high = (_number(n, x, infinite=True) for n, x in (("low", low), ("high", high)))
    between = interval(low, high)
    sigma = std / between.std if corrected else std
    _check(tensor, start, "std", std, sigma * min(max(abs(low), abs(high)), LARGEST))
    values = Values("between", np.float32(sigma * UNIT), bounds=between)
    return _fill_(tensor, key, start, values)


def _number(argument: str, value: object, infinite: bool = False) -> float:
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.nan
        if math.isfinite(number) or (infinite and math.isinf(number)):
            return number
    raise ArgumentError(
        f"{argument}: {value!r}; a {'number' if infinite else 'finite number'} is needed"
    )


def _scale(argument: str, value: object) -> float:
    number = _number(argument, value)
    if number < 0 or 0 < number < _SMALLEST:
        raise ArgumentError(f"{argument}: {value!r}; 0, or a number from 2**-98 on, is needed")
    return number


def _check(tensor: Tensor, start: int, argument: str, value: float, largest: float) -> None:
    """Raise where the tensor cannot be filled with values up to `largest`."""
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"tensor: a {type(tensor).__name__}; a torch.Tensor is needed")
    problem = _unfit(tensor)
    if problem:
        raise ArgumentError(
            f"tensor: {problem}; a dense tensor of float32, float64, bfloat16 or float16 "
            "with memory of its own is needed"
        )
    integer("start", start, 0, 2**64 - tensor.numel() + 1)
    limit = min(torch.finfo(tensor.dtype).max, torch.finfo(torch.float32).max)
    if largest > limit:
        raise ArgumentError(
            f"{argument}: {value!r}; values up to {largest:.4g} would overflow "
            f"{str(tensor.dtype).removeprefix('torch.')}, whose largest is {limit:.4g}"
        )


def _unfit(tensor: Tensor) -> str:
    """Why this tensor cannot be filled; "" where it can."""
    if is_lazy(tensor):
        return "not initialized (lazy)"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"of layout {'nested' if tensor.is_nested else tensor.layout}"
    if tensor.dtype not in _DTYPES:
        return f"of dtype {tensor.dtype}"
    if tensor.device.type == "meta":
        return "on the meta device"
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"a {type(tensor).__name__}, which stands for another tensor"
    if any(n > 1 and stride == 0 for n, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return "expanded: several elements share one place in memory"
    return ""


def _fill_(tensor: Tensor, key: Key, start: int, values: Values) -> Tensor:
    """Write the values of the words from `start` on."""
    # An inference tensor may be written in inference mode only; others are, as by torch.nn.init,
    # without a gradient.  The detached alias shares memory and version, and no history.
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        alias = tensor.detach()
        if alias.is_contiguous():
            alias = alias.view(-1)
            if _has_memory(alias) and native.backend().compiled:
                form = str(alias.dtype).removeprefix("torch.")
                values.write(alias.data_ptr(), form, key, start, alias.numel())
                if not alias.is_inference():
                    torch.autograd.graph.increment_version(alias)
                return tensor
        for part, first in _parts(alias, start):
            drawn = torch.from_numpy(draw(values, key, first, part.numel()))
            part.copy_(drawn.to(part.dtype).view(part.shape))
    return tensor


def _has_memory(tensor: Tensor) -> bool:
    """Whether the values of a tensor stand in the CPU's memory as they are."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.device.type == "cpu" and not tensor.is_neg() and not wrapped


def _parts(tensor: Tensor, start: int) -> Iterator[tuple[Tensor, int]]:
    """Views of at most CHUNK elements that follow one another, each with its first index."""
    count = tensor.numel()
    if count <= CHUNK:
        if count:
            yield tensor, start
        return
    row = count // len(tensor)
    if row > CHUNK:
        for index, part in enumerate(tensor):
            yield from _parts(part, start + index * row)
        return
    step = CHUNK // row
    for index in range(0, len(tensor), step):
        yield tensor[index : index + step], start + index * row
