"""The report in a browser: sort, filter, theme, copy, by mouse and by keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import Made, Visit
from pages import RUNS, zero_report
from playwright.sync_api import Locator, Page, expect

ROW = "#layers table tbody tr"
# Nothing sorted, nothing filtered, no focus, at the top.
PUT_BACK = """() => {
    for (let head; (head = document.querySelector('[aria-sort] button')); ) head.click()
    const filter = document.querySelector('#filter')
    filter.value = ''
    filter.dispatchEvent(new Event('input'))
    document.activeElement.blur()
    scrollTo(0, 0)
}"""


def head(page: Page, title: str) -> Locator:
    """The button in the head of a column of the layers' table."""
    return page.locator("#layers table th button").filter(has_text=re.compile(f"^{title}"))


def column(page: Page, title: str) -> list[float | None]:
    """The numbers that a column holds, from top to bottom; None where a cell is empty."""
    values: list[float | None] = page.evaluate(
        """title => {
            const heads = [...document.querySelectorAll('#layers table th')]
            const at = heads.findIndex(each => each.innerText.trim().startsWith(title))
            return [...document.querySelectorAll('#layers table tbody tr')].map(row => {
                const cell = row.cells[at]
                const value = parseFloat(cell.textContent.replaceAll(',', ''))
                return Number.isNaN(value) ? null : value
            })
        }""",
        title,
    )
    return values


def shown(page: Page) -> list[str]:
    """The texts of the rows that the filters leave, from top to bottom."""
    texts: list[str] = page.evaluate(
        """row => [...document.querySelectorAll(row)]
        .filter(each => each.checkVisibility()).map(each => each.textContent)""",
        ROW,
    )
    return texts


def narrowed(page: Page, text: str) -> list[str]:
    """What a filter leaves."""
    page.locator("#filter").fill(text)
    return shown(page)


@pytest.fixture(scope="module")
def shared(stay: Visit, made: Made) -> Callable[[str], Page]:
    """A page that the tests of this file have in common, as it opened."""
    pages: dict[str, Page] = {}

    def opened(name: str) -> Page:
        if name not in pages:
            pages[name] = stay(made(name))
        pages[name].evaluate(PUT_BACK)
        return pages[name]

    return opened


@pytest.fixture
def healthy(shared: Callable[[str], Page]) -> Page:
    return shared("healthy")


@pytest.fixture
def zeros(shared: Callable[[str], Page]) -> Page:
    return shared("zeros")


class TestSorting:
    def test_numbers_sort_as_numbers_both_ways_and_back(self, healthy: Page) -> None:
        rms = head(healthy, "rms")
        cell = rms.locator("xpath=ancestor::th")
        executed = column(healthy, "rms")
        assert executed != sorted(executed)  # the table opens in the order of execution

        for way, expected in (
            ("ascending", sorted(executed)),
            ("descending", sorted(executed)[::-1]),
            (None, executed),
        ):
            rms.click()
            assert cell.get_attribute("aria-sort") == way
            assert column(healthy, "rms") == expected

    def test_only_the_sorted_column_says_so(self, healthy: Page) -> None:
        head(healthy, "rms").click()
        head(healthy, "fan").first.click()
        said = healthy.locator("#layers table th[aria-sort=ascending], th[aria-sort=descending]")
        expect(said).to_have_count(1)

    @pytest.mark.parametrize("times", [1, 2])
    def test_what_is_not_known_comes_last(self, times: int, healthy: Page) -> None:
        for _ in range(times):  # a norm has no units
            head(healthy, "units").click()
        units = column(healthy, "units")
        known = [each is not None for each in units]
        assert None in units
        assert known == sorted(known, reverse=True)

    def test_rows_stay_whole(self, healthy: Page) -> None:
        before = shown(healthy)
        head(healthy, "rms").click()
        after = shown(healthy)
        assert after != before
        assert sorted(after) == sorted(before)


class TestFilter:
    @pytest.mark.parametrize(
        ("text", "rows"),
        [("h.7.", 6), ("EMBEDDING", 2), ("layer_norm", 25), ("", 76), ("nothing so named", 0)],
    )
    def test_it_looks_at_names_and_ops_and_says_how_many(
        self, text: str, rows: int, healthy: Page
    ) -> None:
        assert len(narrowed(healthy, "transformer.wte")) == 1
        assert len(narrowed(healthy, text)) == rows
        status = healthy.locator("#shown")
        expect(status).to_contain_text(re.compile(rf"\b{rows}\b"))
        assert status.get_attribute("role") == "status"

    def test_it_finds_codes(self, zeros: Page) -> None:
        found = narrowed(zeros, "S101")
        assert len(found) == 2
        assert all("S101" in text for text in found)

    def test_what_is_hidden_stays_hidden_when_sorted(self, healthy: Page) -> None:
        before = narrowed(healthy, "h.7.")
        assert len(before) == 6
        head(healthy, "rms").click()
        assert sorted(shown(healthy)) == sorted(before)

    def test_marks_that_mean_something_elsewhere_are_letters_here(self, healthy: Page) -> None:
        for text in (".*", "[", "(", "\\"):
            assert narrowed(healthy, text) == []

    def test_it_finds_hostile_names(self, made: Made, visit: Visit) -> None:
        page = visit(made("hostile"))
        for name in (RUNS[0], RUNS[2], RUNS[3], RUNS[5], "🔥", "x" * 200):
            found = narrowed(page, name)
            assert found
            assert all(name in text for text in found)


class TestKeyboard:
    def test_slash_leads_to_the_filter_and_escape_clears_it(self, healthy: Page) -> None:
        page = healthy
        page.keyboard.press("/")
        box = page.locator("#filter")
        expect(box).to_be_focused()
        page.keyboard.type("h.7/")
        expect(box).to_have_value("h.7/")  # a slash typed there is a letter
        assert shown(page) == []
        page.keyboard.press("Escape")
        expect(box).to_have_value("")
        assert len(shown(page)) == 76

    @pytest.mark.parametrize("key", ["Enter", "Space"])
    def test_a_column_sorts(self, key: str, healthy: Page) -> None:
        rms = head(healthy, "rms")
        rms.focus()
        healthy.keyboard.press(key)
        cell = rms.locator("xpath=ancestor::th")
        expect(cell).to_have_attribute("aria-sort", re.compile("ascending|descending"))
        expect(rms).to_be_focused()  # so that the next press turns it round

    def test_the_first_tab_skips_to_the_content(self, made: Made, visit: Visit) -> None:
        page = visit(made("healthy"))
        page.keyboard.press("Tab")
        link = page.locator(":focus")
        assert link.is_visible()
        target = link.get_attribute("href")
        assert target is not None
        assert target.startswith("#")
        assert page.locator(target).count() == 1

    def test_wide_tables_scroll_by_keyboard(self, made: Made, visit: Visit) -> None:
        page = visit(made("healthy"), viewport={"width": 360, "height": 740})
        wide = page.evaluate(
            """() => [...document.querySelectorAll('main *')].filter(each => each.checkVisibility()
                && each.scrollWidth > each.clientWidth + 1
                && ['auto', 'scroll'].includes(getComputedStyle(each).overflowX))
            .map(each => each.tabIndex)"""
        )
        assert wide
        assert all(index == 0 for index in wide)


class TestFindings:
    def test_each_is_a_card_with_its_proof(self, zeros: Page) -> None:
        cards = zeros.locator(".finding")
        assert cards.count() >= 2
        locked = cards.filter(has_text="S101").first
        assert "error" in locked.inner_text()  # said in words, not by the colour alone
        locked.locator("details").first.evaluate("each => { each.open = true }")
        for title in ("inputs", "outputs", "gradients", "updates"):
            assert title in locked.locator("table").first.inner_text()

    def test_the_call_that_mends_is_copied(self, zeros: Page) -> None:
        zeros.context.grant_permissions(["clipboard-read", "clipboard-write"])
        card = zeros.locator(".finding").first
        assert copied(card) == "copied"
        text = zeros.evaluate("navigator.clipboard.readText()")
        assert text == "fanin.repair_(model, batch, loss)"  # what runs, not the words about it
        assert text in card.inner_text()

    def test_copying_works_where_the_clipboard_is_denied(self, made: Made, visit: Visit) -> None:
        denied = "Object.defineProperty(navigator, 'clipboard', {value: undefined})"
        page = visit(made("zeros"), before=denied)
        assert copied(page.locator(".finding").first) == "copied"


def copied(card: Locator) -> str:
    """Press the button that copies; what it says then, and takes back after two seconds."""
    button = card.get_by_role("button", name=re.compile("copy", re.IGNORECASE)).first
    button.evaluate(
        """button => {
            window.said = ''
            new MutationObserver(() => { said ||= button.textContent })
                .observe(button, {childList: true})
        }"""
    )
    button.click()
    said: str = card.page.wait_for_function("() => said").json_value()
    return said


class TestFigureFiles:
    @pytest.mark.parametrize(("kind", "lead"), [("SVG", b"<svg"), ("PNG", b"\x89PNG")])
    def test_a_figure_can_be_kept(
        self, kind: str, lead: bytes, healthy: Page, tmp_path: Path
    ) -> None:
        figure = healthy.locator("figure[data-kind=signal]")
        figure.scroll_into_view_if_needed()
        figure.locator("svg").first.wait_for()
        with healthy.expect_download() as waiting:
            figure.get_by_text(kind, exact=True).click()
        kept = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(kept)
        assert kept.suffix == f".{kind.lower()}"
        assert kept.read_bytes().lstrip().startswith(lead)


class TestOutlineAndRecipe:
    def test_the_outline_shows_branches(self, healthy: Page) -> None:
        outline = healthy.locator("#outline").inner_text()
        assert "⊕" in outline
        assert "norm before" in outline
        assert "lm_head" in outline

    def test_the_recipe_gives_its_reasons(self, healthy: Page) -> None:
        recipe = healthy.locator("#recipe").inner_text()
        for word in ("lecun_normal", "its input is normalized", "0.036", "0.02"):
            assert word in recipe


class TestNotebook:
    """What a notebook shows has no script and lives inside of a page that is not ours."""

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_the_fragment_can_be_read(self, scheme: Any, visit: Visit, tmp_path: Path) -> None:
        fragment = zero_report()._repr_html_()
        bare = tmp_path / "notebook.html"
        bare.write_text(
            "<!doctype html><html lang=en><meta charset=utf-8><title>notebook</title>"
            "<style>:root{color-scheme:light dark}</style>"
            f"<main><h1>cell</h1><p id=mine>text of the notebook</p>{fragment}</main>",
            encoding="utf-8",
        )
        page = visit(bare, color_scheme=scheme)
        assert page.locator("script").count() == 0
        assert "S101" in page.locator("main").inner_text()
        assert page.locator("svg").count() >= 1
        contrast = {"runOnly": ["color-contrast"], "resultTypes": ["violations"]}
        found = Axe().run(page, options=contrast).response
        assert found["passes"]  # it did look
        assert found["violations"] == []
        # Its style does not leak: a paragraph of the notebook is as it was.
        family = "getComputedStyle(document.querySelector('#mine')).fontFamily"
        assert "sans" not in page.evaluate(family)
