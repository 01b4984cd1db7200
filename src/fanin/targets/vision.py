"""Models of timm and torchvision, at their own initialization."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fanin.errors import TargetError
from fanin.targets.source import Loss, Source, guarded, package
from fanin.wording import did_you_mean

__all__ = ["timm", "torchvision"]

IMAGES = 4  # samples in an inferred batch


def _classification(labels: Tensor) -> Loss:
    """Return the cross-entropy against fixed labels, of the main output where there are several."""

    def loss(output: Any) -> Tensor:
        logits: Tensor = getattr(output, "logits", output)
        return F.cross_entropy(logits, labels.to(logits.device))

    return loss


def timm(name: str) -> Source:
    """Find a timm model; it is built without trained weights.

    Raises:
        TargetError: timm has no model of that name.
        MissingPackageError: timm is not installed.
    """
    target = f"timm:{name}"
    library = package("timm", target)
    if not library.is_model(name):
        raise TargetError(f"timm has no model {name}{did_you_mean(name, library.list_models())}")

    def infer(model: nn.Module, generator: torch.Generator) -> tuple[Any, Loss | None]:
        settings = getattr(model, "pretrained_cfg", None) or {}
        size = settings.get("input_size", (3, 224, 224))
        images = torch.randn(IMAGES, *size, generator=generator, device="cpu")
        classes = getattr(model, "num_classes", 0)
        if not isinstance(classes, int) or classes < 2:
            return images, None
        return images, _classification(
            torch.randint(classes, (IMAGES,), generator=generator, device="cpu")
        )

    unknown = f"{target}: its inputs cannot be inferred, so give --input"
    return Source(
        target,
        guarded(f"{target} cannot be built", lambda: library.create_model(name, pretrained=False)),
        guarded(unknown, infer),
    )


def torchvision(name: str) -> Source:
    """Find a torchvision model; it and its backbone are built without trained weights.

    Raises:
        TargetError: torchvision has no model of that name, or it takes more than images.
        MissingPackageError: torchvision is not installed.
    """
    target = f"torchvision:{name}"
    models = package("torchvision", target).models
    known = models.list_models()
    if name not in known:
        raise TargetError(f"torchvision has no model {name}{did_you_mean(name, known)}")
    builder = models.get_model_builder(name)
    module = str(builder.__module__)
    if ".detection." in module or ".optical_flow." in module:
        raise TargetError(
            f"{target} takes more than images: write a factory that returns (model, batch, loss)"
        )
    arguments: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        arguments["weights_backbone"] = None

    def infer(_model: nn.Module, generator: torch.Generator) -> tuple[Any, Loss | None]:
        weights = models.get_model_weights(name).DEFAULT
        crop = list(getattr(weights.transforms(), "crop_size", [224]))
        frames = [weights.meta.get("min_temporal_size", 16)] if ".video." in module else []
        images = torch.randn(
            IMAGES, 3, *frames, crop[0], crop[-1], generator=generator, device="cpu"
        )
        if ".segmentation." in module:
            return images, None
        classes = len(weights.meta["categories"])
        return images, _classification(
            torch.randint(classes, (IMAGES,), generator=generator, device="cpu")
        )

    unknown = f"{target}: its inputs cannot be inferred, so give --input"
    return Source(
        target,
        guarded(f"{target} cannot be built", lambda: builder(**arguments)),
        guarded(unknown, infer),
    )
