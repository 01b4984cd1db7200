"""A browser without a network; what it complains of fails the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from browsing import PATIENCE, Made, MissingBrowserError, Visit, chromium, visits
from pages import PAGES
from playwright.sync_api import Browser, expect

expect.set_options(timeout=PATIENCE)


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
    """Pages that one test has for itself; see `browsing.visits`."""
    with visits(browser) as visit:
        yield visit


@pytest.fixture(scope="module")
def stay(browser: Browser) -> Iterator[Visit]:
    """Pages that the tests of a module share: opening one takes longer than most tests."""
    with visits(browser) as visit:
        yield visit


@pytest.fixture(scope="session")
def made(once: Callable[[str, Callable[[Path], object]], Path]) -> Made:
    """The page of a name in `pages.PAGES`, written when it is first asked for."""
    return lambda name: once(f"{name}.html", PAGES[name])
