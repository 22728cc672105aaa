"""Every image-text-to-text class of transformers, tried on a tiny random model: what works, what does not, and why.

    python tests/survey.py [NAME ...] [--write]

For each class of the auto-mapping a selector, a prune and a method that reads the tower go through the checks of
`vtc doctor`, which compare with an untouched model that is fed by hand. A class that has no visual tokens to remove is
made without weights, and what `vtc.patch` says of it is written down. `--write` puts the table into docs/families.md.
"""

import argparse
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from families import FAMILIES, Family, scenario
from families_more import MORE, SURVEYED
from tiny_ssm import HAS_NEMOTRON, NemotronOmni
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import vtc
from vtc.eval.doctor.examination import UNTOUCHED, Result, examine
from vtc.eval.doctor.subject import Subject

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
BEGIN, END = "<!-- survey: written by python tests/survey.py --write -->", "<!-- end of the survey -->"

#: model_type -> class, as the auto-mapping has them.
CLASSES: dict[str, str] = dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
#: model_type -> its tiny model.
BUILT: dict[str, Family] = {**SURVEYED, **MORE, **FAMILIES} | (
    {"nemotron_h_omni": NemotronOmni()} if HAS_NEMOTRON else {}
)
#: What a class without a tiny model needs to be told to be made.
OPTIONS: dict[str, dict] = {"chameleon": {"vocabulary_map": {"<image>": 1}}}
OPTIONS["diffusion_gemma"] = {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}}
#: Those that need a package that is no dependency.
TIMM = {"perception_lm", "fast_vlm", "gemma3n"}

SELECTOR, READER = "divprune:keep={keep}", "hiprune:keep={keep}"
#: The first layer in front of which it can act: some have no attention, some take over keys.
PRUNES = [f"fastv:layer={layer},keep={{keep}}" for layer in (2, 1, 3, 4, 5)]


@dataclass(frozen=True)
class Row:
    """What is said of a class.

    Attributes:
        name: its `model_type`.
        selector, prune, reader: "yes", or why not.
        padded: whether transformers' own model gives each row of a padded batch what it gives alone.
    """

    name: str
    selector: str
    prune: str
    reader: str
    padded: bool = True

    @property
    def works(self) -> bool:
        return self.selector == "yes"

    @property
    def whole(self) -> bool:
        return self.works and self.prune == self.reader == "yes"


class WrongError(Exception):
    """A method gives something else than it must: a fault, and no row of the table."""


def surveyed(name: str) -> Row:
    """One class, tried.

    Raises:
        WrongError: a method runs, and is wrong.
    """
    if name not in BUILT:
        why = refusal(weightless(name))
        return Row(name, why, why, why)
    family = BUILT[name]
    model = family.build()
    if (why := refusal(model)) is not None:
        return Row(name, why, why, why)
    one, two = scenario(family, "ragged")[:2]
    subject = Subject(
        name, model, tuple(family.inputs(model, [row]) for row in (one, two)), family.inputs(model, [one, two])
    )
    prunes = [spec for spec in PRUNES if refusal(model, spec.format(keep=0.5)) is None]
    specs = [SELECTOR, (prunes or PRUNES)[0], READER]
    for attention in subject.offered():
        results = examine(subject, attention=attention, specs=specs)
        if results[0].status != "refused":  # else the model has no such attention
            break
    failed = {result.check for result in results if result.method == UNTOUCHED and result.status == "failed"}
    if "" in failed:  # it did not run at all
        return Row(name, *[f"transformers {transformers.__version__} itself can't run it"] * 3)
    if failed - {"batch"}:
        raise WrongError(f"{name}, untouched: {[result.detail for result in results if result.check in failed]}")
    said = [told(subject, [r for r in results if r.method == spec.format(keep=0.5)], failed) for spec in specs]
    return Row(name, *said, padded=not failed)


def told(subject: Subject, results: list[Result], failed: set[str]) -> str:
    """What the checks of one method come to, those left out that the untouched model fails as well.

    Behind a recurrent layer nothing can be checked by hand; the contract's tests compare rows there.
    """
    refused = next((result.detail for result in results if result.status == "refused"), None)
    if refused is None and any(result.status == "failed" for result in results):
        refused = refusal(subject.model, results[0].method, subject.rows[0])
    if refused is not None:
        return refused
    wrong = [result for result in results if result.status == "failed" and result.check not in failed]
    passed = {result.check for result in results if result.status == "passed"}
    if wrong or not {"exact", "unpatched", "counts"} <= passed:
        raise WrongError(f"{subject.name}: {[(r.method, r.check, r.status, r.detail) for r in results]}")
    return "yes"


def refusal(model: torch.nn.Module, spec: str = "divprune:keep=0.5", inputs: dict | None = None) -> str | None:
    """The sentence with which a patch, or its first call, is refused; None: it is not."""
    try:
        with vtc.patched(model, spec), torch.no_grad():
            if inputs is not None:
                model(**inputs)
    except ValueError as error:
        return " ".join(str(error).split())
    return None


def weightless(name: str) -> torch.nn.Module:
    """A model of a class by its own configuration, as large as that says, without weights."""
    config_class = getattr(transformers, CONFIG_MAPPING_NAMES[name])
    with warnings.catch_warnings(), torch.device("meta"):
        if name == "vision-encoder-decoder":
            parts = transformers.ViTConfig(), transformers.BertConfig()
            return transformers.VisionEncoderDecoderModel(config_class.from_encoder_decoder_configs(*parts))
        return getattr(transformers, CLASSES[name])(config_class(**OPTIONS.get(name, {})))


# ---------------------------------------------------------------- the table


def table(rows: list[Row]) -> Iterator[str]:
    """The lines of the table: how many work, each class, and the sentences."""
    works, readers = (sum(getattr(row, name) == "yes" for row in rows) for name in ("selector", "reader"))
    yield f"transformers {transformers.__version__} has {len(rows)} of them: {works} work, {readers} with methods that"
    yield "read the tower as well."
    yield ""
    yield "| `model_type` | class | selectors | prunes | tower's readers | |"
    yield "|---|---|---|---|---|---|"
    sentences: dict[str, int] = {}
    for row in rows:
        cells = [_cell(row, text, sentences) for text in (row.selector, row.prune, row.reader)]
        status = "works" if row.whole else "works, but" if row.works else "refused"
        status += "" if row.padded else "; padded rows differ in transformers itself"
        yield f"| `{row.name}` | {CLASSES[row.name]} | {' | '.join(cells)} | {status} |"
    yield ""
    for sentence, number in sentences.items():
        yield f"{number}. {sentence}"


def _cell(row: Row, text: str, sentences: dict[str, int]) -> str:
    if text == "yes":
        return "yes"
    return str(sentences.setdefault(general(text, row.name), len(sentences) + 1))


def general(sentence: str, name: str) -> str:
    """A sentence without the names of one class, so that several share it."""
    sentence = re.sub(rf"\b{re.escape(name)}\b", "…", sentence)
    sentence = re.sub(r"\b[A-Z]\w*(Attention|Layer|Rope)\b", "…", sentence)
    sentence = re.sub(r"\b(layer|layers) \d+\b", r"\1 N", sentence)
    return re.sub(r"\b\d+ (patches|tokens|visual tokens)", r"N \1", sentence).removeprefix("…: ")


def written() -> list[str]:
    """The lines that stand in the page."""
    text = PAGE.read_text(encoding="utf-8")
    return text.partition(BEGIN)[2].partition(END)[0].strip("\n").splitlines()


def main(arguments: list[str]) -> int:
    """Try the classes and print the table, or write it; 1 where a method is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="model types; all of them, if none is given")
    parser.add_argument("--write", action="store_true", help="put the table into docs/families.md")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # tiny tensors wait for threads longer than they take
    rows, wrong = [], 0
    for name in args.names or sorted(CLASSES):
        try:
            rows.append(surveyed(name))
            print(rows[-1], file=sys.stderr, flush=True)
        except Exception as error:  # so that one class does not hide what there is to say of the others
            wrong += 1
            print(f"WRONG {name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    lines = list(table(rows))
    if args.write and not args.names and not wrong:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text("\n".join([before + BEGIN, "", *lines, "", END + rest.partition(END)[2]]), encoding="utf-8")
    else:
        print("\n".join(lines))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
