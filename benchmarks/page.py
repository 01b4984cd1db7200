"""The report page in Chromium: first paint, one keystroke in the filter, one sort.

    python benchmarks/page.py                    pages of 20 and of 2,000 layers, and their ratio
    python benchmarks/page.py --json - 20 500    other sizes, as JSON

Each page is the report of a real network of that many linear layers, written by
``Report.to_html`` and opened from disk, without a network, in a fresh browser context,
``--rounds`` times; the figures are medians.  "first paint" is the browser's own
first-contentful-paint, counted from the start of the navigation.  "filter" and "sort" count from
the key or the click until the frame after the table has changed is on the screen; a frame alone
takes up to 17 ms.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from playwright.sync_api import Browser, Locator
from rich.console import Console
from rich.table import Table
from torch import nn

import fanin

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "browser"))
from browsing import chromium

SIZES = (20, 2_000)
GOAL = 1_000  # milliseconds for first paint, and for a keystroke, at 2,000 layers
# A function of the page's own: its policy forbids the eval that Playwright waits by.
PAINTED = """() => new Promise(done => {
    new PerformanceObserver((seen, observer) => {
        const [paint] = seen.getEntriesByName("first-contentful-paint")
        if (!paint) return
        observer.disconnect()
        done(paint.startTime)
    }).observe({type: "paint", buffered: true})
})"""
WIDTH = 16
REST = 300  # milliseconds until the page has drawn what it still had to
FIGURES = ("first paint", "loaded", "filter", "sort")

# Resolves with the milliseconds from an event on `node` to the frame after `#layers` changed.
TIMER = """(node, type) => { window.took = new Promise(done => {
    node.addEventListener(type, event => {
        const seen = new MutationObserver(() => {
            seen.disconnect()
            requestAnimationFrame(() => {
                const after = new MessageChannel()
                after.port1.onmessage = () => done(performance.now() - event.timeStamp)
                after.port2.postMessage(null)
            })
        })
        seen.observe(document.querySelector('#layers'),
            {subtree: true, childList: true, attributes: true, characterData: true})
    }, {capture: true, once: true})
}) }"""


def write(layers: int, path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    for layer in model:
        nn.init.orthogonal_(layer.weight)
    return fanin.check(model, torch.randn(8, WIDTH)).to_html(path)


def measured(browser: Browser, path: Path) -> dict[str, float]:
    """One visit."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    figures = {
        "first paint": page.evaluate(PAINTED),
        "loaded": page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"),
    }
    box = page.locator("#filter")
    figures["filter"] = timed(box, "keydown", lambda: box.press("1"))
    box.press("Backspace")
    page.wait_for_timeout(REST)
    head = page.locator("#layers table th button", has_text="cotangent")
    head.scroll_into_view_if_needed()
    figures["sort"] = timed(head, "click", head.click)
    context.close()
    return figures


def timed(place: Locator, event: str, act: Callable[[], None]) -> float:
    place.evaluate(TIMER, event)
    act()
    took: float = place.page.evaluate("window.took")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=int, default=list(SIZES), metavar="LAYERS")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", help="- is stdout")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        paths = [write(size, Path(folder) / f"{size}.html") for size in arguments.sizes]
        measured(browser, paths[0])  # the first visit of all warms the browser up
        visits = [[measured(browser, path) for path in paths] for _ in range(arguments.rounds)]
        for at, (size, path) in enumerate(zip(arguments.sizes, paths, strict=True)):
            figures = {name: median(visit[at][name] for visit in visits) for name in FIGURES}
            rows.append({"layers": size, "megabytes": path.stat().st_size / 1e6, **figures})
        machine = f"Chromium {browser.version}, {platform.machine()}"
    if arguments.json:
        text = json.dumps({"goal_ms": GOAL, "machine": machine, "rows": rows}, indent=2)
        sys.stdout.write(text) if arguments.json == "-" else Path(arguments.json).write_text(text)
    else:
        Console().print(table(rows), f"{machine}; milliseconds, medians of {arguments.rounds}")


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("layers", "MB", *FIGURES, box=None)
    for row in rows:
        figures = (f"{row[name]:.0f}" for name in FIGURES)
        shown.add_row(f"{row['layers']:,}", f"{row['megabytes']:.2f}", *figures)
    first, last = rows[0], rows[-1]
    ratios = (f"× {last[name] / first[name]:.1f}" for name in FIGURES)
    shown.add_row("ratio", f"× {last['megabytes'] / first['megabytes']:.1f}", *ratios)
    return shown


if __name__ == "__main__":
    main()
