"""The links of the documentation lead somewhere, and its site is built strictly and has every public name."""

import re
import unicodedata
import zlib
from typing import is_typeddict

import pytest
from covering import REST
from site_build import DOCS, ROOT, mkdocs

import vtc
import vtc.ops as vtc_ops
from vtc.eval.results import records, results
from vtc.method import registry

TEXTS = sorted(
    {*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "eval").glob("*/README.md"), *(ROOT / "examples").glob("*.md")}
)


def name(page):
    return str(page.relative_to(ROOT))


# ---------------------------------------------------------------- on the disk


def prose(page):
    """A page without its code."""
    text = re.sub(r"^( *)(`{3,})[^\n]*\n.*?^\1\2 *$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "code", text)


def headings(page):
    text = re.sub(r"^( *)(`{3,})[^\n]*\n.*?^\1\2 *$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", found) for found in re.findall(r"^#+ (.+)$", text, re.M)]


def anchors(page):
    """Those that the site gives, of which GitHub gives the same; in the reference also the names."""
    site = [unicodedata.normalize("NFKD", each).encode("ascii", "ignore").decode() for each in headings(page)]
    site = [re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", each).strip().lower()) for each in site]
    github = [re.sub(r"[^\w\- ]", "", each.strip().lower()).replace(" ", "-") for each in headings(page)]
    text = page.read_text(encoding="utf-8")
    folders = tuple(f"vtc.{folder}." for folder in re.findall(r"^<!-- reference: (\w+) -->$", text, re.M))
    listed = {f"vtc.{name}" for name, module in registry.HOMES.items() if module.startswith(folders)}
    return ({*site} & {*github}) | {*re.findall(r"^::: (\S+)$", text, re.M)} | listed


def links(page):
    text = prose(page)
    return [
        *re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", text.replace("](code)", "](#)")),
        *re.findall(r"""<(?:a|img|source)[^>]*?(?:href|src|srcset)=["']([^"']+)""", text),
    ]


def faults(page):
    """Links of a page that lead nowhere."""
    for link in links(page):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists():
            yield f"{name(page)}: {link} leads nowhere"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield f"{name(page)}: {link}: no such heading in {name(file)}, or GitHub and the site call it differently"


def test_every_link_leads_somewhere():
    assert not [fault for page in TEXTS for fault in faults(page)]
    assert sum(len(links(page)) for page in TEXTS) > 100


@pytest.mark.parametrize(
    "text", ["[a](b.md)", "[a](#b)", "![a](b.png)", '<img width="3" src="b.png">', "[a](docs/performance.md#no-wait)"]
)
def test_a_link_that_leads_nowhere_is_found(text, monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "docs").symlink_to(DOCS)
    page.write_text(
        f"# A\n\n```sh\n[a](c.md)\n```\n\n{text} and [b](#a), [c](docs/performance.md#no-waiting), `[d](d.md)`\n"
    )
    monkeypatch.setitem(globals(), "name", str)
    assert len(list(faults(page))) == 1


def told_otherwise(text):
    """Lines that GitHub shows as a list or a table, or as a part of one, and Python-Markdown does not."""
    before, fence, inside = "", None, False
    for number, line in enumerate(text.splitlines(), 1):
        indent, item = len(line) - len(line.lstrip()), re.match(r" *([-*+]|\d+[.)]) ", line)
        if fence is None or not line.strip():
            if item is None and indent == 0 and line.strip():
                inside = False
            if (
                (item or line.lstrip().startswith("```") or not before.strip())
                and inside
                and indent % 4
                and line.strip()
            ):
                yield f"line {number}: what is in a list is indented by four"
            if item and not inside and before.strip() and not before.startswith("#"):
                yield f"line {number}: a list begins behind an empty line"
            if line.startswith("|") and before.strip() and not before.startswith(("|", "#")):
                yield f"line {number}: a table begins behind an empty line"
            inside = inside or item is not None
        opened = re.match(r" *(`{3,})", line)
        if opened:
            fence = opened[1] if fence is None else None if opened[1] == fence else fence
        before = line


@pytest.mark.parametrize("page", [page for page in TEXTS if page.is_relative_to(DOCS)], ids=name)
def test_lists_and_tables_are_written_so_that_site_and_github_show_them_alike(page):
    included = re.match(r"<!-- include: (\S+) -->", page.read_text(encoding="utf-8"))
    text = (ROOT / included[1] if included else page).read_text(encoding="utf-8")
    assert not list(told_otherwise(text))


@pytest.mark.parametrize(
    "text", ["a\n- b", "- b\n\n  c", "1. b\n\n   ```\n   ```", "- a\n  - b", "text\n| a |\n|---|\n| b |"]
)
def test_a_list_that_the_site_shows_otherwise_is_found(text):
    assert len(list(told_otherwise(f"{text}\n"))) >= 1
    assert not list(told_otherwise("# a\n- b\n  goes on\n\n    c\n\n    - d\n\ntext\n\n| a |\n|---|\n| b |\n"))


# ---------------------------------------------------------------- the site


def test_the_site_is_built_without_a_warning_and_has_every_public_name(site):
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    documented = {line.split()[0] for line in inventory.splitlines()}
    assert {f"vtc.{name}" for name in vtc.__all__} <= documented
    assert {f"vtc.ops.{name}" for name in vtc_ops.__all__} <= documented


def test_links_of_an_included_file_lead_to_pages_of_the_site(site):
    assert 'href="embedded.html"' in (site / "models" / "clips.html").read_text(encoding="utf-8")


def test_every_method_and_every_kind_of_result_is_in_the_reference(site):
    texts = "".join(file.read_text(encoding="utf-8") for file in (site / "reference").glob("*.html"))
    for each in registry.shipped():
        assert f'id="vtc.{registry.method_class(each).__name__}"' in texts
    for module in (results, records):
        for each in vars(module).values():
            if is_typeddict(each) and each.__module__ == module.__name__:
                assert f'id="{each.__module__}.{each.__name__}"' in texts, each


FAULTS = {
    "a link": "[a](b.md)",
    "an anchor": "[a](#b)",
    "an anchor elsewhere": "[a](b/c.md#d)",
    "an anchor of the reference": "[a](reference.md#vtc.pach)",
    "a picture": "![a](b.png)",
    "an absolute link": "[a](/b/c.md)",
    "a link out of the docs": "[a](../mkdocs.yml)",
    "a name": "::: vtc.pach",
    "a cross-reference": "[vtc.pach][]",
    "a page in no entry": None,
    "a link in an included file": "<!-- include: eval/clips/README.md -->",
    "an included file": "<!-- include: eval/clip/README.md -->",
}


def small_site(folder, text):
    """A site of three pages, the first of which says something."""
    (folder / "docs" / "b").mkdir(parents=True, exist_ok=True)
    (folder / "docs" / "index.md").write_text(text + "\n" if text.startswith("<!--") else f"# Small\n\n{text}\n")
    (folder / "docs" / "b" / "c.md").write_text("# C\n")
    (folder / "docs" / "reference.md").write_text("# Reference\n\n::: vtc.patch\n::: vtc.adapters.generic.Adapter\n")
    config = folder / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: [{DOCS / 'hooks' / 'site.py'}]\n"
        "extra_css: []\nextra: {polyfills: []}\nexclude_docs: hooks/\n"
        "nav: [{Home: index.md}, {C: b/c.md}, {Reference: reference.md}]\n"
    )
    return mkdocs(config, folder / "site")


def test_a_small_site_without_a_fault_is_built(tmp_path):
    built = small_site(tmp_path, "[a](b/c.md#c), [b](reference.md#vtc.patch), [vtc.patch][]")
    assert built.returncode == 0, built.stderr


@pytest.mark.parametrize("fault", [*list(FAULTS)[:2], *(pytest.param(each, marks=REST) for each in list(FAULTS)[2:])])
def test_a_site_with_a_fault_is_not_built(fault, tmp_path):
    if FAULTS[fault] is None:
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "more.md").write_text("# More\n")
    built = small_site(tmp_path, FAULTS[fault] or "")
    assert built.returncode, f"{fault} passes"
    assert "Traceback" not in built.stderr
