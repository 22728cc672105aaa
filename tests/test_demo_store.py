"""What visitors look at is kept for a while, and equal uploads are read once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vtc.demo.visitors.store import OnceEach, Store
from vtc.eval.cli.errors import InputError


def test_what_a_visitor_looks_at_is_kept_until_it_was_not_used_for_long_or_the_store_is_full():
    store = Store(100, 0.3)
    first, second = store.put("first", 40), store.put("second", 40)
    assert store.get(first) == "first"
    third = store.put("third", 40)  # too much: what was not used for longest goes
    assert (store.get(first), store.get(second), store.get(third)) == ("first", None, "third")
    assert store.get(store.put("huge", 1000)) == "huge" and store.get(third) is None
    late = store.put("late", 1)
    time.sleep(0.4)
    assert store.get(late) is None and store.get("nonsense") is None
    assert len({store.put("x", 1) for _ in range(100)}) == 100


def test_equal_uploads_are_read_once_and_failures_are_tried_again():
    once, count, gate = OnceEach(2), [], threading.Event()

    def slow():
        count.append(1)
        gate.wait(20)
        return "read"

    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(once.get, "a", slow) for _ in range(4)]
        gate.set()
        assert [result.result() for result in results] == ["read"] * 4
    assert len(count) == 1 and once.get("a", lambda: "again") == "read"

    def broken():
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        once.get("b", broken)
    assert once.get("b", lambda: "better") == "better" and once.get("c", lambda: "c") == "c"
    assert once.get("a", lambda: "forgotten") == "forgotten"
