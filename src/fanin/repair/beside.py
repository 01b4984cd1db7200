"""What lies beside the weights: buffers and settings that no draw of a weight can put right.

Whether one of them is the cause is tried: it is put right for a moment, and where the errors go
with it, it is named, and no weight is changed for its sake.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fanin.wording import listed

__all__ = ["Beside", "blamed", "odd_settings", "righted"]

# A buffer beyond this is no table of sines, mask, average or index of a usual model (a mask of
# −1e9 that is added is, and putting it right clears nothing).
FAR = 1e3
# What a norm adds to a variance of about one: 1e-12 to 1e-3 in all libraries.
EPS, USUAL_EPS = 0.1, 1e-5


@dataclass(frozen=True)
class Beside:
    """A buffer, or a setting of some modules, that is not what it usually is.

    Attributes:
        told: it and its value, in words.
        remedy: what was put in its place to try.
        modules: that hold it.
        key: its name in them.
        value: to be put there; of a buffer a tensor.
    """

    told: str
    remedy: str
    modules: tuple[nn.Module, ...]
    key: str
    value: Tensor | float


def blamed(odd: Beside) -> str:
    """Say that it is the cause, and how that was seen."""
    return f"{odd.told} (with {odd.remedy}, the errors that come from it are gone)"


def odd_settings(model: nn.Module) -> list[Beside]:
    """The buffers and settings that may be the cause of an error."""
    return [*_buffers(model), *_epsilons(model)]


def _buffers(model: nn.Module) -> Iterator[Beside]:
    seen: set[int] = set()
    for path, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is None or id(buffer) in seen or not _is_dense(buffer):
                continue
            seen.add(id(buffer))
            usual = 0.0 if key == "running_mean" else 1.0
            bad = _odd_entries(buffer, key)
            if bad.any():
                name = f"{path}.{key}" if path else key
                value = torch.where(bad, usual, buffer).detach()
                told = f"the buffer {name} holds {_held(buffer[bad])}"
                yield Beside(told, f"{usual:g} in its place", (module,), key, value)


def _is_dense(buffer: Tensor) -> bool:
    dense = buffer.layout == torch.strided and not buffer.is_meta and not buffer.is_inference()
    return dense and buffer.is_floating_point() and buffer.numel() > 0


def _odd_entries(buffer: Tensor, key: str) -> Tensor:
    """Entries that are no numbers, or far out; all, where all are zero and nothing says they may.

    A mean over the batches so far starts at zero, and a variance is above it.
    """
    bad = ~(buffer.abs() <= FAR)
    if key == "running_var":
        bad |= buffer < 0
    empty = key != "running_mean" and not bool(buffer.any())
    return torch.ones_like(bad) if empty else bad


def _held(values: Tensor) -> str:
    if not bool(torch.isfinite(values).any()):
        return "no finite value"
    finite = values[torch.isfinite(values)].double()
    largest = float(finite[finite.abs().argmax()])
    return f"{'up to ' if len(finite) > 1 and largest else ''}{largest:.3g}"


def _epsilons(model: nn.Module) -> Iterator[Beside]:
    """Norms whose eps drowns any variance, all of one value together."""
    found: dict[float, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        eps = vars(module).get("eps")
        if isinstance(eps, float) and EPS <= eps < math.inf:
            found.setdefault(eps, []).append((path, module))
    for eps, holders in found.items():
        told = f"the eps of {listed(p or 'the model' for p, _ in holders)} is {eps:g}"
        modules = tuple(m for _, m in holders)
        yield Beside(told, f"{USUAL_EPS:g} in its place", modules, "eps", USUAL_EPS)


@contextmanager
def righted(chosen: Iterable[Beside]) -> Iterator[None]:
    """Buffers and settings as they usually are, until the block ends."""
    put_back: list[tuple[Tensor, Tensor]] = []
    settings: list[tuple[nn.Module, str, float]] = []
    try:
        for odd in chosen:
            for module in odd.modules:
                if isinstance(odd.value, Tensor):
                    buffer = module._buffers[odd.key]
                    assert buffer is not None
                    put_back.append((buffer, buffer.data))
                    buffer.data = odd.value
                else:
                    settings.append((module, odd.key, vars(module)[odd.key]))
                    setattr(module, odd.key, odd.value)
        yield
    finally:
        for buffer, data in reversed(put_back):
            buffer.data = data
        for module, key, value in reversed(settings):
            setattr(module, key, value)
