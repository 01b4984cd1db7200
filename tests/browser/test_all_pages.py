"""Every page: from disk, without a network, for every eye, on paper and on a phone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import Made, Visit
from pages import DEEP, PAGES, REPORTS, RUNS
from playwright.sync_api import Page

LIMIT = 2_000_000  # bytes of a page: it can still be mailed, and opens at once from disk
PHONE = {"width": 360, "height": 740}  # the narrowest phone in wide use
SMALL = tuple(name for name in PAGES if name != "deep")
DRAWN = (*REPORTS, "comparison", "repair")  # those whose figures Vega draws


def unfold(page: Page) -> None:
    """Open everything that is folded, and draw every figure."""
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    for figure in page.locator("figure[data-kind]").all():
        figure.scroll_into_view_if_needed()
        figure.locator("svg").first.wait_for()


def brightness(page: Page, selector: str = "body", of: str = "backgroundColor") -> float:
    """From 0, black, to 1, white."""
    colour = page.eval_on_selector(selector, f"node => getComputedStyle(node).{of}")
    red, green, blue = (float(part) for part in re.findall(r"[\d.]+", colour)[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.mark.parametrize("name", PAGES)
class TestEveryPage:
    def test_it_opens_from_disk_and_is_one_file(self, name: str, made: Made, visit: Visit) -> None:
        page = visit(made(name))
        assert page.title().strip()
        assert page.locator("h1").count() == 1
        assert page.locator("main").count() == 1
        loaded = page.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
        assert [each for each in loaded if not each.startswith(("data:", "blob:"))] == []
        assert made(name).stat().st_size <= LIMIT

    def test_its_policy_allows_its_own_scripts_alone(
        self, name: str, made: Made, visit: Visit
    ) -> None:
        page = visit(made(name))
        policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
        assert policy is not None
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";") if rule.strip())
        assert rules["default-src"] == "'none'"
        for source in rules["script-src"].split():
            assert re.fullmatch(r"'sha256-[\w+/]+=*'", source)
        assert (
            page.locator("script[src], link:not([href^='data:']), iframe, object, embed").count()
            == 0
        )
        assert page.locator("[onclick], [onload], [onerror], [href^='javascript:']").count() == 0

    def test_it_follows_the_system_until_the_button_is_pressed(
        self, name: str, made: Made, visit: Visit
    ) -> None:
        scheme = "light" if name in ("healthy", "lab") else "dark"
        page = visit(made(name), color_scheme=scheme)
        dark = scheme == "dark"
        assert (brightness(page) < 0.3) is dark
        assert (brightness(page, "h1", "color") > 0.5) is dark
        page.locator("#theme").click()
        assert (brightness(page) < 0.3) is not dark
        page.reload()
        assert (brightness(page) < 0.3) is not dark

    def test_nothing_moves_for_those_who_ask_for_that(
        self, name: str, made: Made, visit: Visit
    ) -> None:
        page = visit(made(name), reduced_motion="reduce")
        page.locator("#theme").click()
        assert page.evaluate("document.getAnimations().length") == 0
        behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
        assert page.evaluate(behaviour) == "auto"


@pytest.mark.parametrize("name", SMALL)
class TestEveryPageUnfolded:
    """Left out is the page of 2,000 layers: its parts are those of the others."""

    def test_tab_reaches_every_control_and_shows_where_it_is(
        self, name: str, made: Made, visit: Visit
    ) -> None:
        page = visit(made(name))
        wanted = page.evaluate(
            """() => [...document.querySelectorAll('button, input, select, summary, a[href]')]
            .filter(each => each.checkVisibility({visibilityProperty: true})
                && !each.disabled && each.type !== 'radio')
            .map((each, at) => each.dataset.tabbed = String(at))"""
        )
        assert wanted
        reached: set[str] = set()
        for _ in range(2 * len(wanted) + 20):
            page.keyboard.press("Tab")
            at, outlined = page.evaluate(
                """() => { const here = document.activeElement, style = getComputedStyle(here);
                return [here.dataset.tabbed ?? null, here === document.body
                    || style.outlineStyle !== 'none' || style.boxShadow !== 'none'] }"""
            )
            assert outlined, f"control {at} has the focus and does not show it"
            reached |= {at} - {None}
            if reached == set(wanted):
                return
        assert reached == set(wanted)

    def test_a_phone_never_scrolls_sideways(self, name: str, made: Made, visit: Visit) -> None:
        page = visit(made(name), viewport=PHONE, is_mobile=True, has_touch=True)
        unfold(page)
        width = page.evaluate("document.scrollingElement.scrollWidth")
        assert width <= PHONE["width"]
        assert page.evaluate("innerWidth") == PHONE["width"]  # nor was it zoomed out to fit

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing_serious(
        self, name: str, scheme: Any, made: Made, visit: Visit
    ) -> None:
        page = visit(made(name), color_scheme=scheme, reduced_motion="reduce")
        unfold(page)
        found = Axe().run(page).response
        assert len(found["passes"]) > 10  # it did look
        grave = [
            f"{each['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]
        assert grave == []

    def test_on_paper_there_are_no_controls_and_no_dark(
        self, name: str, made: Made, visit: Visit
    ) -> None:
        page = visit(made(name), color_scheme="dark")
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        # The heads of a table stay: on paper nothing tells them from text.
        controls = "button:not(th button):visible, input:visible, select:visible"
        assert page.locator(controls).count() == 0
        assert brightness(page) > 0.9
        assert brightness(page, "h1", "color") < 0.5
        assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("name", DRAWN)
class TestFigures:
    def test_every_figure_is_drawn_and_described(self, name: str, made: Made, visit: Visit) -> None:
        page = visit(made(name))
        unfold(page)
        figures = page.locator("figure[data-kind]")
        assert figures.count() > 0
        for figure in figures.all():
            marks = figure.locator("svg .role-mark").locator("path, rect, text, line")
            assert marks.count() > 0
            assert len(figure.locator("figcaption").inner_text()) > 20

    def test_another_theme_redraws_them(self, name: str, made: Made, visit: Visit) -> None:
        page = visit(made(name), color_scheme="light")
        unfold(page)
        label = "figure[data-kind] svg .role-axis-label text"
        before = page.locator(label).first.get_attribute("fill")
        page.locator("#theme").click()
        page.wait_for_function(
            "([at, before]) => document.querySelector(at)?.getAttribute('fill') !== before",
            arg=[label, before],
        )
        drawn = page.locator("figure[data-kind] svg.marks")
        assert drawn.count() == page.locator("figure[data-kind]").count()  # none twice


class TestWithoutMuch:
    @pytest.mark.parametrize("name", DRAWN)
    def test_without_scripts_the_words_are_there(self, name: str, made: Made, visit: Visit) -> None:
        page = visit(made(name), java_script_enabled=False)
        assert page.locator("h1").is_visible()
        rows = page.locator("table tbody tr")
        assert rows.count() > 0

    @pytest.mark.parametrize("name", PAGES)
    def test_a_browser_that_keeps_nothing_is_enough(
        self, name: str, made: Made, visit: Visit
    ) -> None:
        denied = "get() { throw new DOMException('denied', 'SecurityError') }"
        page = visit(
            made(name),
            color_scheme="light",
            before=f"Object.defineProperty(window, 'localStorage', {{{denied}}})",
        )
        page.locator("#theme").click()
        assert brightness(page) < 0.3


class TestHostileNames:
    def test_they_are_text_and_run_nothing(self, made: Made, visit: Visit) -> None:
        page = visit(made("hostile"))
        unfold(page)
        page.wait_for_timeout(200)  # an image that fails to load says so later
        shown = page.locator("main").inner_text()
        for name in RUNS[:8]:
            assert name in shown
        assert page.locator("img, svg[onload], main script:not([type])").count() == 0
        assert "x" * 200 in shown  # a long name is there in full

    def test_a_comparison_shows_them_as_text(self, made: Made, visit: Visit) -> None:
        page = visit(made("comparison"))
        unfold(page)
        assert RUNS[1] in page.locator("main").inner_text()

    def test_tooltips_show_them_as_text(self, made: Made, visit: Visit) -> None:
        page = visit(made("hostile"))
        unfold(page)
        figure = page.locator("figure[data-kind=units]")
        for mark in figure.locator("svg .mark-rect path").all()[:4]:
            mark.hover(force=True)
            page.wait_for_timeout(100)
        tooltip = page.locator("#vg-tooltip-element")
        assert tooltip.locator("script, img, svg").count() == 0
        assert "<" in tooltip.inner_text()


class TestTwoThousandLayers:
    def test_all_are_there(self, made: Made, visit: Visit) -> None:
        page = visit(made("deep"))
        assert page.locator("#layers table tbody tr").count() == DEEP
