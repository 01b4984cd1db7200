"""Chromium, driven by Playwright: for the tests, the screenshots and the benchmark of the pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    sync_playwright,
)

INSTALL = "no Chromium: apt-get install chromium, or playwright install chromium"
PATIENCE = 120_000  # milliseconds that anything on a page may take, on a busy machine
LOCAL = ("file:", "data:", "blob:", "about:")  # what a page may load: itself, and what it holds

Visit = Callable[..., Page]  # what `visits` gives
Made = Callable[[str], Path]


class MissingBrowserError(Exception):
    """No Chromium was found; the message says how to install one."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser that FANIN_CHROMIUM names, or Debian's, or Playwright's own."""
    program = os.environ.get("FANIN_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        if program is None and not Path(playwright.chromium.executable_path).exists():
            raise MissingBrowserError(INSTALL)
        # As root Chromium has no sandbox; it opens nothing but pages that were made here.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def watch(context: BrowserContext) -> list[str]:
    """Collect what no page may do: complain, fail, open a dialog, ask the network for anything."""
    troubles: list[str] = []

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            troubles.append(f"console {message.type}: {message.text}")

    def asked(request: Request) -> None:
        if not request.url.startswith(LOCAL):
            troubles.append(f"request: {request.url}")

    def opened(dialog: Dialog) -> None:
        troubles.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def attach(page: Page) -> None:
        page.on("console", said)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("dialog", opened)
        page.on("websocket", lambda socket: troubles.append(f"socket: {socket.url}"))

    context.on("page", attach)
    context.on("request", asked)
    return troubles


@contextmanager
def visits(browser: Browser) -> Iterator[Visit]:
    """Open files from disk: ``visit(path, **options of the browser context)``.

    ``before`` is a script that runs before those of the page.  There is no network.  At the end it
    fails if any page complained, failed, opened a dialog or asked for anything outside of itself.
    """
    contexts: list[BrowserContext] = []
    troubles: list[list[str]] = []

    def visit(path: Path, *, before: str = "", **options: Any) -> Page:
        context = browser.new_context(offline=True, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        troubles.append(watch(context))
        if before:
            context.add_init_script(before)
        page = context.new_page()
        page.goto(path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [each for some in troubles for each in some] == []
