"""Contestants take turns: each works in a process of its own, which does nothing at all while another is measured.

A machine's speed drifts, by a tenth within a minute where others share it, so speeds are only compared within a round,
in which every contestant has had its turn; a ratio is the median over the rounds of the ratios within a round.
"""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import numpy as np
from machine import peak_megabytes
from numpy.typing import NDArray

PAUSE = 0.05  # seconds between two turns: a library's idle threads wait actively for some 20 milliseconds

Run = Callable[[int], float]  # does so many units of its work; returns how much that was, in words or in operations
Entry = tuple[Callable[..., Run], *tuple[object, ...]]  # what makes a contestant ready, and its arguments


@dataclass
class Result:
    """What a contest has shown, by the contestants' names."""

    rates: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # a second, (rounds,)
    peaks: dict[str, float] = field(default_factory=dict)  # megabytes
    failures: dict[str, str] = field(default_factory=dict)  # why there is no rate

    def ratio(self, name: str, other: str) -> float:
        """Return how many times as fast as the other a contestant is; NaN where one of them failed."""
        if name not in self.rates or other not in self.rates:
            return float("nan")
        return float(np.median(self.rates[name] / self.rates[other]))

    def rate(self, name: str) -> float:
        """Return a contestant's median rate; NaN where it failed."""
        return float(np.median(self.rates[name])) if name in self.rates else float("nan")


class Contestant:
    """A process that makes itself ready, and then works when told to.

    Raises ContestError where it cannot.
    """

    def __init__(self, entry: Entry) -> None:
        prepare, *arguments = entry
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, prepare, arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.count = 1
        failure = self._receive()
        if failure is not None:
            self.process.join()
            raise ContestError(failure)

    def _receive(self) -> object:
        try:
            return self.connection.recv()
        except EOFError:
            raise ContestError("failed: its process has ended") from None

    def turn(self, count: int) -> tuple[float, float]:
        """Let it do `count` units of its work. Returns how much that was, and the seconds."""
        time.sleep(PAUSE)
        self.connection.send(count)
        return self._receive()

    def calibrate(self, seconds: float) -> None:
        """Find the number of units that take about so long."""
        count = 1
        while (taken := self.turn(count)[1]) < seconds / 4:
            count *= 2
        self.count = max(1, round(count * seconds / taken))

    def close(self) -> float:
        """End the process. Returns its peak memory in megabytes."""
        self.connection.send(0)
        peak = self._receive()
        self.process.join()
        return peak


class ContestError(Exception):
    """A contestant cannot take part."""


def _serve(connection: Connection, prepare: Callable[..., Run], arguments: tuple[object, ...]) -> None:
    try:
        run = prepare(*arguments)
        run(1)  # what happens the first time only is not counted: buffers, compilation
    except Exception as error:  # whatever a foreign library raises is an entry in a table
        connection.send(f"failed: {type(error).__name__}")
        raise
    connection.send(None)
    while count := connection.recv():
        run(1)  # not counted: another's data are in the caches
        begin = time.perf_counter()
        amount = run(count)
        connection.send((amount, time.perf_counter() - begin))
    connection.send(peak_megabytes())


def contest(entries: Mapping[str, Entry], rounds: int, seconds: float) -> Result:
    """Let all take turns of about so many seconds, in so many rounds."""
    result = Result()
    contestants: dict[str, Contestant] = {}
    rates: dict[str, list[float]] = {}
    for name, entry in entries.items():
        try:
            contestant = Contestant(entry)
            contestant.calibrate(seconds)
        except ContestError as error:
            result.failures[name] = str(error)
        else:
            contestants[name], rates[name] = contestant, []
    for _ in range(rounds):
        for name, contestant in contestants.items():
            amount, taken = contestant.turn(contestant.count)
            rates[name].append(amount / taken)
    result.rates = {name: np.array(values) for name, values in rates.items()}
    for name, contestant in contestants.items():
        with contextlib.suppress(ContestError):
            result.peaks[name] = contestant.close()
    return result
