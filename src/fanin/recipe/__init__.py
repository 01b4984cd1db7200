"""Recipes as files: written, read, held against a model, and compared."""

from fanin.recipe.differences import Change, Difference, Mismatch, check, diff
from fanin.recipe.reading import from_toml
from fanin.recipe.writing import to_toml

__all__ = ["Change", "Difference", "Mismatch", "check", "diff", "from_toml", "to_toml"]
