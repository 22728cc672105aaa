"""Which option's letter a free text means: the rules that lmms-eval's video tasks and MMBench's offline form share."""

from collections.abc import Iterator, Sequence

#: What stands around a letter -> how surely it is the answer then.
MARKS = {("(", ")"): 6, ("", "."): 5, ("", ":"): 4, ("", ")"): 3, ("", " "): 2}
AT_START, AT_END, AFTER_PHRASE, ANYWHERE = 10, 9, 7, 0
NOUNS = ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
PHRASES = (
    *(f"{noun} is" for noun in NOUNS),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def read_choice(answer: str, letters: Sequence[str]) -> str | None:
    """The letter that the answer means: the surest of its places, of equally sure ones the last; None without any.

    The rules go far to find one: a capital letter within a word counts where nothing better does.

    Args:
        answer: what the model said.
        letters: the options' capital letters.
    """
    text = f" {_without_marks(answer)} "
    places = [*_marked(text, letters), *_after_phrases(text, letters), *_at_ends(text.strip(), letters)]
    if not places:
        places = [(ANYWHERE, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(places)[-1] if places else None


def _without_marks(answer: str) -> str:
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    return text


def _marked(text: str, letters: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    for (before, after), sureness in MARKS.items():
        for letter in letters:
            place = text.rfind(f"{before}{letter}{after}")
            if place >= 0:
                yield sureness, place, letter


def _after_phrases(text: str, letters: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    lowered = text.lower()
    for phrase in PHRASES:
        start = lowered.find(phrase)
        for letter in letters:
            place = text.find(letter, start + len(phrase)) if start >= 0 else -1
            if place >= 0:
                yield AFTER_PHRASE, place, letter


def _at_ends(text: str, letters: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    for letter in letters:
        if text.startswith(letter) and not text[1:2].isalpha():
            yield AT_START, 0, letter
        if text.endswith(letter) and not text[-2:-1].isalpha():
            yield AT_END, len(text), letter
