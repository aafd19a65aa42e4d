import threading
import time
from threading import Event

import pytest

from llamacli.background import Crew, Progress, Report, Step, Stopped, run_in_background


def test_the_caller_hears_in_its_own_thread() -> None:
    heard = []

    def work(report: Report, stop: Event) -> int:
        for amount in range(3):
            report(Progress(Step.BYTES, "a", amount))
        return threading.get_ident()

    def report(event: Progress) -> None:
        heard.append((threading.get_ident(), event.amount))

    worker = run_in_background(work, report)
    assert worker != threading.get_ident()
    assert heard == [(threading.get_ident(), amount) for amount in range(3)]


def test_a_failure_is_the_callers() -> None:
    def work(report: Report, stop: Event) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_in_background(work)


def test_a_caller_that_gives_up_does_not_wait() -> None:
    events = []

    def work(report: Report, stop: Event) -> None:
        events.append(stop)
        report(Progress(Step.BYTES, "a"))
        stop.wait(60)
        events.append(stop)

    def give_up(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_background(work, give_up)
    assert events[0].is_set()


def test_a_crew_does_all() -> None:
    done: list[int] = []
    stop = Event()
    crew = Crew(range(10), done.append, 3, stop)
    crew.add()
    crew.join()
    assert sorted(done) == [*range(10)]
    assert (crew.count, stop.is_set()) == (4, False)


def test_a_crew_of_nobody_is_done() -> None:
    Crew([], print, 3, Event()).join()


def test_the_first_failure_stops_a_crew_and_is_told() -> None:
    stop = Event()

    def work(item: int) -> None:
        if item == 1:
            raise ValueError("no")
        while not stop.is_set():
            time.sleep(0.001)
        raise Stopped

    with pytest.raises(ValueError, match="no"):
        Crew(range(8), work, 4, stop).join()


def test_a_crew_that_is_stopped_says_so() -> None:
    stop = Event()
    stop.set()
    with pytest.raises(Stopped):
        Crew([1], print, 1, stop).join()
