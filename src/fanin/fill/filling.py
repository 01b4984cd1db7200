"""One tensor filled by one scheme."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fanin import draw
from fanin.assignment import KEPT, Assignment
from fanin.catalogue import Scheme, find
from fanin.catalogue.scheme import Fan, both_fans, is_number
from fanin.draw.tensors import require_fillable
from fanin.errors import ArgumentError
from fanin.fill.layout import Matrices, read_layout
from fanin.fill.matrices import BUILDERS, FACTORED, KERNELS, Place
from fanin.fill.vectors import VECTORS
from fanin.window import Window

__all__ = ["by_parts", "factored", "fill_", "realize_", "taken"]

_ELEMENTWISE = frozenset({"constant", "normal", "uniform", "trunc_normal"})
_TAILS = 6.4  # no standard normal of the draw is larger
_CHUNK = 1 << 22  # elements centred at once, in float64: 32 MiB


@dataclass(frozen=True)
class _Job:
    """Everything that decides the values of one tensor; checked."""

    scheme: Scheme
    arguments: Mapping[str, Any]
    gain: float
    std: float
    fan: float | None
    matrices: Matrices | None
    seed: int
    name: str
    window: Window
    queue: draw.Queue | None = None

    def key(self, stream: str) -> draw.Key:
        return draw.key(self.seed, self.name, stream, self.scheme.version)


def fill_(
    tensor: Tensor,
    scheme: str,
    *,
    fan: Fan = None,
    gain: float = 1.0,
    seed: int = 0,
    name: str = "",
    layout: str | None = None,
    blocks: int = 1,
    groups: int = 1,
    **arguments: Any,
) -> Tensor:
    """Fill a tensor in place by a scheme of the catalogue, and return it.

    The values depend on (seed, name, scheme) and the place of an element in the tensor, on nothing
    else: not on device, dtype, strides or the order of calls.  Normal schemes are their std times
    the same standard normals, uniform ones their bound times the same numbers, and so on.

    A plain matrix is read as [out, in].  Anything else needs `fan`, or a `layout` that says it, if
    its scheme divides by a fan; and a `layout`, if its scheme draws matrices (kernels of
    convolutions excepted, for the schemes that fill nothing else).

    Args:
        tensor: float32, float64, bfloat16 or float16, on any device.
        scheme: a name of `fanin.schemes`, or as torch, Keras or JAX call it.
        fan: what the scheme divides by, or (fan_in, fan_out).
        gain: multiplies the std of a weight; for `normal`, `uniform` and `constant` it is the std,
            the bound, the value.
        seed: 0 to 2⁶⁴ − 1.
        name: of the parameter; other names give other values.
        layout: what each dimension is: o output, i input, k kernel tap, b independent matrix, v row
            of a table.
        blocks: equal parts along the outputs that are matrices of their own (q, k, v; gates).
        groups: of a grouped convolution, transposed or not.
        arguments: of the scheme.

    Raises:
        ArgumentError: anything that cannot be; the tensor is then as it was.

    >>> weight = fill_(torch.empty(64, 256), "he_normal", seed=1, name="layer.weight")
    >>> bool(abs(weight.std() / (2 / 256) ** 0.5 - 1) < 0.02)
    True

    Source: `fanin.catalogue.document(scheme)` names that of each scheme.
    """
    found = find(scheme)
    if found.scope == "model":
        raise ArgumentError(
            f"scheme: {found.name} needs {found.needs}; "
            f'use fanin.init_(model, batch, scheme="{found.name}")'
        )
    complete = found.complete(arguments)
    found.check_gain(gain)
    require_fillable(tensor)
    window = Window.whole(tensor.shape)
    matrices = _matrices(found, complete, window.shape, layout, blocks, groups)
    divisor = _divisor(found, complete, fan, matrices, window.shape)
    std = 0.0  # of what is drawn element by element
    if found.drawn(complete) not in ("matrix", "constant") and tensor.numel():
        std = found.std(divisor, gain, **arguments)
    _write(tensor, _Job(found, complete, float(gain), std, divisor, matrices, seed, name, window))
    return tensor


def realize_(
    tensor: Tensor,
    assignment: Assignment,
    seed: int,
    name: str,
    window: Window | None = None,
    queue: draw.Queue | None = None,
) -> None:
    """Fill a tensor as it was decided for it: `assignment.std` is the std of random weights.

    Args:
        tensor: the parameter.
        assignment: its plan, with layout and blocks; `groups` stands among the arguments.
        seed: 0 to 2⁶⁴ − 1.
        name: under which it is drawn.
        window: which part of the parameter the tensor is; all of it by default.
        queue: where what can wait is put, to be written together.

    Raises:
        ArgumentError: the assignment cannot be, or is for another shape; the tensor is then as it
            was.

    >>> plan = Assignment("w", "normal", 1.0, 0.02, None, "GPT-2")
    >>> weight = torch.empty(1000)
    >>> realize_(weight, plan, 0, "w")
    >>> torch.equal(weight, fill_(torch.empty(1000), "normal", gain=0.02, name="w"))
    True
    """
    found = find(assignment.scheme)
    if found.scope == "model":
        raise ArgumentError(
            f"scheme: {found.name} of {assignment.parameter} fills no single tensor"
        )
    arguments = dict(assignment.arguments)
    groups = arguments.pop("groups", 1)
    complete = found.complete(arguments)
    found.check_gain(assignment.gain)
    std = assignment.std
    if not is_number(std) or std < 0:
        raise ArgumentError(
            f"std: {std!r} of {assignment.parameter}; a number, 0 or more is needed"
        )
    require_fillable(tensor)
    window = Window.whole(tensor.shape) if window is None else window
    shape = window.shape
    if assignment.shape and shape != tuple(assignment.shape):
        raise ArgumentError(
            f"tensor: {assignment.parameter} has the shape {list(shape)}; "
            f"it was planned for {list(assignment.shape)}"
        )
    if window.sizes != tuple(tensor.shape):
        raise ArgumentError(
            f"window: of the sizes {list(window.sizes)}; those of the tensor are needed, "
            f"{list(tensor.shape)}"
        )
    matrices = _matrices(
        found, complete, shape, assignment.layout or None, assignment.blocks, groups
    )
    form = found.drawn(complete)
    divisor = None
    if form == "matrix":
        divisor = _divisor(found, complete, assignment.fan, matrices, shape)
    gain = float(assignment.gain)
    job = _Job(found, complete, gain, float(std), divisor, matrices, seed, name, window, queue)
    _write(tensor, job)


def by_parts(assignment: Assignment) -> bool:
    """Whether a part of the parameter is drawn without the rest, at the cost of that part.

    >>> by_parts(Assignment("w", "normal", 1.0, 0.02, None, "GPT-2"))
    True
    >>> by_parts(Assignment("w", "orthogonal", 1.0, 0.02, None, "a rotation"))
    False
    """
    given = assignment.arguments
    if assignment.keeps_values:
        return assignment.scheme == KEPT
    scheme = find(assignment.scheme)
    form = scheme.drawn(scheme.complete(assignment.options))
    return (form in _ELEMENTWISE and not given.get("centred")) or (
        scheme.name == "hadamard" and assignment.layout == "oi" and assignment.blocks == 1
    )


def factored(assignment: Assignment) -> bool:
    """Whether its values pass through linear algebra, whose last bits are those of one machine.

    Not where only a part of the tensor is drawn: what is kept of it is held in many places.

    >>> factored(Assignment("w", "orthogonal", 1.0, 0.02, None, "a rotation"))
    True
    """
    if assignment.keeps_values:
        return False
    return find(assignment.scheme).name in FACTORED


# ── what is allowed ──────────────────────────────────────────────────────────────────────────


def _matrices(
    scheme: Scheme,
    arguments: Mapping[str, Any],
    shape: Sequence[int],
    layout: str | None,
    blocks: int,
    groups: int,
) -> Matrices | None:
    """The matrices of the tensor: None where no layout is known and the scheme needs none."""
    needed = scheme.name in BUILDERS or bool(arguments.get("centred"))
    if layout is None and len(shape) == 2 and scheme.name not in KERNELS:
        layout = "oi"
    elif layout is None and len(shape) > 2 and scheme.name in KERNELS:
        first = "io" if scheme.name == "bilinear_upsampling" else "oi"
        layout = first + "k" * (len(shape) - 2)
    shape = list(shape)
    if layout is None:
        if blocks != 1 or groups != 1:
            raise ArgumentError(f"layout: missing; blocks and groups of {shape} need one")
        if needed and len(shape) > 2:
            raise ArgumentError(
                f"layout: missing; {scheme.name} needs to know what each dimension of {shape} is, "
                'such as "oikk" for a convolution or "boi" for experts'
            )
    matrices = None if layout is None else read_layout(shape, layout, blocks, groups)
    if needed and (matrices is None or not matrices.is_matrix):
        what = scheme.needs or "a tensor with inputs and outputs (centred=True)"
        raise ArgumentError(f"tensor: {scheme.name} fills {what}, not the shape {shape}")
    if scheme.name in KERNELS and matrices is not None and not matrices.kernel:
        raise ArgumentError(f"tensor: {scheme.name} fills {scheme.needs}, not the shape {shape}")
    return matrices


def _divisor(
    scheme: Scheme,
    arguments: Mapping[str, Any],
    fan: Fan,
    matrices: Matrices | None,
    shape: Sequence[int],
) -> float | None:
    """What the scheme divides by: given, or read from the layout."""
    if fan is not None:
        both_fans(fan)  # one that is not used has to make sense too
    if scheme.fan is None:
        return None if fan is None else both_fans(fan)[0]
    if fan is None and matrices is not None:
        fan = matrices.fans
    if fan is None and math.prod(shape) > 0:
        raise ArgumentError(
            f"fan: missing; {scheme.name} divides by a fan, which the shape {list(shape)} "
            "does not say (only a plain matrix is read as [out, in]): give fan=, a positive number "
            "or (fan_in, fan_out)"
        )
    return None if fan is None else scheme.divisor(fan, arguments)


# ── what is written ──────────────────────────────────────────────────────────────────────────


def _write(tensor: Tensor, job: _Job) -> None:
    # An inference tensor may be written in inference mode only.  The detached alias shares memory
    # and version, and has no history.
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        alias = tensor.detach()
        form, window = job.scheme.drawn(job.arguments), job.window
        place: Any = {"window": window, "queue": job.queue}
        key = job.key(form)  # also checks seed and name
        centred = form == "normal" and job.arguments.get("centred")
        if form == "constant":
            value = 0.0 if job.scheme.name == "zeros" else job.gain
            _check_range(tensor, abs(value), job)
            alias.fill_(value)
        elif form == "uniform":
            draw.uniform_(alias, key, job.std * math.sqrt(3), **place)
        elif form == "trunc_normal":
            bounds = (job.arguments.get("low", -2.0), job.arguments.get("high", 2.0))
            draw.trunc_normal_(alias, key, job.std, *bounds, **place)
        elif form == "normal" and not centred:
            draw.normal_(alias, key, job.std, **place)
        elif not window.is_whole:
            _cut_(alias, job)
        elif centred:
            _centred_(alias, key, job)
        elif job.scheme.name in VECTORS:
            drawn = VECTORS[job.scheme.name](window.shape, job.arguments, job.key("bias"))
            _copy_(alias, drawn, job)
        else:
            _fill_matrices_(alias, job)


def _cut_(tensor: Tensor, job: _Job) -> None:
    """A part of what is not drawn element by element."""
    matrices, window = job.matrices, job.window
    if job.scheme.name == "hadamard" and matrices is not None and matrices.layout == "oi":
        key = _places(job, matrices)[0].key("hadamard")
        drawn = [draw.hadamard(key, *window.shape, first=a, count=b - a) for a, b in window.runs[0]]
        columns = window.indices(1)
        _copy_(tensor, np.concatenate([np.empty((0, window.shape[1])), *drawn])[:, columns], job)
        return
    whole = torch.empty(window.shape, dtype=tensor.dtype, device="cpu")
    _write(whole, replace(job, window=Window.whole(window.shape), queue=None))
    tensor.copy_(taken(whole, window))


def taken(whole: Tensor, window: Window) -> Tensor:
    """The part of a tensor that a window is."""
    for dim, runs in enumerate(window.runs):
        if runs != ((0, window.shape[dim]),):
            pieces = [whole.narrow(dim, a, b - a) for a, b in runs]
            whole = torch.cat(pieces, dim) if pieces else whole.narrow(dim, 0, 0)
    return whole


def _fill_matrices_(tensor: Tensor, job: _Job) -> None:
    matrices = job.matrices
    assert matrices is not None  # a scheme in BUILDERS was given one
    if tensor.numel() == 0:
        return
    build = BUILDERS[job.scheme.name]
    for place, view in zip(_places(job, matrices), matrices.views(tensor), strict=True):
        _copy_(view, build(place, job.arguments), job)


def _places(job: _Job, matrices: Matrices) -> list[Place]:
    """What each matrix of the tensor is."""
    first = Place(
        job.scheme.name,
        matrices.outputs,
        matrices.inputs,
        matrices.kernel,
        0,
        job.fan,
        job.seed,
        job.name,
        job.scheme.version,
    )
    return [replace(first, number=number) for number in range(matrices.count)]


def _centred_(tensor: Tensor, key: draw.Key, job: _Job) -> None:
    """Normal weights less their mean over the inputs of each unit and tap, at the same std.

    The standard normals are multiples of 2⁻²⁸ in double precision, so their sum is exact in any
    order and the values are the same on every machine.
    """
    matrices = job.matrices
    assert matrices is not None  # centred schemes were given one
    cut = matrices.cut(tensor)
    inputs = [d for d, letter in enumerate(matrices.layout) if letter in "iv"]
    count = matrices.inputs
    if count < 2 and tensor.numel():
        raise ArgumentError("centred: True; a unit has one input, which cannot sum to zero")
    _check_range(tensor, _TAILS * 2 * job.std, job)
    row = tensor.numel() // max(len(cut), 1)
    step = len(cut) if 0 in inputs else max(1, _CHUNK // max(row, 1))
    for first in range(0, len(cut) if row else 0, step):
        part = cut[first : first + step]
        drawn = draw.normal(key, part.numel(), first * row).astype(np.float64)
        values = torch.from_numpy(drawn).reshape(part.shape)
        values -= values.sum(inputs, keepdim=True) / count
        values *= job.std * math.sqrt(count / (count - 1))
        part.copy_(values)


def _copy_(tensor: Tensor, drawn: NDArray[np.float64], job: _Job) -> None:
    """The values times the gain, rounded once."""
    with np.errstate(over="ignore"):  # what overflows is refused below
        scaled = drawn * job.gain + 0.0  # no −0
    _check_range(tensor, float(np.abs(scaled).max(initial=0.0)), job)
    tensor.copy_(torch.from_numpy(np.ascontiguousarray(scaled)).reshape(tensor.shape))


def _check_range(tensor: Tensor, largest: float, job: _Job) -> None:
    limit = torch.finfo(tensor.dtype).max
    if not largest <= limit:
        raise ArgumentError(
            f"gain: {job.gain!r}; {job.scheme.name} would have values up to {largest:.4g}, more "
            f"than {str(tensor.dtype).removeprefix('torch.')} holds ({limit:.4g})"
        )
