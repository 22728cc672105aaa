"""The whole story in a real browser: Debian's Chromium, driven by Playwright. Screenshots are left in build/demo."""

import io
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from chromium import NEEDED
from covering import FIRST, REST, product
from demo_server import server
from PIL import Image

import vtc
from vtc.eval.tasks.benchmarks import example

pytestmark = [FIRST, NEEDED]
SHOTS = Path(__file__).parent.parent / "build" / "demo"
PATIENCE = 120_000


@pytest.fixture(scope="module")
def demo():
    with server() as running:
        yield running


#: Of every piece of text that is shown: its contrast, composed from all that lies under it, where that is too little.
CONTRASTS = """(firstScreen) => {
  const numbers = (colour) => {
    const found = colour.match(/[\\d.]+/g).map(Number);
    return found.length > 3 ? found : [...found, 1];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((v, i) => a * v + (1 - a) * under[i]);
  const light = (rgb) => rgb.map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (each) => each
    ? over(numbers(getComputedStyle(each).backgroundColor), ground(each.parentElement))
    : [255, 255, 255];
  const opacity = (each) => each ? Number(getComputedStyle(each).opacity) * opacity(each.parentElement) : 1;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const poor = [];
  while (texts.nextNode()) {
    const text = texts.currentNode, each = text.parentElement, range = document.createRange();
    range.selectNodeContents(text);
    const box = range.getBoundingClientRect(), style = getComputedStyle(each);
    if (!text.data.trim() || !box.width || !each.checkVisibility({ visibilityProperty: true })) continue;
    if (each.closest('.vtc-heard, .sr-only, svg, [disabled]')) continue;
    const outside = box.bottom <= 0 || box.top >= innerHeight || box.right <= 0 || box.left >= innerWidth;
    if (firstScreen && outside) continue;
    const under = ground(each), colour = numbers(style.color);
    const [a, b] = [light(over([...colour.slice(0, 3), colour[3] * opacity(each)], under)), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) poor.push([ratio.toFixed(2), text.data.trim().slice(0, 40), style.color]);
  }
  return poor;
}"""


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
        self.page.locator("#vtc-status [data-run]").wait_for(state="attached")  # what it opens with is answered
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
        """Ask, or do what asks, and wait until all is there; each time that it is has a number of its own."""
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

    def open_numbers(self):
        if not self.page.locator("#vtc-numbers").is_visible():
            self.page.get_by_role("button", name="All numbers").click()
            self.page.locator("tr[data-number=kv]").wait_for()
        return self

    def number(self, name):
        """What A, B and A : B are in a row of the table."""
        self.open_numbers()
        return self.page.locator(f"tr[data-number={name}] td").all_inner_texts()

    def upload(self, name, content):
        self.page.set_input_files(
            "#vtc-upload input[type=file]", {"name": name, "mimeType": "image/png", "buffer": content}
        )

    def poor_contrasts(self, first_screen=False):
        """Texts that are hard to read: less than 4.5 : 1, or 3 : 1 where they are large; those in view, or all."""
        return self.page.evaluate(CONTRASTS, first_screen)

    def tab(self, name):
        self.page.get_by_role("tab", name=name).first.click()

    def shoot(self, name, full_page=True):
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=full_page)


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
    opened = seen.open_numbers().text("numbers")
    seen.ask()
    assert seen.text("numbers") != opened  # it was asked anew, as its times show
    assert (seen.answer("a"), seen.answer("b")) == ("bus", "bus")
    assert seen.number("visual_tokens") == ["256", "256", "1.00"]
    assert seen.number("equivalent") == ["64.0", "256.0", "0.25"]
    for name in ("prefill", "ttft", "kv", "flops"):
        assert all(re.match(r"\d", cell) for cell in seen.number(name)), name
    assert seen.text("kept-a") == "64 of 256 visual tokens kept"
    seen.page.locator("#vtc-layer-a").wait_for(state="hidden")  # the same in front of every layer
    seen.paste("a", "fastv:layer=3,keep=0.25")
    seen.ask()
    seen.slide("layer-a", 2)
    seen.wait_for_text("kept-a", "Before layer 2 of 8: 256 of 256")
    bright = seen.page.locator("#vtc-kept-a img").get_attribute("src")
    seen.slide("layer-a", 3)
    seen.wait_for_text("kept-a", "Before layer 3 of 8: 64 of 256")
    assert seen.page.locator("#vtc-kept-a img").get_attribute("src") != bright
    assert "A, before layer 3 of 8: 64 of 256 visual tokens kept" in seen.page.locator("#vtc-kept-a img").get_attribute(
        "alt"
    )
    assert seen.text("kept-b") == "256 of 256 visual tokens kept"
    seen.shoot("compare")


def test_change_the_method_its_fields_and_paste_a_spec(visit):
    seen = visit().open()
    page = seen.page
    seen.choose("A: method", "transprune · prune")
    seen.wait_for_spec("a", "transprune:keep=0.25")
    page.get_by_label("A: direction", exact=True).wait_for()
    assert page.get_by_label("A: layers").count() == 1 and page.get_by_label("A: per", exact=True).count() == 0
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
    seen.wait_for_text("answer-a", "bus")


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
    seen.ask(seen.page.locator("[data-example='video/1']").click)
    seen.wait_for_text("preview", "Frame 1 of 8")
    seen.paste("a", "evs:keep=0.25")
    seen.wait_for_spec("a", "evs:keep=0.25")
    seen.ask()
    assert seen.number("visual_tokens")[0] == "513"
    first = re.search(r"Frame 1 of 8.*: (\d+) of 64", seen.text("kept-a"))
    seen.slide("frame", 5)
    seen.wait_for_text("preview", "Frame 6 of 8")
    seen.wait_for_text("kept-a", "Frame 6 of 8")
    seen.wait_for_text("kept-b", "Frame 6 of 8: 64 of 64")
    later = re.search(r"Frame 6 of 8.*: (\d+) of 64", seen.text("kept-a"))
    assert first and later and int(first[1]) > int(later[1])  # evs keeps the first frame whole
    seen.shoot("video")
    seen.ask(seen.page.locator("[data-example='images/1']").click)
    seen.wait_for_text("preview", "Picture: images/1")
    assert seen.text("kept-b") == "256 of 256 visual tokens kept" and "colour" in seen.text("asked")
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
    seen.ask(seen.page.locator("[data-example='images/1']").click)
    seen.wait_for_text("preview", "images/1")
    seen.paste("a", "kcenter:keep=48,rule=max-sum")
    seen.wait_for_spec("a", "kcenter:keep=48,rule=max-sum")
    seen.page.get_by_label("Question", exact=True).fill("What does the sign say & why?")
    seen.ask()
    seen.tab("Sweep")
    seen.page.get_by_label("benchmark questions", exact=True).check()
    seen.page.locator("#vtc-sweep-keeps input, #vtc-sweep-keeps textarea").fill("0.75, 12")
    seen.page.wait_for_function("new URLSearchParams(location.search).get('keeps') === '0.75, 12'")
    linked = seen.page.url
    seen.tab("Settings")
    seen.page.wait_for_function("!location.search.includes('tab=')")
    seen.page.click("#vtc-copy-link")
    seen.page.get_by_role("button", name="Copied").wait_for()
    link = seen.page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(seen.address) and "kcenter" in link and link == seen.page.url
    answers = seen.answer("a"), seen.answer("b"), seen.number("kept_tokens")
    other = visit().open(link.removeprefix(seen.address))
    other.wait_for_spec("a", "kcenter:keep=48,rule=max-sum")
    other.wait_for_text("preview", "images/1")
    assert other.page.get_by_label("Question", exact=True).input_value() == "What does the sign say & why?"
    other.page.get_by_label("A: rule", exact=True).wait_for()
    assert (other.answer("a"), other.answer("b"), other.number("kept_tokens")) == answers
    third = visit().go(linked.removeprefix(seen.address))
    third.page.wait_for_selector("#vtc-sweep")
    assert third.page.locator("#vtc-sweep-keeps input, #vtc-sweep-keeps textarea").input_value() == "0.75, 12"
    assert third.page.get_by_label("benchmark questions", exact=True).is_checked()
    seen.page.click("#vtc-copy-Python")
    seen.page.wait_for_function("navigator.clipboard.readText().then((text) => text.startsWith('import vtc'))")
    python = seen.page.evaluate("navigator.clipboard.readText()")
    assert "'kcenter:keep=48,rule=max-sum'" in python and "example('images/1')" in python
    seen.page.click("#vtc-copy-command")
    seen.page.wait_for_function("navigator.clipboard.readText().then((text) => text.startsWith('vtc ask'))")
    command = seen.page.evaluate("navigator.clipboard.readText()")
    assert "--example images/1 '--question=What does the sign say & why?'" in command
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
    seen.ask(lambda: page.keyboard.press("Enter"))
    seen.wait_for_text("preview", "images/1")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.example") == "images/3"
    page.locator("[data-spec^='fastv']").focus()
    seen.ask(lambda: page.keyboard.press("Enter"))
    assert page.evaluate("document.activeElement.dataset.spec") == "fastv:keep=0.25"
    page.get_by_label("Question", exact=True).focus()
    seen.ask(lambda: page.keyboard.press("Enter"))
    assert "medians of" in seen.open_numbers().text("numbers")
    page.locator("#vtc-layer-a input[type=range]").focus()
    page.keyboard.press("Home")
    seen.wait_for_text("kept-a", "Before layer 0 of 8")
    tabs = page.get_by_role("tab")
    tabs.first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.get_by_role("tab", selected=True).first.inner_text() == "Code"


def check_everything_has_a_name(seen):
    """Pictures have words, and whatever takes input has a label."""
    for tab in ("Settings", "Code", "Sweep", "All methods"):
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


#: What a first screen has to have, by the names under which it is looked for.
FIRST_SCREEN = {
    "title": ".vtc-title h1",
    "sentence": ".vtc-title p",
    "question": "#vtc-asked strong",
    "picture A": "#vtc-kept-a img",
    "picture B": "#vtc-kept-b img",
    "answer A": "#vtc-answer-a .vtc-answer",
    "answer B": "#vtc-answer-b .vtc-answer",
}
#: Of each: its box in the window, and whether it is what one sees in its middle.
BOXES = """(wanted) => Object.fromEntries(Object.entries(wanted).map(([name, selector]) => {
  const each = document.querySelector(selector), box = each.getBoundingClientRect();
  const top = document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2);
  return [name, [box.left, box.top, box.right, box.bottom, each.contains(top)]];
}))"""
#: Whatever can be used that lies above a result, or comes before the last of them by the keyboard.
CONTROLS_BEFORE = """([a, b]) => {
  const results = [document.querySelector(a), document.querySelector(b)], last = results[1];
  const right = Math.max(...results.map((each) => each.closest('.vtc-result, body').getBoundingClientRect().right));
  const bottom = Math.max(...results.map((each) => each.getBoundingClientRect().bottom));
  return [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [role], [tabindex]')]
    .filter((each) => each.matches('a, button, input, select, textarea, summary, [role=tab], [role=button],'
      + ' [role=slider], [role=combobox], [role=listbox], [tabindex="0"]'))
    .filter((each) => each.checkVisibility({ visibilityProperty: true }) && each.getBoundingClientRect().height > 1)
    .filter((each) => {
      const box = each.getBoundingClientRect();
      const above = box.top < bottom && box.left < right;
      return above || !(last.compareDocumentPosition(each) & Node.DOCUMENT_POSITION_FOLLOWING);
    }).map((each) => each.outerHTML.slice(0, 100));
}"""


@pytest.fixture(scope="module")
def opening(loaded):
    """What the model itself says of what the page opens with, by side: its answer, and its tokens in the last layer."""
    kind, question = example("images/6")
    inputs = loaded.inputs([question.shown()], [question.text])
    said = {}
    for side, spec in (("a", "divprune:keep=0.25"), ("b", "none")):
        with vtc.patched(loaded.model, spec):
            ids = loaded.model.generate(**inputs, max_new_tokens=64, do_sample=False)
            tokens = int(vtc.trace(loaded.model).tokens_per_layer[-1, 0])
        said[side] = loaded.answers(ids, inputs)[0], tokens
    assert kind == "image" and said["a"][1] < said["b"][1]
    return question.text, said


@product(size=[(1280, 800), (390, 844)], scheme=["light", "dark"])
def test_the_first_screen_says_what_it_is_and_shows_two_answers_and_two_pictures(visit, opening, size, scheme):
    """Nobody touches anything: no click, no key, no scrolling."""
    width, height = size
    question, said = opening
    seen = visit(width=width, height=height, color_scheme=scheme).go("")
    for side, (answer, tokens) in said.items():
        seen.page.locator(f"#vtc-answer-{side} .vtc-answer").wait_for(timeout=60_000)
        seen.page.locator(f"#vtc-kept-{side} img[alt*='{tokens} of 256 visual tokens kept']").wait_for(timeout=60_000)
        assert seen.answer(side) == answer
    assert seen.text("asked") == f"Question {question}"
    assert "visual tokens" in seen.page.locator("h1").inner_text()
    assert "same weights" in seen.page.locator(".vtc-title p").inner_text()
    assert seen.text("heading-a").startswith("A compressed by divprune") and seen.text("heading-b") == "B untouched"
    boxes = seen.page.evaluate(BOXES, FIRST_SCREEN)
    for name, (left, top, right, bottom, is_on_top) in boxes.items():
        assert 0 <= left < right <= width and 0 <= top < bottom <= height and is_on_top, f"{name}: {boxes[name]}"
        assert "picture" not in name or min(right - left, bottom - top) >= 150, f"{name} is small: {boxes[name]}"
    assert not seen.page.evaluate(CONTROLS_BEFORE, [FIRST_SCREEN["answer A"], FIRST_SCREEN["answer B"]])
    assert seen.page.evaluate("[document.documentElement.scrollWidth, window.scrollY]") == [width, 0]
    assert not seen.poor_contrasts(first_screen=True)
    seen.shoot(f"first-{scheme}-{width}", full_page=False)


def test_while_the_model_answers_the_page_says_so_and_shows_what_it_is_asked_about(visit):
    seen, held, free = visit(), [], threading.Event()
    seen.page.route("**/queue/join*", lambda route: route.continue_() if free.is_set() else held.append(route))
    seen.go("")
    for side in "ab":
        seen.wait_for_text(f"answer-{side}", "The model is answering")
        assert seen.page.locator(f"#vtc-kept-{side} img[alt='Picture: images/6']").is_visible()
    assert seen.text("status") == "The model is answering …" and seen.text("verdict").count("…") == 4
    for _ in range(200):  # the page may say so a little before it asks
        if held:
            break
        seen.page.wait_for_timeout(50)
    assert held
    free.set()
    for each in held:
        each.continue_()
    seen.page.locator("#vtc-answer-b .vtc-answer").wait_for()


def test_one_click_tries_another_method_and_says_what_came_of_it(visit):
    seen = visit().open()
    seen.ask(seen.page.locator("[data-spec='fastv:keep=0.25']").click)
    seen.wait_for_spec("a", "fastv:keep=0.25")
    assert seen.text("heading-a") == "A compressed by fastv:keep=0.25"
    assert seen.text("kept-a") == "After the last layer: 64 of 256 visual tokens kept"
    same = "The same answer." if seen.answer("a") == seen.answer("b") else "Different answers."
    assert seen.text("verdict").startswith(same)
    shares = dict(zip(("equivalent", "flops", "kv", "ttft"), seen.page.locator("#vtc-verdict dd").all_inner_texts()))
    for name, share in shares.items():
        assert re.fullmatch(r"\d+(\.\d)? %", share)
        assert abs(float(share[:-2]) - 100 * float(seen.number(name)[2])) <= 1  # as the table has it
    pressed = seen.page.locator("[data-spec][aria-pressed=true]")
    assert pressed.all_inner_texts() == ["fastv 25 %"]
    seen.paste("a", "divprune:keep=0.3")
    seen.wait_for_spec("a", "divprune:keep=0.3")
    pressed.wait_for(state="detached")


@product(width=[360, 1280], scheme=["light", "dark"])
def test_it_fits_a_phone_is_legible_in_light_and_dark_and_has_words(visit, scheme, width):
    seen = visit(width=width, height=800, color_scheme=scheme).open()
    seen.open_numbers()
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert not seen.poor_contrasts()
    seen.shoot(f"{scheme}-{width}")
    if width > 1000:  # where the tabs are not in a menu
        check_everything_has_a_name(seen)
