"""An ordered, bounded map over processes, which end with their parent however that ends.

Most commands start none, so Python's own modules for that are loaded by those that do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDiedError(Exception):
    """A process has ended, or had no more memory, in the middle of an item, which is the argument."""


class NotStartedError(Exception):
    """A process cannot be started, or has not come to its first item; the argument is why."""


def ordered(
    make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], processes: int
) -> Generator[tuple[Item, Result]]:
    """Yield each item with what a function makes of it, in order.

    Arguments:
        make: makes the function, once in each process; it is pickled, and so are items and results.
        items: taken as they are needed: each process has one item at a time, so memory is bounded.
        processes: how many work side by side; with 1 all is done here, and none is started.

    What the function raises is raised here. Raises WorkerDiedError when a process was killed, NotStartedError when the
    system has no room for one.
    """
    if processes < 2:
        function = make()
        for item in items:
            yield item, function(item)
        return
    with _started(make, processes) as workers:
        idle, waiting = deque(workers), deque[tuple[Any, Any]]()
        for item in items:
            done = None
            if not idle:
                done = _received(*waiting[0])
                idle.append(waiting.popleft()[1])
            with _alive(item):
                idle[0].send(item)
            waiting.append((item, idle.popleft()))
            if done:
                yield done
        for item, worker in waiting:
            yield _received(item, worker)


def _received(item: Item, worker: Connection) -> tuple[Item, Any]:
    with _alive(item):
        result, error, started = worker.recv()
    if started and isinstance(error, MemoryError):
        raise WorkerDiedError(item)
    with contextlib.nullcontext() if started else _starting():
        if error is not None:
            raise error
    return item, result


@contextlib.contextmanager
def _alive(item: object) -> Iterator[None]:
    """Name the item during which a worker was found dead."""
    try:
        yield
    except (EOFError, OSError):
        raise WorkerDiedError(item) from None


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Tell the limits of the system, which the start of a process runs into first, from other errors."""
    try:
        yield
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
        raise NotStartedError(reason.lower()) from None


@contextlib.contextmanager
def _started(make: Callable[[], Callable[[Any], Any]], processes: int) -> Iterator[list[Connection]]:
    """Start processes, and end them whatever happens; yields the connection to each."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")  # forking is unsafe where threads of BLAS are running
    workers = []
    connections = []
    try:
        with _starting(), _interrupts_held():
            for _ in range(processes):
                ours, theirs = context.Pipe()
                connections.append(ours)
                with theirs:  # closed here, or we should never see that the worker's own end has closed
                    worker = context.Process(target=_serve, args=(theirs,), daemon=True)
                    worker.start()
                workers.append(worker)
        with _starting():
            for connection in connections:  # only now: each waits until its worker is there to read it
                connection.send(make)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for worker in workers:
            worker.kill()  # it holds nothing that needs tidying, and cannot have blocked this
            worker.join()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while processes start: they inherit that, and leave it to their parent to end them."""
    if sys.platform == "win32":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # or the first process would start it, and it lets interrupts through again
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _serve(connection: Connection) -> None:
    """Make the function that the parent sends the maker of, and work on items until it closes its end or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems on which it cannot be held back
    function: Callable[[Any], Any] | None = None
    failure: Exception | None = None
    try:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        function = connection.recv()()  # imports what the function needs; a limit of the system may forbid that
    except Exception as error:  # whatever it is, the parent must raise it
        failure = error
    with contextlib.suppress(EOFError, OSError, MemoryError):
        while True:
            item = connection.recv()
            answer: tuple[Any, Exception | None, bool] = (None, failure, False)
            if function:
                try:
                    answer = (function(item), None, True)
                except Exception as error:  # the same
                    answer = (None, error, True)
            connection.send(answer)


def _end_with_parent() -> None:
    """Wait for the parent to die, and do not outlive it even in the middle of an item."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
