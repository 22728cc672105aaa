"""The question as words: what the tokenizer of the language model says of its token ids."""

import re
from typing import Any

from torch import Tensor

#: Sentences with which benchmarks ask for the form of an answer.
STOCK = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)
#: Words that no picture shows.
STOP = {
    *("a", "an", "the", "is", "are", "was", "were", "be", "been", "being", "have", "has", "had", "do", "does"),
    *("did", "it", "they", "he", "she", "we", "you", "i", "what", "where", "when", "why", "how", "who"),
    *("which", "and", "or", "but", "so", "if", "then", "question", "answer", "to", "for", "with", "by", "from"),
    *("at", "into", "onto", "upon"),
}
_MARK = "\u2020"


def keywords(text: str) -> list[tuple[int, int]]:
    """The words of a question that a picture may show, as stretches of `text`; all of it where there are none.

    Words are runs of letters, digits and underscores. Those of `STOP` go, and the sentences of `STOCK`.
    """
    kept = [True] * len(text)
    for sentence in STOCK:
        for found in re.finditer(re.escape(sentence), text):
            kept[found.start() : found.end()] = [False] * len(sentence)
    words = [
        (found.start(), found.end())
        for found in re.finditer(r"\w+", text)
        if all(kept[found.start() : found.end()]) and found[0].lower() not in STOP
    ]
    return words or [(found.start(), found.end()) for found in re.finditer(r"\S+", text) if kept[found.start()]]


class Reader:
    """A tokenizer of a language model, and the text with which its chat template ends a user's turn.

    Without a chat template of the tokenizer's own it is not known where the turn ends: all text counts.

    Args:
        tokenizer: folder or hub id.

    Raises:
        ValueError: it can't be loaded.
    """

    def __init__(self, tokenizer: str):
        from transformers import AutoTokenizer

        self._tokenizer = load("tokenizer", tokenizer, AutoTokenizer, "the tokenizer of the vision-language model")
        self._tail = _tail(self._tokenizer)

    def question(self, ids: Tensor) -> tuple[str, list[tuple[int, int]]]:
        """What the user says in the first turn of token ids [T], and the stretch of that text that each token is.

        Special tokens are left out, and so is what stands behind the turn: an empty stretch is all that these have.
        """
        spans, text, ended = list[tuple[int, int]](), "", False
        special = set(self._tokenizer.all_special_ids)
        whole = ids.tolist()
        turn = self._tokenizer.decode(whole)
        end = turn.find(self._tail) if self._tail else -1
        for place, token in enumerate(whole):
            before = len(text)
            seen = self._tokenizer.decode(whole[: place + 1])
            ended = ended or (end >= 0 and len(seen) > end)
            if not ended and token not in special:
                text = self._tokenizer.decode(whole[: place + 1], skip_special_tokens=True)
            spans.append((before, len(text)))
        return text, spans

    def tokens_of(self, ids: Tensor, words: Any = keywords) -> list[int]:
        """Which of the ids [T] make up the words of the question: places, ascending."""
        text, spans = self.question(ids)
        wanted = words(text)
        return [
            place
            for place, (start, end) in enumerate(spans)
            if start < end and any(start < last and first < end for first, last in wanted)
        ]


def load(name: str, value: str, what: Any, wanted: str) -> Any:
    """What `what.from_pretrained` gives for the field `name`.

    Raises:
        ValueError: it can't be loaded; says what is `wanted`.
    """
    try:
        return what.from_pretrained(value)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name}={value!r} can't be loaded ({reason}); give the folder or hub id of {wanted}"
        ) from error


def _tail(tokenizer: Any) -> str:
    """What the chat template puts behind a user's words; empty where there is no template for plain text."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    for content in (_MARK, [{"type": "text", "text": _MARK}]):
        try:
            said = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except Exception:  # a template is a program of somebody's
            continue
        if isinstance(said, str) and said.count(_MARK) == 1:
            return said.partition(_MARK)[2].strip()
    return ""
