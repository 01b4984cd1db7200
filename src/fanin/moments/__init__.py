"""Gaussian moments of any activation, and the maps of signal and correlation through layers.

>>> round(moments("gelu").second, 6)
0.425221
"""

from fanin.moments.functions import NAMES, Activation, find, function
from fanin.moments.gaussian import expectation
from fanin.moments.maps import (
    Moments,
    chi,
    correlation_map,
    critical,
    depth_scale,
    fixed_correlation,
    fixed_point,
    gain,
    length_map,
    moments,
)

__all__ = [
    "NAMES",
    "Activation",
    "Moments",
    "chi",
    "correlation_map",
    "critical",
    "depth_scale",
    "expectation",
    "find",
    "fixed_correlation",
    "fixed_point",
    "function",
    "gain",
    "length_map",
    "moments",
]
