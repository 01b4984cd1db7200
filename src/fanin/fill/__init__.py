"""Tensors filled by the schemes of the catalogue, as functions of seed and name."""

from fanin.fill.filling import fill_, realize_

__all__ = ["fill_", "realize_"]
