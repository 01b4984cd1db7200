"""A faulty start: every weight zero, so that all units of a layer stay one.  fanin says so."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def build() -> tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]:
    """A sigmoid network for 4 classes with all weights and biases zero."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.Sigmoid(),
                          nn.Linear(16, 4))  # fmt: skip
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    labels = torch.randint(4, (32,))
    return model, torch.randn(32, 8), lambda logits: F.cross_entropy(logits, labels)
