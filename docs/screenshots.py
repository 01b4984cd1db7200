"""The pictures of the pages in docs/images: what a healthy and a sick start look like.

    python docs/screenshots.py            all of them
    python docs/screenshots.py lab gpt2   only these

Every page is made by fanin itself from a seeded model and photographed in Chromium: light and dark
at the width of a laptop, light at that of a phone.  The texts differ between machines in nothing
but the versions that a page names.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from playwright.sync_api import Browser, Page
from torch import nn
from torch.nn import functional as F

import fanin
from fanin.demo import circles
from fanin.lab import write as write_lab
from fanin.report import Report

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "browser"))
from browsing import chromium

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
VOCABULARY = 8192  # tokens of the small GPT-2
HEIGHT = 1600  # pixels from the top: what a reader sees first, and a file that stays small
VIEWS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "light": {"viewport": {"width": 1280, "height": HEIGHT}, "color_scheme": "light"},
        "dark": {"viewport": {"width": 1280, "height": HEIGHT}, "color_scheme": "dark"},
        "phone": {"viewport": {"width": 390, "height": HEIGHT}, "color_scheme": "light"},
    }
)


def gpt2(path: Path) -> None:
    """A healthy GPT-2: twelve blocks, narrower than the published one so that it is quick."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=12, n_embd=256, n_head=8, vocab_size=VOCABULARY,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    tokens = torch.randint(VOCABULARY, (4, 64))
    steady(fanin.check(model, {"input_ids": tokens, "labels": tokens})).to_html(path)


def zeros(path: Path) -> None:
    """An MLP whose weights all start at zero."""
    model = mlp(3, 128, nn.ReLU)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    steady(fanin.check(model, *digits())).to_html(path)


def vanishing(path: Path) -> None:
    """Thirty tanh layers as torch starts them: the gradient is gone before the first."""
    steady(fanin.check(mlp(30, 64, nn.Tanh), *digits())).to_html(path)


def comparison(path: Path) -> None:
    """The same deep network from four starts, on two noisy circles."""
    points, labels = circles(300, seed=1)
    batch = torch.tensor(points).float(), torch.tensor(labels).long()
    starts = {
        "auto": "auto",
        "he_normal": "he_normal",
        "xavier_normal": "xavier_normal",
        "all zeros": lambda model: [nn.init.zeros_(each) for each in model.parameters()],
    }
    fanin.compare(
        lambda: mlp(6, 32, nn.ReLU, inputs=2, outputs=2), batch, F.cross_entropy,
        schemes=starts, steps=200, rates=(0.01, 0.1, 0.3),
    ).to_html(path)  # fmt: skip


def lab(path: Path) -> None:
    """The symmetry lab."""
    write_lab(path)


SCENES: Mapping[str, Callable[[Path], None]] = MappingProxyType(
    {each.__name__: each for each in (gpt2, zeros, vanishing, comparison, lab)}
)


def mlp(
    layers: int, width: int, activation: type[nn.Module], *, inputs: int = 784, outputs: int = 10
) -> nn.Module:
    torch.manual_seed(0)
    sizes = [inputs, *[width] * (layers - 1)]
    parts = [part for size in sizes[:-1] for part in (nn.Linear(size, width), activation())]
    return nn.Sequential(*parts, nn.Linear(width, outputs))


def digits() -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """A batch of the shape of handwritten digits, and its loss."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (64,), generator=draws)
    return torch.randn(64, 784, generator=draws), lambda out: F.cross_entropy(out, labels)


def steady(report: Report) -> Report:
    """The report without what the clock says."""
    return replace(report, seconds=0.5)


def shoot(browser: Browser, page_path: Path, view: str, image: Path) -> None:
    """Photograph the top of a page, with everything drawn that is to be seen there."""
    context = browser.new_context(offline=True, reduced_motion="reduce", **VIEWS[view])
    page = context.new_page()
    page.goto(page_path.as_uri())
    settle(page)
    page.screenshot(path=image, animations="disabled")
    context.close()


def settle(page: Page) -> None:
    """Wait until no figure in sight is still to be drawn and nothing changes any more."""
    page.wait_for_function(
        """() => [...document.querySelectorAll('figure[data-kind]')].every(each =>
            each.getBoundingClientRect().top > innerHeight || each.querySelector('svg'))"""
    )
    page.wait_for_timeout(300)


def main() -> None:
    chosen = sys.argv[1:] or list(SCENES)
    unknown = sorted(set(chosen) - set(SCENES))
    if unknown:
        sys.exit(f"no scene {', '.join(unknown)}; there is {', '.join(SCENES)}")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for name in chosen:
            page_path = Path(folder) / f"{name}.html"
            SCENES[name](page_path)
            for view in VIEWS:
                image = IMAGES / f"{name}-{view}.png"
                shoot(browser, page_path, view, image)
                print(f"{image.relative_to(ROOT)}: {image.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
