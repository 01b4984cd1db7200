"""Every page: from disk, without a network, for every eye, on paper and on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import Made, Visit, visits
from pages import DEEP, PAGES, REPORTS, RUNS
from playwright.sync_api import Browser, Locator, Page, expect

LIMIT = 2_000_000  # bytes of a page: it can still be mailed, and opens at once from disk
PHONE = {"width": 360, "height": 740}  # the narrowest phone in wide use
SMALL = [name for name in PAGES if name != "deep"]
DRAWN = [*REPORTS, "comparison", "repair"]  # those whose figures Vega draws
TEMPLATES = ["healthy", "comparison", "repair", "lab"]  # one page of each
SCRIPTS = ["zeros", "lab"]  # all pages but the lab have one script
FIGURE = "figure[data-kind]"
# All rules of axe, but only what fails is described in full: the rest takes as long again.
VIOLATIONS = {"resultTypes": ["violations"]}


@pytest.fixture(scope="module")
def opened(name: str, browser: Browser, made: Made) -> Iterator[Page]:
    """The page of this name as it opens.  Tests share it, and leave it as they found it."""
    with visits(browser) as visit:
        yield visit(made(name), color_scheme="light")


@pytest.fixture(scope="module")
def unfolded(name: str, browser: Browser, made: Made) -> Iterator[Page]:
    """The page of this name with everything in sight, in light colours."""
    with visits(browser) as visit:
        page = visit(made(name), color_scheme="light", reduced_motion="reduce")
        unfold(page)
        yield page


# The tests of one page come one after the other, so that each is opened once.
def each_of(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", names, scope="module")


def unfold(page: Page) -> None:
    """Open everything that is folded, and draw every figure."""
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    for figure in page.locator(FIGURE).all():
        figure.scroll_into_view_if_needed()
        figure.locator("svg").first.wait_for()


def brightness(page: Page, selector: str = "body", of: str = "backgroundColor") -> float:
    """From 0, black, to 1, white."""
    colour = page.eval_on_selector(selector, f"node => getComputedStyle(node).{of}")
    red, green, blue = (float(part) for part in re.findall(r"[\d.]+", colour)[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


def is_dark(page: Page) -> bool:
    """Whether light text stands on a dark page; else it is the other way round."""
    dark = brightness(page) < 0.3
    assert (brightness(page, "h1", "color") > 0.5) is dark
    return dark


class TestEveryPage:
    @each_of(list(PAGES))
    def test_it_opens_from_disk_and_is_one_file(self, name: str, opened: Page, made: Made) -> None:
        assert opened.title().strip()
        assert opened.locator("h1").count() == 1
        assert opened.locator("main").count() == 1
        loaded = opened.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
        assert [each for each in loaded if not each.startswith(("data:", "blob:"))] == []
        assert made(name).stat().st_size <= LIMIT

    @each_of(list(PAGES))
    def test_its_policy_allows_its_own_scripts_alone(self, opened: Page) -> None:
        meta = opened.locator("meta[http-equiv=Content-Security-Policy]")
        policy = meta.get_attribute("content")
        assert policy is not None
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";") if rule.strip())
        assert rules["default-src"] == "'none'"
        for source in rules["script-src"].split():
            assert re.fullmatch(r"'sha256-[\w+/]+=*'", source)
        loads = "script[src], link:not([href^='data:']), iframe, object, embed"
        assert opened.locator(loads).count() == 0
        inline = "[onclick], [onload], [onerror], [href^='javascript:']"
        assert opened.locator(inline).count() == 0

    @each_of(list(PAGES))
    def test_it_follows_the_system(self, opened: Page) -> None:
        assert not is_dark(opened)
        opened.emulate_media(color_scheme="dark")
        assert is_dark(opened)
        expect(opened.locator("#theme")).to_have_text("Light theme")
        opened.emulate_media(color_scheme="light")
        assert not is_dark(opened)
        expect(opened.locator("#theme")).to_have_text("Dark theme")

    @each_of(SMALL)
    def test_tab_reaches_every_control_and_shows_where_it_is(self, opened: Page) -> None:
        """Left out is the page of 2,000 layers: its parts are those of the others."""
        wanted = opened.evaluate(
            """() => [...document.querySelectorAll('button, input, select, summary, a[href]')]
            .filter(each => each.checkVisibility({visibilityProperty: true})
                && !each.disabled && each.type !== 'radio')
            .map((each, at) => each.dataset.tabbed = String(at))"""
        )
        assert wanted
        reached: set[str] = set()
        for _ in range(2 * len(wanted) + 20):
            opened.keyboard.press("Tab")
            at, outlined = opened.evaluate(
                """() => { const here = document.activeElement, style = getComputedStyle(here);
                return [here.dataset.tabbed ?? null, here === document.body
                    || style.outlineStyle !== 'none' || style.boxShadow !== 'none'] }"""
            )
            assert outlined, f"control {at} has the focus and does not show it"
            reached |= {at} - {None}
            if reached == set(wanted):
                return
        assert reached == set(wanted)

    @each_of(SMALL)
    def test_on_paper_there_are_no_controls_and_no_dark(self, opened: Page) -> None:
        opened.emulate_media(media="print", color_scheme="dark")
        # The heads of a table stay: on paper nothing tells them from text.
        controls = "button:not(th button):visible, input:visible, select:visible"
        assert opened.locator(controls).count() == 0
        assert brightness(opened) > 0.9
        assert brightness(opened, "h1", "color") < 0.5
        opened.emulate_media(media="screen", color_scheme="light")

    @each_of(TEMPLATES)
    def test_it_can_be_printed(self, opened: Page) -> None:
        assert opened.pdf().startswith(b"%PDF")


class TestEveryPageUnfolded:
    """Left out is the page of 2,000 layers: its parts are those of the others."""

    @each_of(SMALL)
    def test_axe_finds_nothing_serious(self, unfolded: Page) -> None:
        found = Axe().run(unfolded, options=VIOLATIONS).response
        assert len(found["passes"]) > 10  # it did look
        assert grave(found) == []

    @each_of(SMALL)
    def test_its_dark_colours_can_be_told_apart(self, unfolded: Page) -> None:
        unfolded.emulate_media(color_scheme="dark")
        expect_drawn(unfolded, "dark")
        assert is_dark(unfolded)
        found = Axe().run(unfolded, options={"runOnly": ["color-contrast"], **VIOLATIONS}).response
        assert [each["id"] for each in found["passes"]] == ["color-contrast"]  # it did look
        assert grave(found) == []
        unfolded.emulate_media(color_scheme="light")
        expect_drawn(unfolded, "light")

    @each_of(TEMPLATES)
    def test_nothing_moves_for_those_who_ask_for_that(self, unfolded: Page) -> None:
        unfolded.emulate_media(color_scheme="dark")
        assert unfolded.evaluate("document.getAnimations().length") == 0
        assert is_dark(unfolded)
        behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
        assert unfolded.evaluate(behaviour) == "auto"
        unfolded.emulate_media(color_scheme="light")
        expect_drawn(unfolded, "light")

    @each_of(SMALL)
    def test_a_phone_never_scrolls_sideways(self, name: str, made: Made, visit: Visit) -> None:
        page = visit(made(name), viewport=PHONE, is_mobile=True, has_touch=True)
        unfold(page)
        width = page.evaluate("document.scrollingElement.scrollWidth")
        assert width <= PHONE["width"]
        assert page.evaluate("innerWidth") == PHONE["width"]  # nor was it zoomed out to fit


def grave(found: Any) -> list[str]:
    """The serious violations that axe found, each where it stands."""
    return [
        f"{each['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def labels(page: Page) -> Locator:
    return page.locator(f"{FIGURE} svg .role-axis-label text")


def expect_drawn(page: Page, theme: str) -> None:
    """Wait until every figure, if there are any, is drawn in the colours of a theme."""
    figures = page.locator(FIGURE).count()
    expect(page.locator(f"{FIGURE} [data-drawn={theme}] svg.marks")).to_have_count(figures)


class TestFigures:
    @each_of(DRAWN)
    def test_every_figure_is_drawn_and_described(self, unfolded: Page) -> None:
        figures = unfolded.locator(FIGURE)
        assert figures.count() > 0
        for figure in figures.all():
            marks = figure.locator("svg .role-mark").locator("path, rect, text, line")
            assert marks.count() > 0
            assert len(figure.locator("figcaption").inner_text()) > 20

    @each_of(TEMPLATES[:-1])
    def test_another_theme_redraws_them(self, unfolded: Page) -> None:
        light = labels(unfolded).first.get_attribute("fill")
        assert light
        unfolded.emulate_media(color_scheme="dark")
        expect(labels(unfolded).first).not_to_have_attribute("fill", light)
        expect_drawn(unfolded, "dark")  # none twice
        unfolded.emulate_media(color_scheme="light")
        expect(labels(unfolded).first).to_have_attribute("fill", light)
        expect_drawn(unfolded, "light")


class TestChosenTheme:
    @pytest.mark.parametrize("name", SCRIPTS)
    def test_it_overrules_the_system_and_is_remembered(
        self, name: str, made: Made, visit: Visit
    ) -> None:
        page = visit(made(name), color_scheme="dark")
        assert is_dark(page)
        page.locator("#theme").click()
        assert not is_dark(page)
        # What was kept is handed on here: a browser may write it down only after the reload.
        kept = page.evaluate("JSON.stringify(localStorage)")
        page.add_init_script(f"Object.assign(localStorage, {kept})")
        page.reload()
        assert not is_dark(page)
        page.locator("#theme").click()
        page.emulate_media(color_scheme="light")
        assert is_dark(page)

    def test_a_figure_that_is_just_being_drawn_takes_it_too(self, made: Made, visit: Visit) -> None:
        begun = """new MutationObserver((seen, observer) => {
            observer.disconnect()
            document.querySelector('#theme').click()
        }).observe(document, {subtree: true, attributeFilter: ['data-drawn']})"""
        page = visit(made("zeros"), color_scheme="light", before=begun)
        unfold(page)
        expect_drawn(page, "dark")


class TestWithoutMuch:
    @pytest.mark.parametrize("name", TEMPLATES[:-1])
    def test_without_scripts_the_words_are_there(self, name: str, made: Made, visit: Visit) -> None:
        page = visit(made(name), java_script_enabled=False)
        assert page.locator("h1").is_visible()
        rows = page.locator("table tbody tr")
        assert rows.count() > 0

    @pytest.mark.parametrize("name", SCRIPTS)
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
        assert is_dark(page)


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

        figure = page.locator("figure[data-kind=units]")
        tooltip = page.locator("#vg-tooltip-element")
        for mark in figure.locator("svg .mark-rect path").all()[:4]:
            mark.hover(force=True)
            expect(tooltip).to_contain_text("<")
            assert tooltip.locator("script, img, svg").count() == 0

    def test_a_comparison_shows_them_as_text(self, made: Made, visit: Visit) -> None:
        page = visit(made("comparison"))
        unfold(page)
        assert RUNS[1] in page.locator("main").inner_text()


class TestTwoThousandLayers:
    def test_all_are_there_and_can_be_narrowed(self, made: Made, visit: Visit) -> None:
        page = visit(made("deep"))
        rows = "#layers table tbody tr"
        assert page.locator(rows).count() == DEEP
        shown = f"() => [...document.querySelectorAll('{rows}')].filter(x => x.checkVisibility())"
        status, severity, words = (page.locator(at) for at in ("#shown", "#severity", "#filter"))
        expect(status).to_have_text("2,000 layers")

        for chosen, text, left in (("error", "", 40), ("error", "blocks.12.", 1), ("", None, 4)):
            severity.select_option(chosen)
            if text is not None:
                words.fill(text)
            expect(status).to_have_text(f"{left} of 2,000 layers")
            assert page.evaluate(f"({shown})().length") == left
