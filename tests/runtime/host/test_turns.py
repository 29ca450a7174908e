"""Who runs next: first come, first served, and nothing is lost by cancelling or Ctrl-C."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import FrameType

import pytest

from rdsr.runtime import Cancel, CancelledError
from rdsr.runtime.host import turns as turns_module
from rdsr.runtime.host.turns import Shifts, Turns


def test_shifts_let_one_kind_in_at_a_time_and_starve_none() -> None:
    shifts, inside, changes, order = Shifts(), [], [], []
    lock = threading.Lock()

    def work(kind: str) -> None:
        with shifts.hold(kind, lambda: changes.append(kind)):
            with lock:
                inside.append(kind)
                order.append(kind)
                assert len(set(inside)) == 1
            time.sleep(0.002)
            with lock:
                inside.remove(kind)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, "aaabbbab" * 10))
    assert len(order) == 80
    assert changes[0] == order[0]


def test_whoever_waits_for_a_shift_can_be_cancelled() -> None:
    shifts, token, ended = Shifts(), Cancel(), []

    def work() -> None:
        try:
            with shifts.hold("b", lambda: None, token):
                ended.append("ran")
        except CancelledError:
            ended.append("cancelled")

    with shifts.hold("a", lambda: None):
        threads = [threading.Thread(target=work) for _ in range(2)]  # one inside the door, one before it
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        token.set()
        for thread in threads:
            thread.join(timeout=60)
        assert ended == ["cancelled"] * 2
    with shifts.hold("c", lambda: ended.append("changed")):
        assert ended[-1] == "changed"


def test_a_call_that_waits_can_be_cancelled() -> None:
    turns, token, ended = Turns(1), Cancel(), []

    def work() -> None:
        try:
            with turns.hold(stop=token):
                ended.append("ran")
        except CancelledError:
            ended.append("cancelled")

    with turns.hold():
        waiting = threading.Thread(target=work)
        waiting.start()
        token.set()
        waiting.join(timeout=60)
        assert ended == ["cancelled"]
    with turns.hold():
        pass
    assert not turns._tickets


def test_turns_are_first_come_first_served() -> None:
    turns, order = Turns(2), []
    threads = []
    with turns.hold(2):
        for index in range(8):
            waiting = len(turns._tickets)

            def work(index: int = index) -> None:
                with turns.hold(1 + index % 3):  # 3 is cut to the 2 that there are
                    order.append(index)

            threads.append(threading.Thread(target=work))
            threads[-1].start()
            while len(turns._tickets) == waiting:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert sorted(order) == list(range(8))
    assert order.index(7) > order.index(4), "a small wish behind a large one waits for it"
    assert not turns._tickets


@pytest.mark.parametrize("make", [lambda: Turns(1), Shifts], ids=["turns", "shifts"])
def test_an_interrupt_costs_no_permit(make: Callable[[], Turns | Shifts]) -> None:
    """Python sees to signals where functions are entered: here Ctrl-C comes with each such step in turn."""

    def hold(turns: Turns | Shifts) -> AbstractContextManager[None]:
        return turns.hold() if isinstance(turns, Turns) else turns.hold("a", lambda: None)

    def enter(turns: Turns | Shifts) -> None:
        with hold(turns):
            pass

    for step in range(1, 30):
        turns, seen = make(), 0

        def interrupt(frame: FrameType, event: str, argument: object, step: int = step) -> None:
            nonlocal seen
            if event == "call" and frame.f_code.co_filename == turns_module.__file__:
                seen += 1
                if seen == step:
                    raise KeyboardInterrupt

        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            enter(turns)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        gc.collect()
        other = threading.Thread(target=enter, args=(turns,), daemon=True)
        other.start()
        other.join(60)
        assert not other.is_alive(), f"nobody gets in after an interrupt at step {step}"
        if seen < step:
            return
    pytest.fail("there are more steps than were tried")
