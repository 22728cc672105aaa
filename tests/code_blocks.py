"""The code blocks of README, CONTRIBUTING and documentation, and what is done with each.

`python tests/code_blocks.py` prints a line for every command: whether a test runs it or reads it only, and why.

What a page may use without making it itself: the names of `code_place.given` in Python, the files of `code_place.build`
in commands. Python blocks of one page are run in turn in one namespace, as somebody who reads it from the top would; a
block that leaves the model patched leaves it so for the next one.
"""

import ast
import json
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import yaml
from sybil import Document, Example, Lexeme, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

ROOT = Path(__file__).parent.parent
METHODS = ROOT / "docs" / "methods"
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "eval").glob("*/README.md"),
        *(ROOT / "examples").glob("*.md"),
    }
)

#: In a page's words -> what stands there in the folder where its commands run (`code_place.build`).
PLACEHOLDERS = {
    "PATH_OR_ID": "model",
    "FOLDER_OR_JSONL": {"--images": "pictures", "--videos": "clips"},
    "FOLDER": "folder",
    "NAME": {"run": "hiprune/llava-1.5", "presets": "hiprune/llava-1.5/192"},
    "DIR": "folder",
}

#: Beginning of a command -> arguments that make it short. They stand behind its own, so that they win.
SHORTER = {
    "vtc eval": "--limit 2 --max-new-tokens 2",
    "vtc recipe run": "--model embedded --limit 2",
    "vtc bench prefill": "--rounds 1 --batch-size 1",
    "vtc bench select": "--tokens 64 --rounds 1 --methods divprune,fastv,tome",
    "vtc bench select --video": "--video 8 --rounds 1 --methods evs",
    "vtc bench kernels": "--rounds 1 --ops compact --device cpu",
    "vtc ask": "--max-new-tokens 2",
}

#: The same for Python.
SHORTER_PYTHON = {r"benchmark\(\d{3,}\)": "benchmark(2)"}

#: Packages that an environment may lack: a block of Python that imports one is read only where it is not installed.
OPTIONAL = ("trl",)

#: What is in a line of a method's page that patches -> why the bundled model is refused with it.
REFUSED = {
    r"preset\(\"diffrate/": "have 12 entries",
    r"preset\(\"vtw/": "decoder layer 15 is out of range",
    r"preset\(\"flashvid": r"is out of range",
    r"preset\(\"holitom": "decoder layer 18 is out of range",
    r"preset\(\"prunevid/(pllava|st-llm)/": "decoder layer 11 is out of range",
    r"preset\(\"todre_stage2/": "no layer behind layer 28",
    r"\"pixelprune|PixelPrune": "is not given them patch by patch",
}

#: What is in a command -> why it is read only (`command_readers.py`).
READ_ONLY = {
    r"--device[ =]cuda": "needs a GPU",
    r"--compress pixelprune": "the bundled model's tower is not given pixels patch by patch; tests/test_pixelprune.py",
    r"^vtc demo": "a server, which runs until it is stopped; tests/test_demo_*.py run it",
    r"^(vtc|vllm) serve": "a server, which runs until it is stopped; tests/serve/test_server.py runs it",
    r"^vtc bench serve": "needs vLLM, and takes minutes; tests/serve/test_bench.py runs it",
    r"^vtc train-": "trains for minutes; tests/test_train_*.py run it",
    r"^vtc sweep": "starts a cluster; tests/test_sweep.py runs it",
    r"^vtc eval .*--tasks (?!images|video|mine|signs)\S": "data that come from the hub",
    r"^vtc pages": "writes the documentation; tests/test_pages.py runs it",
    r"^(accelerate|torchrun) ": "starts processes; tests/test_eval_processes.py runs it",
    r"^python -m vtc\.eval\.\w+\.gates": "asks thousands of questions",
    r"^python -m vtc\.cuda\.check": "ten minutes; tests/test_cuda_check.py runs it",
}

#: Commands that are nobody's here: a page may say them, and nothing is looked at.
ELSEWHERE = ("apt-get", "cd", "docker", "ffmpeg", "git", "head", "pre-commit", "source")

#: Page and line of every block that Sybil's `<!-- skip: next "reason" -->` leaves out.
SKIPPED: set[str] = set()


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        page: path from the root.
        line: where it stands.
        text: as it is written, without comments and variables of the environment in front.
    """

    page: str
    line: int
    text: str

    @property
    def why_read_only(self) -> str | None:
        """Why it is not run; None where it is."""
        if not self.text.startswith("vtc ") and not any(re.search(p, self.text) for p in READ_ONLY):
            return "not a command of vtc"
        return next((why for pattern, why in READ_ONLY.items() if re.search(pattern, self.text)), None)

    def words(self, shorter: bool = False) -> list[str]:
        """Its words, what stands for a placeholder in its place; with `shorter` as it is run."""
        words = shlex.split(self.text)
        for place, word in enumerate(words):
            meant = PLACEHOLDERS.get(word)
            words[place] = meant.get(words[place - 1], word) if isinstance(meant, dict) else meant or word
        beginnings = [each for each in SHORTER if f"{self.text} ".startswith(f"{each} ")]
        return words + (SHORTER[max(beginnings, key=len)].split() if shorter and beginnings else [])


def document(page: Path) -> Document:
    """A page with its blocks; that of a language which nobody runs fails when it is evaluated."""
    return Sybil(parsers=[_blocks, SkipParser()]).parse(page)


def commands(page: Path) -> list[Command]:
    """The commands of a page, in order."""
    return [command for example in document(page) for command in _commands(example)]


def every_command() -> list[Command]:
    """The commands of all pages, each once, where it stands first; README's before others."""
    found: dict[str, Command] = {}
    for page in sorted(PAGES, key=lambda page: (page.parent == METHODS, len(page.parts), page)):
        for command in commands(page):
            found.setdefault(command.text, command)
    return list(found.values())


def _blocks(document: Document) -> Iterator[Region]:
    for region in FencedCodeBlockLexer(language=r"[^\n]*")(document):
        words = region.lexemes["language"].split() or [""]
        region.parsed = region.lexemes["source"]
        region.evaluator = EVALUATORS.get(words[0], _unknown)
        region.lexemes["language"] = words[0]
        yield region


def _unknown(example: Example) -> str:
    return f"a block of language {example.region.lexemes['language']!r}; known are {', '.join(EVALUATORS)}"


def _commands(example: Example) -> Iterator[Command]:
    """The commands of a block: lines of `sh`, of `console` those behind a dollar; lines ending in a backslash go on."""
    language = example.region.lexemes.get("language")
    page, first = os.path.relpath(example.path, ROOT), example.line + 1
    if language not in ("sh", "console"):
        return
    text, begun = "", first
    for number, line in enumerate(str(example.parsed).splitlines(), first):
        if language == "console" and not text and not line.startswith("$ "):
            continue
        begun = begun if text else number
        text += line.removeprefix("$ ") if language == "console" else line
        if text.endswith("\\"):
            text = text[:-1]
            continue
        yield from (Command(page, begun, each) for each in _simple(text))
        text = ""


def _simple(line: str) -> Iterator[str]:
    """The commands of a line of the shell, its pipes and `&&` taken apart."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word.strip("|&;"):
            words.append(word)
            continue
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables of the environment
            words.pop(0)
        if words:
            yield shlex.join(words)
        words = []


def _shell(example: Example) -> str | None:
    """Each line is a command that somebody knows."""
    known = ("vtc", "make", "pip", "python", "lmms-eval", "accelerate", "torchrun", "vllm", *ELSEWHERE)
    unknown = [each.text for each in _commands(example) if shlex.split(each.text)[0].rpartition("/")[2] not in known]
    return f"commands that nobody knows: {unknown}" if unknown else None


def _python(example: Example) -> None:
    """Run a block, with what `SHORTER` makes of it; of a method's page each line by itself, and signatures are read."""
    if any(re.search(rf"^from {each}\b", example.parsed, re.M) and find_spec(each) is None for each in OPTIONAL):
        ast.parse(str(example.parsed))
    elif Path(example.path).parent != METHODS:
        for pattern, short in SHORTER_PYTHON.items():
            source = example.parsed
            example.parsed = Lexeme(re.sub(pattern, short, source), source.offset, source.line_offset)
        PythonEvaluator()(example)
    elif "vtc.patch(" in example.parsed:
        _patched(example)
    else:
        ast.parse(f"def {str(example.parsed).strip()}: ...")


def _patched(example: Example) -> None:
    """Each line patches the model, which is given back behind it; or it is refused, and `REFUSED` knows why."""
    for line in str(example.parsed).splitlines():
        expected = next((why for pattern, why in REFUSED.items() if re.search(pattern, line)), None)
        said = None
        try:
            exec(compile(line, example.path, "exec"), example.namespace)
            exec("vtc.unpatch(model)", example.namespace)
        except ValueError as error:
            said = str(error)
        assert said == expected if expected is None else said and expected in said, f"{line}: {said}"


#: Language of a block -> what is done with it. The commands of shells are tests of their own.
EVALUATORS = {
    "python": _python,
    "sh": _shell,
    "console": _shell,
    "yaml": lambda example: yaml.compose(example.parsed) and None,
    "toml": lambda example: tomllib.loads(example.parsed) and None,
    "json": lambda example: json.loads(example.parsed) and None,
    "text": lambda example: None,
}


if __name__ == "__main__":
    everything = every_command()
    for each in everything:
        print(f"{each.why_read_only or 'run':60.60} {each.page}:{each.line}  {each.text}")
    print(f"{sum(each.why_read_only is None for each in everything)} of {len(everything)} are run")
