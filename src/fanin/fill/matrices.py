"""One matrix or kernel of each structured scheme, in float64 at gain 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fanin import draw
from fanin.catalogue.basic import zero_inputs
from fanin.catalogue.mimetic import mixture
from fanin.catalogue.structured import triangle
from fanin.errors import ArgumentError

__all__ = ["BUILDERS", "FACTORED", "KERNELS", "Place"]

Array = NDArray[np.float64]
Arguments = Mapping[str, Any]

#: Schemes that fill a kernel and nothing else.
KERNELS = frozenset({"dirac", "delta_orthogonal", "icnr", "bilinear_upsampling"})

#: Schemes whose values come from a factorization: equal on machines with the same linear algebra.
FACTORED = frozenset({"orthogonal", "delta_orthogonal", "looks_linear", "mimetic"})


@dataclass(frozen=True)
class Place:
    """One matrix [outputs, inputs, *kernel] of a tensor, and where its numbers come from.

    Attributes:
        scheme: its name.
        outputs: rows.
        inputs: columns, kernel taps not counted.
        kernel: sizes of the kernel, () for a matrix.
        number: which of the tensor's matrices it is.
        fan: what the scheme divides by; None where it was not given.
        seed: of the draw.
        name: of the parameter.
        version: of the scheme.
    """

    scheme: str
    outputs: int
    inputs: int
    kernel: tuple[int, ...]
    number: int
    fan: float | None
    seed: int
    name: str
    version: int

    @property
    def taps(self) -> int:
        """Entries of the kernel."""
        return math.prod(self.kernel)

    @property
    def size(self) -> str:
        """As in a message: outputs × inputs (× kernel)."""
        return "×".join(map(str, (self.outputs, self.inputs, *self.kernel)))

    def key(self, stream: str, number: int | None = None, name: str = "") -> draw.Key:
        """The key of a stream for this matrix alone.

        The matrices of one tensor count in the upper half of Philox's counter: their words are
        distinct for certain.
        """
        key = draw.key(self.seed, name or self.name, stream, self.version)
        number = self.number if number is None else number
        return draw.Key(key.low, (key.high + number) % 2**64)

    def at_centre(self, matrix: Array) -> Array:
        """A kernel that is zero but for its middle tap."""
        kernel = np.zeros((self.outputs, self.inputs, self.taps))
        middle = 0
        for length in self.kernel:
            middle = middle * length + length // 2
        kernel[..., middle] = matrix
        return kernel.reshape(self.outputs, self.inputs, *self.kernel)


def _plain(place: Place) -> None:
    if place.kernel:
        raise ArgumentError(f"tensor: {place.scheme} fills matrices, not a kernel of {place.size}")


def _identity(place: Place, _: Arguments) -> Array:
    _plain(place)
    return np.eye(place.outputs, place.inputs)


def _irnn(place: Place, _: Arguments) -> Array:
    _plain(place)
    if place.outputs != place.inputs:
        raise ArgumentError(f"tensor: irnn fills square matrices, not one of {place.size}")
    return np.eye(place.outputs)


def _dirac(place: Place, _: Arguments) -> Array:
    return place.at_centre(np.eye(place.outputs, place.inputs))


def _sparse(place: Place, given: Arguments) -> Array:
    rows, columns = place.outputs, place.inputs * place.taps
    zeros = zero_inputs(columns, given["sparsity"])
    values = np.array(draw.normal(place.key("normal"), rows * columns), dtype=np.float64)
    order = draw.words(place.key("sparse"), 0, rows * columns).reshape(rows, columns)
    chosen = np.argsort(order, axis=1, kind="stable")[:, :zeros]
    values = values.reshape(rows, columns)
    np.put_along_axis(values, chosen, 0.0, axis=1)
    return values.reshape(rows, place.inputs, *place.kernel)


def _rotation(place: Place, rows: int, columns: int, taps: int, given: Arguments) -> Array:
    """Semi-orthogonal [rows, columns, taps], seen as [rows, columns·taps], scaled as asked."""
    key = place.key("orthogonal")
    seen = columns - 1 if given.get("centred") else columns
    if seen < 1:
        raise ArgumentError(
            f"centred: True; a unit of {place.size} has one input, which cannot sum to zero"
        )
    drawn = draw.orthogonal(key, rows, seen * taps).reshape(rows, seen, taps)
    if seen < columns:
        drawn = _without_mean(drawn)
    if given.get("scale") == "variance":
        fan = columns * taps if place.fan is None else place.fan
        drawn = drawn * math.sqrt(rows * columns * taps / (min(rows, seen * taps) * fan))
    return drawn


def _without_mean(drawn: Array) -> Array:
    """[rows, n − 1, taps] → [rows, n, taps]: rotated into the space orthogonal to ones.

    A reflection takes the first axis to the ones vector, so the other axes become a basis of the
    vectors that sum to zero.
    """
    rows, seen, taps = drawn.shape
    columns = seen + 1
    axis = np.full(columns, 1 / math.sqrt(columns))
    axis[0] -= 1
    wide = np.concatenate([np.zeros((rows, 1, taps)), drawn], axis=1)
    along = np.einsum("j,rjt->rt", axis, wide) * (2 / (axis @ axis))
    wide -= axis[None, :, None] * along[:, None, :]
    return wide


def _orthogonal(place: Place, given: Arguments) -> Array:
    drawn = _rotation(place, place.outputs, place.inputs, place.taps, given)
    return drawn.reshape(place.outputs, place.inputs, *place.kernel)


def _delta_orthogonal(place: Place, given: Arguments) -> Array:
    alone = replace(place, fan=None)  # the one tap that counts has no kernel's fan
    return place.at_centre(_rotation(alone, place.outputs, place.inputs, 1, given)[..., 0])


def _looks_linear(place: Place, given: Arguments) -> Array:
    """[[M, −M], [−M, M]]; of an odd side the spare unit is random, and nobody listens to it yet."""
    first, last = given["first"], given["last"]
    for side, halved in ((place.outputs, not last), (place.inputs, not first)):
        if halved and side < 2:
            raise ArgumentError(
                f"tensor: looks_linear mirrors halves; a side of {side} in {place.size} has none"
            )
    rows = place.outputs if last else place.outputs // 2
    columns = place.inputs if first else place.inputs // 2
    taps = place.taps if given["patch"] else 1
    columns *= taps
    block = _rotation(place, rows, columns, 1, {})[..., 0]
    if not last:
        spare = place.outputs % 2
        drawn = draw.normal(place.key("spare"), spare * columns).astype(np.float64)
        row = drawn.reshape(spare, columns) / math.sqrt(columns)
        block = np.concatenate([block, -block, row], axis=0)
    if not first:
        silent = np.zeros((len(block), place.inputs % 2 * taps))
        block = np.concatenate([block, -block, silent], axis=1)
    if given["patch"]:
        return block.reshape(place.outputs, place.inputs, *place.kernel)
    return place.at_centre(block)


def _hadamard(place: Place, _: Arguments) -> Array:
    drawn = draw.hadamard(place.key("hadamard"), place.outputs, place.inputs * place.taps)
    return drawn.reshape(place.outputs, place.inputs, *place.kernel)


def _zero_hadamard(place: Place, _: Arguments) -> Array:
    rows, columns = place.outputs, place.inputs
    if rows <= columns:
        return place.at_centre(np.eye(rows, columns))
    order = math.ceil(math.log2(rows))
    both = np.arange(rows)[:, None] & np.arange(columns)[None, :]
    for shift in (32, 16, 8, 4, 2, 1):  # parity of the bits that row and column share
        both ^= both >> shift
    signs = np.where(both & 1, -1.0, 1.0)
    return place.at_centre(signs * 2.0 ** (-order / 2))


def _icnr(place: Place, given: Arguments) -> Array:
    copies = int(given["scale"]) ** len(place.kernel)
    if place.outputs % copies:
        raise ArgumentError(
            f"scale: {given['scale']}; {place.outputs} outputs are no multiple of {copies}"
        )
    shape = (place.outputs // copies, place.inputs, *place.kernel)
    drawn = draw.normal(place.key("normal"), math.prod(shape)).astype(np.float64).reshape(shape)
    assert place.fan is not None  # the scheme has one: it was asked for before
    return np.repeat(drawn, copies, axis=0) / math.sqrt(place.fan)


def _bilinear(place: Place, _: Arguments) -> Array:
    if place.outputs != place.inputs:
        raise ArgumentError(
            f"tensor: bilinear_upsampling needs as many outputs as inputs, not {place.size}"
        )
    kernel = np.ones(())
    for taps in place.kernel:
        kernel = np.multiply.outer(kernel, np.array(triangle(taps)))
    return np.multiply.outer(np.eye(place.outputs), kernel)


def _mimetic(place: Place, given: Arguments) -> Array:
    """The factor of αZ ± βI that this matrix is; its partner computes the same factorization."""
    _plain(place)
    part, number = given["part"], place.number
    if part == "qkv":
        part, number = "qkv"[number % 3], number // 3
    elif part in "ko" and not given["partner"]:
        raise ArgumentError(f'partner: missing; part="{part}" needs the name of its pair\'s first')
    heads = int(given["heads"]) if part in "qk" else 1
    width, inner = place.inputs, place.outputs
    if part == "o":
        width, inner = inner, width
    if inner % heads or inner // heads > width:
        raise ArgumentError(
            f"heads: {heads}; they do not divide the {inner} rows of a {place.size} matrix into "
            f"parts of at most {width}"
        )
    stream = "mimetic_qk" if part in "qk" else "mimetic_vo"
    key = place.key(stream, number, given["partner"])
    alpha, beta = mixture(part, given)
    sign, rank = (1 if part in "qk" else -1), inner // heads
    factors = []
    for head in range(heads):
        noise = draw.normal(key, width * width, head * width * width).astype(np.float64)
        product = alpha / math.sqrt(width) * noise.reshape(width, width)
        product += sign * beta * np.eye(width)
        factors.append(_halves(product, rank)[0 if part in "qv" else 1])
    drawn = np.concatenate(factors)
    return drawn.T if part == "o" else drawn


def _halves(product: Array, rank: int) -> tuple[Array, Array]:
    """(√Σ Uᵀ, √Σ Vᵀ) [rank, width] of U Σ Vᵀ cut to its largest singular values.

    From the eigenvectors of the Gram matrix: several times faster than all singular vectors, and
    the product of the halves is right to rounding whatever the gaps between the values.
    """
    squares, vectors = np.linalg.eigh(product.T @ product)
    right = vectors[:, ::-1][:, :rank].T
    right = right * np.where(right[:, :1] < 0, -1.0, 1.0)  # the signs of LAPACK are its own
    roots = np.maximum(squares[::-1][:rank], 0.0)[:, None] ** 0.25
    left = np.divide(right @ product.T, roots, out=np.zeros_like(right), where=roots > 0)
    return left, roots * right


BUILDERS: Mapping[str, Callable[[Place, Arguments], Array]] = {
    "identity": _identity,
    "dirac": _dirac,
    "sparse": _sparse,
    "orthogonal": _orthogonal,
    "delta_orthogonal": _delta_orthogonal,
    "looks_linear": _looks_linear,
    "hadamard": _hadamard,
    "zero_hadamard": _zero_hadamard,
    "irnn": _irnn,
    "icnr": _icnr,
    "bilinear_upsampling": _bilinear,
    "mimetic": _mimetic,
}
