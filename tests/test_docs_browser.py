"""The documentation's site in a real browser, read from the disk; screenshots are left in build/docs-shots."""

from pathlib import Path

import pytest
from chromium import NEEDED
from covering import REST
from site_build import ROOT

pytestmark = NEEDED
SHOTS = ROOT / "build" / "docs-shots"
PATIENCE = 120_000
#: Looked at in each test run, and by whoever changes the site: build/docs-shots has a picture of each.
FEW = ("index", "methods/divprune", "reference/patching", "performance")

#: What sticks out of the window to the right, but for what lies in something that scrolls.
WIDE = """() => {
  const scrolls = (e) => e && e !== document.body &&
    (["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  return [...document.querySelectorAll(".md-container *, .md-header *")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > innerWidth + 1 && box.left < innerWidth && !scrolls(e);
  }).map((e) => `${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 40)}`);
}"""

#: Words whose contrast with what lies behind them is below 4.5, WCAG's AA.
FAINT = """() => {
  const channels = (text) => {
    const numbers = text.match(/[\\d.]+/g).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [...numbers.slice(0, 3).map((n) => n * scale), numbers[3] ?? 1];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
  const behind = (e) => {
    if (!e) return [255, 255, 255];
    const own = channels(getComputedStyle(e).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(e.parentElement));
  };
  const light = (c) => c.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = {};
  for (const e of document.querySelectorAll(".md-header *, .md-tabs *, .md-sidebar *, .md-content *")) {
    const words = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join("");
    const style = getComputedStyle(e);
    if (!words || !e.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (e.matches(".headerlink, .md-clipboard, [hidden] *") || parseFloat(style.fontSize) === 0) continue;
    let opacity = 1;
    for (let at = e; at; at = at.parentElement) opacity *= getComputedStyle(at).opacity;
    const back = behind(e), colour = channels(style.color);
    const seen = over([...colour.slice(0, 3), colour[3] * opacity], back);
    const [low, high] = [light(seen), light(back)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) found[`${e.tagName}.${e.className}`] = `${contrast.toFixed(2)} ${words.slice(0, 30)}`;
  }
  return found;
}"""


@pytest.fixture
def look(browser, site):
    """Opens pages of the site; in the end nothing may have come from elsewhere, and nothing gone wrong."""
    elsewhere, errors, contexts = [], [], []

    def start(width, scheme):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda each: each.url.startswith(("file:", "data:", "blob:")) or elsewhere.append(each.url))
        page.on("requestfailed", lambda each: errors.append(f"{each.url} is missing"))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type in ("error", "warning") else None)
        return page

    yield start
    for context in contexts:
        context.close()
    assert not elsewhere and not errors


def names(site: Path) -> list[str]:
    """All pages but that which a server shows for what is missing."""
    return sorted({str(file.relative_to(site).with_suffix("")) for file in site.rglob("*.html")} - {"404"})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("wanted", [pytest.param(FEW, id="few"), pytest.param(None, id="all", marks=REST)])
def test_pages_fit_the_window_and_can_be_read(wanted, width, scheme, site, look):
    page = look(width, scheme)
    faults = {}
    for name in wanted or names(site):
        page.goto(f"file://{site}/{name}.html")
        root = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        found = {"wide": page.evaluate(WIDE), "faint": page.evaluate(FAINT), "scrolls": max(root, 0)}
        pictures = "[...document.images].filter((e) => !e.complete || !e.naturalWidth).map((e) => e.src)"
        found["pictures"] = page.evaluate(pictures)
        faults |= {f"{name} {what}": each for what, each in found.items() if each}
        if name in FEW:
            SHOTS.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=SHOTS / f"{name.replace('/', '-')}-{width}-{scheme}.png")
    assert not faults


def test_what_does_not_fit_and_what_is_faint_is_found(site, look):
    page = look(390, "light")
    page.goto(f"file://{site}/index.html")
    page.evaluate(
        "document.querySelector('article').innerHTML += '<div><p style=\"width: 500px; color: #999\">Wide</p></div>'"
    )
    assert page.evaluate(WIDE) and page.evaluate(FAINT)


def test_the_search_finds_a_method_without_a_server(site, look):
    page = look(1280, "light")
    page.goto(f"file://{site}/guide/use.html")
    page.click(".md-search__input")
    page.keyboard.type("divprune")
    page.wait_for_selector(".md-search-result__item")
    found = page.eval_on_selector_all(".md-search-result__link", "links => links.map((link) => link.href)")
    assert any("/methods/divprune.html" in each for each in found)
    assert any("/reference/selectors.html" in each for each in found)


def test_the_colours_follow_the_system_and_a_button_turns_them(site, look):
    page = look(1280, "dark")
    page.goto(f"file://{site}/index.html")
    shown = "document.body.dataset.mdColorScheme"
    assert page.evaluate(shown) == "slate"
    page.click("label[title='Use the light colours']")
    assert page.evaluate(shown) == "default"
    page.goto(f"file://{site}/performance.html")
    assert page.evaluate(shown) == "default"
