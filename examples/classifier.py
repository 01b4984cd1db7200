"""A sound start: a small image classifier as PyTorch draws it.  fanin finds no error."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def build() -> tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]:
    """A convolutional network for 10 classes, 16 random images and their cross-entropy."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    images = torch.randn(16, 3, 16, 16)
    labels = torch.randint(10, (16,))
    return model, images, lambda logits: F.cross_entropy(logits, labels)
