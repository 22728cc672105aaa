"""One model, many users: turns, limits, and what one user's fault does to the others."""

import asyncio
import threading
import time

import pytest

from vtc.demo.jobs.turns import BusyError, Stopped, Turns, Waiting


def steps(name, count, log, before=lambda: None):
    def work(ticket):
        for number in range(count):
            before()
            ticket.check()
            log.append((name, number))
            yield (name, number)

    return work


async def gather(turns, user, work):
    return [item async for item in turns.run(user, work) if not isinstance(item, Waiting)]


@pytest.fixture
def turns():
    made = Turns()
    yield made
    made.close()


def held(turns):
    """Work that holds the thread until it is let go, so that the others enter in a known order."""
    gate, begun = threading.Event(), threading.Event()

    def work(ticket):
        begun.set()
        gate.wait(20)
        yield "held"

    return gate, begun, work


async def run_after_gate(turns, *others):
    """Enter all work in order while the thread is held, then let go; returns what each handed on, or raised."""
    gate, begun, hold = held(turns)
    tasks = [asyncio.create_task(gather(turns, "first", hold))]
    await asyncio.to_thread(begun.wait, 20)
    for user, work in others:
        tasks.append(asyncio.create_task(gather(turns, user, work)))
        await asyncio.sleep(0.02)
    gate.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_users_take_turns_and_what_one_yields_comes_in_order(turns):
    log = []
    found = asyncio.run(run_after_gate(turns, ("a", steps("a", 3, log)), ("b", steps("b", 2, log))))
    assert found[1:] == [[("a", 0), ("a", 1), ("a", 2)], [("b", 0), ("b", 1)]]
    assert log == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)]


def test_many_requests_of_one_user_do_not_hold_up_another(turns):
    log = []
    greedy = [("greedy", steps(f"greedy{number}", 1, log)) for number in range(5)]
    asyncio.run(run_after_gate(turns, *greedy, ("late", steps("late", 1, log))))
    assert log.index(("late", 0)) == 1
    assert [name for name, _ in log if name != "late"] == [f"greedy{number}" for number in range(5)]


def test_a_fault_of_one_reaches_only_that_one(turns):
    log = []

    def broken(ticket):
        yield "so far"
        raise ZeroDivisionError("mine")

    def gone(ticket):
        raise SystemExit(3)
        yield

    found = asyncio.run(
        run_after_gate(turns, ("a", broken), ("b", gone), ("c", steps("c", 2, log))),
    )
    assert isinstance(found[1], ZeroDivisionError) and str(found[2]) == "SystemExit: 3"
    assert found[3] == [("c", 0), ("c", 1)]


def test_closing_ends_the_work_and_frees_the_thread(turns):
    log, closed = [], threading.Event()

    def endless(ticket):
        try:
            while True:
                ticket.check()
                time.sleep(0.01)
                log.append(0)
                yield len(log)
        finally:
            closed.set()

    async def story():
        run = turns.run("a", endless)
        async for item in run:
            if item == 3:
                break
        await run.aclose()
        assert await asyncio.to_thread(closed.wait, 20)
        return await gather(turns, "b", steps("b", 1, []))

    assert asyncio.run(story()) == [("b", 0)]
    assert len(log) < 50


def test_what_is_sent_during_a_turn_comes_before_its_end(turns):
    def work(ticket):
        ticket.send("half")
        yield "whole"

    assert asyncio.run(gather(turns, "a", work)) == ["half", "whole"]


def test_who_waits_is_told_how_many_turns_are_ahead(turns):
    async def story():
        gate, begun, hold = held(turns)
        first = asyncio.create_task(gather(turns, "first", hold))
        await asyncio.to_thread(begun.wait, 20)
        second = asyncio.create_task(gather(turns, "second", steps("second", 1, [])))
        await asyncio.sleep(0.05)
        seen = []
        async for item in turns.run("third", steps("third", 1, [])):
            seen.append(item)
            gate.set()
        await asyncio.gather(first, second)
        return seen

    assert asyncio.run(story()) == [Waiting(2), ("third", 0)]


def test_a_visitor_stops_one_kind_of_work_whether_it_runs_or_waits(turns):
    def endless(ticket):
        while True:
            ticket.check()
            time.sleep(0.01)
            yield "more"

    async def collect(user, kind, work):
        found = []
        try:
            async for item in turns.run(user, work, kind):
                found.append(item)
        except Stopped:
            found.append("stopped")
        return found

    async def story():
        gate, begun, hold = held(turns)
        first = asyncio.create_task(gather(turns, "first", hold))
        await asyncio.to_thread(begun.wait, 20)
        waiting = asyncio.create_task(collect("me", "a", endless))
        other = asyncio.create_task(collect("me", "b", steps("b", 2, [])))
        await asyncio.sleep(0.05)
        turns.stop("me", "a")
        gate.set()
        assert "more" not in (found := await waiting) and found[-1] == "stopped"
        assert [item for item in await other if not isinstance(item, Waiting)] == [("b", 0), ("b", 1)]
        await first
        running = asyncio.create_task(collect("me", "a", endless))
        await asyncio.sleep(0.2)
        turns.stop("you", "a")
        await asyncio.sleep(0.1)
        assert not running.done()
        turns.stop("me")
        found = await running
        assert found.count("more") > 1 and found[-1] == "stopped"

    asyncio.run(asyncio.wait_for(story(), 60))


def test_one_visitor_takes_at_most_half_of_the_places():
    turns = Turns(jobs=4)

    async def story():
        gate, begun, hold = held(turns)
        first = asyncio.create_task(gather(turns, "first", hold))
        await asyncio.to_thread(begun.wait, 20)
        mine = [asyncio.create_task(gather(turns, "mine", steps(number, 1, []))) for number in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError, match="2 requests of yours wait already"):
            await gather(turns, "mine", steps(3, 1, []))
        other = asyncio.create_task(gather(turns, "other", steps(4, 1, [])))
        gate.set()
        await asyncio.gather(first, *mine, other)

    asyncio.run(story())
    turns.close()


def test_a_server_that_goes_down_in_the_middle_leaves_the_thread_alive(turns):
    async def leave(work):
        async for _ in turns.run("gone", work):
            return

    asyncio.run(leave(steps("gone", 1000, [])))  # its loop is closed, and nobody closes the work
    assert asyncio.run(gather(turns, "next", steps("next", 1, []))) == [("next", 0)]


def test_too_many_too_long_a_wait_and_too_much_work_are_each_told():
    turns = Turns(jobs=2, wait_s=0.6, work_s=0.3)

    async def story():
        gate, begun, hold = held(turns)
        first = asyncio.create_task(gather(turns, "first", hold))
        await asyncio.to_thread(begun.wait, 20)
        waiting = [asyncio.create_task(gather(turns, str(n), steps(n, 1, []))) for n in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError, match="2 requests wait already; try again"):
            await gather(turns, "third", steps("third", 1, []))
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, BusyError) and "no turn came up" in str(each) for each in done)
        gate.set()
        await asyncio.gather(first, return_exceptions=True)

        def slow(ticket):
            while True:
                time.sleep(0.1)
                yield "more"

        with pytest.raises(BusyError, match="longer than a request may"):
            await gather(turns, "slow", slow)
        assert await gather(turns, "next", steps("next", 1, [])) == [("next", 0)]

    asyncio.run(story())
    turns.close()
