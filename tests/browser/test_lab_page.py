"""The lab in a browser: what is chosen is what is shown, by pointer, by keyboard and by address."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from browsing import Made, Visit
from playwright.sync_api import Page, expect

from fanin import lab

# Shows an address from the first view on, and waits until it is drawn.
GO = """address => new Promise(done => {
    lab.show({start: 'constant', activation: 'tanh', change: 'none', step: 0})
    history.replaceState(null, '', '#')  // so that any address is another one
    addEventListener('hashchange', () => {
        requestAnimationFrame(done)
        lab.state(lab.chosen.step)  // so that the frame has it
    }, {once: true})
    location.hash = address
})"""
FIRST = "start=constant&activation=tanh&change=none&step=0"
Go = Callable[..., Page]


@pytest.fixture(scope="module")
def shared(stay: Visit, made: Made) -> Page:
    return stay(made("lab"))


@pytest.fixture
def at(shared: Page) -> Go:
    """Show an address of the lab: ``at("start=He&step=10")``.  The tests share its page."""

    def shown(address: str = FIRST) -> Page:
        shared.evaluate(GO, address)
        return shared

    return shown


@pytest.fixture(scope="module")
def clocked(stay: Visit, made: Made) -> Page:
    """The lab with a clock that stands still but for ``page.clock.run_for``."""
    page = stay(made("lab"))
    page.clock.install(time=0)
    page.clock.pause_at(1)
    page.reload()
    return page


def trained(page: Page) -> None:
    """Let the page train to the end now, not a little in each frame."""
    page.evaluate("() => { lab.state(15_000) }")


def chosen(page: Page) -> dict:
    return page.evaluate("() => lab.chosen")


def slider(page: Page):
    return page.get_by_role("slider", name="Training step")


def consequence(page: Page, index: int) -> list[str]:
    return page.locator("#chain li").nth(index).locator("dd").all_inner_texts()


def test_the_first_view_is_of_copies(visit: Visit, made: Made):
    page = visit(made("lab"))
    expect(page.locator("#now")).to_have_text("step 0")
    expect(page.locator("#headline")).to_contain_text("each hidden layer is worth one")
    assert chosen(page) == {"start": "constant", "activation": "tanh", "change": "none", "step": 0}


def test_the_first_view_stands_still(clocked: Page):
    clocked.clock.run_for(5_000)
    expect(clocked.locator("#now")).to_have_text("step 0")


def test_an_address_shows_its_view_and_the_view_gives_its_address(at: Go):
    page = at("start=He&activation=relu&change=zero+2&step=100")
    expect(page.locator("#now")).to_have_text("step 100")
    expect(page.get_by_role("radio", name="He", exact=True)).to_be_checked()
    expect(page.get_by_role("radio", name="layer 2")).to_be_checked()
    there = page.get_by_role("button", name="1,000", exact=True)
    there.click()
    expect(there).to_have_attribute("aria-current", "true")
    assert page.locator("[aria-current]").count() == 1
    page.wait_for_url(re.compile(r"#start=He&activation=relu&change=zero\+2&step=1000$"))


def test_an_address_that_comes_while_the_page_writes_its_own_is_shown(at):
    page = at()
    page.evaluate("() => { location.hash = 'start=He&activation=relu&step=10'; toHash(); }")
    expect(page.locator("#now")).to_have_text("step 10")
    page.wait_for_url(re.compile(r"#start=He&activation=relu&change=none&step=10$"))


@pytest.mark.parametrize(
    "address", ["start=<b>&step=1.5", "activation=toString&step=-1", "change=break+9&step=1e9", "%"]
)
def test_an_address_that_makes_no_sense_changes_nothing(at: Go, address: str):
    before = chosen(at())
    assert chosen(at(address)) == before


def test_the_numbers_shown_are_those_of_python(at: Go):
    page = at("start=He&activation=relu&step=10")
    (state,) = lab.run("He", steps=(10,))
    expect(page.locator("#cost")).to_have_text(f"{state.cost:.6f}")
    expect(page.locator("#train")).to_have_text(f"{100 * state.train:.1f} %")
    shown = [float(text) for text in consequence(page, 0)]
    assert shown == pytest.approx([layer.inputs for layer in state.layers[:2]], rel=5e-3)
    assert consequence(page, 4) == ["10 of 10", "5 of 5"]


def test_consequences_are_marked_where_they_hold_and_nowhere_else(at: Go):
    page = at("start=constant&activation=tanh&step=100")
    expect(page.locator("#now")).to_have_text("step 100")
    assert page.locator("#chain li.true").count() == 5
    assert "5 of five" in page.locator("#holding").inner_text()
    assert consequence(page, 2) == ["0", "0"]
    page.get_by_role("radio", name="He", exact=True).check(force=True)
    expect(page.locator("#chain li.true")).to_have_count(0)
    assert page.locator("#holding").inner_text().startswith("None of the five holds here")


def test_one_broken_weight_is_seen_and_its_layer_can_be_chosen(visit: Visit, made: Made):
    page = visit(made("lab"))  # where no layer was chosen before: it is the first
    page.evaluate(GO, "start=constant&activation=tanh&step=100")
    page.get_by_role("radio", name="break one weight by 0.001").check(force=True)
    expect(page.locator("#headline")).to_contain_text("2 of 10 units in layer 1, 1 of 5")
    # A weight of layer 2 frees both its ends: the unit it belongs to, and the one it reads.
    page.get_by_role("radio", name="layer 2").check(force=True)
    expect(page.locator("#headline")).to_contain_text("2 of 10 units in layer 1, 2 of 5")


@pytest.mark.parametrize(
    ("address", "story"),
    [
        ("start=He&activation=tanh&change=zero+1&step=5", "Layer 1 started with equal inputs"),
        ("start=He&activation=relu&change=zero+2&step=5", "Layer 2: its copies have stayed copies"),
        ("start=zeros&activation=relu&step=5", "No gradient reaches the hidden weights"),
        ("start=large&activation=relu&step=0", "differing is not enough"),
        ("start=small&activation=relu&step=2000", "still that of guessing"),
    ],
)
def test_the_story_tells_what_happened(at: Go, address: str, story: str):
    expect(at(address).locator("#story")).to_contain_text(story)


def test_a_sound_start_has_no_sad_story(at: Go):
    page = at("start=He&activation=relu&step=5000")
    expect(page.locator("#now")).to_have_text("step 5,000")
    expect(page.locator("#story")).to_be_empty()
    expect(page.locator(".hero")).to_have_class(re.compile(r"\bok\b"))


def test_the_articles_cost_stands_beside_ours(at: Go):
    page = at("start=He&activation=relu")
    trained(page)
    expect(page.locator("#later")).to_contain_text("0.0735789596267")
    for start, printed in [
        ("He", "0.07357895962677366"),
        ("zeros", "0.6931471805599453"),
        ("large", "0.38278"),
    ]:
        page.get_by_role("radio", name=start, exact=True).check(force=True)
        expect(page.locator("#published")).to_contain_text(printed)
    page.get_by_role("radio", name="tanh", exact=True).check(force=True)
    expect(page.locator("#published")).to_be_empty()


def test_copies_lie_on_one_another_and_are_counted(at: Go):
    page = at("start=constant&activation=tanh&step=1")
    expect(page.locator("#layer1 .plane text", has_text="A ×10")).to_have_count(1)
    expect(page.locator("#layer2 .plane text", has_text="A ×5")).to_have_count(1)
    places = page.locator("#layer1 .plane circle").evaluate_all(
        "all => all.map((circle) => [circle.getAttribute('cx'), circle.getAttribute('cy')].join())"
    )
    assert len(places) == 10
    assert len(set(places)) == 1
    assert set(page.locator("#layer1 .map span").all_inner_texts()) == {
        f"{unit} · A" for unit in range(1, 11)
    }


def test_the_maps_of_copies_are_the_same_picture_and_of_others_not(at: Go):
    picture = "all => all.map((canvas) => canvas.toDataURL())"
    page = at("start=constant&activation=tanh&step=1")
    expect(page.locator("#now")).to_have_text("step 1")
    assert len(set(page.locator("#layer1 canvas").evaluate_all(picture))) == 1
    page = at("start=He&activation=tanh&step=1")
    expect(page.locator("#now")).to_have_text("step 1")
    assert len(set(page.locator("#layer1 canvas").evaluate_all(picture))) == 10


def test_no_gradient_no_arrow(at: Go):
    page = at("start=zeros&activation=relu&step=10")
    expect(page.locator("#layer1 .arrows")).to_have_text(re.compile("^No arrows"))
    page.get_by_role("radio", name="He", exact=True).check(force=True)
    expect(page.locator("#layer1 .arrows")).to_have_text(re.compile("^Dashed: the gradient"))


def test_the_slider_goes_by_the_keyboard(clocked: Page):
    slider(clocked).press("Home")
    for key, step in [
        ("ArrowRight", "1"),
        ("ArrowUp", "2"),
        ("ArrowLeft", "1"),
        ("PageUp", "2"),
        ("PageUp", "5"),
        ("PageDown", "2"),
        ("End", "15,000"),
        ("ArrowRight", "15,000"),
        ("Home", "0"),
        ("ArrowLeft", "0"),
    ]:
        clocked.keyboard.press(key)
        clocked.clock.run_for(100)
        expect(clocked.locator("#now")).to_have_text(f"step {step}")
        expect(slider(clocked)).to_have_attribute("aria-valuetext", f"step {step} of 15,000")


def test_the_slider_goes_by_the_pointer_and_is_logarithmic(at: Go):
    page = at()
    for place, step in [("500", "121"), ("250", "10"), ("0", "0")]:  # √15,001 - 1 is 121.5
        slider(page).fill(place)
        expect(page.locator("#now")).to_have_text(f"step {step}")


def test_play_moves_and_pause_stops(clocked: Page):
    now = clocked.locator("#now")
    slider(clocked).press("Home")
    clocked.get_by_role("button", name="Play").click()
    clocked.clock.run_for(3_000)
    moved = now.inner_text()
    assert moved != "step 0"
    clocked.get_by_role("button", name="Pause").click()
    clocked.clock.run_for(3_000)
    expect(now).to_have_text(moved)


def test_with_reduced_motion_play_goes_in_pictures(clocked: Page):
    clocked.emulate_media(reduced_motion="reduce")
    slider(clocked).press("Home")
    clocked.get_by_role("button", name="Play").click()
    clocked.clock.run_for(500)
    for step in (0, 1, 3, 7):  # one a second
        expect(clocked.locator("#now")).to_have_text(f"step {step}")
        clocked.clock.run_for(400)
        expect(clocked.locator("#now")).to_have_text(f"step {step}")
        clocked.clock.run_for(600)
    clocked.get_by_role("button", name="Pause").click()
    clocked.emulate_media(reduced_motion="no-preference")


def test_a_screen_reader_hears_the_view_once_the_slider_rests(clocked: Page):
    status = clocked.locator("#status")
    slider(clocked).press("Home")
    clocked.clock.run_for(1_000)
    expect(status).to_contain_text("Step 0:")
    clocked.evaluate(
        """() => {
          window.heard = [];
          new MutationObserver(() => heard.push(document.getElementById("status").textContent))
            .observe(document.getElementById("status"), {childList: true});
        }"""
    )
    for step in range(1, 11):
        clocked.keyboard.press("ArrowRight")
        clocked.clock.run_for(200)
        expect(clocked.locator("#now")).to_have_text(f"step {step}")
    assert clocked.evaluate("heard.length") == 0
    clocked.clock.run_for(1_000)
    (heard,) = clocked.evaluate("heard")
    (state,) = lab.run("constant", "tanh", steps=(10,))
    assert f"Step 10: cost {state.cost:.4f}" in heard
    assert "1 of 10 in layer 1" in heard


def test_every_picture_has_words(at: Go):
    page = at("start=constant&activation=relu&step=3")
    expect(page.locator("#status")).to_contain_text("Step 3:")
    pictures = page.locator("[role=img]")
    assert pictures.count() == 1 + 2 + 2 + 15
    assert all(pictures.evaluate_all("all => all.map((each) => each.getAttribute('aria-label'))"))
    expect(page.locator("#layer1 canvas").first).to_have_attribute(
        "aria-label", re.compile("the same as units 2, 3")
    )


def test_the_verdict_is_that_of_the_chosen_start(at: Go):
    page = at("start=zeros&activation=relu")
    assert "S101 locked-units" in page.locator("#verdict").inner_text()
    page.get_by_role("radio", name="He", exact=True).check(force=True)
    assert "S101" not in page.locator("#verdict").inner_text()


def test_a_verdict_from_before_the_change_says_so(at: Go):
    """Random starts have no copies to break, so they are not checked again."""
    page = at("start=He&activation=relu&change=break+1")
    before = page.get_by_text("before the change")
    expect(before).to_be_visible()
    page.get_by_role("radio", name="constant", exact=True).check(force=True)
    expect(before).to_be_hidden()


def test_a_narrow_page_needs_no_horizontal_scrolling(at: Go):
    page = at("start=large&activation=relu&step=100")
    before = page.viewport_size
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_function("() => innerWidth === 360")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    page.set_viewport_size(before)


def test_without_script_the_page_says_what_it_needs(visit: Visit, made: Made):
    page = visit(made("lab"), java_script_enabled=False)
    expect(page.get_by_text("needs JavaScript")).to_be_visible()
