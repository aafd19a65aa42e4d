"""Work in threads of which the caller hears in its own: a signal there ends the wait at once.

The threads are not waited for when they are no longer needed: one may sit in a request that only
a timeout ends. They look at an event before they touch anything, and die with the process.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import NamedTuple, TypeVar, cast

T = TypeVar("T")


class Step(StrEnum):
    """What a download just did, and what its amount counts."""

    BEGIN = "begin"  # bytes that are missing; the name is that of the model
    FILE = "file"  # bytes that a file lacks, which begins now
    BYTES = "bytes"  # bytes that came; below zero, bytes that were thrown away
    VERIFY = "verify"  # bytes that were compared with the hash
    DONE = "done"  # bytes of a file that is whole
    WAIT = "wait"  # seconds until the next try; the name is the reason
    LOCKED = "locked"  # another process fetches the file


class Progress(NamedTuple):
    """One step of a download."""

    step: Step
    name: str
    amount: float = 0


Report = Callable[[Progress], object]


def ignore(_: Progress) -> None:
    """The report of whoever does not want to know."""


class Stopped(Exception):
    """Nobody waits for this thread any more."""


class _Ended(NamedTuple):
    result: object
    problem: BaseException | None


def run_in_background(work: Callable[[Report, Event], T], report: Report = ignore) -> T:
    """The result of `work(report, stop)`, which runs in another thread; `report` is called here."""
    events: SimpleQueue[Progress | _Ended] = SimpleQueue()
    stop = Event()

    def body() -> None:
        try:
            events.put(_Ended(work(events.put, stop), None))
        except BaseException as problem:
            events.put(_Ended(None, problem))

    try:
        Thread(target=body, daemon=True).start()
        while isinstance(event := events.get(), Progress):
            report(event)
    finally:
        stop.set()
    if event.problem is not None:
        raise event.problem
    return cast(T, event.result)


class Crew:
    """Threads that do `work` for each item, in order; the first failure sets `stop`.

    Attributes:
        count: of the threads so far.
    """

    def __init__(
        self, items: Iterable[T], work: Callable[[T], object], count: int, stop: Event
    ) -> None:
        queue: SimpleQueue[T] = SimpleQueue()
        for item in items:
            queue.put(item)
        self._ends: SimpleQueue[BaseException | None] = SimpleQueue()
        self.count = 0

        def body() -> None:
            problem: BaseException | None = None
            try:
                while not stop.is_set():
                    work(queue.get_nowait())
                problem = Stopped()
            except Empty:
                pass
            except BaseException as raised:
                problem = raised
            self._ends.put(problem)
            if problem is not None:
                stop.set()

        self._body = body
        for _ in range(min(count, queue.qsize())):
            self.add()

    def add(self) -> None:
        """One thread more."""
        self.count += 1
        Thread(target=self._body, daemon=True).start()

    def join(self) -> None:
        """Wait until all is done, or one thread failed.

        Raises:
            Stopped: `stop` was set by somebody else.
            Exception: the failure.
        """
        stopped: BaseException | None = None
        for _ in range(self.count):
            problem = self._ends.get()
            if isinstance(problem, Stopped):
                stopped = problem  # there is another one that stopped it
            elif problem is not None:
                raise problem
        if stopped is not None:
            raise stopped
