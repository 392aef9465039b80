"""Several processes that train one model: each reads some of the streams, and all take the same step.

The only file that knows MPI. `world()` is `ONE`, a process by itself, unless mpiexec has started several; nothing is
imported then, and a method of `ONE` gives back what it is given.

A sum over ranks is made in one order: first over those of a node, in memory that they share, then over the nodes. MPI
has `Allreduce`, but does not promise that all ranks get the same bytes from it, nor the next run the same again.
"""

from __future__ import annotations

import functools
import math
import operator
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rnnlm.errors import RnnlmError, SettingsError, counted
from rnnlm.files import reason
from rnnlm.model import (
    BLOCK,
    Array,
    Gradients,
    Parameters,
    Rows,
    Workspace,
    blocks,
    in_arrays,
    joint_norm,
    pieces,
    runs,
    whole,
)
from rnnlm.settings import cores, launched, own_cores

Result = TypeVar("Result")

MEAN_NUMBERS = 2**22  # numbers of a parameter that are averaged at once
COPIED = 2**24  # bytes of a file that are sent at once
PATIENCE = 10.0  # seconds that a rank which fails waits for all others to fail too, before it ends them
NAP = 0.02  # seconds between two looks at whether the others are there, at most: MPI itself waits without sleeping


class Ranks:
    """One process that trains alone, and the interface of several."""

    rank, size = 0, 1

    @property
    def cores(self) -> int:
        """The share of the node's cores that this rank has."""
        return cores()

    @property
    def processes(self) -> int:
        """How many times more processes than threads there may be while the other ranks of the node wait."""
        return 1

    def check(self, streams: int) -> None:
        """Raise SettingsError where there are fewer streams than ranks."""
        if streams < self.size:
            message = f"there are {self.size} ranks and {counted(streams, 'stream')} of text to share among them"
            raise SettingsError(f"{message}; give a larger --batch-size, or start fewer ranks")

    def columns(self, streams: int) -> slice:
        """Return this rank's part of the streams."""
        return pieces(0, streams, self.size)[self.rank]

    def sum(
        self, parameters: Parameters, gradients: Gradients, loss: float, work: Workspace
    ) -> tuple[Gradients, float, float]:
        """Add up the gradients of all ranks, and their losses; the third is the joint norm of the sum.

        A row that any rank's gradient has is in the sum.
        """
        return gradients, loss, joint_norm(gradients, work)

    def totals(self, *numbers: float) -> Sequence[float]:
        """Add up numbers of all ranks, each by itself."""
        return numbers

    def average(self, arrays: Sequence[Array], work: Workspace) -> None:
        """Put the mean over all ranks in the place of arrays."""

    def agree(self, *flags: bool) -> Sequence[bool]:
        """Return which flags any rank has set."""
        return flags

    def first(self, function: Callable[[], Result]) -> Result:
        """Call a function on the first rank alone; all return its result, or raise its error."""
        return function()

    def all(self, value: Result) -> list[Result]:
        """Return each rank's value."""
        return [value]

    def gather(self, states: Array | None) -> Array | None:
        """Return the states (L, M, B, H) of all streams, on the first rank; elsewhere what is given."""
        return states

    def copy(self, files: Sequence[tuple[Path, str]], place: Path | None) -> None:
        """Copy files from the first rank, each with its name, to the ranks that name a place for them."""


ONE = Ranks()


class _Span(NamedTuple):
    """Rows of a gradient's sum, and where they are in memory that holds all of them."""

    rows: Any  # a slice or an array of ids
    place: slice
    shape: tuple[int, ...]


class _Several(Ranks):
    """One of several ranks."""

    def __init__(self, mpi: Any) -> None:
        self.mpi, self.comm = mpi, mpi.COMM_WORLD.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.ending = mpi.COMM_WORLD.Dup()  # apart: a rank that fails is there while others wait elsewhere
        self.node = self._node()
        # As many ranks of each node as the smallest has carry a part of each sum to the other nodes.
        carriers = self.comm.allreduce(self.node.size, mpi.MIN)
        self.pieces, self.carries = carriers, self.node.rank < carriers
        self.across = self.comm.Split(self.node.rank if self.carries else mpi.UNDEFINED, self.rank)
        self.window: Any = None
        self.segments: list[NDArray[np.float32]] = []  # memory that the ranks of the node share: each one's own part
        self.summed = 0  # numbers, in all sums so far
        self.torn = False  # whether it was interrupted while it waited for others: MPI would wait for them again
        self._ended: bool | None = None

    @property
    def cores(self) -> int:
        mine = own_cores()
        each = self.node.allgather(mine)  # mpiexec may have given each rank cores of its own
        return max(1, int(sum(1 / sum(core in theirs for theirs in each) for core in mine) + 1e-9))

    @property
    def processes(self) -> int:
        return int(self.node.size)

    def _node(self) -> Any:
        """Return the ranks that share memory with this one."""
        return self.comm.Split_type(self.mpi.COMM_TYPE_SHARED)

    def sum(
        self, parameters: Parameters, gradients: Gradients, loss: float, work: Workspace
    ) -> tuple[Gradients, float, float]:
        found = {name: in_arrays(gradient) for name, gradient in gradients.items()}
        spans, total = _laid_out(parameters, self._touched(parameters, gradients))
        mine = self._segment(total)
        for name, own in spans.items():
            _put(found[name], own, mine)
        squares = self._add(total, work)
        copies: list[tuple[Array, Array]] = []
        summed: Gradients = {
            name: [part for span in own for part in _taken(found[name], span, self.segments[0], copies)]
            for name, own in spans.items()
        }
        work.each(lambda copy: np.copyto(*copy), copies)
        loss, squares = self.totals(loss, squares)  # which also tells each that all have read the sum
        return summed, loss, math.sqrt(squares)

    def totals(self, *numbers: float) -> Sequence[float]:
        each = np.empty((self.size, len(numbers)))
        self.comm.Allgather(np.array(numbers, np.float64), each)
        return [functools.reduce(operator.add, column) for column in each.T.tolist()]  # in one order on any machine

    def average(self, arrays: Sequence[Array], work: Workspace) -> None:
        for array in arrays:
            flat = array.reshape(-1)
            for part in runs(0, flat.size, MEAN_NUMBERS):
                total = part.stop - part.start
                self._segment(total)[:] = flat[part]
                self._add(total, work)
                np.divide(self.segments[0][:total], np.float32(self.size), out=flat[part])
                self.node.Barrier()

    def agree(self, *flags: bool) -> Sequence[bool]:
        together = np.array(flags, np.uint8)
        self.comm.Allreduce(self.mpi.IN_PLACE, together, self.mpi.BOR)
        return [bool(flag) for flag in together]

    def first(self, function: Callable[[], Result]) -> Result:
        result: Any = None
        failure: BaseException | None = None
        if self.rank == 0:
            try:
                result = function()
            except KeyboardInterrupt:  # the others have it too, and are gone, or are ended as this rank leaves
                self.torn = True
                raise
            except BaseException as error:
                failure = error
        self._sleep_until(self.comm.Ibarrier())
        sent = (result, *_described(failure)) if self.rank == 0 else None
        result, kind, message = self._large().bcast(sent)
        if failure is not None:
            raise failure
        if kind is not None:
            raise kind(message)
        return result  # type: ignore[no-any-return]

    def all(self, value: Result) -> list[Result]:
        return self.comm.allgather(value)  # type: ignore[no-any-return]

    def gather(self, states: Array | None) -> Array | None:
        each = self._large().gather(states)
        return states if each is None or states is None else np.concatenate(each, axis=2)

    def copy(self, files: Sequence[tuple[Path, str]], place: Path | None) -> None:
        takes = self.rank == 0 or place is not None
        comm = self.comm.Split(0 if takes else self.mpi.UNDEFINED, self.rank)
        failure = None
        if takes:
            for name, blocks in comm.bcast([(name, -(-path.stat().st_size // COPIED)) for path, name in files]):
                source = next((path for path, own in files if own == name), None)
                failure = _copy(comm, blocks, source, place and place / name) or failure
            comm.Free()
        failures = [found for found in self.all(failure) if found]
        if failures:
            raise SettingsError(f"{failures[0]}; make room there, or name another folder with --scratch")

    def together(self, patience: float | None) -> bool:
        """Say whether all ranks come to their end, within so many seconds; None: wait for them."""
        if self._ended is None:
            torn = self.torn
            self._ended = self._sleep_until(self.ending.Ibarrier(), patience)
            self.torn = torn
        return self._ended

    def _sleep_until(self, request: Any, patience: float | None = None) -> bool:
        """Wait, asleep, until a request is done; say whether it is, after so many seconds."""
        began, nap, self.torn = time.monotonic(), NAP / 100, True
        while not request.Test():
            if patience is not None and time.monotonic() - began > patience:
                return False
            time.sleep(nap)
            nap = min(2 * nap, NAP)
        self.torn = False
        return True

    def _large(self) -> Any:
        """Return what sends objects whose arrays may have more than two gigabytes."""
        from mpi4py.util import pkl5

        return pkl5.Intracomm(self.comm)

    def _touched(self, parameters: Parameters, gradients: Gradients) -> dict[str, list[Any]]:
        """Return the rows of each gradient that any rank has: runs of them, then single ones.

        A mark for each row travels, which is little beside its numbers, however many ranks there are.
        """
        marks = np.zeros(sum(2 * len(parameters[name]) for name in gradients), bool)
        sizes = np.cumsum([2 * len(parameters[name]) for name in gradients])[:-1]
        own = {name: part.reshape(2, -1) for name, part in zip(gradients, np.split(marks, sizes), strict=True)}
        for name, gradient in gradients.items():
            for rows, _ in gradient:
                own[name][0 if isinstance(rows, slice) else 1, rows] = True
        packed = np.packbits(marks)
        self.comm.Allreduce(self.mpi.IN_PLACE, packed, self.mpi.BOR)
        marks[:] = np.unpackbits(packed, count=len(marks))
        touched: dict[str, list[Any]] = {}
        for name, (in_runs, single) in own.items():
            edges = np.flatnonzero(np.diff(in_runs.view(np.int8), prepend=0, append=0)).tolist()
            touched[name] = [slice(*edge) for edge in zip(edges[::2], edges[1::2], strict=True)]
            ids = np.flatnonzero(single & ~in_runs)
            touched[name] += [ids] if ids.size else []
        return touched

    def _segment(self, numbers: int) -> NDArray[np.float32]:
        """Return this rank's part of the memory that its node shares, of so many numbers on every rank."""
        if not self.segments or len(self.segments[0]) < numbers:
            self.segments = []
            if self.window is not None:
                self.window.Unlock_all()
                self.window.Free()
            size = max(BLOCK, numbers + numbers // 4)
            self.window = self.mpi.Win.Allocate_shared(4 * size, 4, comm=self.node)
            self.window.Lock_all()
            parts = (self.window.Shared_query(rank)[0] for rank in range(self.node.size))
            self.segments = [np.frombuffer(part, np.float32) for part in parts]
        mine: NDArray[np.float32] = self.segments[self.node.rank][:numbers]
        return mine

    def _add(self, total: int, work: Workspace) -> float:
        """Add up the first numbers of all ranks' segments, into the first segment of each node.

        Returns the sum of the squares of those that this rank has added up last.
        """
        self.summed += total
        self._wait_for_node()
        squares = 0.0
        if self.carries:
            own = pieces(0, total, self.pieces)[self.node.rank]

            def add(part: slice) -> None:
                for other in self.segments[1:]:
                    self.segments[0][part] += other[part]

            work.each(add, runs(own.start, own.stop, BLOCK))
            numbers = self._add_across(self.segments[0][own], work)
            parts = [numbers[part] for part in runs(0, len(numbers), BLOCK)]
            squares = math.fsum(work.each(lambda part: float(np.dot(part, part)), parts)) if parts else 0.0
        self._wait_for_node()
        return squares

    def _add_across(self, numbers: Array, work: Workspace) -> Array:
        """Add up, in place, the numbers of one rank of each node; return those that are added up here."""
        rank, size = self.across.rank, self.across.size
        if size == 1:
            return numbers
        cuts = pieces(0, len(numbers), size)
        starts, counts = [cut.start for cut in cuts], [cut.stop - cut.start for cut in cuts]
        own: Array = numbers[cuts[rank]]
        each = work.part("ranks").array("received", (size, len(own)), np.float32)
        placed = [each, [len(own)] * size, [len(own) * place for place in range(size)], self.mpi.FLOAT]
        self.across.Alltoallv([numbers, counts, starts, self.mpi.FLOAT], placed)
        own[:] = each[0]
        for other in each[1:]:
            own += other
        self.across.Allgatherv(self.mpi.IN_PLACE, [numbers, counts, starts, self.mpi.FLOAT])
        return own

    def _wait_for_node(self) -> None:
        """Wait for the ranks of this node; what each has written, all then see."""
        self.window.Sync()
        self.node.Barrier()
        self.window.Sync()


def _laid_out(parameters: Parameters, touched: Mapping[str, list[Any]]) -> tuple[dict[str, list[_Span]], int]:
    """Lay rows out one behind the other in one memory; return where, and how many numbers there are."""
    spans: dict[str, list[_Span]] = {}
    place = 0
    for name, parts in touched.items():
        spans[name] = []
        for rows in parts:
            count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
            shape = (count, *parameters[name].shape[1:])
            spans[name].append(_Span(rows, slice(place, place + math.prod(shape)), shape))
            place += math.prod(shape)
    return spans, place


def _divided(gradient: Rows, span: _Span) -> tuple[Rows, list[slice]]:
    """Return what a gradient has of a run of rows, and the slices of them that it has not."""
    start, stop = span.rows.start, span.rows.stop
    own = [(rows, values) for rows, values in gradient if isinstance(rows, slice) and start <= rows.start < stop]
    missing, place = [], start
    for begin, end in [*sorted((rows.start, rows.stop) for rows, _ in own), (stop, stop)]:
        missing += [slice(place, begin)] if place < begin else []
        place = end
    return own, missing


def _put(gradient: Rows, spans: list[_Span], memory: Array) -> None:
    """Write a gradient to its place among the rows that any rank has, and zeros where it has none."""
    in_runs = [span for span in spans if isinstance(span.rows, slice)]
    begins = np.array([span.rows.start for span in in_runs], int)
    ends: Array = np.array([span.rows.stop for span in in_runs], int)
    for span in in_runs:
        found, first = memory[span.place].reshape(span.shape), span.rows.start
        own, missing = _divided(gradient, span)
        for rows, values in own:
            found[rows.start - first : rows.stop - first] = values
        for rows in missing:
            found[rows.start - first : rows.stop - first] = 0
    for span in spans[len(in_runs) :]:
        memory[span.place] = 0
    for ids, values in ((rows, values) for rows, values in gradient if not isinstance(rows, slice)):
        at = np.asarray(np.searchsorted(begins, ids, side="right")) - 1  # the run that a row lies in, if it lies in one
        inside = (at >= 0) & (ids < ends[at]) if in_runs else np.zeros(len(ids), bool)
        for number in np.unique(at[inside]).tolist():  # another rank has a run there
            here, span = inside & (at == number), in_runs[number]
            memory[span.place].reshape(span.shape)[ids[here] - span.rows.start] = values[here]
        for span in spans[len(in_runs) :]:
            memory[span.place].reshape(span.shape)[np.searchsorted(span.rows, ids[~inside])] = values[~inside]


def _taken(gradient: Rows, span: _Span, memory: Array, copies: list[tuple[Array, Array]]) -> Rows:
    """Return the gradient of a span's rows, and add to the copies that fill it: from memory, in blocks.

    What this rank has found of them itself is written over, as less memory is quicker.
    """
    found, first = memory[span.place].reshape(span.shape), 0
    own: Rows = []
    missing = [span.rows]
    if isinstance(span.rows, slice):
        (own, missing), first = _divided(gradient, span), span.rows.start
    counts = [rows.stop - rows.start if isinstance(rows, slice) else len(rows) for rows in missing]
    parts = own + [
        (rows, np.empty((count, *span.shape[1:]), memory.dtype)) for rows, count in zip(missing, counts, strict=True)
    ]
    for rows, values in parts:
        source = found[rows.start - first : rows.stop - first] if isinstance(rows, slice) else found
        copies += [(part, source[place]) for place, part in blocks(whole(values))]
    return parts


def _described(failure: BaseException | None) -> tuple[type[BaseException] | None, str]:
    """Return what other ranks raise where the first has failed: an error of the same kind, if it is one of ours."""
    if failure is None:
        return None, ""
    kind = type(failure)
    return (kind, str(failure)) if issubclass(kind, RnnlmError) else (RuntimeError, f"{kind.__name__}: {failure}")


def _copy(comm: Any, blocks: int, source: Path | None, target: Path | None) -> str | None:
    """Send a file in blocks from the first rank of `comm`, and write it where there is a target; return what failed."""
    failure = None
    read: BinaryIO | None = None
    written: BinaryIO | None = None

    def attempt(step: Callable[[], Any]) -> Any:
        """Take a step, unless one has failed; the blocks are sent all the same, as the others wait for them."""
        nonlocal failure
        try:
            return step() if failure is None else None
        except OSError as error:
            failure = f"{target or source}: cannot be copied on {os.uname().nodename} ({reason(error)})"
            return None

    with ExitStack() as files:
        if source is not None:
            read = attempt(lambda: files.enter_context(source.open("rb")))
        if target is not None:
            attempt(lambda: target.parent.mkdir(parents=True, exist_ok=True))
            written = attempt(lambda: files.enter_context(target.open("xb")))
        for _ in range(blocks):
            block = comm.bcast(attempt(lambda: read.read(COPIED)) if read is not None else None)
            if written is not None:
                attempt(partial(written.write, block or b""))
    return failure


@functools.cache
def world() -> Ranks:
    """Join the processes that mpiexec has started, and return this one's rank among them; `ONE` where it is alone.

    Raises SettingsError where mpi4py is missing, or belongs to another MPI than mpiexec does.
    """
    size = launched()[1]
    if size < 2:
        return ONE
    try:
        import mpi4py

        mpi4py.rc.thread_level = "serialized"
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        message = f"mpiexec has started {size} processes, and mpi4py, by which they would train together, is missing"
        raise SettingsError(f"{message}; pip install 'rnnlm-numpy[mpi]', or start rnnlm without mpiexec") from None
    if MPI.COMM_WORLD.Get_size() != size:
        library = MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\0 ")
        message = f"mpiexec has started {size} processes, and mpi4py, with {library}, finds {MPI.COMM_WORLD.Get_size()}"
        raise SettingsError(f"{message}; start them with the mpiexec of that MPI")
    return _Several(MPI)


def fails_alone() -> bool:
    """Say whether this rank fails and the others do not: then it has to say so itself."""
    ranks = world()
    return isinstance(ranks, _Several) and not ranks.together(PATIENCE)


def leave(code: int) -> None:
    """Part from the other ranks: together with all or, where this one fails alone, by ending them with an exit code."""
    ranks = world()
    if not isinstance(ranks, _Several):
        return
    if not ranks.together(None if code == 0 else PATIENCE) or ranks.torn:
        ranks.mpi.COMM_WORLD.Abort(code)
    ranks.mpi.Finalize()
