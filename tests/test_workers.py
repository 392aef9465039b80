"""An ordered map over processes: in order, bounded, and gone with its parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from rnnlm.workers import NotStartedError, WorkerDiedError, ordered


def squares(slow=()):
    """Make a function that squares numbers, and takes its time with some."""

    def square(number):
        if number in slow:
            time.sleep(0.3)
        if number < 0:
            raise ValueError(f"{number} is negative")
        return number * number

    return square


def greedy():
    """Make a function that has no memory for number 3."""

    def work(number):
        if number == 3:
            raise MemoryError
        return number

    return work


def deadly():
    """Make a function that ends its process at number 3."""

    def work(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return work


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_results_come_in_order(processes):
    """Each item comes with its result, in order, however long each takes and however many processes there are."""
    found = list(ordered(partial(squares, (0, 4)), range(12), processes))
    assert found == [(number, number * number) for number in range(12)]
    assert list(ordered(squares, [], processes)) == []
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_items_are_taken_as_they_are_needed(processes):
    """No more items are taken than processes can hold, and one."""
    taken = []
    results = ordered(squares, (taken.append(number) or number for number in range(100)), processes)
    for count in range(1, 20):
        next(results)
        assert len(taken) <= count + processes
    results.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_comes_back(processes):
    """What the function raises is raised to whoever wants the result, after the results before it."""
    results = ordered(squares, [1, 2, -3, 4], processes)
    assert [next(results), next(results)] == [(1, 1), (2, 4)]
    with pytest.raises(ValueError, match="-3 is negative"):
        next(results)
    assert multiprocessing.active_children() == []


def broken(error):
    """Fail to make a function."""
    raise error


def returned():
    """Make a function that returns an error, and raises none."""
    return ValueError


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_while_the_function_is_made_comes_back(processes):
    """What goes wrong before the first item is raised too, and not taken for a killed process."""
    with pytest.raises(ValueError, match="no such function"):
        list(ordered(partial(broken, ValueError("no such function")), [1, 2, 3], processes))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (ImportError("failed to map segment"), "failed to map segment"),
        (OSError(12, "Cannot allocate memory"), "cannot allocate memory"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_a_process_that_meets_a_limit_as_it_starts(capfd, error, reason):
    """A limit of the system that a process meets before its first item is an error of its own, told once."""
    with pytest.raises(NotStartedError, match=f"^{reason}$"):
        list(ordered(partial(broken, error), [1, 2, 3], 2))
    assert multiprocessing.active_children() == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [BlockingIOError(11, "Resource temporarily unavailable"), RuntimeError("no thread")])
def test_a_process_that_cannot_be_started(monkeypatch, error):
    """Where a process cannot be started, those that were are ended."""
    start, started = SpawnProcess.start, []

    def limited(process):
        if started:
            raise error
        start(process)
        started.append(process)

    monkeypatch.setattr(SpawnProcess, "start", limited)
    with pytest.raises(NotStartedError, match=r"^(resource temporarily unavailable|no thread)$"):
        list(ordered(squares, [1, 2, 3], 2))
    assert not started[0].is_alive()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_may_be_a_result(processes):
    """An exception that the function returns is a result like any other."""
    found = list(ordered(returned, ["a", "b"], processes))
    assert [(item, type(result)) for item, result in found] == [("a", ValueError), ("b", ValueError)]


@pytest.mark.parametrize("make", [deadly, greedy])
def test_a_death_is_an_error(make):
    """A process that is killed in the middle of an item is an error that has the item, not an endless wait.

    So is one that has no more memory, which another process may have taken.
    """
    with pytest.raises(WorkerDiedError) as raised:
        list(ordered(make, range(20), 2))
    assert raised.value.args == (3,)
    assert multiprocessing.active_children() == []


ENDLESS = """
    import sys, time
    from rnnlm.workers import ordered

    def make():
        return work

    def work(item):
        sys.stdout.write("working\\n")
        sys.stdout.flush()
        time.sleep(3600)

    if __name__ == "__main__":
        try:
            print("ready", flush=True)
            list(ordered(make, range(2), 2))
        except KeyboardInterrupt:
            sys.exit(130)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
@pytest.mark.parametrize(
    ("number", "lines"), [(signal.SIGINT, 1), (signal.SIGINT, 3), (signal.SIGKILL, 3)], ids=["start", "int", "kill"]
)
def test_processes_end_with_their_parent(tmp_path, number, lines):
    """Ctrl-C at any moment, and the death of the parent, leave no process, not in the middle of an item, nor a word.

    An item takes an hour here, so a process that finished it would be waited for longer than any test.
    """
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(ENDLESS))
    command = [sys.executable, str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        for _ in range(lines):  # "ready", then a line of each process
            assert process.stdout.readline()
        # Ctrl-C reaches the whole group; a kill only the parent, while the others are in the middle of an item.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        try:
            _, errors = process.communicate(timeout=300)  # returns when the last process that has its pipes is gone
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # else the end of `with` would wait for it forever
            raise
        assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert errors == b""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_processes_never_hear_an_interrupt(tmp_path):
    """The processes are started with Ctrl-C held back, so that they cannot be caught by it before they ignore it."""
    program = """
        import multiprocessing, pathlib, sys
        from rnnlm import workers

        if __name__ == "__main__":
            with workers._started(dict, 2):
                for worker in multiprocessing.active_children():
                    status = pathlib.Path(f"/proc/{worker.pid}/status").read_text()
                    print(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1])
            own = pathlib.Path("/proc/self/status").read_text()
            print(next(line for line in own.splitlines() if line.startswith("SigBlk")).split()[1])
    """
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    masks = subprocess.check_output([sys.executable, str(path)], text=True).split()
    assert [bool(int(mask, 16) & 1 << (signal.SIGINT - 1)) for mask in masks] == [True, True, False]
