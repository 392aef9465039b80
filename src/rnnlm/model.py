"""The mathematics of a word-level recurrent language model, from the forward pass to the step of SGD.

This file imports numpy and the standard library only; it can be copied out and read alone. Equation numbers are those
of docs/derivation.md, where each one is derived from the chain rule.

Letters, everywhere: T steps, B streams, N = T*B positions, V words, H hidden units, G gates, M memories, K truncation.
`dX` is the gradient of the loss L with respect to X and has X's shape; a prime (W') is a transpose.

Forward, for each stream: word x_t comes in, the state s_t sums up all that was read, p_t says which word comes next.

    (1)  z_t = U[x_t] + W s_{t-1} + b           U (V, H): a row for each word;  W (H, H);  b (H,)
    (2)  s_t = tanh(z_t)                        s (T, B, H);  s_{t-1} = 0 where a sentence begins
    (3)  p_t = softmax(V s_t + c)               V (V, H): a row for each word;  c (V,)
    (4)  E_t = -log p_t[y_t],   L = mean of E_t over the positions;  perplexity = exp(L)

Backward: what E_t owes to the state k <= t is delta_t(k) = dE_t/dz_k; one product with W' moves it a step back.

    (5)  dE_t/d(V s_t + c) = p_t - 1_{y_t}      softmax and logarithm together: no other derivative is needed
    (6)  dV = sum_t (p_t - 1_{y_t}) s_t',   dc = sum_t (p_t - 1_{y_t})
    (7)  dE_t/ds_t = V' (p_t - 1_{y_t})
    (8)  delta_t(t) = dE_t/ds_t * (1 - s_t^2)
    (9)  delta_t(k-1) = W' delta_t(k) * (1 - s_{k-1}^2)
    (10) dW = sum_t sum_{k <= t} delta_t(k) s_{k-1}'
    (11) dU[x_k] += delta_t(k),   db = sum_t sum_{k <= t} delta_t(k)

References: Elman (1990), "Finding structure in time", the network; Werbos (1990), "Backpropagation through time: what
it does and how to do it", (8) to (11); Williams and Peng (1990), the truncation; Mikolov et al. (2010), "Recurrent
neural network based language model", the language model; Pascanu et al. (2013), clipping by the joint norm.

A function with a gradient returns `(output, backward)`, and `backward` takes the gradient of its output.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Parameters = dict[str, Array]
Item = TypeVar("Item")

SENTENCE_END = 0  # the id of </s>, which is also the context of a sentence's first word
IGNORED = -1  # a target that stands for no word: nothing is predicted there
BLOCK = 1 << 16  # numbers that stay in a core's cache from one elementwise pass to the next
PRODUCT_ROWS = 128  # rows of a product that one thread computes at a time
STREAMS = 16  # streams whose next words' probabilities one thread computes at a time
SLICE_WORDS = 1000  # words in one slice of the output layer: its product fills a core, its logits stay near it


class Rows(NamedTuple):
    """The gradient of a table of which few rows were read: all other rows are zero."""

    ids: Array  # (R,), ascending, each row once
    values: Array  # (R, columns)


class Spans(NamedTuple):
    """The gradient of a table of which some runs of rows took part: all other rows are zero, whatever stands there."""

    values: Array  # of the table's shape
    rows: tuple[slice, ...]


Gradient = Array | Rows | Spans
Gradients = dict[str, Gradient]


class Workspace:
    """Arrays that are used again for each window, and the threads that share the large products.

    The threads run numpy calls, which release the interpreter's lock. Hold BLAS to one thread (threadpoolctl) while a
    workspace with several is in use. How the work is cut never depends on `threads`, so neither does any result.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._buffers: dict[object, Array] = {}

    def array(self, name: object, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return an uninitialized array, the same memory each time that `name` is asked for."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)

    def each(self, function: Callable[[Item], object], items: Sequence[Item]) -> None:
        """Call `function` with each item, on all threads."""
        if self._pool is None or len(items) == 1:
            for item in items:
                function(item)
            return
        waiting = deque(items)

        def work_off() -> None:
            while waiting:
                try:
                    item = waiting.popleft()
                except IndexError:  # another thread took the last
                    return
                function(item)

        # Each thread works in a copy of this one's context, so that np.errstate holds there too.
        for call in [self._pool.submit(copy_context().run, work_off) for _ in range(min(self.threads, len(items)))]:
            call.result()

    def matmul(self, left: Array, right: Array, out: Array) -> Array:
        """Multiply two matrices, PRODUCT_ROWS rows of the first at a time, on all threads."""
        self.each(lambda rows: np.matmul(left[rows], right, out=out[rows]), runs(0, len(left), PRODUCT_ROWS))
        return out

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def runs(start: int, stop: int, size: int) -> list[slice]:
    """Cut a range into runs of so many, the last one shorter."""
    return [slice(begin, min(begin + size, stop)) for begin in range(start, stop, size)]


# ---------------------------------------------------------------------------------------------------------------------
# Cells: elementwise functions, in pairs. All products and the walk through time are the recurrence's.


class Cell(NamedTuple):
    """What one kind of recurrent unit computes; `recur` does everything else.

    `forward(x, q, previous, state)` reads the input product x and the recurrent product q, both (..., B, G*H), and the
    memories `previous` (..., M, B, H); it writes the memories `state`, of which the first is the output. It may leave
    in x and q what `backward` will want. `backward(dstate, x, q, previous, state)` returns dx, dq, and the gradient
    that reaches `previous` without passing W (None for none). Both work at one step or at many.
    """

    gates: int
    memories: int
    forward: Callable[[Array, Array, Array, Array], None]
    backward: Callable[[Array, Array, Array, Array, Array], tuple[Array, Array, Array | None]]


def _elman_forward(x: Array, q: Array, previous: Array, state: Array) -> None:
    np.add(x, q, out=x)
    np.tanh(x, out=state[..., 0, :, :])  # (2)


def _elman_backward(dstate: Array, x: Array, q: Array, previous: Array, state: Array) -> tuple[Array, Array, None]:
    s = state[..., 0, :, :]
    dz = dstate[..., 0, :, :] * (1 - s * s)  # (8), and the second half of (9)
    return dz, dz, None


CELLS: dict[str, Cell] = {"elman": Cell(gates=1, memories=1, forward=_elman_forward, backward=_elman_backward)}


# ---------------------------------------------------------------------------------------------------------------------
# The layers


class Dropout(NamedTuple):
    """Zeros to put into the rows read from U and into the outputs, while training (Srivastava et al. 2014)."""

    rate: float  # the probability of a zero; the rest is divided by 1 - rate, so that the expectation stays
    generator: np.random.Generator


def drop(values: Array, dropout: Dropout | None, name: str, work: Workspace) -> tuple[Array, Callable[[Array], Array]]:
    """Put zeros at random into a copy of `values`. Returns it, and a function from its gradient to that of `values`."""
    if dropout is None:
        return values, lambda dvalues: dvalues
    mask = work.array((name, "mask"), values.shape, values.dtype)
    dropout.generator.random(dtype=values.dtype, out=mask)
    np.greater_equal(mask, dropout.rate, out=mask)
    mask *= 1 / (1 - dropout.rate)
    return np.multiply(values, mask, out=work.array((name, "kept"), values.shape, values.dtype)), lambda d: d * mask


def embed(
    inputs: Array, U: Array, b: Array, dropout: Dropout | None, work: Workspace
) -> tuple[Array, Callable[[Array], tuple[Rows, Array]]]:
    """Look the input words up: x_t = U[x_t] + b, the part of (1) that needs no state.

    Takes inputs (T, B), U (V, G*H) and b (G*H,). Returns x (T, B, G*H), and a function from dx to (dU, db).
    """
    rows = work.array("rows", (*inputs.shape, U.shape[1]), U.dtype)
    np.take(U, inputs, axis=0, out=rows, mode="clip")  # "clip" spares a copy; ids are checked where a corpus is read
    x, drop_backward = drop(rows, dropout, "x", work)
    x += b

    def backward(dx: Array) -> tuple[Rows, Array]:
        drows = drop_backward(dx).reshape(inputs.size, -1)
        return sum_rows(inputs.reshape(-1), drows), dx.reshape(inputs.size, -1).sum(axis=0)  # (11)

    return x, backward


def sum_rows(ids: Array, values: Array) -> Rows:
    """Add up the rows of values (N, columns) that belong to the same id (N,)."""
    order = np.argsort(ids, kind="stable")
    unique, starts, counts = np.unique(ids[order], return_index=True, return_counts=True)
    sums = values[order[starts]]
    for k in np.flatnonzero(counts > 1):  # two to seven times as fast as np.add.reduceat: most words stand alone
        np.add.reduce(values[order[starts[k] : starts[k] + counts[k]]], axis=0, out=sums[k])
    return Rows(unique, sums)


def recur(
    x: Array, W: Array, keep: Array, state: Array, cell: Cell, truncate: int | None, work: Workspace
) -> tuple[tuple[Array, Array], Callable[[Array], tuple[Array, Array]]]:
    """Walk a window of T steps: the recurrent part of (1), and (2).

    Takes x (T, B, G*H), which it overwrites, W (G*H, H), `keep` (T, B, 1), which is 0 where the step begins a sentence
    and so forgets the state and 1 elsewhere, and the memories before the window, state (M, B, H). Returns the outputs
    (T, B, H) with the memories after the window (M, B, H), and a function from the outputs' gradient to (dx, dW).

    The state before the window is a constant. With `truncate` None the error of each output reaches back to it: one
    recursion over the window. With `truncate` K it reaches K steps back and no further.
    """
    T, B, _ = x.shape
    M, H = cell.memories, W.shape[1]
    states = work.array("states", (T + 1, M, B, H), x.dtype)
    previous = work.array("previous", (T, M, B, H), x.dtype)  # s_{t-1}, zero where a sentence begins
    q = work.array("q", x.shape, x.dtype)
    states[0] = state
    for t in range(T):
        np.multiply(states[t], keep[t], out=previous[t])
        np.matmul(previous[t, 0], W.T, out=q[t])  # (1)
        cell.forward(x[t], q[t], previous[t], states[t + 1])

    def step_back(dstate: Array, at: slice) -> tuple[Array, Array, Array]:
        """Move the gradient of the states `at`, (n, M, B, H), a step back: (9), for n steps side by side."""
        dx, dq, dprevious = cell.backward(dstate, x[at], q[at], previous[at], states[1:][at])
        through_W = (dq.reshape(-1, dq.shape[-1]) @ W).reshape(-1, 1, B, H)
        if dprevious is None:
            dprevious = through_W
        else:
            dprevious[:, :1] += through_W
        dprevious *= keep[at, None]  # nothing reaches across the beginning of a sentence
        return dx, dq, dprevious

    def backward(doutputs: Array) -> tuple[Array, Array]:
        dx = work.array("dx", x.shape, x.dtype)
        dq = work.array("dq", x.shape, x.dtype)
        if truncate is None:
            # delta(k) = sum over t >= k of delta_t(k) obeys the same recursion as each delta_t: one pass for all t.
            dstate = np.zeros((1, M, B, H), x.dtype)
            for t in reversed(range(T)):
                dstate[0, 0] += doutputs[t]
                at = slice(t, t + 1)
                dx[at], dq[at], dstate = step_back(dstate, at)
        else:
            # By lag: row k of `dstate` holds dE_{k+lag}/ds_k, for all k at once; (9) makes the next lag of this one.
            dx[...] = dq[...] = 0
            dstate = np.zeros((T, M, B, H), x.dtype)
            dstate[:, 0] = doutputs
            for lag in range(min(truncate + 1, T)):
                at = slice(0, T - lag)
                dx_lag, dq_lag, dstate = step_back(dstate, at)
                dx[at] += dx_lag
                dq[at] += dq_lag
                dstate = dstate[1:]  # no state of this window lies before its first step
        dW = work.array("dW", W.shape, W.dtype)
        return dx, work.matmul(dq.reshape(T * B, -1).T, previous[:, 0].reshape(T * B, H), out=dW)  # (10)

    return (states[1:, 0], states[T].copy()), backward


class Softmax:
    """Losses and gradients of one softmax over some rows of V, at N positions: (3) to (7) in one kernel.

    The rows are cut into slices, which threads take one at a time. A slice's exponentials e^{l - peak}, where `peak`
    is its own largest logit, are written once and read by both products of the backward pass: p is e^{peak - log Z}
    times them, and that factor is put on the rows of the thin S and dS rather than on the wide p. What 1_y takes from
    p, divided by the factor, is taken from the target's e.
    """

    def __init__(self, name: object, S: Array, targets: Array, V: Array, c: Array, work: Workspace) -> None:
        self.S, self.targets, self.V, self.c = S, targets, V, c  # (N, H), (N,), (rows, H), (rows,)
        count = -(-len(V) // SLICE_WORDS)
        edges = [len(V) * k // count for k in range(count + 1)]
        self.slices = [slice(*edge) for edge in itertools.pairwise(edges)]
        self.here: dict[int, tuple[Array, Array]] = {}  # positions whose target lies in a slice, and its column there
        self.name, self.work = name, work
        self.peaks = work.array((name, "peaks"), (count, len(S)), S.dtype)
        self.sums = work.array((name, "sums"), (count, len(S)), S.dtype)
        self.target_logits = work.array((name, "target_logits"), (len(S),), S.dtype)

    def _array(self, what: str, k: int, columns: int) -> Array:
        return self.work.array((self.name, what, k), (len(self.S), columns), self.S.dtype)

    def forward(self, k: int) -> None:
        """Make slice k's exponentials."""
        rows = self.slices[k]
        e = self._array("e", k, rows.stop - rows.start)
        np.matmul(self.S, self.V[rows].T, out=e)
        e += self.c[rows]  # the logits of (3)
        positions = np.flatnonzero((self.targets >= rows.start) & (self.targets < rows.stop))
        here = self.here[k] = positions, self.targets[positions] - rows.start
        self.target_logits[positions] = e[here]
        peak = np.max(e, axis=1, out=self.peaks[k])
        e -= peak[:, None]
        np.exp(e, out=e)
        np.matmul(e, np.ones(e.shape[1], e.dtype), out=self.sums[k])  # four times as fast as e.sum(axis=1)

    def losses(self) -> Array:
        """Return the losses (N,), once all slices are done."""
        peak = self.peaks.max(axis=0)
        self.log_Z = peak + np.log((self.sums * np.exp(self.peaks - peak)).sum(axis=0))  # (N,)
        losses: Array = self.log_Z - self.target_logits  # (4)
        return losses

    def backward(self, k: int, weights: Array, dV: Array, dc: Array) -> None:
        """Write slice k's rows of dV (rows, H) and dc (rows,), and keep its part of dS, given the losses' weights."""
        rows, S = self.slices[k], self.S
        e = self._array("e", k, rows.stop - rows.start)
        least = np.finfo(S.dtype).eps ** 2  # nothing beside 1, and its inverse is still a number
        factor = np.maximum(np.exp(self.peaks[k] - self.log_Z), least)  # (N,): p is e times this
        e[self.here[k]] -= 1 / factor[self.here[k][0]]  # (5): now p - 1_y is e times this
        factor *= weights
        scaled = np.multiply(S, factor[:, None], out=self._array("scaled", k, S.shape[1]))
        np.matmul(e.T, scaled, out=dV[rows])  # (6)
        np.matmul(factor, e, out=dc[rows])
        dS = np.matmul(e, self.V[rows], out=self._array("dS", k, S.shape[1]))  # (7)
        dS *= factor[:, None]

    def dstates(self) -> Array:
        """Return dS (N, H), once all slices are done."""
        dS, *others = (self._array("dS", k, self.S.shape[1]) for k in range(len(self.slices)))

        def add(rows: slice) -> None:
            for other in others:
                dS[rows] += other[rows]

        if others:
            self.work.each(add, runs(0, len(dS), PRODUCT_ROWS))
        return dS


def softmax_loss(
    S: Array, targets: Array, V: Array, c: Array, cutoffs: tuple[int, ...], work: Workspace
) -> tuple[Array, Callable[[Array], tuple[Array, Gradient, Gradient]]]:
    """Say how surprising each target is: (3) and (4), and their gradient.

    Takes states S (N, H), targets (N,), V (V + J, H) and c (V + J,). Returns the losses (N,), in nats, and a function
    from the weights (N,) with which they enter L to (dS, dV, dc).

    Without cutoffs (J = 0) there is one softmax over all words. J cutoffs, ascending ranks of words, split off J tails
    of rarer words, and p(word) becomes p(tail) p(word | tail), exactly (Goodman 2001; Mikolov et al. 2011, with classes
    of one kind; Grave et al. 2017, with few large ones): a softmax over the words before the first cutoff and a slot
    for each tail at every position, and one over a tail's words at the positions whose target lies there, a few. The
    rows of V are the first words, the J slots, and the tails' words.
    """
    J, first = len(cutoffs), cutoffs[0] if cutoffs else len(V)
    edges = [0, first + J, *(cutoff + J for cutoff in cutoffs[1:]), len(V)]
    tail = np.searchsorted(np.array(cutoffs, int), targets, side="right")  # (N,): 0 for a word before the first cutoff
    order = np.argsort(tail, kind="stable")
    begins = np.searchsorted(tail[order], np.arange(J + 2))  # tail j's positions are order[begins[j] : begins[j + 1]]
    head = Softmax("head", S, np.where(tail > 0, first + tail - 1, targets), V[: edges[1]], c[: edges[1]], work)
    softmaxes: list[tuple[Softmax, Any, slice]] = [(head, slice(None), slice(0, edges[1]))]
    for j in range(1, J + 1):
        positions, rows = order[begins[j] : begins[j + 1]], slice(edges[j], edges[j + 1])
        if positions.size:
            tail_targets = targets[positions] - cutoffs[j - 1]
            softmax = Softmax(j, S[positions], tail_targets, V[rows], c[rows], work)
            softmaxes.append((softmax, positions, rows))
    tasks = [(*part, k) for part in softmaxes for k in range(len(part[0].slices))]

    def forward_task(task: tuple[Softmax, Any, slice, int]) -> None:
        softmax, _, _, k = task
        softmax.forward(k)

    work.each(forward_task, tasks)
    losses = head.losses()
    for softmax, positions, _ in softmaxes[1:]:
        losses[positions] += softmax.losses()

    def backward(weights: Array) -> tuple[Array, Gradient, Gradient]:
        dV = work.array("dV", V.shape, V.dtype)
        dc = work.array("dc", c.shape, c.dtype)

        def backward_task(task: tuple[Softmax, Any, slice, int]) -> None:
            softmax, positions, rows, k = task
            softmax.backward(k, weights[positions], dV[rows], dc[rows])

        work.each(backward_task, tasks)
        dS = head.dstates()
        for softmax, positions, _ in softmaxes[1:]:
            dS[positions] += softmax.dstates()
        if not cutoffs:
            return dS, dV, dc
        spans = tuple(rows for _, _, rows in softmaxes)
        return dS, Spans(dV, spans), Spans(dc, spans)

    return losses, backward


# ---------------------------------------------------------------------------------------------------------------------
# The model


@dataclass(frozen=True)
class ModelSettings:
    """What kind of model it is; nothing here changes while it is trained."""

    words: int  # V, the size of the vocabulary, </s> and <unk> included
    hidden: int = 100  # H
    cell: str = "elman"  # a key of CELLS
    truncate: int | None = None  # K: errors reach this many steps back; None: to the window's first step
    carry_state: bool = False  # False: each sentence starts from a state of zero
    cutoffs: tuple[int, ...] = ()  # ranks at which clusters of rarer words begin; none: one softmax over all words


class LanguageModel:
    """Parameters, and the functions of them that training, scoring and generation need."""

    def __init__(self, settings: ModelSettings, parameters: Parameters) -> None:
        self.settings = settings
        self.parameters = parameters

    @staticmethod
    def shapes(settings: ModelSettings) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter."""
        V, H, gates = settings.words, settings.hidden, CELLS[settings.cell].gates
        rows = V + len(settings.cutoffs)
        return {"U": (V, gates * H), "W": (gates * H, H), "b": (gates * H,), "V": (rows, H), "c": (rows,)}

    @classmethod
    def initialize(
        cls, settings: ModelSettings, counts: Array, generator: np.random.Generator, dtype: DTypeLike = np.float32
    ) -> LanguageModel:
        """Draw U, W and V uniformly from ±1/sqrt(fan-in), and set c so that the model starts from word frequencies.

        `counts` (V,) says how often each word occurs in training. With c = log p(word) the first steps of training
        need not be spent on learning it; a word that never occurs counts as half an occurrence.
        """
        shapes = cls.shapes(settings)
        parameters: Parameters = {"b": np.zeros(shapes["b"], dtype)}
        for name, fan_in in (("U", settings.words), ("W", settings.hidden), ("V", settings.hidden)):
            limit = 1 / np.sqrt(fan_in)
            parameters[name] = generator.uniform(-limit, limit, shapes[name]).astype(dtype)
        parameters["c"] = np.log(output_frequencies(counts, settings.cutoffs)).astype(dtype)
        return cls(settings, {name: parameters[name] for name in shapes})

    def start(self, streams: int) -> Array:
        """Return the memories (M, B, H) before the first word of each of B streams: zero."""
        memories = CELLS[self.settings.cell].memories
        return np.zeros((memories, streams, self.settings.hidden), self.parameters["W"].dtype)

    def states(
        self, inputs: Array, state: Array, work: Workspace, dropout: Dropout | None = None
    ) -> tuple[tuple[Array, Array], Callable[[Array], Gradients]]:
        """Read a window: inputs (T, B), and the memories before it. Returns the outputs, the memories, and backward."""
        U, W, b = (self.parameters[name] for name in ("U", "W", "b"))
        keep = np.ones((*inputs.shape, 1), W.dtype)
        if not self.settings.carry_state:
            keep[inputs == SENTENCE_END] = 0
        x, embed_backward = embed(inputs, U, b, dropout, work)
        cell, truncate = CELLS[self.settings.cell], self.settings.truncate
        (outputs, state), recur_backward = recur(x, W, keep, state, cell, truncate, work)
        outputs, drop_backward = drop(outputs, dropout, "outputs", work)

        def backward(doutputs: Array) -> Gradients:
            dx, dW = recur_backward(drop_backward(doutputs))
            dU, db = embed_backward(dx)
            return {"U": dU, "W": dW, "b": db}

        return (outputs, state), backward

    def losses(
        self, inputs: Array, targets: Array, state: Array, work: Workspace, dropout: Dropout | None = None
    ) -> tuple[tuple[Array, Array], Callable[[Array], Gradients]]:
        """Say how surprising each target of a window is, with zeros put in where `dropout` is given.

        Takes inputs and targets (T, B), word ids, where a target may be IGNORED, and the memories (M, B, H) before the
        window. Returns the losses (T, B) in nats, zero where ignored, with the memories after the window; and a
        function from the weights (T, B) of the losses in L to the gradients. It reads, and writes over, what this call
        left in `work`: call it once, before the next window.
        """
        (outputs, state), states_backward = self.states(inputs, state, work, dropout)
        counted = np.flatnonzero(targets.reshape(-1) != IGNORED)
        every = counted.size == targets.size  # as in all windows but an epoch's last few: then nothing is copied
        S = outputs.reshape(targets.size, -1)
        V, c = self.parameters["V"], self.parameters["c"]
        flat_losses, softmax_backward = softmax_loss(
            S if every else S[counted], targets.reshape(-1)[counted], V, c, self.settings.cutoffs, work
        )
        losses = np.zeros(targets.size, S.dtype)
        losses[counted] = flat_losses

        def backward(weights: Array) -> Gradients:
            dS, dV, dc = softmax_backward(weights.reshape(-1)[counted].astype(S.dtype))
            doutputs = dS
            if not every:
                doutputs = np.zeros_like(S)
                doutputs[counted] = dS
            return {**states_backward(doutputs.reshape(outputs.shape)), "V": dV, "c": dc}

        return (losses.reshape(targets.shape), state), backward

    def step(self, words: Array, state: Array, work: Workspace) -> tuple[Array, Array]:
        """Read one word a stream (B,), and return log p of every word that may follow (B, V), and the new memories."""
        (outputs, state), _ = self.states(words[None], state, work)
        V, c = self.parameters["V"], self.parameters["c"]
        logits = work.array("logits", (len(words), len(V)), V.dtype)
        work.matmul(V, outputs[0].T, out=logits.T)
        log_p = np.empty((len(words), self.settings.words), V.dtype)

        def normalize(rows: slice) -> None:
            log_p[rows] = log_probabilities(logits[rows] + c, self.settings.cutoffs)

        work.each(normalize, runs(0, len(words), STREAMS))
        return log_p, state


def log_probabilities(logits: Array, cutoffs: tuple[int, ...]) -> Array:
    """Return log p (B, V) of all words, from the logits (B, V + J) of the rows of V that `softmax_loss` describes."""
    if not cutoffs:
        return log_softmax(logits)
    J, first = len(cutoffs), cutoffs[0]
    head = log_softmax(logits[:, : first + J])
    tails = [
        head[:, first + j, None] + log_softmax(logits[:, J + start : J + stop])
        for j, (start, stop) in enumerate(itertools.pairwise((*cutoffs, logits.shape[1] - J)))
    ]
    return np.concatenate((head[:, :first], *tails), axis=1)


def log_softmax(logits: Array) -> Array:
    """Return the logarithm of the softmax of each row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # (3)
    return log_p


def output_frequencies(counts: Array, cutoffs: tuple[int, ...] = ()) -> Array:
    """Return the frequency of what each row of V stands for, a word or a tail of words, from the words' counts (V,).

    A word that never occurs counts as half an occurrence.
    """
    frequency = np.maximum(counts, 0.5)
    frequency = frequency / frequency.sum()
    slots = [frequency[start:stop].sum() for start, stop in itertools.pairwise((*cutoffs, len(frequency)))]
    first = cutoffs[0] if cutoffs else len(frequency)
    return np.concatenate((frequency[:first], slots if cutoffs else [], frequency[first:]))


def mean_weights(targets: Array) -> Array:
    """Weights (T, B) that make L the mean over the positions that are not ignored."""
    counted = targets != IGNORED
    return np.asarray(counted / max(1, np.count_nonzero(counted)))


# ---------------------------------------------------------------------------------------------------------------------
# Stochastic gradient descent


INPUT_RATE = 4.0  # the rate of U's rows, and
OUTPUT_RATE = 0.4  # of V's and c's, beside that of W and b: measured, see docs/benchmarks.md


def joint_norm(gradients: Mapping[str, Gradient], work: Workspace) -> float:
    """Euclidean norm of all gradients taken together, the one number that clipping compares."""
    parts = [values.reshape(-1) for gradient in gradients.values() for _, values in _blocks(gradient)]
    squares = np.zeros(len(parts))  # float32 products of short parts, summed in float64: quick, and exact enough

    def square(number: int) -> None:
        squares[number] = np.dot(parts[number], parts[number])

    work.each(square, range(len(parts)))
    return math.sqrt(squares.sum())


def decay(parameters: Parameters, factor: float, work: Workspace) -> None:
    """Shrink U and V, all of their rows, which is the step along the gradient of their squared norm (L2)."""
    blocks = [block for name in ("U", "V") for _, block in _blocks(parameters[name])]
    work.each(lambda block: np.multiply(block, factor, out=block), blocks)


def _blocks(gradient: Gradient) -> Iterator[tuple[Any, Array]]:
    """Cut a gradient into blocks of about BLOCK numbers; yields the rows of the table, and what belongs to them."""
    values = gradient if isinstance(gradient, np.ndarray) else gradient.values
    spans = gradient.rows if isinstance(gradient, Spans) else (slice(0, len(values)),)
    step = max(1, BLOCK * len(values) // values.size)
    for span in spans:
        for rows in runs(span.start, span.stop, step):
            yield gradient.ids[rows] if isinstance(gradient, Rows) else rows, values[rows]


def word_rates(counts: Array, power: float, cutoffs: tuple[int, ...] = ()) -> Array:
    """Learning rates for the rows of U, V and c, relative to that of W: p(word)^-power.

    Of the N positions in the mean, only p(w) N read row w of U: its gradient, and the loss's curvature along it, shrink
    with p(w), and a rate that is safe for "the" leaves rare words where they began. Newton's method would divide by the
    curvature, power 1. Power 1/2 is the cautious middle at which Adagrad (Duchi et al. 2011) arrives by summing squared
    gradients; here the counts give it beforehand, without state. Power 0 is plain SGD.
    """
    return np.asarray(output_frequencies(counts, cutoffs) ** -power)


class Rule(NamedTuple):
    """What one kind of optimizer computes, elementwise; `Optimizer` does everything else.

    `direction(gradient, memory, time, momentum)` updates the arrays of `memory`, `slots` of them, in place, and returns
    what the parameter moves against. `time` counts steps from 1.
    """

    slots: tuple[str, ...]
    direction: Callable[[Array, list[Array], int, float], Array]
    scale_free: bool  # whether a gradient ten times as large gives the same direction
    learning_rate: float  # a good one to begin with


def _sgd(gradient: Array, memory: list[Array], time: int, momentum: float) -> Array:
    if not momentum:
        return gradient
    velocity = memory[0]
    velocity *= momentum
    velocity += gradient
    return velocity


def _adagrad(gradient: Array, memory: list[Array], time: int, momentum: float) -> Array:
    """Divide by the root of the sum of squared gradients (Duchi et al. 2011)."""
    squares = memory[0]
    squares += gradient * gradient
    return gradient / (np.sqrt(squares) + EPSILON)


def _adam(gradient: Array, memory: list[Array], time: int, momentum: float) -> Array:
    """Divide a running mean of gradients by the root of one of their squares (Kingma and Ba 2015)."""
    mean, square = memory
    mean += (1 - ADAM_MEAN) * (gradient - mean)
    square += (1 - ADAM_SQUARE) * (gradient * gradient - square)
    direction: Array = mean / (np.sqrt(square / (1 - ADAM_SQUARE**time)) + EPSILON)
    direction /= 1 - ADAM_MEAN**time
    return direction


EPSILON, ADAM_MEAN, ADAM_SQUARE = 1e-8, 0.9, 0.999
RULES: dict[str, Rule] = {
    "sgd": Rule(("velocity",), _sgd, scale_free=False, learning_rate=0.00075),
    "adagrad": Rule(("squares",), _adagrad, scale_free=True, learning_rate=0.05),
    "adam": Rule(("mean", "square"), _adam, scale_free=True, learning_rate=0.002),
}


class Optimizer:
    """Steps against the gradients: for each parameter X, X -= rate * relative rate * direction.

    Only "sgd" has relative rates, `word_rates`, for the rows of the tables of words; the others find their own. The
    rows of U and V that a window does not touch are left alone, memory and all, as in lazy variants of these methods.
    """

    def __init__(
        self,
        kind: str,
        parameters: Parameters,
        counts: Array,
        momentum: float = 0.0,
        power: float = 0.5,
        cutoffs: tuple[int, ...] = (),
    ) -> None:
        self.rule = RULES[kind]
        self.momentum = momentum
        self.rates: dict[str, Array] = {}
        if kind == "sgd" and power:
            inputs = INPUT_RATE * word_rates(counts, power)
            outputs = OUTPUT_RATE * word_rates(counts, power, cutoffs)
            table = {"U": inputs[:, None], "V": outputs[:, None], "c": outputs}
            self.rates = {name: rate.astype(parameters[name].dtype) for name, rate in table.items()}
        slots = self.rule.slots if kind != "sgd" or momentum else ()
        self.memory = {name: {slot: np.zeros_like(array) for slot in slots} for name, array in parameters.items()}

    def step(
        self,
        parameters: Parameters,
        gradients: Gradients,
        rate: float,
        work: Workspace,
        *,
        shrink: float = 1.0,
        time: int = 1,
    ) -> None:
        """Change the parameters in place, against the gradients times `shrink`. The gradients are overwritten."""
        tasks = [(name, *block) for name, gradient in gradients.items() for block in _blocks(gradient)]

        def move(task: tuple[str, Any, Array]) -> None:
            name, rows, gradient = task
            if shrink != 1:
                gradient *= shrink
            memory = [slot[rows] for slot in self.memory[name].values()]
            direction = self.rule.direction(gradient, memory, time, self.momentum)
            relative = self.rates[name][rows] if name in self.rates else 1
            parameters[name][rows] -= np.multiply(direction, relative * gradient.dtype.type(rate), out=gradient)
            if not isinstance(rows, slice):  # then memory is a copy
                for slot, changed in zip(self.memory[name].values(), memory, strict=True):
                    slot[rows] = changed

        work.each(move, tasks)
