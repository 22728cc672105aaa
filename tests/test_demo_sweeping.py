"""Sweeps and the sheet of all methods: likelihoods, right answers, refusals, as they come."""

from dataclasses import dataclass

import pytest
import torch
from demo_server import items

import vtc
from vtc import spec
from vtc.demo.jobs import gallery
from vtc.demo.jobs import inference as asking
from vtc.demo.service import MOST_SETTINGS
from vtc.demo.view import html as showing
from vtc.eval.cli.errors import InputError
from vtc.eval.tasks.benchmarks import bundled_task
from vtc.method import registry
from vtc.method.budget import Keep
from vtc.method.selector import Selector

METHODS = [name for name in registry.shipped() if name != "none"]


@pytest.fixture
def refused_method(monkeypatch):
    """A method that goes with no picture, for the length of a test: what is registered for good is in every matrix."""

    @dataclass
    class Refused(Selector):
        keep: Keep = 0.5
        name = "test-refused"

        def select(self, visual, k):
            raise ValueError("this picture will not do")

    monkeypatch.setitem(registry._registered, "test-refused", Refused)


class Free:
    """A ticket that nobody stops."""

    def check(self):
        pass

    def send(self, item):
        pass


def test_the_likelihood_of_an_answer_is_what_a_forward_pass_says(service, loaded):
    media, question = service.open_example("images/6")
    inputs = asking.inputs_of(loaded, media.shown, question)
    whole = asking.ask(loaded, media, inputs, spec.parse("none"), 8, Free())
    for text in ("none", "divprune:keep=0.25", "random:keep=0.1"):
        found = asking.probability(loaded, inputs, spec.parse(text), whole.ids, Free())
        given = {**inputs, "input_ids": torch.cat([inputs["input_ids"], whole.ids], 1)}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        with torch.no_grad(), vtc.patched(loaded.model, text):
            logits = loaded.model(**given).logits[:, -whole.ids.shape[1] - 1 : -1]
        told = logits.log_softmax(-1).gather(-1, whole.ids[..., None]).mean().exp()
        assert found == pytest.approx(float(told), rel=1e-4)
        assert 0 < found <= 1


def test_a_sweep_over_one_question_tells_of_each_setting_as_it_goes(service):
    media, question = service.open_example("images/5")
    found = items(service.sweep("a", media, question, ["divprune", "random"], "0.5, 16", 0))
    assert [(item.done, item.total) for item in found] == [(number, 5) for number in range(1, 6)]
    points = found[-1].points
    assert [point.setting.name for point in points] == [
        "none", "divprune:keep=0.5", "divprune:keep=16", "random:keep=0.5", "random:keep=16",
    ]  # fmt: skip
    assert [point.equivalent for point in points] == [256, 128, 16, 128, 16]
    assert all(0 <= point.value <= 1 and point.speedup > 0 for point in points)
    assert points[0].answer == "9" and points[0].value > 0.9
    for number, item in enumerate(found):  # each is as it was then, whatever came later
        assert [bool(point.values) for point in item.points] == [place <= number for place in range(5)]


def test_a_sweep_over_the_benchmark_counts_right_answers_as_the_harness_does(service, loaded):
    count = 10
    found = items(service.sweep("a", service.media("images/0"), "", ["divprune"], "0.0625", count))
    assert [(item.done, item.total) for item in found] == [(number, 4) for number in range(1, 5)]
    for turn, item in enumerate(found):  # each as it was then: 8 questions of the first batch, 2 of the second
        assert [len(point.values) for point in item.points] == [[8, 0], [8, 8], [10, 8], [10, 10]][turn]
        assert [len(point.values) == len(point.equivalents) for point in item.points] == [True, True]
    task = bundled_task("image", count, "test", 0)
    for point in found[-1].points:
        right = []
        for number in range(count):
            question = task.get(number)
            inputs = loaded.inputs([question.shown()], [question.text])
            with vtc.patched(loaded.model, point.setting.methods or "none"):
                out = loaded.model.generate(**inputs, max_new_tokens=64, do_sample=False)
            right.append(question.score(loaded.answers(out, inputs)[0]).score)
        assert point.values == right
        low, high = point.interval
        assert low - 1e-9 <= point.value <= high + 1e-9


def test_a_setting_that_is_refused_does_not_end_a_sweep(service, refused_method):
    media, question = service.open_example("images/5")
    for count in (0, 9):
        found = items(service.sweep("a", media, question, ["evs", "test-refused"], "0.5", count))
        by_name = {point.setting.name: point for point in found[-1].points}
        assert "will not" in by_name["test-refused:keep=0.5"].refused and not by_name["test-refused:keep=0.5"].values
        assert by_name["evs:keep=0.5"].values
        drawn = showing.points(found[-1].points, count > 0)
        assert "will not" in drawn and showing.chart(found[-1].points, count > 0)


@pytest.mark.parametrize(
    "methods, keeps, count, message",
    [
        ([], "0.5", 0, "no method is chosen"),
        (["divprune"], "0.5, x", 0, "keep: 'x' is not a number"),
        (["divprune"], "2.0", 0, "keep: keep=2.0"),
        (["divprune"], ",".join(f"{number}" for number in range(1, MOST_SETTINGS + 2)), 0, "settings are too many"),
        (["divprun"], "0.5", 0, "did you mean"),
        (["divprune"], "0.5", 1000, "1000 questions; give 1 to 90"),
    ],
)
def test_a_sweep_that_can_t_be_is_refused(service, methods, keeps, count, message):
    media, question = service.open_example("images/5")
    with pytest.raises(InputError, match=message):
        items(service.sweep("a", media, question, methods, keeps, count))


def test_all_methods_at_one_budget_each_with_its_answer_or_its_reason(service, refused_method):
    media, question = service.open_example("images/5")
    found = items(service.deal("a", media, question, 0.25))
    cards = found[-1].cards
    assert [card.method for card in cards] == list(gallery.specs_at(0.25)) and len(cards) == found[-1].total
    assert {"none", *METHODS} <= {card.method for card in cards}
    for card in cards:
        assert (card.answer is None) == bool(card.refused)
    assert "will not" in next(card.refused for card in cards if card.method == "test-refused")
    page = showing.cards(cards)
    assert page.count("<article") == len(cards) and page.count("<img") == sum(card.answer is not None for card in cards)
