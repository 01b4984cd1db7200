"""A model alone: the batch comes from ``--input tokens=tokens:4x12@100 --input scale=4x16``."""

from torch import Tensor, nn


class Scaled(nn.Module):
    """Mean of token embeddings, scaled by a second input, then one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        mean: Tensor = self.embedding(tokens).mean(dim=1)
        logits: Tensor = self.head(mean * scale)
        return logits


def build() -> nn.Module:
    """The model without a batch."""
    return Scaled()
