"""The whole story in a real browser: Debian's Chromium, driven by Playwright. Screenshots are left in build/demo."""

import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from covering import FIRST, REST, product
from demo_server import server
from PIL import Image

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
#: In CI a missing browser is a failure, not a reason to skip.
pytestmark = [
    FIRST,
    pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="needs a browser: apt-get install chromium"),
]
SHOTS = Path(__file__).parent.parent / "build" / "demo"
PATIENCE = 120_000


@pytest.fixture(scope="module")
def demo():
    with server() as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """One visitor's page, with what it asked for and complained of."""

    def __init__(self, browser, address, width=1280, height=900, **options):
        self.address = address
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.elsewhere, self.errors = [], []
        self.page.on("request", self._requested)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)

    def _requested(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def go(self, query):
        self.page.goto(self.address + query)
        return self

    def open(self, query=""):
        self.go(query)
        self.page.wait_for_selector("#vtc-ask")
        self.page.get_by_text("unit of keep").first.wait_for()  # the controls are drawn after the page
        return self

    def text(self, element):
        return self.page.locator(f"#vtc-{element}").inner_text()

    def answer(self, side):
        return self.page.locator(f"#vtc-answer-{side} .vtc-answer").inner_text()

    def wait_for_text(self, element, pattern):
        self.page.wait_for_function(
            "([id, pattern]) => new RegExp(pattern).test(document.getElementById(id)?.innerText ?? '')",
            arg=[f"vtc-{element}", pattern],
        )

    def ask(self, press=None):
        """Ask, and wait until all is there; each time that it is has a number of its own."""
        number = "document.querySelector('#vtc-status [data-run]')?.dataset.run"
        before = self.page.evaluate(number)
        (press or (lambda: self.page.click("#vtc-ask")))()
        self.page.wait_for_function(f"(before) => {number} && {number} !== before", arg=before)
        return self

    def spec(self, side):
        return self.page.locator(f"#vtc-spec-{side} input, #vtc-spec-{side} textarea")

    def paste(self, side, spec):
        self.spec(side).fill(spec)
        self.spec(side).press("Enter")

    def wait_for_spec(self, side, spec):
        self.page.wait_for_function(
            "([id, spec]) => document.querySelector(`#${id} input, #${id} textarea`)?.value === spec",
            arg=[f"vtc-spec-{side}", spec],
        )

    def choose(self, label, option):
        box = self.page.get_by_label(label, exact=True)
        box.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def slide(self, element, value):
        """Move a slider as the keyboard does."""
        slider = self.page.locator(f"#vtc-{element} input[type=range]")
        slider.focus()
        slider.press("Home")
        for _ in range(value):
            slider.press("ArrowRight")

    def number(self, name):
        """What A, B and A : B are in a row of the table."""
        return self.page.locator(f"tr[data-number={name}] td").all_inner_texts()

    def upload(self, name, content):
        self.page.set_input_files(
            "#vtc-upload input[type=file]", {"name": name, "mimeType": "image/png", "buffer": content}
        )

    def tab(self, name):
        self.page.get_by_role("tab", name=name).first.click()

    def shoot(self, name):
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


@pytest.fixture
def visit(demo, browser):
    made = []

    def start(**options):
        made.append(Visit(browser, demo.address, **options))
        return made[-1]

    yield start
    for each in made:
        each.context.close()
        assert not each.elsewhere, "the page asked for something elsewhere"
        assert not each.errors


def png(size=(120, 90)):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_ask_read_the_numbers_and_look_through_the_layers(visit):
    seen = visit().open()
    seen.ask()
    assert (seen.answer("a"), seen.answer("b")) == ("9", "9")
    assert seen.number("visual_tokens") == ["256", "256", "1.00"]
    assert seen.number("equivalent") == ["64.0", "256.0", "0.25"]
    for name in ("prefill", "ttft", "kv", "flops"):
        assert all(re.match(r"\d", cell) for cell in seen.number(name)), name
    assert "after layer 7, the last: 64 of 256" in seen.text("kept-a")
    seen.paste("a", "fastv:layer=3,keep=0.25")
    seen.ask()
    seen.slide("layer-a", 2)
    seen.wait_for_text("kept-a", "before layer 2 of 8: 256 of 256")
    bright = seen.page.locator("#vtc-kept-a img").get_attribute("src")
    seen.slide("layer-a", 3)
    seen.wait_for_text("kept-a", "before layer 3 of 8: 64 of 256")
    assert seen.page.locator("#vtc-kept-a img").get_attribute("src") != bright
    assert "before layer 3 of 8: 64 of 256 tokens alive" in seen.page.locator("#vtc-kept-a img").get_attribute("alt")
    assert "after layer 7, the last: 256 of 256" in seen.text("kept-b")
    seen.shoot("compare")


def test_change_the_method_its_fields_and_paste_a_spec(visit):
    seen = visit().open()
    page = seen.page
    seen.choose("A: method", "transprune · prune")
    seen.wait_for_spec("a", "transprune:keep=0.25")
    page.get_by_label("A: direction", exact=True).wait_for()
    assert (
        page.get_by_label("A: layers", exact=True).count() == 1 and page.get_by_label("A: per", exact=True).count() == 0
    )
    seen.choose("A: direction", "paper")
    seen.wait_for_spec("a", "transprune:keep=0.25,direction=paper")
    seen.choose("A: method", "divprune · selector")
    seen.wait_for_spec("a", "divprune:keep=0.25")
    seen.choose("A: then", "fastv")
    seen.wait_for_spec("a", "divprune:keep=0.25+fastv:keep=0.5")
    layer = page.get_by_label("A: layer", exact=True)
    layer.fill("4")
    layer.blur()
    seen.wait_for_spec("a", "divprune:keep=0.25+fastv:layer=4,keep=0.5")
    page.get_by_label("tokens", exact=True).first.check()
    seen.wait_for_spec("a", "divprune:keep=64+fastv:layer=4,keep=0.5")
    seen.ask()
    assert seen.number("kept_tokens")[0] == "32"
    seen.paste("b", "hiprune:keep=0.5,alpha=0.2")
    page.get_by_label("B: alpha", exact=True).wait_for()
    assert page.get_by_label("B: alpha", exact=True).input_value() == "0.2"
    seen.paste("b", "hiprun:keep=0.5")
    page.get_by_text("unknown method 'hiprun'; did you mean 'hiprune'?").wait_for()
    seen.paste("b", "hiprune/llava-1.5/192")
    page.get_by_text("unknown method").wait_for(state="detached")
    page.get_by_label("B: alpha", exact=True).wait_for()
    seen.ask()
    assert seen.number("kept_tokens")[1] == "192"
    seen.paste("b", "fastv:layer=99")
    page.click("#vtc-ask")
    seen.wait_for_text("answer-b", "99")
    seen.wait_for_text("answer-a", r"\d")


@REST
def test_upload_a_picture_and_be_refused_another(visit, demo):
    seen = visit().open()
    seen.upload("my photo.png", png())
    seen.wait_for_text("preview", "Picture: my photo.png")
    seen.page.get_by_label("Question", exact=True).fill("What colour is it?")
    seen.ask()
    assert seen.answer("a")
    for name, content, message in (
        ("page.png", b"<svg/>", "'page.png' is no picture or video that is read here"),
        ("cut.png", png()[:500], "'cut.png' can't be read: it is damaged or cut off"),
    ):
        seen.upload(name, content)
        seen.wait_for_text("note", re.escape(message))
        assert "my photo.png" in seen.text("preview")
    seen.shoot("bad-upload")
    seen.upload("again.png", png((80, 80)))
    seen.wait_for_text("preview", "again.png")
    seen.page.locator("#vtc-note p").wait_for(state="detached")
    assert seen.page.locator("[data-example][aria-pressed=true]").count() == 0
    assert not [file for file in demo.folder.rglob("*") if file.is_file()]
    seen.page.get_by_label("Question", exact=True).fill("")
    seen.page.click("#vtc-ask")
    seen.wait_for_text("status", "question is empty")


@REST
def test_a_video_frame_by_frame(visit):
    seen = visit().open()
    seen.page.locator("[data-example='video/1']").click()
    seen.wait_for_text("preview", "Frame 1 of 8")
    seen.paste("a", "evs:keep=0.25")
    seen.ask()
    assert seen.number("visual_tokens")[0] == "513"
    first = re.search(r"frame 1 of 8.*: (\d+) of 64", seen.text("kept-a"))
    seen.slide("frame", 5)
    seen.wait_for_text("preview", "Frame 6 of 8")
    seen.wait_for_text("kept-a", "frame 6 of 8")
    seen.wait_for_text("kept-b", "frame 6 of 8: 64 of 64")
    later = re.search(r"frame 6 of 8.*: (\d+) of 64", seen.text("kept-a"))
    assert first and later and int(first[1]) > int(later[1])  # evs keeps the first frame whole
    seen.shoot("video")
    seen.page.locator("[data-example='images/1']").click()
    seen.wait_for_text("preview", "Picture: images/1")
    assert not seen.text("kept-a").strip()  # it was about the video
    seen.page.locator("#vtc-frame").wait_for(state="hidden")


@REST
def test_sweep_cancel_and_sweep_again(visit):
    seen = visit().open()
    seen.tab("Sweep")
    seen.page.get_by_label("benchmark questions", exact=True).check()
    seen.page.click("#vtc-sweep")
    seen.wait_for_text("sweep-progress", r"^([2-9]|[12]\d) of 39 turns")
    seen.page.locator("#vtc-curves svg[role=img]").first.wait_for()
    seen.page.click("#vtc-sweep-stop")
    seen.wait_for_text("sweep-progress", "Cancelled; what was found stays")
    seen.page.wait_for_timeout(1500)
    assert "Cancelled" in seen.text("sweep-progress") and seen.page.locator("#vtc-points tr").count() > 1
    seen.page.get_by_label("this question", exact=True).check()
    seen.page.locator("#vtc-sweep-keeps input, #vtc-sweep-keeps textarea").fill("0.5, 0.25, 0.0625")
    seen.page.click("#vtc-sweep")
    seen.wait_for_text("sweep-progress", "10 of 10 turns")
    assert seen.page.locator("#vtc-points tbody tr").count() == 10
    assert seen.page.locator("#vtc-curves svg[role=img]").count() == 2
    assert "divprune, fastv, random" in seen.page.locator("#vtc-curves svg[role=img]").first.get_attribute("aria-label")
    seen.shoot("sweep")
    seen.page.locator("#vtc-sweep-keeps input, #vtc-sweep-keeps textarea").fill("2.0")
    seen.page.click("#vtc-sweep")
    seen.wait_for_text("sweep-progress", "keep=2.0")


@REST
def test_all_methods_on_one_sheet(visit):
    seen = visit().open()
    seen.tab("All methods")
    seen.page.click("#vtc-deal")
    seen.wait_for_text("deal-progress", r"^([3-9]|[12]\d) of \d+ methods")
    seen.page.click("#vtc-deal-stop")
    seen.wait_for_text("deal-progress", r"Cancelled|^(\d+) of \1 ")  # a fast machine may be done before
    seen.page.click("#vtc-deal")
    seen.page.wait_for_function(
        """() => {
            const bar = document.querySelector('#vtc-deal-progress progress');
            return bar && bar.value > 1 && bar.value === bar.max;
        }"""
    )
    cards = seen.page.locator(".vtc-card")
    assert cards.count() >= 31
    divprune = cards.filter(has=seen.page.get_by_role("heading", name="divprune", exact=True))
    assert divprune.locator("img").get_attribute("alt") == "divprune: 64 of 256 tokens kept here"
    seen.shoot("methods")


@REST
def test_a_link_opens_what_is_on_the_screen_and_the_code_is_copied(visit):
    seen = visit().open()
    seen.page.locator("[data-example='images/6']").click()
    seen.wait_for_text("preview", "images/6")
    seen.paste("a", "kcenter:keep=48,rule=max-sum")
    seen.page.get_by_label("Question", exact=True).fill("What does the sign say & why?")
    seen.ask()
    seen.tab("Sweep")
    seen.page.get_by_label("benchmark questions", exact=True).check()
    seen.page.locator("#vtc-sweep-keeps input, #vtc-sweep-keeps textarea").fill("0.75, 12")
    seen.page.wait_for_function("new URLSearchParams(location.search).get('keeps') === '0.75, 12'")
    linked = seen.page.url
    seen.tab("Compare")
    seen.page.wait_for_function("!location.search.includes('tab=')")
    seen.page.click("#vtc-copy-link")
    seen.page.get_by_role("button", name="Copied").wait_for()
    link = seen.page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(seen.address) and "kcenter" in link and link == seen.page.url
    answers = seen.answer("a"), seen.answer("b"), seen.number("kept_tokens")
    other = visit().open(link.removeprefix(seen.address))
    other.wait_for_spec("a", "kcenter:keep=48,rule=max-sum")
    other.wait_for_text("preview", "images/6")
    assert other.page.get_by_label("Question", exact=True).input_value() == "What does the sign say & why?"
    other.page.get_by_label("A: rule", exact=True).wait_for()
    other.ask()
    assert (other.answer("a"), other.answer("b"), other.number("kept_tokens")) == answers
    third = visit().go(linked.removeprefix(seen.address))
    third.page.wait_for_selector("#vtc-sweep")
    assert third.page.locator("#vtc-sweep-keeps input, #vtc-sweep-keeps textarea").input_value() == "0.75, 12"
    assert third.page.get_by_label("benchmark questions", exact=True).is_checked()
    seen.page.click("#vtc-copy-Python")
    seen.page.wait_for_function("navigator.clipboard.readText().then((text) => text.startsWith('import vtc'))")
    python = seen.page.evaluate("navigator.clipboard.readText()")
    assert "'kcenter:keep=48,rule=max-sum'" in python and "example('images/6')" in python
    seen.page.click("#vtc-copy-command")
    seen.page.wait_for_function("navigator.clipboard.readText().then((text) => text.startsWith('vtc ask'))")
    command = seen.page.evaluate("navigator.clipboard.readText()")
    assert "--example images/6 '--question=What does the sign say & why?'" in command
    seen.tab("Code")
    assert "/compare" in seen.text("client")
    seen.shoot("code")


@REST
@pytest.mark.parametrize(
    "query, message",
    [
        ("?a=nonsense&b=fastv", "A: unknown method 'nonsense'"),
        ("?example=images/999999999", "example 'images/999999999' does not exist"),
        ("?methods=divprune,nonsense", "sweep: unknown method 'nonsense'"),
        ("?questions=-4&keep=7", "sweep: '-4' questions; give 0 to 90 all methods: keep='7'"),
        ("?a=%3Cimg%20src=x%20onerror=alert(1)%3E", "A: unknown method '<img src=x onerror=alert(1)>'"),
    ],
)
def test_a_link_that_is_wrong_opens_the_page_and_says_so(visit, query, message):
    seen = visit().open(query)
    seen.wait_for_text("note", re.escape(message))
    seen.wait_for_spec("b", "fastv:keep=0.5" if "b=fastv" in query else "none")
    seen.wait_for_spec("a", "divprune:keep=0.25")


@REST
def test_everything_by_keyboard(visit):
    seen = visit().open()
    page = seen.page
    page.locator("[data-example='images/1']").focus()
    page.keyboard.press("Enter")
    seen.wait_for_text("preview", "images/1")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.example") == "images/3"
    page.get_by_label("Question", exact=True).focus()
    seen.ask(lambda: page.keyboard.press("Enter"))
    assert "medians of" in seen.text("numbers")
    page.locator("#vtc-layer-a input[type=range]").focus()
    page.keyboard.press("Home")
    seen.wait_for_text("kept-a", "before layer 0 of 8")
    tabs = page.get_by_role("tab")
    tabs.first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.get_by_role("tab", selected=True).first.inner_text() == "Code"


def check_everything_has_a_name(seen):
    """Pictures have words, and whatever takes input has a label."""
    for tab in ("Compare", "Code", "Sweep", "All methods"):
        seen.tab(tab)
        nameless = seen.page.evaluate(
            """() => [...document.querySelectorAll('img, input, textarea, select, button, svg[role=img]')]
            .filter((each) => each.checkVisibility())
            .filter((each) => each.type !== 'file' && !(each.alt ?? '').trim() && !each.closest('label')
                && !each.getAttribute('aria-label') && !each.getAttribute('aria-labelledby') && !each.title
                && !(each.labels?.length) && !each.innerText?.trim() && !each.closest('[aria-label]:is(button)'))
            .map((each) => each.outerHTML.slice(0, 120))"""
        )
        assert not nameless


@product(width=[360, 1280], scheme=["light", "dark"], each="value")
def test_it_fits_a_phone_is_legible_in_light_and_dark_and_has_words(visit, scheme, width):
    seen = visit(width=width, height=800, color_scheme=scheme).open()
    seen.ask()
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    poor = seen.page.evaluate(
        """() => {
          const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
          const light = (colour) => numbers(colour).slice(0, 3).map((v) => v / 255)
            .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const ground = (each) => {
            for (let at = each; at; at = at.parentElement) {
              const colour = numbers(getComputedStyle(at).backgroundColor);
              if (colour.length < 4 || colour[3] > 0.9) return `rgb(${colour.slice(0, 3)})`;
            }
            return 'rgb(255, 255, 255)';
          };
          return [...document.querySelectorAll('.vtc-hint, .vtc-answer, .vtc-title p, .vtc-title h1, .vtc-numbers th,'
            + '.vtc-numbers td, .vtc-numbers small, figcaption, .vtc-letter h2')]
            .filter((each) => each.checkVisibility() && each.innerText.trim())
            .map((each) => {
              const [a, b] = [light(getComputedStyle(each).color), light(ground(each))];
              return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), each.className, each.innerText.slice(0, 40)];
            }).filter(([ratio]) => ratio < 4.5);
        }"""
    )
    large = [each for each in poor if each[2] not in ("A", "B")]  # large letters need 3 : 1
    assert not large and all(ratio >= 3 for ratio, *_ in poor)
    seen.shoot(f"{scheme}-{width}")
    if width > 1000:  # where the tabs are not in a menu
        check_everything_has_a_name(seen)
