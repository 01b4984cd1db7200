"""Tensors filled in place from a stream: element i of the logical tensor is word i.

i counts the elements in row-major order, whatever the strides.  A tensor that is a part of the
logical one, a shard for instance, gets the values of its own places.  Values are computed in
float32 and rounded once to the dtype of the tensor (nearest, ties to even; a float64 tensor gets
the float32 values as they are): by compiled code, into its memory, where it is contiguous and on
the CPU; by Triton where it is contiguous and on a CUDA device; else on the CPU, in pieces that are
copied to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy

from fanin.draw import cuda, native
from fanin.draw.gaussian import LARGEST, UNIT
from fanin.draw.philox import CHUNK, Key, integer
from fanin.draw.truncation import interval
from fanin.draw.values import Values, draw
from fanin.errors import ArgumentError
from fanin.window import Window

__all__ = ["DTYPES", "SMALLEST", "normal_", "require_fillable", "trunc_normal_", "uniform_"]

#: What can be drawn.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: A smaller std would make std·2⁻²⁸ a subnormal float32, of fewer bits or, on some machines, zero.
SMALLEST = 2.0**-98


def normal_(
    tensor: Tensor,
    key: Key,
    std: float = 1.0,
    mean: float = 0.0,
    *,
    start: int = 0,
    window: Window | None = None,
    queue: native.Queue | None = None,
) -> Tensor:
    """Fill a tensor of any shape with normal values; returns it.

    std: of one element, 0 or at least 2⁻⁹⁸.  A `mean` that is not 0 costs one more rounding: it
    is added in float32 to the product std·z.  window: which part of the logical tensor this one is,
    all of it by default.  start: the word of the logical tensor's first element.  queue: where what
    can wait is put, to be written together; the tensor has its values once that is run.

    Raises ArgumentError for a tensor that cannot be filled (of another dtype, sparse, quantized,
    meta), for an argument that is out of range, and for values that overflow the dtype.

    >>> from fanin.draw import key
    >>> normal_(torch.empty(3), key(0, "layer.weight"), std=0.02)
    tensor([0.0085, 0.0222, 0.0410])

    Source: `fanin.draw.gaussian`.
    """
    std, mean = _scale("std", std), _number("mean", mean)
    window = _check(tensor, start, window, "std", std, LARGEST * std + abs(mean))
    values = Values("normal", np.float32(std * UNIT), np.float32(mean))
    return _fill_(tensor, key, start, window, values, queue)


def uniform_(
    tensor: Tensor,
    key: Key,
    bound: float = 1.0,
    *,
    start: int = 0,
    window: Window | None = None,
    queue: native.Queue | None = None,
) -> Tensor:
    """Fill a tensor of any shape with uniform values between −bound and bound; returns it.

    2²⁴ values (2k + 1 − 2²⁴)·bound·2⁻²⁴, symmetric and never 0: std is bound/√3.  bound: 0 or at
    least 2⁻⁹⁸.  start, window, queue: as in `normal_`, and so are the errors raised.

    >>> from fanin.draw import key
    >>> uniform_(torch.empty(3), key(0, "layer.weight", "uniform"))
    tensor([-0.0640,  0.3744,  0.6372])

    Source: the upper 24 bits of each word, in the middle of their interval.
    """
    bound = _scale("bound", bound)
    window = _check(tensor, start, window, "bound", bound, bound)
    values = Values("uniform", np.float32(bound * 2.0**-24))
    return _fill_(tensor, key, start, window, values, queue)


def trunc_normal_(
    tensor: Tensor,
    key: Key,
    std: float = 1.0,
    low: float = -2.0,
    high: float = 2.0,
    corrected: bool = True,
    *,
    start: int = 0,
    window: Window | None = None,
    queue: native.Queue | None = None,
) -> Tensor:
    """Fill a tensor of any shape with normal values cut at two bounds; returns it.

    low, high: in σ of the normal variable that is cut; may be infinite.  With `corrected`, std is
    that of the result (cut at ±2σ the variable itself has 0.8796 σ); without, it is σ.  Bounds that
    are not symmetric leave a mean, which is not removed.  start, window, queue: as in `normal_`.

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
    largest = sigma * min(max(abs(low), abs(high)), LARGEST)
    window = _check(tensor, start, window, "std", std, largest)
    values = Values("between", np.float32(sigma * UNIT), bounds=between)
    return _fill_(tensor, key, start, window, values, queue)


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
    if number < 0 or 0 < number < SMALLEST:
        raise ArgumentError(f"{argument}: {value!r}; 0, or a number from 2**-98 on, is needed")
    return number


def require_fillable(tensor: Any) -> None:
    """Raise ArgumentError for what is no tensor whose elements can be written one by one.

    >>> require_fillable(torch.empty(3, dtype=torch.float16))
    """
    if not isinstance(tensor, Tensor):
        raise ArgumentError(f"tensor: {type(tensor).__name__}; a torch.Tensor is needed")
    problem = ""
    if is_lazy(tensor):
        problem = "it has no shape yet: run the model once"
    elif tensor.is_nested or tensor.layout != torch.strided:
        problem = f"{'nested' if tensor.is_nested else tensor.layout} is not dense"
    elif tensor.dtype not in DTYPES:
        problem = f"its dtype is {tensor.dtype}"
    elif tensor.device.type == "meta":
        problem = "it is on the meta device, without memory: use to_empty(device=…) first"
    elif type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        problem = f"a {type(tensor).__name__} stands for another tensor"
    elif any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)):
        problem = "it is expanded: several entries share their memory"
    if problem:
        raise ArgumentError(
            f"tensor: {problem}; a dense tensor of float32, float64, bfloat16 or float16 is needed"
        )


def _check(
    tensor: Tensor,
    start: int,
    window: Window | None,
    argument: str,
    value: float,
    largest: float,
) -> Window:
    """Raise where the tensor cannot be filled with values up to `largest`; its window."""
    require_fillable(tensor)
    window = Window.whole(tensor.shape) if window is None else window
    if window.sizes != tuple(tensor.shape):
        raise ArgumentError(
            f"window: of the sizes {list(window.sizes)}; those of the tensor are needed, "
            f"{list(tensor.shape)}"
        )
    integer("start", start, 0, 2**64 - math.prod(window.shape) + 1)
    limit = min(torch.finfo(tensor.dtype).max, torch.finfo(torch.float32).max)
    if largest > limit:
        raise ArgumentError(
            f"{argument}: {value!r}; values up to {largest:.4g} would overflow "
            f"{str(tensor.dtype).removeprefix('torch.')}, whose largest is {limit:.4g}"
        )
    return window


def _fill_(
    tensor: Tensor,
    key: Key,
    start: int,
    window: Window,
    values: Values,
    queue: native.Queue | None,
) -> Tensor:
    """Write the values of the tensor's places, counted from word `start` on."""
    # An inference tensor may be written in inference mode only; others are, as by torch.nn.init,
    # without a gradient.  The detached alias shares memory and version, and no history.
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        alias = tensor.detach()
        if alias.is_contiguous() and _written(alias.view(-1), key, start, window, values, queue):
            return tensor
        for part, piece in _parts(alias, window):
            drawn = torch.from_numpy(_drawn(values, key, start, piece))
            part.copy_(drawn.to(part.dtype).view(part.shape))
    return tensor


def _written(
    flat: Tensor,
    key: Key,
    start: int,
    window: Window,
    values: Values,
    queue: native.Queue | None,
) -> bool:
    """Write straight into the memory of a tensor; False where that cannot be."""
    if flat.is_neg() or torch._C._functorch.is_functorch_wrapped_tensor(flat):
        return False  # what stands in memory is not the values
    if flat.device.type == "cpu" and native.backend().compiled:
        form = str(flat.dtype).removeprefix("torch.")
        several = native.Queue() if queue is None else queue
        for rows in window.rows():
            own = replace(rows, start=start + rows.start) if start else rows
            values.put(several, flat.data_ptr(), form, key, own, flat)
        if queue is None:
            several.run()
    elif cuda.available(flat):
        for rows in window.rows():
            for each in rows.adjoining():
                place, first = flat[each.place :], start + each.start
                launch = (first, each.count, each.repeats, each.stride)
                cuda.fill(place[: each.count * each.repeats], key, launch, values)
    else:
        return False
    if not flat.is_inference():
        torch.autograd.graph.increment_version(flat)
    return True


def _drawn(values: Values, key: Key, start: int, window: Window) -> NDArray[np.float32]:
    """The values of a part, float32 [elements]."""
    found = np.empty(window.count, np.float32)
    if native.backend().compiled:
        queue = native.Queue()
        for rows in window.rows():
            own = replace(rows, start=start + rows.start)
            values.put(queue, found.ctypes.data, "float32", key, own, found)
        queue.run()
        return found
    for rows in window.rows():
        for k in range(rows.repeats):
            at, first = rows.place + k * rows.step, start + rows.start + k * rows.stride
            found[at : at + rows.count] = draw(values, key, first, rows.count)
    return found


def _parts(tensor: Tensor, window: Window, dim: int = 0) -> Iterator[tuple[Tensor, Window]]:
    """Views of at most CHUNK elements that follow one another, each with its window."""
    count = window.count
    if count <= CHUNK:
        if count:
            yield tensor, window
        return
    size = window.sizes[dim]
    row = count // size
    step = max(1, CHUNK // row)
    for first in range(0, size, step):
        most = min(step, size - first)
        part, piece = tensor.narrow(dim, first, most), window.narrow(dim, first, most)
        if row > CHUNK:
            yield from _parts(part, piece, dim + 1)
        else:
            yield part, piece
