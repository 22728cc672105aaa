"""What the page opens with: asked once by the model that the demo has, for everybody who looks."""

import asyncio
import threading

import pytest
import torch
from covering import REST
from demo_server import PATIENT, arguments, service_without_page

import vtc
from vtc.demo.jobs import comparison, inference
from vtc.demo.jobs.shared import Shared
from vtc.demo.jobs.turns import BusyError, Stopped, Turns
from vtc.demo.service import OPENED, Service
from vtc.demo.view import outcome
from vtc.eval.cli.errors import InputError


async def followed(shared):
    return [item async for item in shared.follow()]


async def by_many(shared, count):
    return await asyncio.gather(*(followed(shared) for _ in range(count)), return_exceptions=True)


def opened(service, count):
    """What so many visitors are handed on."""

    async def visit():
        return [item async for item in service.opened()]

    async def visits():
        return await asyncio.gather(*(visit() for _ in range(count)))

    return asyncio.run(visits())


@pytest.mark.parametrize(
    "name, specs",
    [("images/1", ["tome:keep=0.25", "none"]), pytest.param("images/3", ["none", "random"], marks=REST)],
)
def test_it_is_asked_of_the_model_once_whoever_looks(loaded, monkeypatch, name, specs):
    asked, ask = [], inference.ask
    monkeypatch.setattr(inference, "ask", lambda *given, **more: asked.append(given) or ask(*given, **more))
    with service_without_page() as service:
        service.begin(name, specs)
        visits = opened(service, 3)
        assert len(asked) == 2
        media, question = service.open_example(name)
        kinds = [type(item) for item in visits[0]]
        assert kinds == [comparison.Answered, comparison.Answered, comparison.Timed] and visits[1:] == visits[:1] * 2
        inputs = loaded.inputs([[media.shown]], [question])
        for side, spec in enumerate(specs):
            with vtc.patched(loaded.model, spec):
                ids = loaded.model.generate(**inputs, max_new_tokens=64, do_sample=False)
                trace = vtc.trace(loaded.model)
            answer = visits[0][side].answer
            assert torch.equal(answer.ids, ids[:, inputs["input_ids"].shape[1] :])
            assert torch.equal(answer.trace.tokens_per_layer, trace.tokens_per_layer)
            assert service.answers_of(OPENED)[side] is answer


def test_a_setting_that_the_model_refuses_is_told_to_everybody():
    with service_without_page() as service:
        service.begin("images/1", ["fastv:layer=99", "none"])
        (refused, answered, _), _ = opened(service, 2)
        assert "99" in refused.reason and list(service.answers_of(OPENED)) == [1] and answered.side == 1


def test_who_comes_late_gets_all_from_the_beginning_and_who_leaves_ends_nothing():
    gate = threading.Event()

    async def run():
        yield 1
        while not gate.is_set():
            await asyncio.sleep(0.01)
        yield 2

    shared = Shared(run)

    async def story():
        leaving = shared.follow()
        assert await anext(leaving) == 1
        await leaving.aclose()
        early = asyncio.create_task(followed(shared))
        await asyncio.sleep(0.3)
        assert shared.items == [1] and not early.done()
        gate.set()
        return await early, await followed(shared)

    assert asyncio.run(story()) == ([1, 2], [1, 2])
    shared.close()


def test_what_ended_it_is_told_to_everybody():
    async def run():
        yield 1
        raise InputError("no pictures here")

    found = asyncio.run(by_many(Shared(run), 3))
    assert [str(error) for error in found] == ["no pictures here"] * 3
    assert all(isinstance(error, InputError) for error in found)


def test_before_it_was_begun_it_says_so():
    with service_without_page() as service, pytest.raises(InputError, match="nothing was asked yet"):
        service.opened()


def test_a_server_that_ends_at_once_waits_for_nothing():
    """The model's thread ends while what the page opens with waits, or has not come yet."""
    service = Service(arguments(), PATIENT)
    service.begin("images/1", ["none", "none"])
    service.close()
    assert not service._opened._thread.is_alive()


def test_whatever_waits_ends_with_the_model_s_thread_and_nothing_begins_after():
    turns, gate, begun = Turns(), threading.Event(), threading.Event()

    def hold(ticket):
        begun.set()
        gate.wait(20)
        yield "held"

    def never(ticket):
        yield "never"

    async def gather(work, user):
        return [item async for item in turns.run(user, work) if item in ("held", "never")]

    async def story():
        first = asyncio.create_task(gather(hold, "a"))
        await asyncio.to_thread(begun.wait, 20)
        second = asyncio.create_task(gather(never, "b"))
        await asyncio.sleep(0.1)
        threading.Timer(0.2, gate.set).start()
        await asyncio.to_thread(turns.close)
        found = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 10)
        with pytest.raises(BusyError, match="going down"):
            await gather(never, "c")
        return [type(each) for each in found]

    assert asyncio.run(story())[1] is Stopped


def cost(tokens, rounds=3, first_token_ms=10.0):
    return comparison.Numbers(
        256, tokens, float(tokens), (1.0, 2.0, 3.0), first_token_ms, None, tokens, 4e9, 0.0, rounds
    )


def test_the_verdict_says_whether_the_answers_are_the_same_and_what_one_takes_of_the_other(service):
    class Said:
        def __init__(self, text):
            self.text = text

    same = outcome.verdict({0: Said("bus"), 1: Said("bus")}, {0: cost(16), 1: cost(256, first_token_ms=8.0)})
    assert "The same answer." in same
    for name, share in (("visual tokens per layer", "6.2 %"), ("memory of the KV cache", "6.2 %")):
        assert f"<dt>{name}</dt><dd>{share}</dd>" in same
    assert "<dt>time to first token (3 rounds)</dt><dd>125 %</dd>" in same  # it says so where it takes longer
    other = outcome.verdict({0: Said("bus"), 1: Said("cat")}, {0: cost(16, rounds=0), 1: cost(256)})
    assert "Different answers." in other and "<dt>time to first token</dt><dd>…</dd>" in other
    for waiting in (outcome.pending(), outcome.verdict({0: Said("bus")}, {0: cost(16)})):
        assert waiting.count("<dd>…</dd>") == 4 and "answer." not in waiting


def test_headings_say_which_side_is_compressed_and_by_what():
    assert outcome.heading("B", "none") == "<h2><b>B</b> untouched</h2>"
    assert "compressed by <code>fastv:<wbr>layer=2,<wbr>keep=0.5</code>" in outcome.heading(
        "A", "fastv:layer=2,keep=0.5"
    )
    assert outcome.heading("A") == "<h2><b>A</b> </h2>"


def test_every_setting_to_try_is_one_that_the_model_takes(loaded):
    assert [outcome.tries(spec).count('aria-pressed="true"') for spec in (*outcome.TRIES, "none")] == [1] * 6 + [0]
    for spec in outcome.TRIES:
        with vtc.patched(loaded.model, spec):
            pass
