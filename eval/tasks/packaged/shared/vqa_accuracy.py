"""VQA accuracy (arXiv 1505.00468): an answer that three of ten people gave is right; spelling variants are evened out.

The evening out is that of the benchmark's official evaluation as servers run it today, with its quirks: published
numbers depend on them.
"""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from vtc.eval.tasks.packaged.shared.contractions import FULL_FORM

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
STOP_AFTER_WORD = re.compile(r"\.(?!\d)")
#: The official evaluation strips no more full stops than this: it hands a flag (32) over as the count.
STOPS_STRIPPED = 32
DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
DIGITS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = ("a", "an", "the")


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The answer against `doc["answers"]`, texts, all of them normalised."""
    people = [normalise(each) for each in doc["answers"] or []]
    return {"exact_match": leave_one_out(normalise(results[0]), people)}


def leave_one_out(answer: str, people: Sequence[str]) -> float:
    """The mean over the people of min(1, how many of the others gave this answer / 3); 0 without people."""
    same = people.count(answer)
    return fmean(min(1.0, (same - (each == answer)) / 3) for each in people) if people else 0.0


def normalise(answer: str) -> str:
    """Small letters, no commas and question marks, `'s` a word of its own; then punctuation and words."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_words(strip_punctuation(text.replace("\n", " ").replace("\t", " ")))


def strip_punctuation(text: str) -> str:
    """The text without punctuation marks, or with spaces in their place; full stops stay before digits only.

    A mark goes without a trace if it stands at the edge of a word anywhere in the text, or if the text has a number
    with commas; else it leaves a space.
    """
    drop_all = COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if at_edge or drop_all else " ")
    return STOP_AFTER_WORD.sub("", stripped, count=STOPS_STRIPPED)


def normalise_words(text: str) -> str:
    """Small letters, number words as digits, no articles, contractions with their apostrophes, single spaces."""
    digits = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(FULL_FORM.get(word, word) for word in digits if word not in ARTICLES)
