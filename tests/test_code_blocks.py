"""Every code block of README, CONTRIBUTING and documentation does what it says (`code_blocks.py` tells how)."""

import re
from pathlib import Path

import code_blocks
import pytest
from code_blocks import METHODS, PAGES, ROOT, SKIPPED, document, every_command
from code_place import build, given
from command_readers import PROJECT, read
from covering import REST
from demo_server import server
from eval_runs import made_once
from video_files import needs_ffmpeg

import vtc
from vtc.eval.cli import main
from vtc.method import registry

COMMANDS = every_command()
#: What takes longer than ten seconds, or is much like what is run anyway: run with --all.
LONG = (r"vtc doctor", r"vtc eval .*--tokens", r"vtc eval .*--keep [^,]+,[^,]+,", r"vtc recipe run", r"vtc bench")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def is_rest(command: code_blocks.Command) -> bool:
    pages_of_methods = command.page.startswith("docs/methods/") and not command.page.endswith("/divprune.md")
    return pages_of_methods or any(re.match(pattern, command.text) for pattern in LONG)


def cases(commands):
    return [pytest.param(each, id=f"{each.page}:{each.line}", marks=REST if is_rest(each) else ()) for each in commands]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return made_once(tmp_path_factory, "code-blocks", build)


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """A folder of this test's own that holds what pages name."""
    for entry in place.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "runs").unlink()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(place / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def registered():
    """Methods that a page registers are forgotten behind it."""
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)


@pytest.fixture(scope="module")
def demo():
    with server() as running:
        yield running


#: What pages say where the demo listens.
ADDRESS = "http://127.0.0.1:7860/"


def page_cases():
    """Those with blocks that ask a demo are run with --all."""
    for page in PAGES:
        if page.parent != METHODS:
            asks = f'"{ADDRESS}"' in page.read_text(encoding="utf-8")
            yield pytest.param(page, id=name(page), marks=REST if asks else ())


@needs_ffmpeg
@pytest.mark.parametrize("page", list(page_cases()))
def test_blocks_of_a_page_run_in_turn(page, here, registered, request, monkeypatch):
    examples = list(document(page))
    if f'"{ADDRESS}"' in page.read_text(encoding="utf-8"):
        address = request.getfixturevalue("demo").address
        monkeypatch.setitem(code_blocks.SHORTER_PYTHON, re.escape(ADDRESS), address)
    if any(example.region.lexemes.get("language") == "python" for example in examples):
        examples[0].namespace.update(given())
    for example in examples:
        example.evaluate()


@pytest.fixture(scope="module")
def names():
    return given()


@pytest.mark.parametrize("page", sorted(METHODS.glob("*.md")), ids=name)
def test_blocks_of_a_methods_page_work_or_are_refused_with_a_reason(page, names):
    for example in document(page):
        example.namespace.update(names)
        example.evaluate()


@needs_ffmpeg
@pytest.mark.parametrize("command", cases(each for each in COMMANDS if each.why_read_only is None))
def test_a_command_runs(command, here, capsys):
    words = [match for word in command.words(shorter=True) for match in expanded(word, here)]
    code = main(words[1:])
    assert code == 0, capsys.readouterr().err


def expanded(word, folder):
    """As the shell does it."""
    return sorted(str(file.relative_to(folder)) for file in folder.glob(word)) if "*" in word else [word]


@needs_ffmpeg
@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if each.why_read_only], ids=lambda each: f"{each.page}:{each.line}"
)
def test_a_command_that_is_not_run_can_be_read(command, here):
    read(command.words())


def test_extras_that_a_text_names_exist():
    for page in PAGES:
        for extras in re.findall(r"\bvtc\[([\w,-]+)\]", page.read_text(encoding="utf-8")):
            assert {*extras.split(",")} <= {*PROJECT["optional-dependencies"]}, f"{name(page)}: vtc[{extras}]"


def test_what_is_skipped_is_listed():
    directive = re.compile(r"^<!--+\s*;?\s*skip", re.M)
    texts = {name(page): page.read_text(encoding="utf-8") for page in PAGES}
    found = {
        f"{page}:{text.count(chr(10), 0, match.start()) + 1}"
        for page, text in texts.items()
        for match in directive.finditer(text)
    }
    assert found == SKIPPED


def test_commands_of_vtc_are_run_but_for_reasons():
    mine = [each for each in COMMANDS if each.text.startswith("vtc ")]
    ran = [each for each in mine if each.why_read_only is None]
    print(f"{len(ran)} of {len(mine)} commands of vtc are run, the others read")
    assert len(ran) > 3 * (len(mine) - len(ran))


FAULTS = {
    "```bash\nvtc methods\n```": "language 'bash'",
    "```\nvtc methods\n```": "language ''",
    "```sh\nvct methods\n```": "nobody knows",
    "```python\nvtc.DivPrune(kep=1)\n```": "kep",
    "```json\n{1}\n```": "Expecting",
    "```toml\na = \n```": "Invalid",
    "```yaml\na: [\n```": "expected",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_block_with_a_fault_fails(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n- a list\n\n    {text.replace(chr(10), chr(10) + '    ')}\n")
    with pytest.raises(Exception, match=re.escape(FAULTS[text])):
        for example in document(page):
            example.namespace["vtc"] = vtc
            example.evaluate()


@pytest.mark.parametrize(
    "text",
    ["vtc eval --methods divprun --device cuda --output x", "vtc sweep --compress fastv:layr=2 --output x",
     "vtc eval --tasks gqaa --output x", "vtc demo --prt 7", "make rum", "make run LIMITS=2", 'pip install "vtc[deno]"',
     "python -m vtc.eval.embeded.gates", "python tests/mutant.py", "accelerate launch -m vtc.eval --modl x --output y",
     "lmms-eval --model llava_h --model_args pretrained=PATH_OR_ID --tasks gqa",
     "lmms-eval --model llava_hf --model_args pretrained=PATH_OR_ID,compress=fastv:layer=2,keep=0.5 --tasks gqa"],
)  # fmt: skip
def test_a_command_with_a_fault_is_found(text):
    with pytest.raises((Exception, SystemExit)):
        read(code_blocks.Command("page.md", 1, text).words())
