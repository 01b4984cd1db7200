"""A browser without a network; what it complains of fails the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browsing import Made, MissingBrowserError, Visit, chromium, watch
from pages import PAGES
from playwright.sync_api import Browser, Page

PATIENCE = 10_000  # milliseconds that anything on a page may take, on a busy machine


# Not for the whole session: while Playwright runs, the thread has an event loop, and tests of
# other folders that start one of their own would fail.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; without one the test is skipped, and says how to install it."""
    with ExitStack() as stack:
        try:
            started = stack.enter_context(chromium())
        except MissingBrowserError as error:
            pytest.skip(str(error))
        yield started


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Open a file from disk: ``visit(path, **options of the browser context)``.

    ``before`` is a script that runs before those of the page.  There is no network.  At the end
    the test fails if any page complained, failed, opened a dialog or asked for anything outside
    of itself.
    """
    contexts, troubles = [], []

    def open_page(path: Path, *, before: str = "", **options: Any) -> Page:
        context = browser.new_context(offline=True, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        troubles.append(watch(context))
        if before:
            context.add_init_script(before)
        page = context.new_page()
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [each for some in troubles for each in some] == []


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The page of a name in `pages.PAGES`, written when it is first asked for."""
    folder = tmp_path_factory.mktemp("pages")

    def written(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.exists():
            PAGES[name](path)
        return path

    return written
