"""The report in a browser: sort, filter, theme, copy, by mouse and by keyboard."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from browsing import Made, Visit
from pages import DEEP, RUNS
from playwright.sync_api import Locator, Page, expect

ROW = "#layers table tbody tr"


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


def visible(page: Page) -> int:
    return page.locator(f"{ROW}:visible").count()


def first_name(page: Page) -> str:
    return page.locator(f"{ROW}:visible").first.locator("td, th").first.inner_text()


class TestSorting:
    def test_numbers_sort_as_numbers_both_ways_and_back(self, made: Made, visit: Visit) -> None:
        page = visit(made("healthy"))
        rms = head(page, "rms")
        cell = rms.locator("xpath=ancestor::th")
        executed = column(page, "rms")
        assert executed != sorted(executed)  # the table opens in the order of execution

        for way, expected in (
            ("ascending", sorted(executed)),
            ("descending", sorted(executed)[::-1]),
            (None, executed),
        ):
            rms.click()
            assert cell.get_attribute("aria-sort") == way
            assert column(page, "rms") == expected

    def test_only_the_sorted_column_says_so(self, made: Made, visit: Visit) -> None:
        page = visit(made("healthy"))
        head(page, "rms").click()
        head(page, "fan").first.click()
        said = page.locator("#layers table th[aria-sort=ascending], th[aria-sort=descending]")
        expect(said).to_have_count(1)

    @pytest.mark.parametrize("times", [1, 2])
    def test_what_is_not_known_comes_last(self, times: int, made: Made, visit: Visit) -> None:
        page = visit(made("healthy"))  # a norm has no units
        for _ in range(times):
            head(page, "units").click()
        units = column(page, "units")
        known = [each is not None for each in units]
        assert None in units
        assert known == sorted(known, reverse=True)

    def test_rows_stay_whole(self, made: Made, visit: Visit) -> None:
        page = visit(made("healthy"))
        rows = "rows => rows.map(row => row.textContent)"
        before = page.eval_on_selector_all(ROW, rows)
        head(page, "rms").click()
        after = page.eval_on_selector_all(ROW, rows)
        assert after != before
        assert sorted(after) == sorted(before)


class TestFilter:
    @pytest.mark.parametrize(
        ("text", "rows"),
        [("h.7.", 6), ("EMBEDDING", 2), ("layer_norm", 25), ("", 76), ("nothing so named", 0)],
    )
    def test_it_looks_at_names_and_ops_and_says_how_many(
        self, text: str, rows: int, made: Made, visit: Visit
    ) -> None:
        page = visit(made("healthy"))
        page.locator("#filter").fill(text)
        expect(page.locator(f"{ROW}:visible")).to_have_count(rows)
        status = page.locator("#shown")
        expect(status).to_contain_text(re.compile(rf"\b{rows}\b"))
        assert status.get_attribute("role") == "status"

    def test_it_finds_codes(self, made: Made, visit: Visit) -> None:
        page = visit(made("zeros"))
        page.locator("#filter").fill("S101")
        rows = page.locator(f"{ROW}:visible")
        expect(rows).to_have_count(2)
        assert all("S101" in text for text in rows.all_inner_texts())

    def test_severity_narrows_it_further(self, made: Made, visit: Visit) -> None:
        page = visit(made("deep"))
        page.locator("#severity").select_option("error")
        expect(page.locator(f"{ROW}:visible")).to_have_count(DEEP // 50)
        page.locator("#filter").fill("blocks.12.")
        expect(page.locator(f"{ROW}:visible")).to_have_count(1)
        page.locator("#severity").select_option(index=0)
        expect(page.locator(f"{ROW}:visible")).to_have_count(4)

    def test_what_is_hidden_stays_hidden_when_sorted(self, made: Made, visit: Visit) -> None:
        page = visit(made("healthy"))
        page.locator("#filter").fill("h.7.")
        head(page, "rms").click()
        expect(page.locator(f"{ROW}:visible")).to_have_count(6)

    def test_marks_that_mean_something_elsewhere_are_letters_here(
        self, made: Made, visit: Visit
    ) -> None:
        page = visit(made("healthy"))
        for text in (".*", "[", "(", "\\"):
            page.locator("#filter").fill(text)
            expect(page.locator(f"{ROW}:visible")).to_have_count(0)

    def test_it_finds_hostile_names(self, made: Made, visit: Visit) -> None:
        page = visit(made("hostile"))
        for name in (RUNS[0], RUNS[2], RUNS[3], RUNS[5], "🔥", "x" * 200):
            page.locator("#filter").fill(name)
            expect(page.locator(f"{ROW}:visible")).not_to_have_count(0)
            texts = page.locator(f"{ROW}:visible").all_inner_texts()
            assert all(name in text for text in texts)


class TestKeyboard:
    def test_slash_leads_to_the_filter_and_escape_clears_it(self, made: Made, visit: Visit) -> None:
        page = visit(made("healthy"))
        page.keyboard.press("/")
        box = page.locator("#filter")
        expect(box).to_be_focused()
        page.keyboard.type("h.7/")
        expect(box).to_have_value("h.7/")  # a slash typed there is a letter
        expect(page.locator(f"{ROW}:visible")).to_have_count(0)
        page.keyboard.press("Escape")
        expect(box).to_have_value("")
        expect(page.locator(f"{ROW}:visible")).to_have_count(76)

    @pytest.mark.parametrize("key", ["Enter", "Space"])
    def test_a_column_sorts(self, key: str, made: Made, visit: Visit) -> None:
        page = visit(made("healthy"))
        rms = head(page, "rms")
        rms.focus()
        page.keyboard.press(key)
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
    def test_each_is_a_card_with_its_proof(self, made: Made, visit: Visit) -> None:
        page = visit(made("zeros"))
        cards = page.locator(".finding")
        assert cards.count() >= 2
        locked = cards.filter(has_text="S101").first
        assert "error" in locked.inner_text()  # said in words, not by the colour alone
        locked.locator("details").first.evaluate("each => { each.open = true }")
        for title in ("inputs", "outputs", "gradients", "updates"):
            assert title in locked.locator("table").first.inner_text()

    def test_the_fix_is_copied(self, made: Made, visit: Visit) -> None:
        page = visit(made("zeros"), permissions=["clipboard-read", "clipboard-write"])
        card = page.locator(".finding").first
        button = card.get_by_role("button", name=re.compile("copy", re.IGNORECASE)).first
        name = button.inner_text()
        button.click()
        expect(button).not_to_have_text(name)  # it says that it did
        copied = page.evaluate("navigator.clipboard.readText()")
        assert len(copied) > 10
        assert copied in card.inner_text()

    def test_copying_works_where_the_clipboard_is_denied(self, made: Made, visit: Visit) -> None:
        denied = "Object.defineProperty(navigator, 'clipboard', {value: undefined})"
        page = visit(made("zeros"), before=denied)
        card = page.locator(".finding").first
        button = card.get_by_role("button", name=re.compile("copy", re.IGNORECASE)).first
        name = button.inner_text()
        button.click()
        expect(button).not_to_have_text(name)


class TestFigureFiles:
    @pytest.mark.parametrize(("kind", "lead"), [("SVG", b"<svg"), ("PNG", b"\x89PNG")])
    def test_a_figure_can_be_kept(
        self, kind: str, lead: bytes, made: Made, visit: Visit, tmp_path: Path
    ) -> None:
        page = visit(made("healthy"))
        figure = page.locator("figure[data-kind=signal]")
        figure.scroll_into_view_if_needed()
        figure.locator("svg").first.wait_for()
        with page.expect_download() as waiting:
            figure.get_by_text(kind, exact=True).click()
        kept = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(kept)
        assert kept.suffix == f".{kind.lower()}"
        assert kept.read_bytes().lstrip().startswith(lead)


class TestOutlineAndRecipe:
    def test_the_outline_shows_branches(self, made: Made, visit: Visit) -> None:
        page = visit(made("healthy"))
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        outline = page.locator("#outline").inner_text()
        assert "⊕" in outline
        assert "norm before" in outline
        assert "lm_head" in outline

    def test_the_recipe_gives_its_reasons(self, made: Made, visit: Visit) -> None:
        page = visit(made("healthy"))
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        recipe = page.locator("#recipe").inner_text()
        for word in ("lecun_normal", "its input is normalized", "0.036", "0.02"):
            assert word in recipe


class TestNotebook:
    """What a notebook shows has no script and lives inside of a page that is not ours."""

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_the_fragment_can_be_read(self, scheme: Any, visit: Visit, tmp_path: Path) -> None:
        from axe_playwright_python.sync_playwright import Axe
        from pages import zero_report

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
        contrast = {"runOnly": ["color-contrast"]}
        found = Axe().run(page, options=contrast).response
        assert found["violations"] == []
        # Its style does not leak: a paragraph of the notebook is as it was.
        family = "getComputedStyle(document.querySelector('#mine')).fontFamily"
        assert "sans" not in page.evaluate(family)
