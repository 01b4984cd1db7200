"""Random weights as pure functions: the same bits on every machine, in any order, of any piece.

The value of an element depends on (seed, name of the parameter, stream, version, row-major index)
and on nothing else.  One 32-bit word of Philox4x32-10 is drawn per element and mapped by integer
arithmetic to fixed point; only then come one conversion to float32, one multiplication and one
rounding to the dtype of the tensor.  No library function, fused operation or flush-to-zero mode
can change a bit, and torch's, numpy's and Python's own random states are neither read nor advanced.

    philox        keys and words
    normal_table  the 448 cubics of the normal quantile, as integers
    gaussian      words to standard normals
    truncation    the words between two bounds, and the std between them
    native        the compiled draw, where it was built
    cuda          the same on a GPU, by Triton: cuda_kernel
    values        a piece of a stream, by compiled code or by the reference
    tensors       normal_, uniform_, trunc_normal_
    matrices      orthogonal, hadamard
"""

from fanin.draw.matrices import hadamard, hadamard_rows, has_hadamard, orthogonal
from fanin.draw.native import Backend, Queue, backend
from fanin.draw.philox import Key, integer, key
from fanin.draw.tensors import DTYPES, normal_, trunc_normal_, uniform_
from fanin.draw.values import normal, words

__all__ = [
    "DTYPES",
    "Backend",
    "Key",
    "Queue",
    "backend",
    "hadamard",
    "hadamard_rows",
    "has_hadamard",
    "integer",
    "key",
    "normal",
    "normal_",
    "orthogonal",
    "trunc_normal_",
    "uniform_",
    "words",
]
