"""What does a check find in models as their libraries build them, and is it true?

    python benchmarks/libraries.py efficientnet    transformers: trained as built, and repaired
    python benchmarks/libraries.py streams         x-transformers: are its streams still copies?
    python benchmarks/libraries.py timm            one architecture of every module of timm
    python benchmarks/libraries.py torchvision     its models of classification

What is not installed is named: ``pip install x-transformers`` (or timm, torchvision).  Nothing is
downloaded: all weights are those of a new model.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import fanin

CLASSES, SIDE, SAMPLES, STEPS, RATE = 4, 64, 16, 60, 1e-3
TEN = 10  # classes of the models of vision, and steps that a loss is averaged over
# Of the models of a module the one with the first of these in its name is taken: the smallest.
SMALL = (
    "test_", "atto", "femto", "pico", "nano", "tiny", "xxs", "_xs", "xsmall", "_s0", "_050", "mini",
    "small", "_s", "18", "_b0", "_t", "26", "002", "base",
)  # fmt: skip
console = Console()


def efficientnet() -> None:
    """transformers draws the scales of the batch norms from N(0, 0.02)."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        width_coefficient=1.0,  # that of B0
        depth_coefficient=1.0,
        hidden_dim=1280,
        image_size=SIDE,
        num_labels=CLASSES,
    )
    torch.manual_seed(0)
    built = EfficientNetForImageClassification(config)
    means = torch.randn(CLASSES, 3, 8, 8)

    def batch() -> dict[str, Tensor]:
        labels = torch.randint(0, CLASSES, (SAMPLES,))
        noise = torch.randn(SAMPLES, 3, SIDE, SIDE) / 2
        return {"pixel_values": F.interpolate(means[labels], SIDE) + noise, "labels": labels}

    repaired = copy.deepcopy(built)
    repair = fanin.repair_(repaired, batch())
    _tell("as built", repair.before)
    _tell("repaired", repair.after)
    for name, model in (("as built", built), ("repaired", repaired)):
        torch.manual_seed(1)
        losses = _trained(model, lambda m: m(**batch()).loss)
        console.print(f"{name}: loss {', '.join(f'{loss:.3f}' for loss in losses)}")


def streams() -> None:
    """Hyper-connections: four residual streams, all of which start as the same one."""
    from x_transformers import Decoder, TransformerWrapper

    torch.manual_seed(0)
    layers = Decoder(dim=128, depth=4, heads=4, num_residual_streams=4)
    model = TransformerWrapper(num_tokens=200, max_seq_len=64, attn_layers=layers)
    tokens, following = torch.randint(0, 200, (2, 4, 32))

    def loss(output: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), following.flatten())

    _tell("as built", fanin.check(model, tokens, loss))
    losses = _trained(model, lambda m: loss(m(tokens)))
    console.print(f"loss {', '.join(f'{value:.3f}' for value in losses)}")
    for name, parameter in model.named_parameters():
        if name.endswith("dynamic_alpha_fn"):
            own = parameter.detach()[:, 1:]  # the first column is no stream's
            apart = float((own - own[:, :1]).abs().max())
            console.print(f"{name}: streams differ by {apart:g}, entries up to {own.abs().max():g}")


def _trained(model: nn.Module, loss: Callable[[Any], Tensor]) -> list[float]:
    """Losses of training by Adam, each the mean of ten steps."""
    optimizer = torch.optim.Adam(model.train().parameters(), RATE)
    losses = []
    for _ in range(STEPS):
        value = loss(model)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return [fmean(losses[at : at + TEN]) for at in range(0, STEPS, TEN)]


def _timm() -> Iterator[tuple[str, Callable[[], tuple[nn.Module, Tensor]]]]:
    import timm

    def build(name: str) -> tuple[nn.Module, Tensor]:
        model = timm.create_model(name, num_classes=TEN)
        return model, torch.randn(4, *model.default_cfg.get("input_size", (3, 224, 224)))

    def size(name: str) -> tuple[int, int]:
        return next((at for at, word in enumerate(SMALL) if word in name), len(SMALL)), len(name)

    for module in timm.list_modules():
        name = min(timm.list_models(module=module), key=size)
        yield name, lambda name=name: build(name)


def _torchvision() -> Iterator[tuple[str, Callable[[], tuple[nn.Module, Tensor]]]]:
    import torchvision

    def build(name: str) -> tuple[nn.Module, Tensor]:
        side = 299 if name == "inception_v3" else 224
        model = torchvision.models.get_model(name, weights=None, num_classes=TEN)
        return model, torch.randn(4, 3, side, side)

    for name in torchvision.models.list_models(module=torchvision.models):
        yield name, lambda name=name: build(name)


def sweep(models: Iterator[tuple[str, Callable[[], tuple[nn.Module, Tensor]]]]) -> None:
    """Check each model with the cross-entropy of four images, and name what is found."""
    codes: dict[str, int] = {}
    checked = 0
    for name, build in models:
        torch.manual_seed(0)
        try:
            model, images = build()
            report = fanin.check(model, images, _guessing)
        except (fanin.FaninError, RuntimeError, ValueError) as error:
            console.print(f"{name}: {str(error).splitlines()[0]}", highlight=False, soft_wrap=True)
            continue
        checked += 1
        _tell(name, report)
        for code in {f.code for f in report.findings if f.severity != "info"}:
            codes[code] = codes.get(code, 0) + 1
    console.print(f"{checked} checked; {codes}")


def _guessing(output: Any) -> Tensor:
    """The cross-entropy of the first tensor that a model gives."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return F.cross_entropy(output, torch.arange(len(output)) % TEN)


def _tell(name: str, report: fanin.Report) -> None:
    found = [f for f in report.findings if f.severity != "info"]
    told = "; ".join(f"{f.severity} {f.code} at {f.layers[0]}: {f.measured}" for f in found)
    console.print(f"{name}: {told or 'nothing found'}", highlight=False, soft_wrap=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ways: dict[str, Callable[[], None]] = {
        "efficientnet": efficientnet,
        "streams": streams,
        "timm": lambda: sweep(_timm()),
        "torchvision": lambda: sweep(_torchvision()),
    }
    parser.add_argument("which", choices=ways)
    which = parser.parse_args().which
    warnings.simplefilter("ignore")
    ways[which]()


if __name__ == "__main__":
    main()
