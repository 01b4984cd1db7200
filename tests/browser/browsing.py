"""Chromium, driven by Playwright: for the tests, the screenshots and the benchmark of the pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
LOCAL = ("file:", "data:", "blob:", "about:")  # what a page may load: itself, and what it holds

Visit = Callable[..., Page]  # what the fixture of that name gives
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
