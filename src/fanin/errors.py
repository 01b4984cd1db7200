"""Every error fanin raises, in one tree.

    FaninError
    ├── ModelError              the model cannot be checked as it is (meta, lazy, frozen, sparse …)
    │   └── ForwardError        the model's own forward or backward raised
    ├── BatchError              the batch holds NaN, is on another device, or has the wrong form
    ├── LossError               the loss is not a finite scalar connected to a parameter
    ├── ArgumentError           an argument of a fanin function has a value that is not allowed
    ├── RecipeError             a recipe cannot be read, or cannot be written so that it reads back
    └── TargetError             a command-line TARGET or ``--input`` cannot be turned into a model
        └── MissingPackageError the TARGET needs a package that is not installed

Each message is one line that names the argument, the value and what is allowed.  Whatever is
raised, the user's model is left exactly as it was.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BatchError",
    "FaninError",
    "ForwardError",
    "LossError",
    "MissingPackageError",
    "ModelError",
    "RecipeError",
    "TargetError",
]


class FaninError(Exception):
    """Root of every error fanin raises on purpose."""


class ModelError(FaninError, ValueError):
    """The model cannot be checked as it is."""


class ForwardError(ModelError):
    """The model's own forward (or its backward) raised; the cause is chained."""


class BatchError(FaninError, ValueError):
    """The batch cannot be used: not finite, on another device, or of the wrong form."""


class LossError(FaninError, ValueError):
    """The loss is not a finite scalar connected to a parameter of the model."""


class ArgumentError(FaninError, ValueError):
    """An argument has a value that is not allowed."""


class RecipeError(FaninError, ValueError):
    """A recipe cannot be read, or cannot be written so that it reads back."""


class TargetError(FaninError, ValueError):
    """A TARGET or an ``--input`` cannot be turned into a model and a batch."""


class MissingPackageError(TargetError):
    """The TARGET needs a package that is not installed; the message holds the install command."""
