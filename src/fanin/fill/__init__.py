"""Tensors filled by the schemes of the catalogue, as functions of seed and name."""

from fanin.fill.assigned import assign_
from fanin.fill.filling import by_parts, factored, fill_, realize_, taken

__all__ = ["assign_", "by_parts", "factored", "fill_", "realize_", "taken"]
