"""All methods at one budget: what each keeps of one picture or video, and what it answers."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from vtc import spec
from vtc.demo.jobs import inference
from vtc.demo.jobs.inference import Answer, Media, Models
from vtc.demo.jobs.turns import Ticket, Work
from vtc.eval.results.settings import NONE, fields_of
from vtc.method import registry
from vtc.method.budget import Keep


@dataclass(frozen=True, eq=False)
class Card:
    """One method.

    Attributes:
        method: its name.
        spec: as it was run.
        answer: None where it was refused.
        refused: why; empty where it was not.
    """

    method: str
    spec: str
    answer: Answer | None
    refused: str = ""


@dataclass(frozen=True)
class Dealt:
    """The cards so far, of `total`."""

    cards: Sequence[Card]
    total: int


def specs_at(keep: Keep) -> dict[str, str]:
    """Method -> its spec at a budget, "none" first, then by kind; those without a budget as they are."""
    names = [name for kind in ("selector", "prune", "reducer") for name in registry.list_methods(kind) if name != NONE]
    return {
        name: f"{name}:keep={keep}" if "keep" in fields_of(registry.method_class(name)) else name
        for name in [NONE, *names]
    }


def deal(models: Models, media: Media, question: str, keep: Keep, longest: int) -> Work:
    """One question under every method at one budget.

    Args:
        models: the model.
        media: what is asked about.
        question: what is asked.
        keep: share or count.
        longest: tokens of an answer at most.
    """

    def work(ticket: Ticket) -> Generator[Dealt, None, None]:
        loaded = models.of(media.kind)
        inputs = inference.inputs_of(loaded, media.shown, question)
        cards: list[Card] = []
        specs = specs_at(keep)
        for name, text in specs.items():
            try:
                answer = inference.ask(loaded, media, inputs, spec.parse(text), longest, ticket)
                cards.append(Card(name, text, answer))
            except inference.REFUSALS as error:
                cards.append(Card(name, text, None, inference.refusal(error)))
            yield Dealt(tuple(cards), len(specs))

    return work
