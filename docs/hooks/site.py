"""What the site needs beside its pages, done by MkDocs while it builds (`hooks:` in mkdocs.yml).

The folders of a checkout are not the packages (`package-dir` in pyproject.toml), so mkdocstrings reads them beside the
site, in `build/site-sources`, where they are laid out as they are installed. A page that begins with
`<!-- include: FILE -->` is that file of the repository, so that nothing stands twice; `<!-- reference: FOLDER -->` is
the reference of what is public in it; and a folder in the navigation stands for its pages.
"""

import ast
import posixpath
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority

ROOT = Path(__file__).parents[2]

_INCLUDE = re.compile(r"\A<!-- include: (\S+) -->\n")
_REFERENCE = re.compile(r"^<!-- reference: ([\w.]+) -->$", re.MULTILINE)
_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")
_KIND = re.compile(r"^Kind: (\w+)", re.MULTILINE)


@event_priority(100)  # in front of mkdocstrings, which reads its paths there
def on_config(config: Any) -> None:
    """Lay out the packages, and put the pages of folders into the navigation."""
    docs, sources = Path(config.docs_dir), Path(f"{config.site_dir}-sources")
    lay_out(sources)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(sources)]
    config.nav = [{title: _by_kind(docs, entry)} if str(entry).endswith("/") else {title: entry}
                  for part in config.nav for title, entry in part.items()]  # fmt: skip


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put in the place of a marker what it stands for."""
    if (found := _INCLUDE.match(markdown)) is not None:
        return included(found[1], page.file.src_uri, {file.src_uri for file in files}, Path(config.docs_dir))
    return _REFERENCE.sub(lambda found: "\n\n".join(f"::: {name}" for name in names_of(found[1])), markdown)


def lay_out(folder: Path) -> None:
    """Copy the packages' sources to where they would be installed."""
    shutil.rmtree(folder, ignore_errors=True)
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    homes = {name: ROOT / source for name, source in setuptools["package-dir"].items()}
    for package in setuptools["packages"]:
        top = max((name for name in homes if f"{package}.".startswith(f"{name}.")), key=len)
        inside = folder / package.replace(".", "/")
        inside.mkdir(parents=True, exist_ok=True)
        for file in (homes[top] / package.removeprefix(top).strip(".").replace(".", "/")).glob("*.py*"):
            shutil.copy(file, inside)


def names_of(folder: str) -> Iterator[str]:
    """Full names of what is public in a folder, such as "selectors"; of "adapters" what the entry points name."""
    if folder == "adapters":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        named = [path.replace(":", ".") for path in project["entry-points"]["vtc.adapters"].values()]
        yield from (path for path in named if path != "vtc.adapters.generic.Adapter")
    for row in ast.parse((ROOT / "vtc" / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(row, ast.ImportFrom) and f"{row.module}.".startswith(f"vtc.{folder}."):
            yield from (f"vtc.{alias.name}" for alias in row.names)


def included(file: str, page: str, pages: set[str], docs: Path) -> str:
    """A file of the repository as the text of a page, its links turned to where they lead from there.

    Args:
        file: path in the repository.
        page: path of the page in the docs.
        pages: paths of all pages and pictures.
        docs: folder of the docs.

    Raises:
        PluginError: there is no such file, or it links to what the site has not.
    """
    homes = {f"docs/{each}": each for each in pages}
    homes |= {source: each for each in pages if each.endswith(".md") and (source := _source(docs / each))}

    def turned(link: re.Match[str]) -> str:
        path, anchor = re.fullmatch(r"([^#]*)(#.*)?", link[2]).groups(default="")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        if target not in homes:
            raise PluginError(f"{file}, which is {page} of the site, links to {link[2]}, which the site has not")
        return link[1] + posixpath.relpath(homes[target], posixpath.dirname(page) or ".") + anchor

    if not (ROOT / file).is_file():
        raise PluginError(f"{page} includes {file}, which is missing")
    return _LINK.sub(turned, (ROOT / file).read_text(encoding="utf-8"))


def _source(page: Path) -> str | None:
    """The file that a page includes."""
    found = _INCLUDE.match(page.read_text(encoding="utf-8"))
    return found and found[1]


def _by_kind(docs: Path, folder: str) -> list[Any]:
    """A folder's index, then its pages by their kind."""
    pages = sorted(path for path in (docs / folder).glob("*.md") if path.name != "README.md")
    kinds: dict[str, list[Any]] = {}
    for path in pages:
        kind = _KIND.search(path.read_text(encoding="utf-8"))
        kinds.setdefault(f"{kind[1].capitalize()}s" if kind else "Others", []).append(f"{folder}{path.name}")
    return [f"{folder}README.md", *({kind: kinds[kind]} for kind in sorted(kinds, reverse=True))]
