"""Weights that are computed from other parameters: what each of those parameters is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["Part", "parts"]


@dataclass(frozen=True)
class Part:
    """What a parameter is of the weight that is computed from it.

    Attributes:
        kind: "direction" or "magnitude" (weight norm), "normalized" (spectral norm), or "other".
        weight: path of the computed weight.
        how: name of the reparametrization.
        dim: dimension that the magnitudes belong to (weight norm).
    """

    kind: str
    weight: str
    how: str
    dim: int | None = None


def parts(model: nn.Module) -> dict[str, Part]:
    """Parameter → its part; parameters that are used as they are do not appear."""
    found: dict[str, Part] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():
                names = [n for n, _ in chain.named_parameters(recurse=False)]
                for own in names:
                    place = f"{prefix}parametrizations.{name}.{own}"
                    found[place] = _new(chain, own, f"{prefix}{name}")
        for hook in module._forward_pre_hooks.values():
            found.update(_old(hook, prefix))
    return found


def _new(chain: nn.Module, own: str, weight: str) -> Part:
    """Of `torch.nn.utils.parametrize`."""
    kinds = [type(p).__name__ for p in chain.children()]
    how = ", ".join(kinds)
    if kinds == ["_WeightNorm"]:
        dim = int(next(chain.children()).dim)  # type: ignore[arg-type]
        return Part("magnitude" if own == "original0" else "direction", weight, "weight_norm", dim)
    if kinds == ["_SpectralNorm"]:
        return Part("normalized", weight, "spectral_norm")
    return Part("other", weight, how)


def _old(hook: object, prefix: str) -> dict[str, Part]:
    """Of the hooks in `torch.nn.utils` that parametrizations have replaced."""
    kind = type(hook).__name__
    name = getattr(hook, "name", None)
    if name is None:
        return {}
    weight = f"{prefix}{name}"
    if kind == "WeightNorm":
        dim = int(getattr(hook, "dim", 0))
        return {
            f"{weight}_g": Part("magnitude", weight, "weight_norm", dim),
            f"{weight}_v": Part("direction", weight, "weight_norm", dim),
        }
    if kind == "SpectralNorm":
        return {f"{weight}_orig": Part("normalized", weight, "spectral_norm")}
    return {}
