"""What is published: sdist and wheel with everything and nothing else, and the files that tell about a release."""

import datetime
import importlib.metadata
import re
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import dist
import pytest
import yaml
from dist import PROJECT, ROOT
from markdown_it import MarkdownIt
from packaging.version import Version

import vtc
from vtc.method.registry import shipped
from vtc.tested import TESTED

VERSION = PROJECT["project"]["version"]
#: Stands at the end of README.md where the wheel is built here: everything that leads into the repository.
INNER = """
[a page](docs/methods/README.md#top) and ![a picture](docs/ask.png "with a title"), [![both](docs/a.png)](docs/b.md)

<img src="docs/figure.png" width="10">

`[code](stays.md)` and [a paper](https://arxiv.org/abs/2503.02175)

```python
shown = pictures[0](docs)
```
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """sdist and wheel, from a copy of the checkout whose README ends with `INNER`."""
    source = dist.copy(tmp_path_factory.mktemp("source"))
    (source / "README.md").write_text((source / "README.md").read_text() + INNER)
    return dist.build(source, tmp_path_factory.mktemp("built") / "dist", "--no-isolation")


@pytest.fixture(scope="module")
def metadata(built) -> Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(built[1]) as archive:
        return message_from_bytes(archive.read(f"vtc-{VERSION}.dist-info/METADATA"))


# ---------------------------------------------------------------- sdist and wheel


def test_sdist_and_wheel_hold_what_git_tracks_of_the_packages_and_nothing_else(built):
    sdist, wheel = built
    assert dist.faults_of_sdist(sdist) == [] and dist.faults_of_wheel(wheel) == []
    assert wheel.name == f"vtc-{VERSION}-py3-none-any.whl" and wheel.stat().st_size < 30e6


def test_what_is_missing_changed_or_too_much_in_a_wheel_is_found(built, tmp_path):
    other = tmp_path / built[1].name
    with zipfile.ZipFile(built[1]) as whole, zipfile.ZipFile(other, "w") as archive:
        for name in whole.namelist():
            if name != "vtc/presets.toml":
                archive.writestr(name, b"" if name == "vtc/spec.py" else whole.read(name))
        archive.writestr("tests/test_dist.py", b"")
    said = ["vtc/presets.toml is missing", "tests/test_dist.py does not belong there"]
    assert dist.faults_of_wheel(other) == [*said, "vtc/spec.py is not what vtc/spec.py is"]


def test_the_packages_hold_every_kind_of_file_that_is_needed():
    names = [Path(name) for name in dist.packaged()]
    endings = {".py", ".pyi", ".toml", ".safetensors", ".yaml", ".j2", ".css", ".js", ".cu", ".cuh", ".jinja"}
    assert endings <= {name.suffix for name in names} and "py.typed" in {name.name for name in names}


# ---------------------------------------------------------------- metadata


def test_the_version_stands_in_one_place(metadata):
    assert metadata["Version"] == VERSION == importlib.metadata.version("vtc") == vtc.__version__
    assert "__version__" in dir(vtc)
    held = [file for file in dist.packaged().values() if file.endswith(".py")]
    assert not [file for file in held if re.search(r"^__version__\s*=", (ROOT / file).read_text(), re.M)]


def test_the_metadata_tell_what_is_true(metadata):
    assert metadata["License-Expression"] == "Apache-2.0" and metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Description-Content-Type"] == "text/markdown" and not metadata.get_all("Project-URL")
    classifiers = [each.rpartition(" ")[2] for each in metadata.get_all("Classifier") if "Python :: 3." in each]
    tested = TESTED["python"]
    assert (classifiers[0], classifiers[-1]) == (tested.oldest, tested.newest)
    assert metadata["Requires-Python"] == f">={tested.oldest}"


def test_the_page_of_an_index_leads_nowhere_that_is_not_there(metadata):
    """Whatever a Markdown reader takes for a link or a picture has an address of its own."""
    text = metadata.get_payload()
    inner = [token for block in MarkdownIt("commonmark").parse(text) for token in block.children or ()]
    targets = [str(token.attrs[key]) for token in inner for key in ("href", "src") if key in token.attrs]
    assert "https://arxiv.org/abs/2503.02175" in targets
    assert all(target.startswith("https://") for target in targets), targets
    assert all(target.startswith("https://") for target in re.findall(r'(?:href|src)="([^"]*)"', text))
    assert "a page and" in text and "`[code](stays.md)`" in text and "shown = pictures[0](docs)" in text


# ---------------------------------------------------------------- what tells about a release


def changelog() -> dict[str, str]:
    """Heading of each release -> what stands below it, newest first."""
    parts = re.split(r"^## \[(.+)\](?: - (\S+))?\n", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1:]
    return {f"{name} {date or ''}".strip(): text for name, date, text in zip(*[iter(parts)] * 3)}


def test_the_changelog_has_the_form_and_begins_with_this_release():
    names = list(changelog())
    assert names[0] == "Unreleased" and names[1].partition(" ")[0] == VERSION
    versions, dates = zip(*(name.split(" ") for name in names[1:]))
    assert list(map(Version, versions)) == sorted(map(Version, versions), reverse=True)
    days = list(map(datetime.date.fromisoformat, dates))
    assert days == sorted(days, reverse=True)
    for text in changelog().values():
        sections = re.findall(r"^### (.+)$", text, re.M)
        assert set(sections) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
        assert len(set(sections)) == len(sections)


def test_the_changelog_names_every_method():
    text = "".join(changelog().values())
    assert [name for name in shipped() if name != "none" and f"`{name}`" not in text] == []


def test_the_citation_is_valid_and_of_this_release():
    """The keys that version 1.2.0 of the format requires, and what it lets an author be."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["message"] and cited["title"]
    assert cited["type"] in ("software", "dataset")
    assert cited["authors"] == [{"name": "The vtc authors"}], "an entity: no person is invented"
    assert cited["version"] == VERSION and cited["license"] == PROJECT["project"]["license"]
    assert f"{VERSION} {cited['date-released']}" == list(changelog())[1]
    datetime.date.fromisoformat(cited["date-released"])
    known = {"cff-version", "message", "type", "title", "abstract", "authors", "version", "date-released", "license"}
    assert set(cited) <= {*known, "keywords"}


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CITATION.cff", "SECURITY.md", "examples/README.md"])
def test_links_lead_to_what_is_there(name):
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text()):
        known = target.startswith(("https://keepachangelog.com/", "https://semver.org/", "https://arxiv.org/"))
        assert known or ((ROOT / name).parent / target).exists(), target


# ---------------------------------------------------------------- .github


def github(path: str) -> dict:
    return yaml.load((ROOT / ".github" / path).read_text(), Loader=yaml.BaseLoader)


def test_the_workflow_runs_what_ci_runs_on_the_documented_pythons():
    workflow = github("workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert {"push", "pull_request"} == set(workflow["on"])
    jobs = workflow["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert "bash .ci/run" in [step.get("run") for step in jobs["checks"]["steps"]] and (ROOT / ".ci" / "run").is_file()
    assert jobs["checks"]["steps"][0]["with"]["fetch-depth"].startswith("0")
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    pythons = jobs["wheel"]["strategy"]["matrix"]["python-version"]
    assert (pythons[0], pythons[-1]) == (TESTED["python"].oldest, TESTED["python"].newest)
    (trying,) = [step["run"] for step in jobs["wheel"]["steps"] if "dist.py" in step.get("run", "")]
    assert (ROOT / trying.split()[1]).is_file()


@pytest.mark.parametrize("name", sorted(file.name for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")))
def test_issue_forms_ask_what_is_needed(name):
    form = github(f"ISSUE_TEMPLATE/{name}")
    if name == "config.yml":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids) and all(field["attributes"]["label"] for field in fields)
    assert {field["type"] for field in form["body"]} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    if name != "request.yml":
        assert {"doctor", "spec", "transformers"} <= set(ids)
