"""An ordered, bounded map over processes, which end with their parent however that ends."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDiedError(Exception):
    """A process has ended in the middle of an item, which is the argument."""


def ordered(
    make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], processes: int
) -> Generator[tuple[Item, Result]]:
    """Yield each item with what a function makes of it, in order.

    Arguments:
        make: makes the function, once in each process; it is pickled, and so are items and results.
        items: taken as they are needed: each process has one item at a time, so memory is bounded.
        processes: how many work side by side; with 1 all is done here, and none is started.

    What the function raises is raised here. Raises WorkerDiedError when a process was killed.
    """
    if processes < 2:
        function = make()
        for item in items:
            yield item, function(item)
        return
    with _started(make, processes) as workers:
        idle, waiting = deque(workers), deque[tuple[Item, Connection]]()
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
        result, error = worker.recv()
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
def _started(make: Callable[[], Callable[[Any], Any]], processes: int) -> Iterator[list[Connection]]:
    """Start processes, and end them whatever happens; yields the connection to each."""
    context = multiprocessing.get_context("spawn")  # forking is unsafe where threads of BLAS are running
    workers = []
    connections = []
    try:
        with _interrupts_held():
            for _ in range(processes):
                ours, theirs = context.Pipe()
                worker = context.Process(target=_serve, args=(theirs, make), daemon=True)
                worker.start()
                theirs.close()  # or we should never see that the worker's own end has closed
                workers.append(worker)
                connections.append(ours)
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
    resource_tracker.ensure_running()  # or the first process would start it, and it lets interrupts through again
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _serve(connection: Connection, make: Callable[[], Callable[[Any], Any]]) -> None:
    """Work on items until the parent closes its end or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems on which it cannot be held back
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            item = connection.recv()
            try:
                function = function or make()
                answer: tuple[Any, Exception | None] = (function(item), None)
            except Exception as error:  # whatever it is, the parent must raise it
                answer = (None, error)
            connection.send(answer)


def _end_with_parent() -> None:
    """Wait for the parent to die, and do not outlive it even in the middle of an item."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
